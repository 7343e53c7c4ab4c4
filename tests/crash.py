"""The crash harness: runs a command, breaks it at random moments or at the n-th system call, starts it again
until it ends, and compares what it leaves with a run that nothing broke.

    python -m tests.crash [--seed S] [--faults N] [--calls rename,fsync] -- --data D --set model.name=cnn_tiny …

runs ``python -m artclf.train`` so; the seed it prints repeats exactly the same faults. Tests use the
pieces: a Nursery starts trainers in a tenth of a second, Commands start any command, under strace where asked.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from artclf.checkpoint import LocalGenerations, damage
from artclf.interrupt import StopRequest
from artclf.rundir import RunDir, read_json

PROJECT = Path(__file__).resolve().parents[1]
TIMES = ("seconds", "images_per_second")


# -- faults --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """One thing that happens to a process.

    Attributes:
        signal: what it is sent, by name; STOP is followed by CONT after ``pause_s``.
        after_s: so long after its start.
    """

    signal: str
    after_s: float
    pause_s: float = 0.5

    def __str__(self) -> str:
        return f"{self.signal} after {self.after_s:.2f} s"


@dataclass(frozen=True)
class CallFault:
    """A fault at the n-th of the process's calls of one system call: a signal, or an error (``EIO``) it returns."""

    call: str
    nth: int
    signal: str = "KILL"
    error: str = ""

    def strace(self) -> list[str]:
        """Returns the command line to put before the command."""
        what = f"error={self.error}" if self.error else f"signal=SIG{self.signal}"
        return [
            *("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={self.call}"),
            *("-e", f"inject={self.call}:{what}:when={self.nth}"),
        ]

    def __str__(self) -> str:
        return f"{self.error or self.signal} at {self.call} number {self.nth}"


def random_faults(seed: int, count: int, within_s: float, signals: Sequence[str] = ("KILL",)) -> list[Fault]:
    """Returns faults at moments up to ``within_s`` after a start. The seed alone decides the signals and at which
    shares of that time they come, so another machine, or a slower day, repeats the same story."""
    chance = random.Random(seed)
    return [Fault(chance.choice(list(signals)), within_s * chance.random()) for _ in range(count)]


# -- processes -----------------------------------------------------------------------------------


class Child(Protocol):
    """A process under test."""

    pid: int

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Returns the exit code, negative for the signal that ended it; None while it runs."""

    def output(self) -> str:
        """Returns what it printed."""


Start = Callable[[Sequence[str]], Child]
"""Starts a trainer with these arguments."""


def send(child: Child, name: str) -> None:
    """Sends a signal, unless the process has ended."""
    if child.wait(0) is None:
        os.kill(child.pid, signal.Signals[f"SIG{name}"])


class Nursery:
    """Starts trainers as forks of a process that has TensorFlow imported already: 0.3 s instead of 8.

    They are real processes with real signals and files. TensorFlow is imported there but not begun,
    so each child starts its own threads.

    Args:
        folder: for what they print.
        environment: is added to theirs.
        arguments: go before those of each.
    """

    def __init__(
        self, folder: Path, environment: Mapping[str, str] | None = None, arguments: Sequence[str] = ()
    ) -> None:
        self._folder, self._environment, self._arguments = folder, dict(environment or {}), list(arguments)
        os.environ.setdefault("PYTHONPATH", str(PROJECT))  # the fork server looks for the preload there only
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.crash_preload"])

    def start(self, arguments: Sequence[str]) -> Child:
        """Returns the trainer that was started with these arguments."""
        handle, output = tempfile.mkstemp(dir=self._folder, suffix=".out")
        os.close(handle)
        told = [*self._arguments, *arguments]
        process = self._context.Process(target=_run_trainer, args=(told, output, self._environment))
        process.start()
        return _NurseryChild(process, Path(output))


class _NurseryChild:
    def __init__(self, process: Any, output: Path) -> None:
        self._process, self._output = process, output
        self.pid: int = process.pid

    def wait(self, timeout_s: float | None = None) -> int | None:
        self._process.join(timeout_s)
        code: int | None = self._process.exitcode
        return code

    def output(self) -> str:
        return self._output.read_text(errors="replace")


def _run_trainer(arguments: list[str], output: str, environment: dict[str, str]) -> None:
    from artclf.command_line import run_command
    from artclf.train import main

    descriptor = os.open(output, os.O_WRONLY | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    os.chdir(PROJECT)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    sys.argv = ["train", *arguments]
    run_command(main)


class Commands:
    """Starts commands as anyone would, under strace for a CallFault."""

    def __init__(self, command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self._command, self._folder = list(command), folder
        self._environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **(environment or {})}

    def start(self, arguments: Sequence[str] = (), fault: CallFault | None = None) -> Child:
        """Returns the process that was started."""
        handle, output = tempfile.mkstemp(dir=self._folder, suffix=".out")
        command = [*(fault.strace() if fault else []), *self._command, *arguments]
        with os.fdopen(handle, "wb") as file:
            process = subprocess.Popen(
                command, cwd=PROJECT, env=self._environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        return _CommandChild(process, Path(output))


class _CommandChild:
    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self._process, self._output = process, output
        self.pid = process.pid

    def wait(self, timeout_s: float | None = None) -> int | None:
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def output(self) -> str:
        return self._output.read_text(errors="replace")


# -- leaving in this process ---------------------------------------------------------------------


class Crash(BaseException):
    """A process that is gone; nothing was committed for it."""


class LeaveAt(StopRequest):
    """Asks to stop, or crashes, when it was looked at so often: once a step, and once a batch of an evaluation."""

    def __init__(self, looks: int, crash: bool = False) -> None:
        super().__init__()
        self._looks, self._crash = looks, crash

    @property
    def requested(self) -> bool:
        self._looks -= 1
        if self._looks == 0:
            self.reason = "the test"
        if self.reason and self._crash:
            raise Crash
        return bool(self.reason)

    def check(self) -> None:
        """Is no look: training has not begun."""


# -- what a run leaves ---------------------------------------------------------------------------


def metrics_of(run: RunDir) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl without the times."""
    return [{k: v for k, v in line.items() if k not in TIMES} for line in run.read_metrics()]


def digest(run: RunDir) -> dict[str, Any]:
    """Returns all that a finished run computed: its state, weights, metrics, scores and predictions, by name."""
    store = LocalGenerations(run.checkpoints)
    newest = store.fetch(store.numbers()[-1])
    arrays = {}
    for group in ("weights", "optimizer", "best"):
        with np.load(newest / f"{group}.npz") as members:
            arrays[group] = _sha256(*(members[name].tobytes() for name in members.files))
    with zipfile.ZipFile(run.model) as archive:
        model = _sha256(archive.read("model.weights.h5"))
    scores = {split: read_json(run.evaluation_json(split)) for split in ("val", "test")}
    predictions = {split: _sha256(run.predictions_csv(split).read_bytes()) for split in ("val", "test")}
    return {**arrays, "model.keras": model, "metrics": metrics_of(run), "scores": scores, "predictions": predictions}


def _sha256(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


def unreadable(run: RunDir) -> list[str]:
    """Returns what is wrong with the committed states that a killed process left; a name is a promise."""
    store = LocalGenerations(run.checkpoints)
    found = ((number, damage(store.fetch(number), number)) for number in store.numbers())
    return [f"generation {number}: {problem}" for number, problem in found if problem]


def newest_place(run: RunDir) -> tuple[int, int] | None:
    """Returns the (epoch, step) of the newest committed state, None before the first."""
    store = LocalGenerations(run.checkpoints)
    if not store.numbers():
        return None
    place = read_json(store.fetch(store.numbers()[-1]) / "state.json")["place"]
    return place["epoch"], place["step"]


def place_gone_on_from(output: str) -> tuple[int, int] | None:
    """Returns the (epoch, step) that a trainer said it goes on from, None if it began at zero."""
    if found := re.search(r"going on after epoch (\d+) of", output):
        return int(found[1]), 0
    found = re.search(r"going on in epoch (\d+) of \d+, after step (\d+) of", output)
    return (int(found[1]) - 1, int(found[2])) if found else None


# -- the story of one run ------------------------------------------------------------------------


@dataclass(frozen=True)
class Attempt:
    """One start of a trainer and what came of it.

    Attributes:
        fault: what was done to it, None for the last.
        code: its exit code.
        place: the newest committed (epoch, step) afterwards.
        output: what it printed.
    """

    fault: Fault | CallFault | None
    code: int
    place: tuple[int, int] | None
    output: str


class Broken(AssertionError):
    """A promise that a run did not keep."""


def endure(
    start: Callable[[Fault | CallFault | None], Child],
    run: RunDir,
    faults: Sequence[Fault | CallFault],
    truth: Sequence[dict[str, Any]],
) -> list[Attempt]:
    """Starts a trainer again and again, once for each fault and then until it ends, and checks after each:
    every committed state is readable, none is lost, metrics.jsonl is a beginning of the truth.

    Args:
        start: starts the trainer on ``run``.
        faults: what happens, one after the other; the story ends early if the run does.
        truth: the metrics, without times, of a run that nothing broke.

    Raises:
        Broken: telling which promise was not kept, after which fault.
    """
    attempts: list[Attempt] = []
    for fault in [*faults, None]:
        before = newest_place(run)
        child = start(fault)
        if isinstance(fault, Fault):
            deliver(child, fault)
        code = child.wait()
        assert code is not None
        output = child.output()
        attempts.append(Attempt(fault, code, newest_place(run), output))
        where = f"after {len(attempts)} attempts, the last with {fault}"
        if problems := unreadable(run):
            raise Broken(f"{where}: {problems}")
        began = re.search(r"^(going on|epoch) ", output, re.MULTILINE) is not None
        if began and place_gone_on_from(output) != before:
            raise Broken(f"{where}: went on from {place_gone_on_from(output)}, committed was {before}")
        lines, status = metrics_of(run), run.read_status()
        committed = attempts[-1].place[0] if attempts[-1].place else 0
        if max(len(lines), status.epoch if status else 0) > committed:
            raise Broken(f"{where}: {len(lines)} lines and {status} tell of more than the {committed} committed epochs")
        if lines != list(truth[: len(lines)]):
            raise Broken(f"{where}: metrics.jsonl is no beginning of the truth")
        if "Traceback" in output:
            raise Broken(f"{where}: a traceback:\n{output}")
        if code == 0:
            break
        if fault is None:
            raise Broken(f"{where}: ended with {code}:\n{output}")
    return attempts


def trainer_arguments(run: RunDir, data: Path, settings: Mapping[str, Any]) -> list[str]:
    """Returns the arguments of python -m artclf.train for a run on a data set with dotted settings."""
    chosen = [f"--set={name}={_yaml(value)}" for name, value in settings.items()]
    return ["--run-dir", str(run.path), "--data", str(data), *chosen]


def _yaml(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value).lower()


def truth(nursery: Nursery, folder: Path, data: Path, settings: dict[str, Any]) -> tuple[RunDir, float]:
    """Returns a run that nothing broke, and how long it took."""
    run = RunDir(folder / "whole")
    child = nursery.start(trainer_arguments(run, data, settings))
    if child.wait() != 0:
        raise Broken(child.output())
    status = run.read_status()
    assert status is not None
    return run, status.seconds


def stories(
    nursery: Nursery, folder: Path, data: Path, settings: dict[str, Any], kills: int, seed: int
) -> tuple[int, int]:
    """Kills runs on the same settings until so many kills were delivered, at most 12 in one run.

    Returns:
        (kills, runs): each of the runs ended like one that nothing broke.

    Raises:
        Broken: telling which promise was not kept, and the seed that repeats it.
    """
    whole, seconds = truth(nursery, folder, data, settings)
    expected = digest(whole)
    delivered = runs = 0
    while delivered < kills:
        run = RunDir(folder / f"broken-{runs}")
        faults = random_faults(seed + runs, min(12, kills - delivered), seconds + 0.5)
        told = trainer_arguments(run, data, settings)
        attempts = endure(lambda _, told=told: nursery.start(told), run, faults, metrics_of(whole))  # type: ignore[misc]
        delivered += sum(attempt.code == -9 for attempt in attempts)
        runs += 1
        if differences := same(digest(run), expected):
            raise Broken(f"{differences} differ after {[str(a.fault) for a in attempts]}, seed {seed + runs - 1}")
    return delivered, runs


def deliver(child: Child, fault: Fault) -> bool:
    """Waits for a fault's moment and lets it happen, and says whether the process still ran then."""
    if child.wait(fault.after_s) is not None:
        return False
    send(child, fault.signal)
    if fault.signal == "STOP":
        child.wait(fault.pause_s)
        send(child, "CONT")
    return True


def same(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Returns the names of what differs between two digests."""
    return [name for name in expected if found.get(name) != expected[name]]


# -- system calls --------------------------------------------------------------------------------


def calls_below(folder: Path, command: Sequence[str], calls: Sequence[str]) -> list[tuple[str, int, str]]:
    """Returns each call a command makes that has to do with a folder, because it names it or works on a file
    that was opened there.

    Returns:
        (system call, its number among the calls of that name, the whole call as strace tells it).
    """
    with tempfile.NamedTemporaryFile("r", suffix=".strace") as trace:
        strace = ["strace", "-f", "-y", "-qq", "-o", trace.name, "-e", f"trace={','.join(calls)}"]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        subprocess.run([*strace, *command], cwd=PROJECT, env=environment, check=True, capture_output=True)
        found: list[tuple[str, int, str]] = []
        counts: dict[str, int] = {}
        for line in trace:
            match = re.match(r"\d+\s+(\w+)\(", line)
            if match:
                counts[match[1]] = counts.get(match[1], 0) + 1
                if str(folder) in line:
                    found.append((match[1], counts[match[1]], line))
    return found


# -- the command ---------------------------------------------------------------------------------


def main(argv: list[str]) -> int:
    """Runs ``python -m tests.crash``."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--faults", type=int, default=5)
    parser.add_argument("--within", type=float, metavar="S", help="moments up to so many seconds after a start")
    parser.add_argument("--signals", default="KILL,TERM,STOP", help="which, for faults at random moments")
    parser.add_argument("--calls", help="break at a random one of these system calls instead: rename,fsync,…")
    parser.add_argument("trainer", nargs="+", metavar="ARGUMENT", help="of python -m artclf.train, after --")
    arguments = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="artclf-crash-"))
    command = [sys.executable, "-m", "artclf.train", *arguments.trainer, "--run-dir"]
    commands = Commands(command, folder)
    whole, broken = RunDir(folder / "whole"), RunDir(folder / "broken")
    child = commands.start([str(whole.path)])
    if child.wait() != 0:
        print(child.output())
        return 1
    status = whole.read_status()
    assert status is not None
    within = arguments.within or round(status.seconds + 10, 1)  # what TensorFlow takes to load is no part of it
    again = f"--seed {arguments.seed} --within {within}"
    print(f"seed {arguments.seed}: the same faults again with {again}", flush=True)
    faults: Sequence[Fault | CallFault]
    if arguments.calls:
        chance = random.Random(arguments.seed)
        names = arguments.calls.split(",")
        faults = [CallFault(chance.choice(names), chance.randrange(1, 60)) for _ in range(arguments.faults)]
    else:
        faults = random_faults(arguments.seed, arguments.faults, within, arguments.signals.split(","))

    def start(fault: Fault | CallFault | None) -> Child:
        return commands.start([str(broken.path)], fault if isinstance(fault, CallFault) else None)

    for attempt in endure(start, broken, faults, metrics_of(whole)):
        print(f"{attempt.fault or 'undisturbed'}: exit code {attempt.code}, committed {attempt.place}")
    differences = same(digest(broken), digest(whole))
    print(f"DIFFERENT: {', '.join(differences)}" if differences else "equal to a run that nothing broke")
    print(json.dumps({"folder": str(folder)}))
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
