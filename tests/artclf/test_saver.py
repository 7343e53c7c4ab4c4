"""Committing in the background: nothing waits for the disk but who asks to, and nothing goes wrong unheard."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artclf.checkpoint import Arrays, Checkpoints, LocalGenerations
from artclf.errors import StorageError
from artclf.saver import Saver, Snapshot


class SlowCheckpoints(Checkpoints):
    """A disk that takes each commit only when it is let."""

    def __init__(self, folder: Path) -> None:
        super().__init__(LocalGenerations(folder))
        self.begun, self.let = threading.Semaphore(0), threading.Semaphore(0)
        self.refuses = False

    def commit(self, state: Mapping[str, Any], arrays: Mapping[str, Arrays]) -> int:
        self.begun.release()
        self.let.acquire()
        if self.refuses:
            raise StorageError("the disk is full")
        return super().commit(state, arrays)


def snapshot(epoch: int) -> Snapshot:
    return Snapshot({"epoch": epoch}, {"weights": {"0000": np.full(10, epoch, np.float32)}})


def test_while_one_is_written_only_the_newest_of_the_others_waits(tmp_path: Path) -> None:
    checkpoints, told = SlowCheckpoints(tmp_path), list[int]()
    saver = Saver(checkpoints, lambda state: told.append(state["epoch"]))
    saver.save(snapshot(1))
    checkpoints.begun.acquire()
    for epoch in (2, 3, 4):  # returns at once although the disk takes nothing
        saver.save(snapshot(epoch))
    for _ in range(2):
        checkpoints.let.release()
    saver.flush()
    assert told == [1, 4]
    generation, _ = checkpoints.restore()
    assert generation is not None and generation.state == {"epoch": 4}
    saver.close()


def test_what_is_told_as_committed_is_on_the_disk_by_then(tmp_path: Path) -> None:
    checkpoints = Checkpoints(LocalGenerations(tmp_path))
    found = []

    def committed(state: Mapping[str, Any]) -> None:
        generation, _ = checkpoints.restore()
        assert generation is not None
        found.append((state["epoch"], generation.state["epoch"]))

    saver = Saver(checkpoints, committed)
    for epoch in range(5):
        saver.save(snapshot(epoch))
        saver.flush()
    saver.close()
    assert found == [(epoch, epoch) for epoch in range(5)]


def test_what_went_wrong_is_raised_by_the_next_call_and_nothing_more_is_written(tmp_path: Path) -> None:
    checkpoints = SlowCheckpoints(tmp_path)
    checkpoints.refuses = True
    saver = Saver(checkpoints, lambda _: None)
    saver.save(snapshot(1))
    checkpoints.let.release()
    with pytest.raises(StorageError, match="full"):
        saver.flush()
    with pytest.raises(StorageError, match="full"):
        saver.save(snapshot(2))
    with pytest.raises(StorageError, match="full"):
        saver.check()
    saver.close()
    assert not list(tmp_path.iterdir())


def test_closing_commits_what_waits(tmp_path: Path) -> None:
    saver = Saver(Checkpoints(LocalGenerations(tmp_path)), lambda _: None)
    saver.save(snapshot(7))
    saver.close()
    generation, _ = Checkpoints(LocalGenerations(tmp_path)).restore()
    assert generation is not None and generation.state == {"epoch": 7}


def test_how_long_a_commit_takes_is_learnt_from_those_before_and_grows_with_its_size(tmp_path: Path) -> None:
    saver = Saver(Checkpoints(LocalGenerations(tmp_path)), lambda _: None)
    large = Snapshot({}, {"weights": {"0000": np.zeros(20, np.float32)}})
    assert saver.seconds_until_committed(large) == 0
    saver.save(snapshot(1))
    saver.flush()
    assert saver.seconds_until_committed(large) == pytest.approx(2 * saver.seconds_until_committed(snapshot(1)))
    assert saver.seconds_until_committed(large) > 0
    saver.close()


def test_a_commit_that_is_under_way_counts_for_how_long_the_next_one_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = [0.0]
    monkeypatch.setattr("artclf.saver.time.monotonic", lambda: moment[0])
    checkpoints = SlowCheckpoints(tmp_path)
    saver = Saver(checkpoints, lambda _: None)
    saver.save(snapshot(1))
    checkpoints.begun.acquire()
    moment[0] = 100  # so long did the first one take
    checkpoints.let.release()
    saver.flush()
    saver.save(snapshot(2))
    checkpoints.begun.acquire()
    moment[0] = 130  # and so long is the second one under way
    assert saver.seconds_until_committed(snapshot(3)) == pytest.approx(70 + 100)
    checkpoints.let.release()
    saver.close()


def test_giving_up_forgets_what_waits_and_waits_for_what_is_written(tmp_path: Path) -> None:
    checkpoints, told = SlowCheckpoints(tmp_path), list[int]()
    saver = Saver(checkpoints, lambda state: told.append(state["epoch"]))
    saver.save(snapshot(1))
    checkpoints.begun.acquire()
    saver.save(snapshot(2))
    checkpoints.let.release(2)
    saver.give_up_waiting()
    saver.close()
    assert told == [1]
