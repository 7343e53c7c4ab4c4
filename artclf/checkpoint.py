"""Committed states of a run: write one, find the newest sound one, restore it.

    checkpoint/
      gen-000007/  state.json weights.npz optimizer.npz best.npz  manifest.json
      gen-000008/  …
      bad-gen-000006/   a generation that failed its check: kept, never used

A generation gets its name only when all its files are on the disk, and its manifest (sizes and
SHA-256 of every file, and of itself) proves it at load: a name is a promise, the manifest the
proof. What others put beside its files (SageMaker's agent does) is passed over. Two are kept.
Nothing here knows Keras: arrays come and go by name.

A trainer commits to a GenerationStore, a folder of its machine, where a generation appears by the
rename of its folder. container.generations copies generations to a bucket, where their manifest,
put last and only if there is none, makes them appear.
"""

from __future__ import annotations

import contextlib
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

from artclf.errors import DivergedError, ResumeError, StorageError, storage_error
from artclf.storage import TEMPORARY, atomic_folder, free_path, sync_folder

FORMAT = "artclf-checkpoint/2"
MANIFEST = "manifest.json"
KEPT = 2
_ALWAYS = {"state.json", "weights.npz"}
_GENERATION = re.compile(r"gen-([0-9]{6,})|bad-gen-([0-9]{6,})(?:-[0-9]+)?")
_NOT_A_FILE = (errno.EISDIR, errno.ENOTDIR, errno.ELOOP)

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
        step, or not at all. ``size_bytes`` is about what it needs.

        Raises:
            StorageError: if the place refuses, or the number is taken: two writers are at work.
        """

    def fetch(self, number: int) -> Path:
        """Returns a folder of this machine with a generation's files; it is missing if the generation is."""

    def set_aside(self, number: int) -> None:
        """Keeps a damaged generation where it is never used again."""

    def remove(self, number: int) -> None:
        """Removes a generation, in one step for every reader."""

    def sweep(self) -> None:
        """Removes what killed commits and removals left."""


class Checkpoints:
    """The committed states of one run.

    Args:
        store: where they are kept.
        progress: is called after each part of a commit that has been written.
    """

    def __init__(self, store: GenerationStore, progress: Callable[[], None] = lambda: None) -> None:
        self._store, self._progress = store, progress

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
                self._progress()
            files = {}
            for file in sorted(folder.iterdir()):
                files[file.name] = _fingerprint(file)
                self._progress()
            (folder / MANIFEST).write_bytes(sealed({"format": FORMAT, "number": number, "files": files}))

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
            try:
                return _load(folder, newest), damaged
            except _Damaged as problem:
                if newest in self._store.numbers():  # else its writer removed it while we looked: there are newer ones
                    damaged.append(f"{folder.name}: {problem}")
                    self._store.set_aside(newest)
        if self._store.last_number():
            problems = "; ".join(damaged) or "all were set aside before"
            raise ResumeError(f"{self._store.uri}: no committed state is sound ({problems}).")
        return None, []


def newest_state(store: GenerationStore) -> dict[str, Any] | None:
    """Returns the state of the newest generation that has a readable one, unchecked: for a look before anything
    heavy is loaded. None if there is none."""
    for number in reversed(store.numbers()):
        with contextlib.suppress(OSError, ValueError, RecursionError):
            state = json.loads((store.fetch(number) / "state.json").read_bytes())
            if isinstance(state, dict):
                return state
    return None


class LocalGenerations:
    """Generations as folders of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = str(folder)

    def numbers(self) -> list[int]:
        names = ((match[0], int(match[1])) for match in self._names() if match[1])
        return sorted(number for name, number in names if name == self._path(number).name)

    def last_number(self) -> int:
        return max((int(match[1] or match[2]) for match in self._names()), default=0)

    def commit(self, number: int, fill: Callable[[Path], None], size_bytes: int) -> None:
        if self._path(number).exists():
            raise StorageError(f"{self._path(number)}: is there already: another writer is at work in this folder.")
        with atomic_folder(self._path(number), size_bytes) as temporary:
            fill(temporary)

    def fetch(self, number: int) -> Path:
        return self._path(number)

    def set_aside(self, number: int) -> None:
        self._rename(number, free_path(self.folder / f"bad-{self._path(number).name}").name, "set aside")
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


class _Damaged(Exception):
    """What is wrong with a generation."""


def damage(folder: Path, number: int) -> str | None:
    """Returns what is wrong with a generation's files, or None if every byte is as it was committed.

    Raises:
        ResumeError: if it was saved in another format.
        StorageError: if a file is there but cannot be opened, which says nothing about its content.
    """
    try:
        _verified(folder, number)
        return None
    except _Damaged as problem:
        return str(problem)


def _verified(folder: Path, number: int) -> list[str]:
    """Returns the names of a generation's files, each of them as it was committed."""
    try:
        manifest = _unsealed((folder / MANIFEST).read_bytes())
        if manifest is None:
            raise _Damaged("its manifest is damaged")
        if manifest["format"] != FORMAT:
            raise ResumeError(
                f"{folder}: saved in the format {manifest['format']}, this version of artclf reads {FORMAT}. "
                f"Go on with the version that saved it."
            )
        if manifest["number"] != number:
            raise _Damaged(f"it is a copy of generation {manifest['number']}")
        files: dict[str, Any] = manifest["files"]
        if not files.keys() >= _ALWAYS:
            raise _Damaged("its manifest does not name a whole state")
        for name, expected in files.items():
            if _fingerprint(folder / name) != expected:
                raise _Damaged(f"{name} is not as it was committed")
        return list(files)
    except FileNotFoundError as error:
        raise _Damaged(f"{Path(error.filename).name} is missing") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise _Damaged("its manifest is not in the form of one") from error
    except OSError as error:
        if error.errno == errno.EIO or error.errno in _NOT_A_FILE:
            raise _Damaged(f"{Path(error.filename or folder).name} cannot be read: {error.strerror}") from error
        raise storage_error("read", folder, error) from error


def size_bytes(arrays: Mapping[str, Arrays]) -> int:
    """Returns what the arrays of a state take in memory, and about what they take on a disk."""
    return sum(array.nbytes for members in arrays.values() for array in members.values())


def _load(folder: Path, number: int) -> Generation:
    """Returns a generation after its check. Raises _Damaged if it fails."""
    groups = [Path(name).stem for name in _verified(folder, number) if name.endswith(".npz")]
    try:
        state = json.loads((folder / "state.json").read_bytes())
        arrays = {}
        for group in groups:
            with np.load(folder / f"{group}.npz", allow_pickle=False) as members:
                arrays[group] = {name: members[name] for name in members.files}
    except FileNotFoundError as error:
        raise _Damaged("it is gone") from error
    return Generation(number, state, arrays)


def _fingerprint(file: Path) -> dict[str, Any]:
    with open(file, "rb") as opened:
        return {"bytes": os.fstat(opened.fileno()).st_size, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}


def sealed(content: dict[str, Any]) -> bytes:
    """Returns JSON that carries the SHA-256 of the rest of it."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, "sha256": digest}, indent=2).encode()


def _unsealed(text: bytes) -> dict[str, Any] | None:
    """Returns the content of sealed JSON, or None if any byte of it is not as it was written."""
    try:
        content = json.loads(text)
        del content["sha256"]
        return content if sealed(content) == text else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _refuse_not_finite(arrays: Mapping[str, Arrays]) -> None:
    for group, members in arrays.items():
        for array in members.values():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise DivergedError(
                    f"a value of the {group} is not finite: the training diverged. Try a smaller train.learning_rate."
                )
