"""Which class a path means: from the folder it lies in, its file name, or a table of labels.

The rules, in this order:
1. A table of labels decides alone.
2. A file belongs to the outermost folder (below the source's root) that holds pictures directly. So
   wrappers (``images/images/Titian``), ready-made splits (``train/Titian``) and sub-folders of a
   class all do what is meant.
3. Files named ``<Class>_<number>`` that lie in no such folder, or together in one that is plainly no
   class (``resized/Titian_1.jpg`` beside a folder ``Titian``), take the class from their name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from artclf.names import display, flat_label, fold, repair, slug

_SPLIT_NAMES = frozenset(
    part + suffix
    for part in ("train", "training", "val", "valid", "validation", "test", "testing", "eval")
    for suffix in ("", "set")
)
_MAX_FLAT_LABELS = 100_000


@dataclass
class _Folder:
    flat: bool = True  # every picture directly here is named <Class>_<number>
    labels: set[str] = field(default_factory=set)  # the classes that those names would give


class Layout:
    """Learns the folders of one source, then tells the class of each of its pictures."""

    def __init__(self) -> None:
        self._folders: dict[str, _Folder] = {}

    def add(self, name: str) -> None:
        """Takes note of one picture's path."""
        path, _, file_name = name.rpartition("/")
        folder = self._folders.setdefault(path, _Folder())
        if not folder.flat:
            return
        label = flat_label(file_name)
        if label is None or len(folder.labels) > _MAX_FLAT_LABELS:
            folder.flat = False
            folder.labels.clear()
        else:
            folder.labels.add(label)

    def settle(self) -> None:
        """Decides which folders are classes; call once after the last add."""
        self._class_folders = {path for path in self._folders if path and not self._has_outer(path)}
        names = {fold(path.rpartition("/")[2]) for path in self._class_folders}
        plain = {path for path in self._class_folders if self._is_flat(path, names)}
        self._class_folders -= plain

    def label(self, name: str) -> str | None:
        """Returns the class that a path means as it is spelt there, or None if it means none."""
        path, _, file_name = name.rpartition("/")
        while path:
            if path in self._class_folders:
                return path.rpartition("/")[2]
            path = path.rpartition("/")[0]
        return flat_label(file_name)

    def _has_outer(self, path: str) -> bool:
        parts = path.split("/")
        return any("/".join(parts[:depth]) in self._folders for depth in range(1, len(parts)))

    def _is_flat(self, path: str, class_names: set[str]) -> bool:
        folder = self._folders[path]
        own = fold(path.rpartition("/")[2])
        labels = {fold(label) for label in folder.labels}
        if not folder.flat or own in labels:
            return False
        return own in _SPLIT_NAMES or (len(labels) > 1 and (len(class_names) == 1 or labels <= class_names))


@dataclass(frozen=True)
class Naming:
    """What became of the spellings of all class names.

    Attributes:
        slugs: {name as spelt: slug}.
        displays: {slug: name for people}.
        repaired: (name as spelt, slug) of each that was read in a wrong code page.
        clashes: for each slug that several different names lead to only by repair, those names.
        alike: groups of slugs that differ in case, accents or punctuation only.
    """

    slugs: dict[str, str]
    displays: dict[str, str]
    repaired: list[tuple[str, str]]
    clashes: list[list[str]]
    alike: list[list[str]]


def settle_names(names: Iterable[str]) -> Naming:
    """Returns one slug for every spelling of a class name: equal for names that differ in Unicode form
    or blanks only, or of which one proves to be the other read in a wrong code page."""
    spelt = sorted(set(names))
    slugs = {name: slug(repair(name)) for name in spelt}
    by_slug: dict[str, list[str]] = {}
    by_fold: dict[str, list[str]] = {}
    for name in spelt:
        by_slug.setdefault(slugs[name], []).append(name)
    for chosen in by_slug:
        by_fold.setdefault(fold(chosen), []).append(chosen)
    return Naming(
        slugs=slugs,
        displays={chosen: display(spellings[0]) for chosen, spellings in by_slug.items()},
        repaired=[(name, slugs[name]) for name in spelt if slugs[name] != slug(name)],
        clashes=[spellings for spellings in by_slug.values() if len({slug(name) for name in spellings}) > 1],
        alike=[group for group in by_fold.values() if len(group) > 1],
    )
