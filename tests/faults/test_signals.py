"""Asked to stop at any moment: saved, said, and gone in time; a process that slept goes on as if it had not."""

from __future__ import annotations

import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from artclf.records import Dataset
from artclf.rundir import RunDir
from tests.conftest import Amount, Measured
from tests.crash import (
    Child,
    Commands,
    Fault,
    Nursery,
    deliver,
    digest,
    endure,
    metrics_of,
    newest_place,
    random_faults,
    same,
    send,
    trainer_arguments,
    truth,
    unreadable,
)
from tests.faults.test_kills import SMALL

LONG = {**SMALL, "train.epochs": 2000}


def wait_for_commit(run: RunDir, child: Child, epochs: int = 1) -> None:
    """Waits until so many epochs are committed; the run paces this."""
    while len(run.read_metrics()) < epochs:
        assert child.wait(0.01) is None, child.output()


def assert_saved_and_left(run: RunDir, child: Child, code: int | None) -> None:
    output = child.output()
    assert code == 75, output
    assert "Traceback" not in output
    assert unreadable(run) == []
    status = run.read_status()
    assert status is not None and status.state == "interrupted", output
    stopped = re.search(r"stopped by \w+ in epoch (\d+) of \d+, after step (\d+) of \d+; all is saved", output)
    if stopped:  # not where it had not begun to train
        assert newest_place(run) == (int(stopped[1]) - 1, int(stopped[2]))


def test_sigterm_at_any_moment_commits_and_leaves_with_exit_code_75(
    nursery: Nursery, tiny_set: Dataset, tmp_path: Path, amount: Amount, measured: Measured
) -> None:
    whole, seconds = truth(nursery, tmp_path, tiny_set.folder, SMALL)
    often = {**SMALL, "train.checkpoint_every.minutes": 1e-5}  # nearly always in a save as well
    count, delivered, slowest, runs = amount(8, 30), 0, 0.0, 0
    while delivered < count:
        run = RunDir(tmp_path / f"run-{runs}")
        for fault in [*random_faults(500 + runs, 10, seconds, ["TERM"]), None]:
            child = nursery.start(trainer_arguments(run, tiny_set.folder, often))
            if fault is None:
                assert child.wait() == 0, child.output()
                break
            child.wait(fault.after_s)
            asked = time.monotonic()
            send(child, "TERM")
            code = child.wait(60)
            assert code is not None, "still there after 60 s"
            if code == 0:
                break
            if code == -signal.SIGTERM:  # before its first line: nothing had begun
                assert child.output() == ""
                continue
            slowest = max(slowest, time.monotonic() - asked)
            assert_saved_and_left(run, child, code)
            delivered += 1
        assert same(digest(run), digest(whole)) == []
        runs += 1
    measured(f"{delivered} SIGTERM over {runs} runs: all saved, exit code 75, the slowest left after {slowest:.1f} s")


def test_sigterm_while_a_finished_training_is_evaluated_loses_nothing(
    nursery: Nursery, tiny_set: Dataset, tmp_path: Path, amount: Amount, measured: Measured
) -> None:
    settings = {**SMALL, "train.epochs": 1, "evaluate.batch_size": 1, "data.view": "crop", "data.crops": 40}
    whole, _ = truth(nursery, tmp_path, tiny_set.folder, settings)
    stopped, count = 0, amount(1, 10)
    for place in range(20 * count):
        run = RunDir(tmp_path / f"run-{place}")
        child = nursery.start(trainer_arguments(run, tiny_set.folder, settings))
        wait_for_commit(run, child)  # from here on it evaluates
        child.wait(random.Random(place).uniform(0, 0.2))
        send(child, "TERM")
        code = child.wait(60)
        if code == 75:
            assert_saved_and_left(run, child, code)
            child = nursery.start(trainer_arguments(run, tiny_set.folder, settings))
            code = child.wait()
            stopped += 1
        assert code == 0, child.output()
        assert same(digest(run), digest(whole)) == []
        if stopped == count:
            break
    assert stopped == count
    measured(f"{stopped} SIGTERM during the last evaluation: exit code 75, then equal")


def test_sigterm_during_prepare_leaves_and_the_next_one_goes_on(
    tiny_pictures: Path, tmp_path: Path, amount: Amount, measured: Measured
) -> None:
    prepare = [sys.executable, "-m", "artclf.prepare", str(tiny_pictures), "--out"]
    commands = Commands(prepare, tmp_path)
    started = time.monotonic()
    child = commands.start([str(tmp_path / "whole")])
    assert child.wait() == 0, child.output()
    seconds = time.monotonic() - started
    expected = (tmp_path / "whole" / "manifest.json").read_bytes()
    stopped = place = 0
    while stopped < amount(4, 10):
        out = tmp_path / f"set-{place}"
        child = commands.start([str(out)])
        child.wait(random.Random(place).uniform(0.2, 1) * seconds)
        place += 1
        send(child, "TERM")
        code = child.wait(60)
        assert code in (0, 75, -signal.SIGTERM), child.output()
        assert "Traceback" not in child.output()
        if code == -signal.SIGTERM:  # the interpreter was still starting
            assert child.output() == "" and not out.exists()
        stopped += code == 75
        assert commands.start([str(out)]).wait() == 0
        assert (out / "manifest.json").read_bytes() == expected
    measured(f"{stopped} SIGTERM during prepare: exit code 75, the data set afterwards equal to the byte")


def test_a_terminal_that_is_closed_lets_the_trainer_save_and_end_unless_nohup_was_meant(
    nursery: Nursery, tiny_set: Dataset, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    child = nursery.start(trainer_arguments(run, tiny_set.folder, LONG))
    wait_for_commit(run, child)
    for _ in range(2):  # the system and the shell both send it
        send(child, "HUP")
    assert_saved_and_left(run, child, child.wait(60))
    assert "stopped by SIGHUP" in child.output()
    nohup = Commands(["nohup", sys.executable, "-m", "artclf.train"], tmp_path)
    child = nohup.start(trainer_arguments(run, tiny_set.folder, LONG))
    epochs = len(run.read_metrics())
    wait_for_commit(run, child, epochs + 1)
    send(child, "HUP")
    wait_for_commit(run, child, epochs + 20)
    send(child, "TERM")
    assert_saved_and_left(run, child, child.wait(60))


LONG_STEPS = {"model.name": "cnn_small", "data.image_size": 320, "train.batch_size": 72}
"""The first Ctrl-C lets a step end: the second one comes in it."""


@pytest.mark.parametrize("moment", ["loading", "training"])
def test_ctrl_c_twice_ends_at_once_and_harms_nothing(
    moment: str, tiny_set: Dataset, tmp_path: Path, measured: Measured
) -> None:
    run = RunDir(tmp_path / "run")
    commands = Commands([sys.executable, "-m", "artclf.train"], tmp_path)
    child = commands.start(trainer_arguments(run, tiny_set.folder, {**LONG, **LONG_STEPS}))
    if moment == "training":
        wait_for_commit(run, child, 2)
    else:
        while "loading TensorFlow" not in child.output():
            assert child.wait(0.01) is None, child.output()
    asked = time.monotonic()
    send(child, "INT")
    child.wait(0.05)
    send(child, "INT")
    assert child.wait(60) == 75, child.output()
    measured(f"{moment}: gone {time.monotonic() - asked:.2f} s after the first of two Ctrl-C")
    assert "ended at once; " in child.output()
    assert "Traceback" not in child.output()
    assert unreadable(run) == []


def test_a_trainer_that_slept_goes_on_as_if_it_had_not(
    nursery: Nursery, tiny_set: Dataset, tmp_path: Path, amount: Amount, measured: Measured
) -> None:
    settings = {**SMALL, "train.checkpoint_every.minutes": 1e-5}  # nearly always in a save as well
    whole, seconds = truth(nursery, tmp_path, tiny_set.folder, settings)
    pause = amount(11, 60)
    run = RunDir(tmp_path / "slept")
    chance, slept = random.Random(11), list[bool]()

    def start(_: object) -> Child:
        child = nursery.start([*trainer_arguments(run, tiny_set.folder, settings), "--hang-after", "0.15"])
        wait_for_commit(run, child)
        for _ in range(3):
            slept.append(deliver(child, Fault("STOP", chance.uniform(0, seconds / 10), pause)))
        return child

    attempts = endure(start, run, [], metrics_of(whole))
    assert [attempt.code for attempt in attempts] == [0] and all(slept)
    assert same(digest(run), digest(whole)) == []
    measured(f"3 times SIGSTOP for {pause} s while training and saving, a watchdog of 9 s: no alarm, all equal")


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_a_trainer_that_hangs_leaves_its_stacks_and_exit_code_7(
    nursery: Nursery, tmp_path: Path, tiny_set: Dataset
) -> None:
    """The picture reads of a real trainer are held up by strace, as a dead network disk would."""
    run = RunDir(tmp_path / "run")
    strace = ["strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", "trace=none"]
    hold_up = ["-P", str(next(tiny_set.folder.glob("shards/*"))), "-e", "inject=pread64:delay_enter=30000000:when=40+"]
    # strace counts the calls of each thread by itself: with several, none of them may come to 40.
    train = [sys.executable, "-m", "artclf.train", "--hang-after", "0.2", "--threads", "1"]
    command = [*strace, "-e", "trace=pread64", *hold_up, *train]
    child = Commands(command, tmp_path).start(trainer_arguments(run, tiny_set.folder, SMALL))
    assert child.wait(120) == 7, child.output()
    status = run.read_status()
    assert status is not None and status.state == "failed" and "no step ended for" in status.reason
    log = run.log.read_text()
    assert "most recent call first" in log and "artclf/records.py" in log
    assert "error: no step ended for" in child.output()
