"""Committed states: written whole, verified, pruned, set aside when damaged."""

from __future__ import annotations

import os
import random
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artclf.checkpoint import FORMAT, Checkpoints, LocalGenerations, sealed
from artclf.errors import DivergedError, ResumeError, StorageError


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


def damage_one_place(folder: Path, choice: random.Random) -> Path:
    """Flips a bit of one file of a generation, or cuts it short, and returns the file."""
    file = choice.choice(sorted(folder.iterdir()))
    content = bytearray(file.read_bytes())
    place = choice.randrange(len(content))
    if choice.random() < 0.5:
        content[place] ^= 1 << choice.randrange(8)
    else:
        del content[place:]
    file.write_bytes(content)
    return file


def test_every_one_of_500_damages_is_found_and_the_older_state_used(tmp_path: Path) -> None:
    choice = random.Random(1)
    whole = tmp_path / "whole"
    for epoch in (1, 2):
        commit(at(whole), epoch)
    for number in range(500):
        folder = tmp_path / f"copy-{number}"
        shutil.copytree(whole, folder)
        file = damage_one_place(folder / "gen-000002", choice)
        generation, damaged = at(folder).restore()
        assert generation is not None and generation.state["epoch"] == 1, f"{number}: {file.name}"
        assert len(damaged) == 1 and damaged[0].startswith("gen-000002: ")
        assert (folder / "bad-gen-000002").is_dir()


def test_none_of_500_sound_states_is_called_damaged(tmp_path: Path) -> None:
    values = np.random.default_rng(5)
    for number in range(500):
        array = values.normal(size=values.integers(1, 200)).astype(np.float32)
        at(tmp_path).commit({"epoch": number}, {"weights": {"0000": array}})
        generation, damaged = at(tmp_path).restore()
        assert generation is not None and not damaged
        assert generation.number == number + 1 and np.array_equal(generation.arrays["weights"]["0000"], array)


def test_what_was_set_aside_is_kept_and_its_number_never_given_again(tmp_path: Path) -> None:
    checkpoints = at(tmp_path)
    for epoch in (1, 2):
        commit(checkpoints, epoch)
    for _ in range(3):
        newest = max(tmp_path.glob("gen-*"))
        damage_one_place(newest, random.Random(3))
        checkpoints.restore()
        commit(checkpoints, 3)
    assert sorted(path.name for path in tmp_path.glob("bad-*")) == [
        "bad-gen-000002",
        "bad-gen-000003",
        "bad-gen-000004",
    ]


def test_a_reader_beside_a_writer_that_prunes_always_gets_a_sound_state(tmp_path: Path) -> None:
    commit(at(tmp_path), 0)
    done = threading.Event()

    def write() -> None:
        for epoch in range(1, 120):
            commit(at(tmp_path), epoch)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = [0]
    while not done.is_set():
        generation, damaged = at(tmp_path).restore()
        assert generation is not None and not damaged
        assert generation.arrays["weights"]["0000"][0, 0] == generation.state["epoch"]
        seen.append(generation.state["epoch"])
    writer.join()
    assert seen == sorted(seen) and len(set(seen)) > 3
    assert not list(tmp_path.glob("bad-*"))


@pytest.mark.parametrize("group", ["weights", "optimizer", "best"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_never_committed(tmp_path: Path, group: str, value: float) -> None:
    commit(at(tmp_path), 1)
    arrays = {"weights": {"0000": np.zeros(2)}, group: {"0000": np.array([1.0, value])}}
    with pytest.raises(DivergedError, match=f"a value of the {group} is not finite"):
        at(tmp_path).commit({"epoch": 2}, arrays)
    assert [path.name for path in tmp_path.iterdir()] == ["gen-000001"]


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "weights.npz"])
def test_a_missing_file_is_found_and_named(tmp_path: Path, name: str) -> None:
    checkpoints = at(tmp_path)
    commit(checkpoints, 1)
    commit(checkpoints, 2)
    (tmp_path / "gen-000002" / name).unlink()
    generation, damaged = checkpoints.restore()
    assert generation is not None and generation.number == 1
    assert damaged == [f"gen-000002: {name} is missing"]


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


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ({"format": FORMAT, "number": 2, "files": {}}, "does not name a whole state"),
        ({"format": FORMAT, "number": 1, "files": {}}, "it is a copy of generation 1"),
        ({"format": FORMAT}, "not in the form of one"),
    ],
)
def test_a_sealed_manifest_that_does_not_fit_is_no_sound_state(
    tmp_path: Path, manifest: dict[str, Any], said: str
) -> None:
    checkpoints = at(tmp_path)
    commit(checkpoints, 1)
    commit(checkpoints, 2)
    (tmp_path / "gen-000002" / "manifest.json").write_bytes(sealed(manifest))
    generation, damaged = checkpoints.restore()
    assert generation is not None and generation.number == 1
    assert said in damaged[0]


def test_a_state_in_another_format_is_refused_and_left_where_it_is(tmp_path: Path) -> None:
    commit(at(tmp_path), 1)
    manifest = {"format": "artclf-checkpoint/9", "number": 1, "files": {}}
    (tmp_path / "gen-000001" / "manifest.json").write_bytes(sealed(manifest))
    with pytest.raises(ResumeError, match="saved in the format artclf-checkpoint/9, this version of artclf reads"):
        at(tmp_path).restore()
    assert os.listdir(tmp_path) == ["gen-000001"]


def test_what_others_put_beside_the_files_is_passed_over(tmp_path: Path) -> None:
    commit(at(tmp_path), 1)
    for name in ("weights.npz.sagemaker-uploaded", ".DS_Store", "extra.npz"):
        (tmp_path / "gen-000001" / name).write_text("not ours")
    generation, damaged = at(tmp_path).restore()
    assert generation is not None and not damaged
    assert set(generation.arrays) == {"weights", "best"}


def test_a_number_that_is_taken_is_not_written_over(tmp_path: Path) -> None:
    commit(at(tmp_path), 1)
    with pytest.raises(StorageError, match="gen-000001: is there already: another writer is at work"):
        LocalGenerations(tmp_path).commit(1, lambda folder: None, 0)


def test_each_part_of_a_commit_is_told_so_that_a_slow_disk_is_no_hang(tmp_path: Path) -> None:
    told: list[None] = []
    Checkpoints(LocalGenerations(tmp_path), lambda: told.append(None)).commit({}, {"weights": {"0": np.zeros(3)}})
    assert len(told) >= 3


@pytest.mark.parametrize("odd", ["weights.npz", "manifest.json", "whole"])
def test_a_folder_where_a_file_should_be_is_damage_and_the_older_state_used(tmp_path: Path, odd: str) -> None:
    for epoch in (1, 2):
        commit(at(tmp_path), epoch)
    newest = tmp_path / "gen-000002"
    if odd == "whole":
        shutil.rmtree(newest)
        newest.write_text("a file")
    else:
        (newest / odd).unlink()
        (newest / odd).mkdir()
    generation, damaged = at(tmp_path).restore()
    assert generation is not None and generation.number == 1 and len(damaged) == 1


def test_setting_aside_writes_over_nothing_that_was_set_aside_before(tmp_path: Path) -> None:
    for epoch in (1, 2):
        commit(at(tmp_path), epoch)
    shutil.copytree(tmp_path / "gen-000002", tmp_path / "bad-gen-000002")
    damage_one_place(tmp_path / "gen-000002", random.Random(1))
    generation, _ = at(tmp_path).restore()
    assert generation is not None and generation.number == 1
    assert sorted(path.name for path in tmp_path.glob("bad-*")) == ["bad-gen-000002", "bad-gen-000002-1"]
    assert commit(at(tmp_path), 3) == 3


@pytest.mark.parametrize(
    "name", ["gen-0000005", "gen-\u0661\u0662\u0663\u0664\u0665\u0666", "gen-000005 copy", "gen-5"]
)
def test_names_that_no_commit_gives_are_passed_over(tmp_path: Path, name: str) -> None:
    commit(at(tmp_path), 1)
    (tmp_path / name).mkdir()
    generation, damaged = at(tmp_path).restore()
    assert generation is not None and generation.number == 1 and not damaged
