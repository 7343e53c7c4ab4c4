"""Committed states of a run: write one, find the newest sound one, restore it.

    checkpoint/
      gen-000007/  state.json weights.npz optimizer.npz best.npz  manifest.json
      gen-000008/  …
      bad-gen-000006/   a generation that failed its check: kept, never used

A generation is a folder that gets its name only when all its files and the manifest with their
sizes and SHA-256 are on the disk; so a name is a promise, and the manifest proves it at load.
Two are kept. Nothing here knows Keras: arrays come and go by name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from artclf.errors import ResumeError, storage_error
from artclf.storage import atomic_folder, sync_folder

FORMAT = "artclf-checkpoint/1"
KEPT = 2
_ALWAYS = {"state.json", "weights.npz"}
_GENERATION = re.compile(r"gen-(\d{6,})")

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


class Checkpoints:
    """The committed states in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def commit(self, state: Mapping[str, Any], arrays: Mapping[str, Arrays]) -> int:
        """Writes a new generation, then removes all but the two newest; returns its number.

        Raises:
            StorageError: if the disk refuses; the generations before it stay as they were.
        """
        number = max(self._numbers(), default=0) + 1
        with atomic_folder(self._path(number)) as temporary:
            (temporary / "state.json").write_text(json.dumps(state))
            for group, members in arrays.items():
                np.savez(temporary / f"{group}.npz", **members)  # type: ignore[arg-type]
            files = {file.name: _fingerprint(file) for file in sorted(temporary.iterdir())}
            manifest = {"format": FORMAT, "number": number, "files": files}
            (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2))
        self._prune()
        return number

    def restore(self) -> tuple[Generation | None, list[str]]:
        """Returns the newest sound generation (None if there never was one) and what was found
        damaged on the way, which is set aside under a name that begins with ``bad-``.

        Raises:
            ResumeError: if there are generations but none is sound.
        """
        damaged: list[str] = []
        for number in sorted(self._numbers(), reverse=True):
            path = self._path(number)
            problem = _problem(path)
            if problem is None:
                return _load(path, number), damaged
            damaged.append(f"{path.name}: {problem}")
            self._set_aside(path)
        if damaged or self._set_aside_before():
            raise ResumeError(
                f"{self.folder}: no committed state is sound ({'; '.join(damaged) or 'all were set aside before'}). "
                f"To begin again from the first epoch, remove this folder."
            )
        return None, []

    def _numbers(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        matches = (_GENERATION.fullmatch(name) for name in os.listdir(self.folder))
        return [int(match[1]) for match in matches if match]

    def _path(self, number: int) -> Path:
        return self.folder / f"gen-{number:06d}"

    def _prune(self) -> None:
        """Removes old generations and what a killed commit left; the rename makes each removal one step."""
        try:
            for number in sorted(self._numbers())[:-KEPT]:
                doomed = self.folder / f".tmp-old-{number:06d}"
                os.rename(self._path(number), doomed)
            for leftover in self.folder.glob(".tmp-*"):
                shutil.rmtree(leftover)
        except OSError as error:
            raise storage_error("remove old states from", self.folder, error) from error

    def _set_aside(self, path: Path) -> None:
        try:
            shutil.rmtree(path.with_name(f"bad-{path.name}"), ignore_errors=True)
            os.rename(path, path.with_name(f"bad-{path.name}"))
            sync_folder(self.folder)
        except OSError as error:
            raise storage_error("set aside", path, error) from error

    def _set_aside_before(self) -> bool:
        return self.folder.is_dir() and any(name.startswith("bad-gen-") for name in os.listdir(self.folder))


def _fingerprint(file: Path) -> dict[str, Any]:
    with open(file, "rb") as opened:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}


def _problem(path: Path) -> str | None:
    """Returns what is wrong with a generation, or None if every byte is as it was committed."""
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        if manifest["format"] != FORMAT or f"gen-{manifest['number']:06d}" != path.name:
            return "its manifest is of another format or place"
        expected = {**manifest["files"]}
        found = {file.name: _fingerprint(file) for file in path.iterdir() if file.name != "manifest.json"}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"its manifest is not readable ({error})"
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


def _load(path: Path, number: int) -> Generation:
    state = json.loads((path / "state.json").read_bytes())
    arrays = {}
    for file in sorted(path.glob("*.npz")):
        with np.load(file, allow_pickle=False) as members:
            arrays[file.stem] = {name: members[name] for name in members.files}
    return Generation(number, state, arrays)
