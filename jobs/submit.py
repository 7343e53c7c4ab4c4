"""From a plan to finished runs: start what is missing, at most N at a time, and wait for all."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from artclf.errors import StorageError
from artclf.interrupt import StopRequest
from artclf.rundir import RunDir
from jobs.grid import Grid, Trial
from jobs.plan import Step
from jobs.spec import Backend, JobHandle, JobSpec, JobState, Outcome, outcome
from jobs.study import Study

POLL_S = 0.5


class Watcher(Protocol):
    """Whoever shows people what goes on."""

    def started(self, trial: Trial, step: Step) -> None:
        """A job was started, or one that runs already was found."""

    def ended(self, trial: Trial, result: Outcome) -> None:
        """A trial's job ended."""

    def tick(self, running: Sequence[Trial]) -> None:
        """A moment passed; progress can be read from the runs."""

    def stopping(self, running: Sequence[Trial]) -> None:
        """A stop was asked for; the running trials save and end."""


def outcomes(study: Study, trials: Sequence[Trial], backend: Backend) -> dict[str, Outcome]:
    """Returns how each trial stands, from its run directory and its last job."""
    jobs = study.last_jobs()
    handles = [jobs[trial.trial_id] for trial in trials if trial.trial_id in jobs]
    states = {status.handle.trial_id: status.state for status in backend.status(handles)}
    return {t.trial_id: run_outcome(study.run(t.trial_id), states.get(t.trial_id)) for t in trials}


def run_outcome(run: RunDir, job: JobState | None) -> Outcome:
    """Returns how a trial stands; a status that cannot be read, or a finished run that lacks files, has failed."""
    try:
        status = run.read_status()
    except StorageError as error:
        return Outcome("running") if job is not None and job.alive else Outcome("failed", str(error))
    result = outcome(job, status)
    if result.state == "done" and not run.is_complete():
        return Outcome("failed", "files of the finished run are missing", result.epoch)
    return result


def job_spec(study: Study, grid: Grid, trial: Trial, attempt: int) -> JobSpec:
    """Returns the job of an attempt at a trial."""
    resources = grid.resources
    return JobSpec(
        name=f"{grid.study}-{trial.trial_id}-a{attempt}",
        trial_id=trial.trial_id,
        attempt=attempt,
        run_uri=str(study.run(trial.trial_id).path),
        instance=resources.instance,
        spot=resources.spot,
        max_hours=resources.max_hours,
        tags={"artclf:study": grid.study, "artclf:trial": trial.trial_id, **resources.tags},
    )


class Submission:
    """One submit under way.

    Args:
        study: where its runs lie.
        grid: what was asked for.
        backend: where jobs run.
        dataset_path, data_digest: the data of every trial.
        watcher: is told what happens.
        sleep: waits; tests pass their own.
    """

    def __init__(
        self,
        study: Study,
        grid: Grid,
        backend: Backend,
        dataset_path: str,
        data_digest: str,
        watcher: Watcher,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._study, self._grid, self._backend = study, grid, backend
        self._dataset_path, self._data_digest = dataset_path, data_digest
        self._watcher, self._sleep = watcher, sleep
        self._attempts = {trial_id: handle.attempt for trial_id, handle in study.last_jobs().items()}
        self._alive: dict[str, tuple[Trial, JobHandle]] = {}

    def run(self, steps: Sequence[Step], max_parallel: int, stop: StopRequest) -> dict[str, Outcome]:
        """Carries out the steps and returns how each trial that had a job ended.

        A requested stop launches nothing more, asks the running jobs to save, and waits for them.
        """
        waiting = deque(step for step in steps if step.launches)
        for step in steps:
            if step.action == "wait":
                self._adopt(step)
        ended: dict[str, Outcome] = {}
        asked_to_stop = False
        while self._alive or (waiting and not stop.requested):
            while waiting and len(self._alive) < max_parallel and not stop.requested:
                self._launch(waiting.popleft())
            if stop.requested and not asked_to_stop:
                asked_to_stop = True
                self._watcher.stopping([trial for trial, _ in self._alive.values()])
                for _, handle in self._alive.values():
                    self._backend.stop(handle)
            self._sleep(POLL_S)
            self._collect(ended)
            self._watcher.tick([trial for trial, _ in self._alive.values()])
        return ended

    def _launch(self, step: Step) -> None:
        trial = step.trial
        limit = self._grid.resources.max_hours
        self._study.begin_run(trial, self._dataset_path, self._data_digest, limit)
        attempt = self._attempts.get(trial.trial_id, 0) + 1
        spec = job_spec(self._study, self._grid, trial, attempt)
        # Recorded before it is started too: a submitter that is killed in between leaves no job that nobody knows.
        self._study.record_job(JobHandle(self._backend.name, spec.name, "", trial.trial_id, attempt, spec.run_uri))
        handle = self._backend.submit(spec)
        self._study.record_job(handle)
        self._attempts[trial.trial_id] = attempt
        self._alive[trial.trial_id] = (trial, handle)
        self._watcher.started(trial, step)

    def _adopt(self, step: Step) -> None:
        handle = self._study.last_jobs()[step.trial.trial_id]
        self._alive[step.trial.trial_id] = (step.trial, handle)
        self._watcher.started(step.trial, step)

    def _collect(self, ended: dict[str, Outcome]) -> None:
        handles = [handle for _, handle in self._alive.values()]
        for status in self._backend.status(handles):
            if status.state.alive:
                continue
            trial, _ = self._alive.pop(status.handle.trial_id)
            result = run_outcome(self._study.run(trial.trial_id), status.state)
            ended[trial.trial_id] = result
            self._watcher.ended(trial, result)
