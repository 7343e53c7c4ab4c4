"""Committed states of a run in a bucket: the same files as on a disk (artclf.checkpoint), the manifest put last.

    checkpoint/gen-000007/  state.json weights.npz …  manifest.json

A generation is there once its manifest is, which is put only if there is none; the manifest proves every other
file. ``BAD`` beside it marks one that failed its check: kept, never used.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from artclf.checkpoint import KEPT, MANIFEST, damage
from artclf.errors import ResumeError, StorageError
from artclf.s3 import DamagedObject, S3Storage
from artclf.storage import MARKERS, make_folder

_KEY = re.compile(r"(gen-([0-9]{6,}))/([^/]+)")
_BAD = "BAD"


class BucketGenerations:
    """The generations below one prefix. Only the holder of the run's lease writes them; anyone may read."""

    def __init__(self, storage: S3Storage) -> None:
        self._storage = storage

    def numbers(self) -> list[int]:
        """Returns the committed generations that were not found damaged, oldest first."""
        return _sound(self._files())

    def bad_numbers(self) -> list[int]:
        """Returns the generations that were found damaged, oldest first."""
        return sorted(number for number, files in self._files().items() if _BAD in files)

    def put(self, number: int, folder: Path, check: Callable[[], object] = lambda: None) -> None:
        """Commits a generation whose files lie in a folder, then removes all but the newest two, and what killed
        writers left of older ones.

        Args:
            check: is called before each file; raises where this writer no longer holds the run.

        Raises:
            StorageError: if the bucket refuses, or another writer committed that number.
        """
        name = f"gen-{number:06d}"
        key, manifest = f"{name}/{MANIFEST}", (folder / MANIFEST).read_bytes()
        if (there := self._manifest(key)) is None:  # looked for before too: no file of a committed one is replaced
            for file in sorted(folder.iterdir()):
                if file.name != MANIFEST:
                    check()
                    self._storage.upload(f"{name}/{file.name}", file)
            check()
            there = manifest if self._storage.create(key, manifest) else self._manifest(key)
        if there != manifest:
            raise StorageError(f"{self._storage.uri}/{name}: is there already: another writer is at work on this run.")
        files = self._files()
        oldest_kept = min(_sound(files)[-KEPT:], default=0)
        for old, names in files.items():
            if old < oldest_kept and _BAD not in names:
                self._remove(old, names)

    def _manifest(self, key: str) -> bytes | None:
        try:
            return self._storage.read(key)
        except FileNotFoundError:
            return None

    def _fetch(self, number: int, files: set[str], folder: Path) -> None:
        name = f"gen-{number:06d}"
        make_folder(folder)
        for file in files:
            if not file.endswith(MARKERS):
                self._storage.download(f"{name}/{file}", folder / file)

    def fetch_newest_sound(self, target: Path) -> tuple[int | None, list[str]]:
        """Downloads the newest sound generation into ``target``/gen-NNNNNN and returns its number (None if there
        never was one), and what was found damaged on the way, which is marked and never used again.

        Raises:
            ResumeError: if there are generations but none is sound.
        """
        problems: list[str] = []
        while numbers := _sound(there := self._files()):
            newest = numbers[-1]
            folder = target / f"gen-{newest:06d}"
            try:
                self._fetch(newest, there[newest], folder)
                problem = damage(folder, newest)
            except (FileNotFoundError, DamagedObject) as error:
                problem = str(error)
            if problem is None:
                return newest, problems
            shutil.rmtree(folder, ignore_errors=True)
            problems.append(f"gen-{newest:06d}: {problem}")
            self._storage.create(f"gen-{newest:06d}/{_BAD}", f"{problem}\n".encode())
        if bad := self.bad_numbers():
            told = "; ".join(problems) or f"{len(bad)} were found damaged before"
            raise ResumeError(f"{self._storage.uri}: no committed state is sound ({told}).")
        return None, problems

    def _remove(self, number: int, files: set[str]) -> None:
        """Removes a generation: its manifest first, so that no reader takes the rest for a whole one."""
        name = f"gen-{number:06d}"
        for file in (MANIFEST, *sorted(files - {MANIFEST})):
            self._storage.delete(f"{name}/{file}")

    def _files(self) -> dict[int, set[str]]:
        found: dict[int, set[str]] = {}
        for number, file in self._keys():
            found.setdefault(number, set()).add(file)
        return found

    def _keys(self) -> Iterator[tuple[int, str]]:
        for key in self._storage.list():
            match = _KEY.fullmatch(key)
            if match and match[1] == f"gen-{int(match[2]):06d}":
                yield int(match[2]), match[3]


def _sound(files: dict[int, set[str]]) -> list[int]:
    return sorted(number for number, names in files.items() if MANIFEST in names and _BAD not in names)
