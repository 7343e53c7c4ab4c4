"""One training job: its life in fake time, from Starting to its end, and what that costs.

The life is told once, from the top, by ``Job._live``: a generator that says until when it waits. Whoever holds
the job resumes it at that time; a stop or the loss of its machine is thrown into it where it waits.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from tests.fake_aws.model import Params

GRACE_S = 120.0
"""From SIGTERM to SIGKILL (API StopTrainingJob)."""
FAILURE_CHARACTERS = 1024
"""Of the failure file become FailureReason (Developer Guide, "Signals … Failure")."""
DEFAULT_RUNTIME_S = 86_400
"""API StoppingCondition: "The default value is 1 day"."""
NO_CAPACITY = (
    "CapacityError: Unable to provision requested ML compute capacity. Please retry using a different ML instance type."
)
MESSAGES = {
    "Starting": "Starting the training job",
    "Pending": "Training job waiting for capacity",
    "Downloading": "Downloading input data",
    "Training": "Training image download completed. Training in progress.",
    "Interrupted": "Training job interrupted",
    "Uploading": "Uploading generated training model",
    "Stopping": "Stopping the training job",
    "Completed": "Training job completed",
    "Failed": "Training job failed",
    "Stopped": "Training job stopped",
    "MaxRuntimeExceeded": "Training job runtime exceeded MaxRuntimeInSeconds provided",
    "MaxWaitTimeExceeded": "Training job wait time exceeded MaxWaitTimeInSeconds provided",
}

Story = Generator[float, None, None]
"""Yields the time until which it waits; it is woken sooner when its machine's work ends."""


@dataclass(frozen=True)
class Durations:
    """How long the phases of a job take, in fake seconds; one of 0 for Pending is left out."""

    starting: float = 30.0
    pending: float = 30.0
    downloading: float = 20.0
    uploading: float = 10.0

    @classmethod
    def none(cls) -> Durations:
        """Returns the durations of a platform that does all at once, for jobs that are real processes."""
        return cls(0, 0, 0, 0)


@dataclass(frozen=True)
class End:
    """How a machine's work ended: the container's exit code, and the text of its failure file."""

    exit_code: int
    failure: str = ""


class Machine(Protocol):
    """A machine at work on one start of a job."""

    ends_at: float
    """The fake time at which the work ends or has ended; infinite while nobody knows."""

    def terminate(self, now: float) -> None:
        """Sends SIGTERM to the container's first process."""

    def kill(self, now: float) -> None:
        """Takes the machine away: nothing of it runs any longer, soon."""

    def result(self) -> End:
        """Returns how the work ended. Called once, when it has."""


@dataclass(frozen=True)
class Start:
    """What a machine gets to know when a job starts on it, for the first time or again.

    Attributes:
        at: when it starts.
        now: returns the fake time.
        log: adds a line to the job's log, at a time.
    """

    job: Job
    at: float
    account: str
    region: str
    now: Callable[[], float]
    log: Callable[[str, float], None]


@runtime_checkable
class Workload(Protocol):
    """What a job does on a machine."""

    @property
    def real(self) -> bool:
        """Whether it lives in real time, as processes do."""

    def start(self, start: Start) -> Machine:
        """Starts the work on a fresh machine."""


@dataclass(frozen=True)
class Platform:
    """What decides how jobs fare."""

    start: Callable[[Job, float], Machine]
    durations: Callable[[Job], Durations]
    lacks_capacity: Callable[[Job], bool]
    grace_s: float
    spot_discount: float


@dataclass
class Transition:
    """A secondary status and its times, in seconds since 1970."""

    status: str
    start: float
    end: float | None = None

    def shown(self) -> Params:
        """Returns the transition as the API shows it."""
        shown = {"Status": self.status, "StartTime": self.start, "StatusMessage": MESSAGES[self.status]}
        return shown if self.end is None else {**shown, "EndTime": self.end}


class Halted(Exception):
    """The job is to stop, with this secondary status as its last."""

    def __init__(self, word: str) -> None:
        super().__init__(word)
        self.word = word


class Reclaimed(Exception):
    """The machine is taken away: SIGKILL after so many seconds of SIGTERM, or at once."""

    def __init__(self, grace_s: float) -> None:
        super().__init__(grace_s)
        self.grace_s = grace_s


@dataclass(eq=False)
class Job:
    """A training job. All times are fake, in seconds since 1970.

    Attributes:
        status, secondary: TrainingJobStatus and SecondaryStatus.
        run_s: how long it had machines, over all starts.
        starts, interruptions: how often it was started, and how often it lost its machine.
        lines: what its present or last start has printed.
        metrics: name → (value, time) of the last line that each metric definition matched.
        reused_by: the job that took over its warm pool.
    """

    request: Params
    arn: str
    created: float
    platform: Platform
    is_warm: bool = False
    status: str = "InProgress"
    transitions: list[Transition] = field(default_factory=list)
    failure_reason: str = ""
    run_began: float | None = None
    ended: float | None = None
    run_s: float = 0.0
    starts: int = 0
    interruptions: int = 0
    lines: list[str] = field(default_factory=list)
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)
    reused_by: str = ""

    def __post_init__(self) -> None:
        self.name: str = self.request["TrainingJobName"]
        self.spot: bool = self.request.get("EnableManagedSpotTraining", False)
        self.tags = {tag["Key"]: tag["Value"] for tag in self.request.get("Tags", [])}
        condition = self.request.get("StoppingCondition", {})
        self.max_runtime_s: float = condition.get("MaxRuntimeInSeconds", DEFAULT_RUNTIME_S)
        self._must_end: float = self.created + condition.get("MaxWaitTimeInSeconds", math.inf)
        self._machine: Machine | None = None
        self._machine_since: float | None = None
        self._now = self.created
        self._story = self._live()
        self._wake = next(self._story)

    @property
    def secondary(self) -> str:
        """The present secondary status."""
        return self.transitions[-1].status

    @property
    def instances(self) -> int:
        """How many instances it asks for."""
        return int(self.request["ResourceConfig"]["InstanceCount"])

    @property
    def quota(self) -> str:
        """The name of the quota that it counts against, as Service Quotas spells it."""
        kind = "spot training job usage" if self.spot else "training job usage"
        return f"{self.request['ResourceConfig']['InstanceType']} for {kind}"

    @property
    def billable_s(self) -> float:
        """The seconds that are paid for; spot shows its lower price as fewer of them."""
        return self.run_s * (1 - self.platform.spot_discount) if self.spot else self.run_s

    # -- time ------------------------------------------------------------------------------------

    def due(self) -> float:
        """Returns when it will next do something by itself."""
        if self.ended is not None:
            return math.inf
        return max(self._now, min(self._wake, self._machine.ends_at if self._machine is not None else math.inf))

    def go_on(self) -> None:
        """Does what is due, at the time when it is due."""
        self._resume(self.due())

    def stop(self, now: float) -> None:
        """Stops the job as StopTrainingJob does."""
        self._resume(now, Halted("Stopped"))

    def interrupt(self, now: float, grace_s: float) -> None:
        """Takes its machine away; raises ValueError if there is none to lose."""
        if not self.spot or self.secondary not in ("Downloading", "Training"):
            kind = "spot" if self.spot else "on-demand"
            raise ValueError(f"{self.name}: {kind} and {self.secondary}: has no spot machine to lose")
        self._resume(now, Reclaimed(grace_s))

    def kill(self, now: float) -> Machine | None:
        """Takes its machine away for good, and returns it."""
        if self._machine is not None:
            self._machine.kill(now)
        return self._machine

    def _resume(self, at: float, thrown: Exception | None = None) -> None:
        self._now = at
        try:
            self._wake = self._story.throw(thrown) if thrown is not None else next(self._story)
        except StopIteration:
            self._wake = math.inf

    # -- life ------------------------------------------------------------------------------------

    def _live(self) -> Story:
        try:
            while not (yield from self._attempt()):
                self.interruptions += 1
        except Halted as halted:
            self._enter("Stopping", "Stopping")
            yield from self._lose_machine(self.platform.grace_s)
            self._finish(halted.word, "Stopped")

    def _attempt(self) -> Generator[float, None, bool]:
        """Runs the job on one machine and returns True at its end, False if the machine was reclaimed."""
        durations = self.platform.durations(self)
        try:
            yield from self._provision(durations)
            if self.platform.lacks_capacity(self):
                self.failure_reason = NO_CAPACITY
                self._finish("Failed", "Failed")
                return True
            yield from self._phase("Downloading", durations.downloading, on_machine=True)
            end = yield from self._train()
            yield from self._phase("Uploading", durations.uploading)
        except Reclaimed as reclaimed:
            self._enter("Interrupted")
            yield from self._lose_machine(reclaimed.grace_s)
            return False
        self._give_back_machine()
        word = "Failed" if end.exit_code else "Completed"
        if end.exit_code:
            self.failure_reason = end.failure[:FAILURE_CHARACTERS] or f"AlgorithmError: , exit code: {end.exit_code}"
        self._finish(word, word)
        return True

    def _provision(self, durations: Durations) -> Story:
        waits = not self.is_warm or self.starts > 0
        yield from self._phase("Starting", durations.starting if waits else 0)
        if waits and durations.pending:
            yield from self._phase("Pending", durations.pending)

    def _train(self) -> Generator[float, None, End]:
        self._enter("Training")
        self.starts += 1
        self.lines = []
        self._machine = self.platform.start(self, self._now)
        while self._machine.ends_at > self._now:
            yield from self._wait(math.inf)
        machine, self._machine = self._machine, None
        return machine.result()

    def _lose_machine(self, grace_s: float) -> Story:
        """Ends the work by SIGTERM, and by SIGKILL if that does not help or there is no time for it."""
        if self._machine is not None:
            if grace_s:
                self._machine.terminate(self._now)
                yield self._now + grace_s
            if self._machine.ends_at > self._now:
                self._machine.kill(self._now)
            while self._machine.ends_at > self._now:
                yield math.inf
            machine, self._machine = self._machine, None
            machine.result()
        self._give_back_machine()

    def _phase(self, word: str, seconds: float, on_machine: bool = False) -> Story:
        self._enter(word)
        if on_machine:
            self._machine_since = self._now
            self.run_began = self.run_began if self.run_began is not None else self._now
        yield from self._wait(self._now + seconds)

    def _wait(self, until: float) -> Story:
        limit, word = min(self._limits())
        yield min(until, limit)
        if self._now >= limit:
            raise Halted(word)

    def _limits(self) -> Iterator[tuple[float, str]]:
        yield self._must_end, "MaxWaitTimeExceeded"
        if self._machine_since is not None:
            yield self._machine_since + self.max_runtime_s - self.run_s, "MaxRuntimeExceeded"

    def _give_back_machine(self) -> None:
        if self._machine_since is not None:
            self.run_s += self._now - self._machine_since
            self._machine_since = None

    def _enter(self, word: str, status: str = "InProgress") -> None:
        if self.transitions:
            self.transitions[-1].end = self._now
        self.transitions.append(Transition(word, self._now))
        self.status = status

    def _finish(self, word: str, status: str) -> None:
        self._enter(word, status)
        self.transitions[-1].end = self.ended = self._now

    # -- what it says ----------------------------------------------------------------------------

    def note_line(self, line: str, now: float) -> None:
        """Keeps a line of its log and the metrics in it."""
        self.lines.append(line)
        for definition in self.request["AlgorithmSpecification"].get("MetricDefinitions", []):
            found = re.search(definition["Regex"], line)
            if found is not None and found.groups():
                with contextlib.suppress(ValueError):
                    self.metrics[definition["Name"]] = (float(found[1]), now)

    def pool_status(self, now: float) -> Params | None:
        """Returns its WarmPoolStatus, or None if it keeps none."""
        kept_s = self.request["ResourceConfig"].get("KeepAlivePeriodInSeconds", 0)
        if not kept_s:
            return None
        if self.reused_by:
            return {"Status": "Reused", "ReusedByJob": self.reused_by}
        if self.ended is None:
            return {"Status": "InUse"}
        return {"Status": "Available" if now < self.ended + kept_s else "Terminated"}
