"""What a job is to every backend, and how a job's state and a run's word join into an outcome. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, Protocol

from artclf.errors import ArtclfError, CapacityError, ConfigError
from artclf.rundir import RunStatus

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}")  # of a training job (SageMaker API reference)


class BackendError(ArtclfError):
    """A backend refused or failed."""


class QuotaError(BackendError, CapacityError):
    """A quota is full: wait, or ask for more. What was started stays started."""

    exit_code = CapacityError.exit_code


class JobNameTaken(BackendError):
    """A job of that name was started before, for the same run, and has ended."""


class JobState(Enum):
    """Whether a machine is still at work on a job. It does not say how the run went."""

    ABSENT = "absent"
    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"
    UNKNOWN = "unknown"

    @property
    def alive(self) -> bool:
        """Whether the job may still do something."""
        return self in (JobState.PENDING, JobState.RUNNING, JobState.UNKNOWN)


@dataclass(frozen=True)
class JobSpec:
    """One attempt at one trial: all that a backend needs to know.

    Attributes:
        name: study, trial and attempt; unique.
        run_uri: the run directory, the job's only argument.
        instance, spot, max_hours, max_wait_hours, tags: what kind of machine, where a backend has a choice.
    """

    name: str
    trial_id: str
    attempt: int
    run_uri: str
    instance: str
    spot: bool
    max_hours: float
    max_wait_hours: float | None
    tags: dict[str, str]


@dataclass(frozen=True)
class JobHandle:
    """A job that was submitted; one small file a job below the study's jobs/."""

    backend: str
    name: str
    remote_id: str
    trial_id: str
    attempt: int
    run_uri: str

    def to_json(self) -> bytes:
        """Returns the content of the job's file."""
        return (json.dumps(asdict(self), indent=2) + "\n").encode()

    @classmethod
    def from_json(cls, content: bytes, where: str) -> JobHandle:
        """Returns the handle in a job's file. Raises ConfigError if it holds none."""
        try:
            handle = cls(**json.loads(content))
        except (ValueError, TypeError, RecursionError) as error:
            raise ConfigError(f"{where}: not the record of a job: {error}.") from error
        texts = (handle.backend, handle.name, handle.remote_id, handle.trial_id, handle.run_uri)
        if not all(isinstance(text, str) for text in texts) or not isinstance(handle.attempt, int):
            raise ConfigError(f"{where}: not the record of a job: a value is of the wrong kind.")
        if not _NAME.fullmatch(handle.name) or not handle.name.endswith(f"-{handle.trial_id}-a{handle.attempt}"):
            raise ConfigError(f"{where}: not the record of a job: {handle.name!r:.80} is no name of one.")
        return handle


@dataclass(frozen=True)
class JobStatus:
    """A job's state, and the backend's own word for it; ``may_pass``: it failed for want of a machine only."""

    handle: JobHandle
    state: JobState
    word: str = ""
    may_pass: bool = False


class Backend(Protocol):
    """A place where jobs run. Nothing else may differ between backends.

    Attributes:
        is_remote: jobs go on without the submitter, and their runs lie in a bucket.
        poll_s: how long to wait between two looks at their states.
    """

    name: str
    is_remote: bool

    @property
    def poll_s(self) -> float: ...

    def check(self) -> None:
        """Proves that the backend can be used, before anything is done. Raises ConfigError."""

    def notes(self) -> list[str]:
        """Returns what a person should know before jobs are started."""

    def request(self, spec: JobSpec) -> dict[str, Any]:
        """Returns what ``submit`` would send, without sending it."""

    def submit(self, spec: JobSpec) -> JobHandle:
        """Starts the job; one that was started before under that name is found, never started twice.

        Raises:
            QuotaError: if it can be started later.
            JobNameTaken: if it was started before, and has ended.
            BackendError: if it cannot be started.
        """

    def status(self, handles: Sequence[JobHandle]) -> list[JobStatus]:
        """Returns the states of many jobs, in their order."""

    def stop(self, handle: JobHandle) -> None:
        """Asks a job to save and end; one that has ended is left alone."""

    def logs(self, handle: JobHandle) -> Iterator[str]:
        """Yields what the job has printed so far, line by line."""


@dataclass(frozen=True)
class Outcome:
    """How a trial stands: ``missing running done failed interrupted diverged``, why, and after which epoch."""

    state: str
    reason: str = ""
    epoch: int = 0


def outcome(job: JobState | None, run: RunStatus | None) -> Outcome:
    """Joins what the backend says of the machine with what the run says of itself.

    Args:
        job: the state of the trial's last job; None if there is none, or its backend forgot it.
        run: the run's own word; None if it never began.
    """
    epoch = run.epoch if run else 0
    if run is not None and run.state == "done":
        return Outcome("done", run.reason, epoch)
    if job is not None and job.alive:
        return Outcome("running", epoch=epoch)
    if run is None:
        if job in (None, JobState.STOPPED, JobState.ABSENT):
            return Outcome("missing", "its job was stopped before the run began" if job is JobState.STOPPED else "")
        return Outcome("failed", "its job ended before the run began")
    if run.state == "running":
        after = f"after epoch {epoch}" if epoch else "in its first epoch"
        return Outcome("failed", f"ended without a verdict {after}: its process or machine is gone", epoch)
    return Outcome(run.state, run.reason, epoch)
