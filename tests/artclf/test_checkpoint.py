"""Committed states: written whole, verified, pruned, set aside when damaged."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest

from artclf.checkpoint import Checkpoints, LocalGenerations
from artclf.errors import ResumeError, StorageError


def at(folder: Path) -> Checkpoints:
    return Checkpoints(LocalGenerations(folder))


def commit(checkpoints: Checkpoints, epoch: int) -> int:
    arrays = {"weights": {"0000": np.full((3, 4), epoch, np.float32)}, "best": {}}
    return checkpoints.commit({"epoch": epoch}, arrays)


def test_what_was_committed_is_restored_to_the_bit(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    at(tmp_path).commit({"epoch": 1, "value": 0.1}, {"weights": {"0000": values, "0001": np.array(3)}})
    generation, damaged = at(tmp_path).restore()
    assert generation is not None and not damaged
    assert generation.state == {"epoch": 1, "value": 0.1}
    assert np.array_equal(generation.arrays["weights"]["0000"], values)


def test_nothing_committed_is_no_error(tmp_path: Path) -> None:
    assert at(tmp_path / "none").restore() == (None, [])


def test_the_newest_is_restored_and_two_are_kept(tmp_path: Path) -> None:
    checkpoints = at(tmp_path)
    for epoch in range(1, 6):
        commit(checkpoints, epoch)
    generation, _ = checkpoints.restore()
    assert generation is not None and generation.state["epoch"] == 5
    assert sorted(os.listdir(tmp_path)) == ["gen-000004", "gen-000005"]


@pytest.mark.parametrize("seed", range(25))
def test_a_changed_byte_anywhere_is_found_and_the_older_state_used(tmp_path: Path, seed: int) -> None:
    checkpoints = at(tmp_path)
    commit(checkpoints, 1)
    commit(checkpoints, 2)
    choice = random.Random(seed)
    file = choice.choice([f for f in sorted((tmp_path / "gen-000002").iterdir()) if f.name != "manifest.json"])
    content = bytearray(file.read_bytes())
    content[choice.randrange(len(content))] ^= 1 << choice.randrange(8)
    file.write_bytes(content)
    generation, damaged = checkpoints.restore()
    assert generation is not None and generation.state["epoch"] == 1
    assert len(damaged) == 1 and file.name in damaged[0]
    assert (tmp_path / "bad-gen-000002").is_dir()


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "weights.npz"])
def test_a_missing_or_cut_file_is_found(tmp_path: Path, name: str) -> None:
    checkpoints = at(tmp_path)
    commit(checkpoints, 1)
    commit(checkpoints, 2)
    file = tmp_path / "gen-000002" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    generation, damaged = checkpoints.restore()
    assert generation is not None and generation.number == 1 and damaged


def test_if_no_state_is_sound_the_run_refuses_to_begin_from_zero(tmp_path: Path) -> None:
    checkpoints = at(tmp_path)
    commit(checkpoints, 1)
    (tmp_path / "gen-000001" / "state.json").write_text("{}")
    for _ in range(2):  # also the second time, when the damaged one is already set aside
        with pytest.raises(ResumeError, match="no committed state is sound"):
            checkpoints.restore()


def test_what_a_killed_commit_left_is_removed_by_the_next(tmp_path: Path) -> None:
    checkpoints = at(tmp_path)
    commit(checkpoints, 1)
    (tmp_path / ".tmp-abc").mkdir()
    (tmp_path / ".tmp-abc" / "weights.npz").write_bytes(b"half")
    commit(checkpoints, 2)
    assert sorted(os.listdir(tmp_path)) == ["gen-000001", "gen-000002"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        commit(at(tmp_path / "file"), 1)


def test_a_manifest_that_names_no_files_is_no_sound_state(tmp_path: Path) -> None:
    checkpoints = at(tmp_path)
    commit(checkpoints, 1)
    commit(checkpoints, 2)
    newest = tmp_path / "gen-000002"
    for file in newest.iterdir():
        file.unlink()
    (newest / "manifest.json").write_text('{"format": "artclf-checkpoint/1", "number": 2, "files": {}}')
    generation, damaged = checkpoints.restore()
    assert generation is not None and generation.number == 1 and damaged
