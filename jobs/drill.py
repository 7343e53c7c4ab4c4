"""Rehearses interruptions of a grid on this machine, and says whether they changed any result.

The grid runs twice through the real ``python -m jobs submit``: undisturbed, then with real signals at
moments that were all drawn before the first one. Afterwards the two studies are compared, trial by trial.

<root>/drills/<study>/
  undisturbed/ disturbed/   the roots of the two studies; the first is kept for the next drill
  undisturbed/took.json     the seconds that it took, over all drills that brought it to its end
  submits.log               what the submits of the last drill printed
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO

from artclf.datasets import open_dataset
from artclf.errors import ArtclfError, ConfigError, Interrupted, StorageError
from artclf.interrupt import StopRequest
from artclf.locks import exclusive
from artclf.rundir import RunDir, RunStatus, read_json, write_json
from artclf.storage import check_writable
from jobs.backends.local import LocalBackend
from jobs.cells import duration
from jobs.compare import compare
from jobs.display import WIDTH
from jobs.grid import Trial, expand, load_grid
from jobs.plan import plan
from jobs.processes import commands
from jobs.study import Study
from jobs.submit import outcomes

POLL_S = 0.1
SLEEP_S = (2.0, 5.0)
"""How long the machine sleeps."""
FILLED = 0.8
"""The share of the training time that the faults fill: some trainers go on while the next fault is waited for."""
MODULES = ("-m jobs submit ", "-m container.entrypoint ", "-m artclf.train ")
"""What is at work on a study: each starts the next one. Told by its command line, which names the study's root."""


class Kind(Enum):
    """What can happen, as the verdict counts it: one, and several."""

    KILL_TRAINER = ("kill of a trainer", "kills of a trainer")
    SPOT_NOTICE = ("spot notice", "spot notices")
    POWER_CUT = ("power cut", "power cuts")
    KILL_SUBMIT = ("kill of the submit alone", "kills of the submit alone")
    TERM_SUBMIT = ("SIGTERM to the submit", "SIGTERMs to the submit")
    CTRL_C = ("Ctrl-C", "Ctrl-Cs")
    SLEEP = ("sleep", "sleeps")


@dataclass(frozen=True)
class Fault:
    """One interruption.

    Attributes:
        loaded: whether its moment is counted from a trainer's first step, or else from its start.
        delay_s: how long after the first such moment that was seen since the fault before.
        victim: which of the trainers at work then, as a share of their number, 0 to 1 (excluded).
        asleep_s: how long the machine sleeps, where it does.
    """

    kind: Kind
    loaded: bool
    delay_s: float
    victim: float
    asleep_s: float


def plan_faults(seed: int, count: int, training_s: float, loading_s: float) -> list[Fault]:
    """Returns the faults of a drill: always the same for the same arguments.

    A quarter of them strike while a trainer loads; the others' moments spread over what comes then: training,
    saving, evaluating, the next trial. Each has a part of its range to itself.

    Args:
        seed: whatever it is, every kind comes once before any comes again.
        count: how many.
        training_s: how long the grid takes without them, loading left out.
        loading_s: how long a trainer takes from its start to its first step.
    """
    draw = random.Random(seed).random  # no other method promises the same numbers in every Python
    places = sorted(range(count), key=lambda _: draw())
    kinds: list[Kind] = []
    while len(kinds) < count:
        kinds += sorted(Kind, key=lambda _: draw())
    early = count // 4
    longest_s = 2 * FILLED * training_s / (count - early)
    faults = []
    for kind, place in zip(kinds, places, strict=False):
        loaded = place >= early
        if loaded:
            delay_s = longest_s * (place - early + draw()) / (count - early)
        else:
            delay_s = loading_s * (place + draw()) / early
        asleep_s = SLEEP_S[0] + (SLEEP_S[1] - SLEEP_S[0]) * draw()
        faults.append(Fault(kind, loaded, delay_s, draw(), asleep_s))
    return faults


@dataclass(frozen=True)
class Verdict:
    """Whether the interruptions changed nothing, and that in words."""

    equal: bool
    text: str


def drill(
    grid_path: Path, root: Path, backend: str, count: int, seed: int, stop: StopRequest, say: Callable[[str], None]
) -> Verdict:
    """Runs a grid undisturbed (unless an earlier drill did), then disturbed, and compares.

    Args:
        root: the drill keeps to ``<root>/drills/<study>``.
        backend: must be local.
        count: how many faults.
        say: shows a line of at most 80 columns to people.

    Raises:
        ConfigError: if the grid is wrong, the backend another, or something is at work in the drill's folder.
        ArtclfError: if the undisturbed grid does not end well.
        Interrupted: when ``stop`` was requested; the submit under way has saved and ended.
    """
    if backend != "local":
        raise ConfigError(
            f"--backend {backend}: a drill sends real signals to processes of this machine: expected local."
        )
    grid = load_grid(grid_path)
    trials = expand(grid, open_dataset(grid.dataset, stop.check).digest).trials
    say(f"seed {seed}: repeat these faults with --faults {count} --seed {seed}")
    folder = root / "drills" / grid.study
    check_writable(folder)
    with exclusive(folder / ".drill.lock", f"{folder}: another drill is at work here"):
        with open(folder / "submits.log", "wb") as log:
            undisturbed = Rehearsal(grid_path, folder / "undisturbed", grid.study, trials, log, stop, say)
            disturbed = Rehearsal(grid_path, folder / "disturbed", grid.study, trials, log, stop, say)
            _remove(disturbed)
            expected_s = _run_undisturbed(undisturbed)
            say(f"disturbed: the same grid again, with {count} faults")
            faults = plan_faults(seed, count, *_split(undisturbed, expected_s, grid.resources.max_parallel))
            started = time.monotonic()
            problems = disturbed.run_with(faults)
        took_s = time.monotonic() - started
        differences = problems + compare(undisturbed.study, disturbed.study)
    words = _told(disturbed.faults, count, took_s, len(trials), differences, took_s - expected_s)
    if differences:
        words += f"\nThe two studies: {undisturbed.study.path}\n                 {disturbed.study.path}"
        words += "\nIf the first is older than the code or TensorFlow, remove it and repeat the drill."
        words += f"\nWhat the submits printed: {folder / 'submits.log'}"
    return Verdict(not differences, words)


def _run_undisturbed(rehearsal: Rehearsal) -> float:
    """Brings the undisturbed study to its end, and returns how long it took in all, by earlier drills too."""
    note = rehearsal.root / "took.json"
    before = read_json(note)
    before_s = float(before) if isinstance(before, int | float) else rehearsal.trained_s()
    there = rehearsal.done()
    rehearsal.say(
        f"undisturbed: {len(rehearsal.trials)} trials" + (f", {there} done by an earlier drill" * (there > 0))
    )
    started = time.monotonic()
    try:
        code = rehearsal.submit_once()
    finally:
        took_s = round(before_s + (time.monotonic() - started) * (there < len(rehearsal.trials)), 1)
        write_json(note, took_s)
    if code != 0:
        raise ArtclfError(
            f"{rehearsal.study.path}: expected the grid to end well without faults, but its submit ended with exit "
            f"code {code} ({rehearsal.last_line()}). Mend that first; all it printed is in {rehearsal.log_path}."
        )
    rehearsal.say(f"{rehearsal.clock()}  ended; it took {duration(took_s)}")
    return took_s


def _split(rehearsal: Rehearsal, took_s: float, max_parallel: int) -> tuple[float, float]:
    """Returns how long the grid trained, and about how long each trainer loaded: the rest of the time."""
    parallel = min(max_parallel, len(rehearsal.trials))
    training_s = min(rehearsal.trained_s() / parallel, took_s)
    return training_s, (took_s - training_s) / math.ceil(len(rehearsal.trials) / parallel)


def _remove(rehearsal: Rehearsal) -> None:
    """Removes what the last drill left, unless something is at work there."""
    left = rehearsal.processes()
    for process in left:
        _send(process, signal.SIGCONT)  # a drill that was killed may have left them asleep
    if left:
        raise ConfigError(
            f"{rehearsal.root}: process {left[0]} is at work here, of an earlier drill. "
            f"Wait for it, or stop it: python -m jobs stop {shlex.quote(str(rehearsal.grid_path))} "
            f"--root {shlex.quote(str(rehearsal.root))}"
        )
    if rehearsal.root.exists():
        shutil.rmtree(rehearsal.root)


# -- the submits, and what happens to them -------------------------------------------------------


class Rehearsal:
    """One of the two studies: starts submits of it, watches them, and delivers faults to them.

    Attributes:
        faults: those whose moment came, each with whether it was delivered.
    """

    def __init__(
        self,
        grid_path: Path,
        root: Path,
        study: str,
        trials: tuple[Trial, ...],
        log: BinaryIO,
        stop: StopRequest,
        say: Callable[[str], None],
    ) -> None:
        self.grid_path, self.root, self.trials, self.say = grid_path, root, trials, say
        self.study = Study(root, study)
        self.faults: list[tuple[Fault, bool]] = []
        self.log_path = Path(log.name)
        self._log, self._stop = log, stop
        self._started = time.monotonic()
        self._submits = 0
        self._done = 0  # as far as people were told
        self._first_seen: dict[tuple[str, int], float] = {}  # trial and process: wall clock, to compare with files

    def submit_once(self) -> int:
        """Runs one submit that nothing disturbs, and returns its exit code."""
        self._done = self.done()
        with self._submitting() as submit:
            self._watch(submit, deque(), 0)
        return submit.returncode

    def run_with(self, faults: list[Fault]) -> list[str]:
        """Submits again and again, with the faults in their order, until the grid has ended.

        Returns:
            What went wrong that no fault explains.
        """
        self._started = time.monotonic()
        pending = deque(faults)
        while True:
            explained = bool(self.processes())  # trainers that lost their submit may have been asked to stop
            before = len(self.faults)
            self._say_plan()
            with self._submitting() as submit:
                self._watch(submit, pending, len(faults))
            if submit.returncode == 0:
                return []
            explained = explained or any(delivered for _, delivered in self.faults[before:])
            if not explained:
                return [
                    f"submit {self._submits} ended with exit code {submit.returncode} undisturbed: {self.last_line()}"
                ]

    def processes(self, modules: Sequence[str] = MODULES) -> list[int]:
        """Returns the processes at work on this study, those first that start others."""
        found = {process: text for process, text in commands() if str(self.root) in text and process != os.getpid()}
        return [process for module in modules for process, text in sorted(found.items()) if module in text]

    def done(self) -> int:
        """Returns how many trials are done."""
        return sum(result.state == "done" for result in self._outcomes().values())

    def trained_s(self) -> float:
        """Returns how long the runs say they took, one after the other."""
        statuses = [_status(self.study.run(trial.trial_id)) for trial in self.trials]
        return sum(status.seconds for status in statuses if status)

    def last_line(self) -> str:
        """Returns the last line that a submit printed."""
        self._log.flush()
        lines = self.log_path.read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line.removeprefix("error: ") for line in reversed(lines) if line.strip()), "it printed nothing")

    def clock(self) -> str:
        """Returns the time since this rehearsal began as people read it off a watch."""
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02d}:{seconds:02d}".rjust(7) if hours else f"{minutes}:{seconds:02d}".rjust(7)

    @contextlib.contextmanager
    def _submitting(self) -> Iterator[subprocess.Popen[bytes]]:
        """Starts a submit in a session of its own: Ctrl-C in the terminal is the drill's, which hands it on."""
        self._submits += 1
        self._log.write(f"== submit {self._submits}, {self.root.name}\n".encode())
        self._log.flush()
        command = [sys.executable, "-m", "jobs", "submit", str(self.grid_path), "--root", str(self.root)]
        submit = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield submit
        finally:
            if submit.poll() is None:
                submit.terminate()
            submit.wait()

    def _watch(self, submit: subprocess.Popen[bytes], pending: deque[Fault], count: int) -> None:
        """Follows a submit to its end; the pending faults are delivered as their moments come."""
        since: dict[bool, float] = {}  # the fault's moments are counted from: a trainer's start, its first step
        pace = self._pace(len(pending), count)
        looked = 0.0
        while submit.poll() is None:
            if self._stop.requested:
                self.say("stopping: what is at work saves and ends")
                self._end(submit)
                raise Interrupted(f"stopped by {self._stop.reason}.")
            trainers = self._trainers()
            now = time.monotonic()
            for trainer in trainers.items():
                since.setdefault(False, now)
                if self._has_loaded(*trainer):
                    since.setdefault(True, now)
            if pending and now - since.get(pending[0].loaded, math.inf) >= pending[0].delay_s * pace:
                self._deliver(pending.popleft(), count, submit, trainers)
                since.clear()
                pace = self._pace(len(pending), count)
            if now - looked >= 1:
                looked = now
                self._say_done()
            time.sleep(POLL_S)
        self._say_done()

    def _pace(self, pending: int, count: int) -> float:
        """Returns by how much the faults to come must hurry to come before the grid has ended, as on a machine that
        is busier now than when it ran undisturbed: 1 if not at all."""
        epochs = [(trial.config.total_epochs(), self._epoch(trial)) for trial in self.trials]
        left = sum(total - done for total, done in epochs) / sum(total for total, _ in epochs)
        return min(1.0, left * count / pending) if pending else 1.0

    def _epoch(self, trial: Trial) -> int:
        """Returns how many of a trial's epochs are behind it, those that early stopping leaves out too."""
        status = _status(self.study.run(trial.trial_id))
        if status is None:
            return 0
        return trial.config.total_epochs() if status.state == "done" else status.epoch

    def _end(self, submit: subprocess.Popen[bytes]) -> None:
        submit.terminate()
        submit.wait()
        for process in self.processes(("-m container.entrypoint ",)):  # those of a submit that was killed before
            _send(process, signal.SIGTERM)
        while self.processes():
            time.sleep(POLL_S)

    def _deliver(self, fault: Fault, count: int, submit: subprocess.Popen[bytes], trainers: Mapping[str, int]) -> None:
        victim = sorted(trainers)[int(fault.victim * len(trainers))] if trainers else None
        who = f"{victim} {self._place(victim, trainers[victim])}" if victim else ""
        others = f"{len(trainers)} trainers at work" if len(trainers) > 1 else who or "no trainer at work"
        what = {
            Kind.KILL_TRAINER: f"kill -9 of the trainer of {who}",
            Kind.SPOT_NOTICE: f"SIGTERM (spot notice) to {who}",
            Kind.POWER_CUT: f"power cut (kill -9 of all), {others}",
            Kind.KILL_SUBMIT: f"kill -9 of the submit alone, {others}",
            Kind.TERM_SUBMIT: f"SIGTERM to the submit, {others}",
            Kind.CTRL_C: f"Ctrl-C to the submit, {others}",
            Kind.SLEEP: f"asleep for {fault.asleep_s:.1f} s, {others}",
        }[fault.kind]
        number = f"fault {len(self.faults) + 1}/{count}"
        if victim is None and fault.kind in (Kind.KILL_TRAINER, Kind.SPOT_NOTICE):
            delivered = False
            self._line(f"{number}: {fault.kind.value[0]}: not delivered, no trainer at work")
        else:
            self._line(f"{number}: {what}")
            delivered = self._strike(fault, submit, trainers.get(victim or "", 0))
            if not delivered:
                self._line(f"{number}: not delivered, its victim was gone in that instant")
        self.faults.append((fault, delivered))

    def _strike(self, fault: Fault, submit: subprocess.Popen[bytes], trainer: int) -> bool:
        """Does it, and says whether there was anyone left to do it to."""
        match fault.kind:
            case Kind.KILL_TRAINER:
                return _send(trainer, signal.SIGKILL)
            case Kind.SPOT_NOTICE:
                return _send(trainer, signal.SIGTERM)
            case Kind.TERM_SUBMIT | Kind.CTRL_C:
                submit.send_signal(signal.SIGINT if fault.kind is Kind.CTRL_C else signal.SIGTERM)
            case Kind.KILL_SUBMIT:
                submit.kill()
                submit.wait()
            case Kind.POWER_CUT:
                for process in self._freeze():  # first nobody moves: who sees another die could still write
                    _send(process, signal.SIGKILL)
                submit.wait()
                while self.processes():
                    time.sleep(POLL_S)
            case Kind.SLEEP:
                frozen = self._freeze()
                try:
                    until = time.monotonic() + fault.asleep_s
                    while time.monotonic() < until and not self._stop.requested:
                        time.sleep(POLL_S)
                finally:
                    for process in frozen:
                        _send(process, signal.SIGCONT)
        return True

    def _freeze(self) -> list[int]:
        """Stops every process of this study, those too that were started meanwhile, and returns them."""
        frozen: list[int] = []
        while new := [process for process in self.processes() if process not in frozen]:
            for process in new:
                _send(process, signal.SIGSTOP)
            frozen += new
        return frozen

    def _trainers(self) -> dict[str, int]:
        """Returns the trainers at work by trial id."""
        holders = {trial.trial_id: self.study.run(trial.trial_id).lock_holder() for trial in self.trials}
        trainers = {trial_id: process for trial_id, process in holders.items() if process is not None}
        for item in trainers.items():
            self._first_seen.setdefault(item, time.time())
        return trainers

    def _has_loaded(self, trial_id: str, process: int) -> bool:
        """Says whether a trainer has done a step: its progress file is then younger than itself."""
        try:
            return self.study.run(trial_id).progress.stat().st_mtime > self._first_seen[trial_id, process]
        except FileNotFoundError:
            return False

    def _place(self, trial_id: str, process: int) -> str:
        (epochs,) = [trial.config.total_epochs() for trial in self.trials if trial.trial_id == trial_id]
        status = _status(self.study.run(trial_id))
        epoch = status.epoch if status else 0
        if epoch >= epochs:
            return "while evaluating"
        if not self._has_loaded(trial_id, process):
            return "while loading"
        return f"after epoch {epoch} of {epochs}" if epoch else f"in epoch 1 of {epochs}"

    def _outcomes(self) -> dict[str, Any]:
        return outcomes(self.study, self.trials, LocalBackend())

    def _say_plan(self) -> None:
        """Says what the next submit goes on from."""
        if not self._submits:
            return
        steps = plan(self.trials, self._outcomes())
        actions = Counter(step.action for step in steps)
        going_on = [(step.epoch, step.trial.config.total_epochs()) for step in steps if step.action == "continue"]
        epochs = [str(epoch + 1) for epoch, total in going_on if epoch < total]
        words = [
            (actions["skip"], "done"),
            (actions["wait"], "still running"),
            (len(epochs), f"in epoch{'s' * (len(epochs) > 1)} {' and '.join(epochs)}"),
            (len(going_on) - len(epochs), "at the evaluation"),
            (actions["retry"] + actions["start"], "from zero"),
        ]
        told = ", ".join(f"{number} {text}" for number, text in words if number)
        self._line(f"submit {self._submits + 1} goes on: {told}")

    def _say_done(self) -> None:
        statuses = [_status(self.study.run(trial.trial_id)) for trial in self.trials]
        done = sum(status is not None and status.state == "done" for status in statuses)
        if done > self._done:
            self._done = done
            self._line(f"{done} of {len(statuses)} trials done")

    def _line(self, text: str) -> None:
        line = f"{self.clock()}  {text}"
        self.say(line if len(line) <= WIDTH else line[: WIDTH - 1] + "…")


def _status(run: RunDir) -> RunStatus | None:
    try:
        return run.read_status()
    except StorageError:
        return None


def _send(process: int, number: signal.Signals) -> bool:
    """Sends a signal, and says whether there was such a process."""
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return False
    return True


# -- the verdict ---------------------------------------------------------------------------------


def _told(
    faults: list[tuple[Fault, bool]], count: int, took_s: float, trials: int, differences: list[str], cost_s: float
) -> str:
    delivered = [fault for fault, was_delivered in faults if was_delivered]
    kinds = Counter(fault.kind for fault in delivered)
    each = ", ".join(f"{n} {kind.value[n > 1]}" for kind in Kind if (n := kinds[kind]))
    came = f"{len(delivered)} fault{'s' * (len(delivered) != 1)} in {duration(took_s)}" + (
        f": {each}." if each else "."
    )
    if len(faults) < count:
        came += f" The grid ended before the other {count - len(faults)}."
    if len(delivered) < len(faults):
        came += f" {len(faults) - len(delivered)} found no victim."
    if differences:
        shown = [textwrap.fill(f"- {text}", WIDTH, subsequent_indent="  ") for text in differences[:10]]
        more = [f"  and {len(differences) - 10} more"] if len(differences) > 10 else []
        many = "1 difference" if len(differences) == 1 else f"{len(differences)} differences"
        return "\n".join([textwrap.fill(came, WIDTH), f"NOT EQUAL: {many} from the run without faults:", *shown, *more])
    if not delivered:
        return textwrap.fill(f"{came} So nothing was rehearsed: the grid is too short for that.", WIDTH)
    cost = f"Interruptions cost {duration(cost_s)}." if cost_s > 0 else "Interruptions cost no time."
    all_trials = {1: "The trial", 2: "Both trials"}.get(trials, f"All {trials} trials")
    equal = f"{all_trials} ended exactly once, with the same weights, metrics and predictions as without them."
    return textwrap.fill(f"{came} {equal} {cost}", WIDTH)
