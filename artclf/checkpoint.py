"""Committed states of a run: write one, find the newest sound one, restore it.

    checkpoint/
      gen-000007/  state.json weights.npz optimizer.npz best.npz  manifest.json
      gen-000008/  …
      bad-gen-000006/   a generation that failed its check: kept, never used

A generation gets its name only when all its files are on the disk, and its manifest (sizes and
SHA-256 of every file, and of itself) proves it at load: a name is a promise, the manifest the
proof. Two are kept. Nothing here knows Keras: arrays come and go by name.

What makes a generation appear in one step differs between a disk (the rename of its folder) and a
bucket (its manifest, put last and only if there is none): that is a GenerationStore.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from artclf.errors import DivergedError, ResumeError, storage_error
from artclf.storage import TEMPORARY, atomic_folder, sync_folder

FORMAT = "artclf-checkpoint/2"
MANIFEST = "manifest.json"
KEPT = 2
_ALWAYS = {"state.json", "weights.npz"}
_GENERATION = re.compile(r"(bad-)?gen-(\d{6,})")

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Generation:
    """One committed state.

    Attributes:
        number: later ones are larger.
        state: all that is not an array: place in the training, counters, history.
        arrays: by group (weights, optimizer, best) and name.
    """

    number: int
    state: dict[str, Any]
    arrays: dict[str, Arrays]


class GenerationStore(Protocol):
    """A place that keeps generations. Only the run's one trainer writes to it; anyone may read."""

    uri: str

    def numbers(self) -> list[int]:
        """Returns the committed generations, oldest first."""

    def last_number(self) -> int:
        """Returns the highest number that was ever given here, those set aside included; 0 if none was."""

    def commit(self, number: int, fill: Callable[[Path], None], size_bytes: int) -> None:
        """Makes a generation of the files, the manifest last, that ``fill`` puts into an empty folder: in one
        step, or not at all. ``size_bytes`` is about what it needs."""

    def fetch(self, number: int) -> Path:
        """Returns a folder of this machine with a generation's files; it is missing if the generation is."""

    def set_aside(self, number: int) -> None:
        """Keeps a damaged generation where it is never used again."""

    def remove(self, number: int) -> None:
        """Removes a generation, in one step for every reader."""

    def sweep(self) -> None:
        """Removes what killed commits and removals left."""


class Checkpoints:
    """The committed states of one run."""

    def __init__(self, store: GenerationStore) -> None:
        self._store = store

    def commit(self, state: Mapping[str, Any], arrays: Mapping[str, Arrays]) -> int:
        """Commits a new generation, then removes all but the two newest; returns its number.

        Raises:
            DivergedError: if a value is not finite; nothing is written.
            StorageError: if the disk refuses; the generations before it stay as they were.
        """
        _refuse_not_finite(arrays)
        number = self._store.last_number() + 1

        def fill(folder: Path) -> None:
            (folder / "state.json").write_text(json.dumps(state))
            for group, members in arrays.items():
                np.savez(folder / f"{group}.npz", **members)  # type: ignore[arg-type]
            files = {file.name: _fingerprint(file) for file in sorted(folder.iterdir())}
            (folder / MANIFEST).write_bytes(_sealed({"format": FORMAT, "number": number, "files": files}))

        self._store.commit(number, fill, size_bytes(arrays))
        for old in self._store.numbers()[:-KEPT]:
            self._store.remove(old)
        self._store.sweep()
        return number

    def restore(self) -> tuple[Generation | None, list[str]]:
        """Returns the newest sound generation (None if there never was one) and what was found
        damaged on the way, which is set aside under a name that begins with ``bad-``.

        Raises:
            ResumeError: if there are generations but none is sound.
            StorageError: if one cannot be read for a reason that is no damage.
        """
        damaged: list[str] = []
        while numbers := self._store.numbers():
            newest = numbers[-1]
            folder = self._store.fetch(newest)
            problem = damage(folder, newest)
            try:
                if problem is None:
                    return _load(folder, newest), damaged
            except FileNotFoundError:
                problem = "it is gone"
            if newest not in self._store.numbers():
                continue  # its writer removed it while we looked: there are newer ones
            damaged.append(f"{folder.name}: {problem}")
            self._store.set_aside(newest)
        if self._store.last_number():
            problems = "; ".join(damaged) or "all were set aside before"
            raise ResumeError(f"{self._store.uri}: no committed state is sound ({problems}).")
        return None, []


class LocalGenerations:
    """Generations as folders of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = str(folder)

    def numbers(self) -> list[int]:
        return sorted(int(match[2]) for match in self._names() if not match[1])

    def last_number(self) -> int:
        return max((int(match[2]) for match in self._names()), default=0)

    def commit(self, number: int, fill: Callable[[Path], None], size_bytes: int) -> None:
        with atomic_folder(self._path(number), size_bytes) as temporary:
            fill(temporary)

    def fetch(self, number: int) -> Path:
        return self._path(number)

    def set_aside(self, number: int) -> None:
        self._rename(number, f"bad-{self._path(number).name}", "set aside")
        sync_folder(self.folder)

    def remove(self, number: int) -> None:
        self._rename(number, f"{TEMPORARY}old-{number:06d}", "remove")

    def sweep(self) -> None:
        for leftover in self.folder.glob(f"{TEMPORARY}*"):
            shutil.rmtree(leftover, ignore_errors=True)  # tried again after the next commit

    def _names(self) -> list[re.Match[str]]:
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        return [match for match in map(_GENERATION.fullmatch, names) if match]

    def _path(self, number: int) -> Path:
        return self.folder / f"gen-{number:06d}"

    def _rename(self, number: int, name: str, action: str) -> None:
        try:
            os.rename(self._path(number), self.folder / name)
        except OSError as error:
            raise storage_error(action, self._path(number), error) from error


def damage(folder: Path, number: int) -> str | None:
    """Returns what is wrong with a generation's files, or None if every byte is as it was committed.

    Raises:
        StorageError: if a file is there but cannot be opened, which says nothing about its content.
    """
    try:
        manifest = _unsealed((folder / MANIFEST).read_bytes())
        if manifest is None:
            return "its manifest is damaged"
        if manifest["format"] != FORMAT or manifest["number"] != number:
            return f"its manifest is of another format ({manifest['format']}) or place ({manifest['number']})"
        expected = manifest["files"]
        found = {file.name: _fingerprint(file) for file in folder.iterdir() if file.name != MANIFEST}
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        if error.errno == errno.EIO:
            return "it cannot be read (input/output error)"
        raise storage_error("read", folder, error) from error
    if not expected.keys() >= _ALWAYS:
        return "its manifest does not name a whole state"
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} is not in its manifest"
        if found[name] != expected[name]:
            return f"{name} is not as it was committed"
    return None


def size_bytes(arrays: Mapping[str, Arrays]) -> int:
    """Returns what the arrays of a state take in memory, and about what they take on a disk."""
    return sum(array.nbytes for members in arrays.values() for array in members.values())


def _load(folder: Path, number: int) -> Generation:
    state = json.loads((folder / "state.json").read_bytes())
    arrays = {}
    for file in sorted(folder.glob("*.npz")):
        with np.load(file, allow_pickle=False) as members:
            arrays[file.stem] = {name: members[name] for name in members.files}
    return Generation(number, state, arrays)


def _fingerprint(file: Path) -> dict[str, Any]:
    with open(file, "rb") as opened:
        return {"bytes": os.fstat(opened.fileno()).st_size, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}


def _sealed(content: dict[str, Any]) -> bytes:
    """Returns JSON that carries the SHA-256 of the rest of it."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, "sha256": digest}, indent=2).encode()


def _unsealed(text: bytes) -> dict[str, Any] | None:
    """Returns the content of sealed JSON, or None if any byte of it is not as it was written."""
    try:
        content = json.loads(text)
        del content["sha256"]
        return content if _sealed(content) == text else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _refuse_not_finite(arrays: Mapping[str, Arrays]) -> None:
    for group, members in arrays.items():
        for array in members.values():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise DivergedError(
                    f"a value of the {group} is not finite: the training diverged. Try a smaller train.learning_rate."
                )
