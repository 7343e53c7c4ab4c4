"""Jobs as child processes of this machine, running the same entry point as in the cloud.

Whether a job still runs is told by the lock of its run directory, so trainers that outlived the
submitter that started them are found and waited for, never started twice.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from artclf.rundir import RunDir
from artclf.storage import make_folder
from jobs.processes import commands
from jobs.spec import BackendError, JobHandle, JobSpec, JobState, JobStatus

PROJECT = Path(__file__).resolve().parents[2]


class LocalBackend:
    """This machine."""

    name = "local"
    is_remote = False
    poll_s = 0.5

    def __init__(self) -> None:
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def check(self) -> None:
        """This machine can always be used."""

    def notes(self) -> list[str]:
        """Returns what a person should know before jobs are started: nothing."""
        return []

    def request(self, spec: JobSpec) -> dict[str, Any]:
        """Returns the command line and what is added to the environment."""
        return {
            "command": [sys.executable, "-m", "container.entrypoint", "--run-uri", spec.run_uri],
            "cwd": str(PROJECT),
            "environment": {"TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONUNBUFFERED": "1"},
            "output": str(self._output(spec.run_uri, spec.name)),
        }

    def submit(self, spec: JobSpec) -> JobHandle:
        """Starts the entry point in a process group of its own, so that Ctrl-C reaches only the submitter."""
        request = self.request(spec)
        output = Path(request["output"])
        make_folder(output.parent)
        try:
            with open(output, "wb") as opened:
                child = subprocess.Popen(
                    request["command"],
                    cwd=request["cwd"],
                    env={**os.environ, **request["environment"]},
                    stdin=subprocess.DEVNULL,
                    stdout=opened,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            raise BackendError(f"{spec.name}: cannot start a process: {error.strerror}.") from error
        self._children[spec.name] = child
        return JobHandle(self.name, spec.name, str(child.pid), spec.trial_id, spec.attempt, spec.run_uri)

    def status(self, handles: Sequence[JobHandle]) -> list[JobStatus]:
        """Returns the states: by the process where it is our child, by the run's lock where it is not."""
        return [self._status(handle) for handle in handles]

    def _status(self, handle: JobHandle) -> JobStatus:
        child = self._children.get(handle.name)
        code = child.poll() if child else None
        if (child is not None and code is None) or RunDir(Path(handle.run_uri)).is_locked():
            return JobStatus(handle, JobState.RUNNING)
        if code is None:
            alive = self._entry_point(handle) is not None  # started by another submitter, not yet at its run
            return JobStatus(handle, JobState.RUNNING) if alive else JobStatus(handle, JobState.FAILED, "process gone")
        states = {0: JobState.SUCCEEDED, 75: JobState.STOPPED}
        return JobStatus(handle, states.get(code, JobState.FAILED), f"exit code {code}")

    def stop(self, handle: JobHandle) -> None:
        """Sends SIGTERM to the trainer, or to its entry point if that is our child or the trainer has not begun."""
        child = self._children.get(handle.name)
        if child is not None and child.poll() is None:
            child.send_signal(signal.SIGTERM)
            return
        holder = RunDir(Path(handle.run_uri)).lock_holder() or self._entry_point(handle)
        if holder is not None:
            with contextlib.suppress(ProcessLookupError):  # it may end in this instant
                os.kill(holder, signal.SIGTERM)

    def _entry_point(self, handle: JobHandle) -> int | None:
        """Returns the process id of a job's entry point if it still runs, told by its command line: the id that
        was recorded may be another program's by now, or its submitter was killed before it could record one."""
        ours = f"-m container.entrypoint --run-uri {handle.run_uri} "
        return next((process for process, command in commands() if ours in command), None)

    def logs(self, handle: JobHandle) -> Iterator[str]:
        """Yields what the job's processes printed, warnings of libraries too."""
        output = self._output(handle.run_uri, handle.name)
        if output.exists():
            with open(output, encoding="utf-8", errors="replace") as lines:
                yield from (line.rstrip("\n") for line in lines)

    def _output(self, run_uri: str, name: str) -> Path:
        return Path(run_uri).parent.parent / "jobs" / f"{name}.log"
