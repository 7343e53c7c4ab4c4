"""A commit broken at each of its system calls, by a kill, by an error of the disk, by a disk that is full."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from artclf.checkpoint import Generation
from artclf.records import Dataset
from artclf.rundir import RunDir
from tests.conftest import Amount, Measured
from tests.crash import (
    CallFault,
    Commands,
    Nursery,
    calls_below,
    digest,
    metrics_of,
    newest_place,
    same,
    send,
    trainer_arguments,
    truth,
    unreadable,
)
from tests.crash_save import newest

EPOCHS = 5
SETTINGS = {"model.name": "cnn_tiny", "model.head": [4], "data.image_size": 16, "train.epochs": EPOCHS}
CALLS = ("mkdir", "openat", "write", "fsync", "rename", "unlinkat", "unlink", "rmdir")
"""What a commit asks of the disk; the test fails if strace sees it use another call that changes a disk."""
CHANGING = (*CALLS, "pwrite64", "writev", "renameat", "renameat2", "link", "linkat", "symlink", "ftruncate", "truncate",
            "mkdirat", "fdatasync", "fallocate", "sendfile", "copy_file_range")  # fmt: skip
SAVE = [sys.executable, "-m", "tests.crash_save"]

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")


@pytest.fixture(scope="module")
def stopped(nursery: Nursery, tiny_set: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, RunDir]:
    """Returns a run stopped after two commits, and the same run that nothing stopped."""
    folder = tmp_path_factory.mktemp("stopped")
    whole, _ = truth(nursery, folder, tiny_set.folder, SETTINGS)
    for number in itertools.count():  # a busy machine may see the second commit when the run is over
        run = RunDir(folder / f"stopped-{number}")
        child = nursery.start(trainer_arguments(run, tiny_set.folder, SETTINGS))
        while len(list(run.checkpoints.glob("gen-*"))) < 2 and child.wait(0.01) is None:
            pass
        send(child, "KILL")
        child.wait()
        if (place := newest_place(run)) is not None and place[0] < EPOCHS:
            break
    return run, whole


def copy(run: RunDir, folder: Path) -> RunDir:
    shutil.copytree(run.path, folder)
    return RunDir(folder)


def the_same(one: Generation, other: Generation) -> bool:
    return one.state == other.state and all(
        np.array_equal(array, other.arrays[group][name])
        for group, members in one.arrays.items()
        for name, array in members.items()
    )


@pytest.fixture(scope="module")
def trace(stopped: tuple[RunDir, RunDir], tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, int, str]]:
    """Returns every call of one save-prune cycle that can change the disk."""
    folder = tmp_path_factory.mktemp("calls") / "run"
    run = copy(stopped[0], folder)
    command = [*SAVE, str(run.checkpoints), str(stopped[0].checkpoints)]
    found = calls_below(run.checkpoints, command, CHANGING)
    assert {call for call, _, _ in found} <= set(CALLS)
    return found


@pytest.fixture(scope="module")
def calls(trace: list[tuple[str, int, str]]) -> list[tuple[str, int]]:
    return [(call, nth) for call, nth, _ in trace]


def test_everything_is_forced_to_the_disk_before_the_name_that_promises_it(trace: list[tuple[str, int, str]]) -> None:
    """What kill -9 cannot show, since the system keeps what it was given: the order a power cut depends on."""
    lines = [line for _, _, line in trace]

    def last(call: str, path: str) -> int:
        return max((i for i, line in enumerate(lines) if f" {call}(" in line and f"{path}>" in line), default=-1)

    (named,) = [i for i, line in enumerate(lines) if " rename(" in line and re.search(r'/gen-\d+"\) = 0', line)]
    temporary = re.findall(r'rename\("([^"]+)"', lines[named])[0]
    written = {path for line in lines for path in re.findall(rf"write\(\d+<({temporary}/[^>]+)>", line)}
    assert {Path(path).name for path in written} >= {"manifest.json", "state.json", "weights.npz", "optimizer.npz"}
    for path in written:
        assert last("write", path) < last("fsync", path) < named, path
    assert max(last("write", path) for path in written) < last("fsync", temporary) < named
    assert last("fsync", str(Path(temporary).parent)) > named


def test_a_kill_at_any_call_of_a_commit_leaves_the_old_state_or_the_new_one(
    stopped: tuple[RunDir, RunDir],
    calls: list[tuple[str, int]],
    nursery: Nursery,
    tiny_set: Dataset,
    tmp_path: Path,
    amount: Amount,
    measured: Measured,
) -> None:
    source, whole = stopped
    before = newest(source.checkpoints)
    resumed = 0
    for place, (call, nth) in enumerate(calls):
        run = copy(source, tmp_path / f"run-{place}")
        commands = Commands(SAVE, tmp_path)
        child = commands.start([str(run.checkpoints), str(source.checkpoints)], CallFault(call, nth))
        assert child.wait() == -9, f"{call} {nth}: {child.output()}"
        assert unreadable(run) == [], f"{call} {nth}"
        after = newest(run.checkpoints)
        assert after.number - before.number in (0, 1) and the_same(after, before), f"{call} {nth}"
        if place % amount(12, 1) == 0:
            job = nursery.start(trainer_arguments(run, tiny_set.folder, SETTINGS))
            assert job.wait() == 0, job.output()
            assert same(digest(run), digest(whole)) == [], f"{call} {nth}"
            resumed += 1
        shutil.rmtree(run.path)
    measured(f"killed at each of {len(calls)} calls of a save-prune cycle, {resumed} resumed to the end: all equal")


@pytest.mark.parametrize("error", ["ENOSPC", "EIO", "EROFS", "EDQUOT"])
def test_an_error_of_the_disk_at_any_call_of_a_commit_leaves_the_old_state_and_says_so(
    error: str, stopped: tuple[RunDir, RunDir], calls: list[tuple[str, int]], tmp_path: Path, measured: Measured,
    amount: Amount,
) -> None:  # fmt: skip
    source, _ = stopped
    before = newest(source.checkpoints)
    refused = 0
    for place, (call, nth) in enumerate(calls[:: amount(3, 1)]):
        run = copy(source, tmp_path / f"run-{place}")
        commands = Commands(SAVE, tmp_path)
        child = commands.start([str(run.checkpoints), str(source.checkpoints)], CallFault(call, nth, error=error))
        code = child.wait()
        assert "Traceback" not in child.output(), f"{call} {nth}: {child.output()}"
        after = newest(run.checkpoints)
        assert the_same(after, before), f"{call} {nth}"
        if code != 0:
            refused += 1
            assert code == 5, f"{call} {nth}: {child.output()}"
            assert str(run.checkpoints) in child.output() and re.search(r"cannot \w+.*: .+\.", child.output())
        else:  # a folder that was there already, or a leftover that stays until the next commit
            assert after.number == before.number + 1, f"{call} {nth}: called a success, and it was none"
        shutil.rmtree(run.path)
    measured(f"{error} at {place + 1} calls of a save: the old state loads every time, {refused} ended with code 5")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Returns a disk of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=False).returncode != 0:
        pytest.skip("needs the right to mount")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_fills_up_ends_the_run_with_path_and_bytes_and_it_goes_on_when_there_is_room(
    nursery: Nursery, tiny_set: Dataset, tmp_path: Path, small_disk: Path
) -> None:
    settings = {**SETTINGS, "model.head": [64], "train.epochs": 6}
    whole, _ = truth(nursery, tmp_path, tiny_set.folder, settings)
    run = RunDir(small_disk / "run")
    child = nursery.start(trainer_arguments(run, tiny_set.folder, settings))
    assert child.wait() == 5, child.output()
    told = r"error: (\S+): cannot write: No space left on device \([\d,]+ bytes are needed, [\d,]+ are free\)"
    found = re.search(told, child.output())
    assert found and found[1].startswith(str(run.checkpoints)), child.output()
    assert "Traceback" not in child.output()
    assert unreadable(run) == []
    assert metrics_of(run) == metrics_of(whole)[: len(metrics_of(run))]
    subprocess.run(["mount", "-o", "remount,size=60m", small_disk], check=True)
    child = nursery.start(trainer_arguments(run, tiny_set.folder, settings))
    assert child.wait() == 0, child.output()
    assert same(digest(run), digest(whole)) == []
