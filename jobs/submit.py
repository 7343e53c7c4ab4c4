"""From a plan to finished runs: start what is missing, at most N at a time, and wait for all."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from artclf.errors import StorageError
from artclf.interrupt import StopRequest
from jobs.grid import Grid, Trial
from jobs.plan import Step, plan
from jobs.spec import Backend, JobHandle, JobNameTaken, JobSpec, JobState, Outcome, QuotaError, outcome
from jobs.study import Study

HOLD_S, LONGEST_HOLD_S = 10.0, 120.0
"""After a full quota or missing capacity: how long until the next job is offered, doubled each time in a row."""
ASKED_TO_STOP = "jobs stop"
"""Why a submit stops that was asked to through the study."""
LAUNCHES_A_LOOK = 10
"""After so many launches in a row the study is looked at: somebody may have asked to stop meanwhile."""
SLICE_S = 1.0
"""How long a Ctrl-C waits at most for the end of a sleep."""


class Watcher(Protocol):
    """Whoever shows people what goes on."""

    def started(self, trial: Trial, step: Step) -> None:
        """A job was started, or one that runs already was found."""

    def ended(self, trial: Trial, result: Outcome) -> None:
        """A trial's job ended."""

    def tick(self, running: Sequence[Trial]) -> None:
        """A moment passed; progress can be read from the runs."""

    def holding(self, why: str, hold_s: float) -> None:
        """Nothing can be started now; the next try comes after so many seconds."""

    def stopping(self, running: Sequence[Trial], *, go_on: bool) -> None:
        """A stop was asked for: nothing more is started; the running trials save and end, or go on elsewhere."""


def outcomes(
    study: Study, trials: Sequence[Trial], backend: Backend, jobs: Mapping[str, JobHandle] | None = None
) -> dict[str, Outcome]:
    """Returns how each trial stands, from its run directory and its last job (``jobs``: as they were known before)."""
    jobs = study.last_jobs() if jobs is None else jobs
    handles = [jobs[trial.trial_id] for trial in trials if trial.trial_id in jobs]
    states = {status.handle.trial_id: status.state for status in backend.status(handles)}
    study.refresh()  # after the jobs were asked: one that has ended by then has left its verdict
    return {t.trial_id: run_outcome(study, t.trial_id, states.get(t.trial_id)) for t in trials}


def run_outcome(study: Study, trial_id: str, job: JobState | None) -> Outcome:
    """Returns how a trial stands; a status that cannot be read, or a finished run that lacks files, has failed."""
    try:
        status = study.run(trial_id).read_status()
    except StorageError as error:
        return Outcome("running") if job is not None and job.alive else Outcome("failed", str(error))
    result = outcome(job, status)
    if result.state == "done" and not study.is_complete(trial_id):
        if job is not None and job.alive:  # it is about to begin again, or brings them
            return Outcome("running", epoch=result.epoch)
        return Outcome("failed", "files of the finished run are missing", result.epoch)
    return result


def job_spec(study: Study, grid: Grid, trial: Trial, attempt: int) -> JobSpec:
    """Returns the job of an attempt at a trial."""
    resources = grid.resources
    return JobSpec(
        name=f"{grid.study}-{trial.trial_id}-a{attempt}",
        trial_id=trial.trial_id,
        attempt=attempt,
        run_uri=study.run_uri(trial.trial_id),
        instance=resources.instance,
        spot=resources.spot,
        max_hours=resources.max_hours,
        max_wait_hours=resources.max_wait_hours,
        tags={"artclf:study": grid.study, "artclf:trial": trial.trial_id, **resources.tags},
    )


def next_attempt(last: JobHandle | None, backend: Backend) -> int:
    """Returns the number of a trial's next attempt, told by its last job. One that was recorded and perhaps never
    started is made again where a name is given once: there it is found if it was."""
    if last is None:
        return 1
    return last.attempt if backend.is_remote and not last.remote_id else last.attempt + 1


def jobs_go_on(backend: Backend, stop_reason: str) -> bool:
    """Says whether running jobs go on when their submit stops: those elsewhere do, unless all were asked to stop."""
    return backend.is_remote and stop_reason != ASKED_TO_STOP


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
        self._last: dict[str, JobHandle] = {}
        self._alive: dict[str, tuple[Trial, JobHandle]] = {}
        self._epochs: dict[str, int] = {}  # how far each trial was when its job was started
        self._waiting: deque[Step] = deque()
        self._unseen: list[JobHandle] = []  # started since the study was looked at
        self._dropped: set[str] = set()  # trials that somebody stopped by name
        self._asked = ""
        self._ended: dict[str, Outcome] = {}
        self._held_s = self._hold_s = 0.0
        self._has_run: set[str] = set()  # names of jobs that had a machine

    def run(
        self, steps: Sequence[Step], max_parallel: int, stop: StopRequest, asked_before: str | None = None
    ) -> dict[str, Outcome]:
        """Carries out the steps and returns how each trial that had a job ended.

        A requested stop launches nothing more. On this machine it also asks the running jobs to save, and waits
        for them; jobs elsewhere are left to go on.

        Args:
            asked_before: ``study.stops_asked()`` when the submit began; any other word is a request to stop.
        """
        self._asked = self._study.stops_asked() if asked_before is None else asked_before
        self._begin(steps)
        self._look(stop)

        def may_launch() -> bool:
            is_free = self._held_s <= 0 and len(self._alive) < max_parallel
            return bool(self._waiting) and is_free and not stop.requested

        asked_to_stop = False
        while self._alive or (self._waiting and not stop.requested):
            launched = 0
            while launched < LAUNCHES_A_LOOK and may_launch():
                self._launch(self._waiting.popleft())
                launched += 1
            if stop.requested and not asked_to_stop:
                asked_to_stop = True
                running = [trial for trial, _ in self._alive.values()]
                self._watcher.stopping(running, go_on=jobs_go_on(self._backend, stop.reason))
                if self._backend.is_remote:
                    break
                for _, handle in self._alive.values():
                    self._backend.stop(handle)
            has_more = may_launch()
            if not has_more:
                self._wait(stop)
            if not has_more and (asked_to_stop or not stop.requested):
                self._collect()
            self._look(stop)  # last: whoever asked to stop while a job ended wants no other one in its place
            self._watcher.tick([trial for trial, _ in self._alive.values()])
        return self._ended

    def _begin(self, steps: Sequence[Step]) -> None:
        """Sorts the steps into those that wait and those that run, as they are now: another submitter may have been
        at work since they were planned. Attempts are counted from the very records of jobs that the steps follow
        from: whoever made the next attempt meanwhile is met under its name, and never outnumbered by one more."""
        trials = [step.trial for step in steps if step.action != "skip"]
        self._last = self._study.last_jobs()
        for step in plan(trials, outcomes(self._study, trials, self._backend, self._last)):
            if step.launches:
                self._waiting.append(step)
            elif step.action == "wait":
                self._adopt(step.trial, step, self._last[step.trial.trial_id])
            else:
                self._found_ended(step, run_outcome(self._study, step.trial.trial_id, None))

    def _look(self, stop: StopRequest) -> None:
        """Looks at the study, and whether anybody asked through it that all trials stop, or some."""
        self._study.refresh()
        if self._study.stops_asked() != self._asked:
            self._asked = self._study.stops_asked()
            named = self._study.asked_of()
            for handle in self._unseen:  # whoever asked did not see them run
                if not named or handle.trial_id in named:
                    self._backend.stop(handle)
            if named:
                self._drop(named)
            else:
                stop.reason = stop.reason or ASKED_TO_STOP
        self._unseen.clear()

    def _drop(self, named: Collection[str]) -> None:
        """Lets trials that somebody stopped end with their present job, and starts none of them."""
        self._dropped.update(named)
        waiting, self._waiting = self._waiting, deque()
        for step in waiting:
            if step.trial.trial_id in named:
                self._found_ended(step, run_outcome(self._study, step.trial.trial_id, JobState.STOPPED))
            else:
                self._waiting.append(step)

    def _wait(self, stop: StopRequest) -> None:
        """Lets the time until the next look pass, or until a stop is asked for."""
        was_requested, left_s = stop.requested, self._backend.poll_s
        self._held_s -= left_s
        while left_s > 0 and stop.requested == was_requested:
            self._sleep(min(left_s, SLICE_S))
            left_s -= SLICE_S

    def _launch(self, step: Step) -> None:
        trial = step.trial
        self._study.begin_run(trial, self._dataset_path, self._data_digest, self._grid.resources.max_hours)
        spec = self._spec(trial)
        # Recorded before it is started too: a submitter that is killed in between leaves no job that nobody knows.
        intended = JobHandle(self._backend.name, spec.name, "", trial.trial_id, spec.attempt, spec.run_uri)
        self._study.record_job(intended)
        try:
            handle = self._backend.submit(spec)
        except QuotaError as error:
            self._hold(step, str(error))
            return
        except JobNameTaken:  # another submitter started it, and it has ended meanwhile; or its run was deleted
            self._last[trial.trial_id] = replace(intended, remote_id="ended")
            self._study.refresh()
            result = run_outcome(self._study, trial.trial_id, JobState.STOPPED)
            if result.state in ("done", "diverged"):
                self._found_ended(step, result)
            else:
                self._waiting.appendleft(step)
            return
        self._unseen.append(handle)
        self._study.record_job(handle)
        self._adopt(trial, step, handle)

    def _spec(self, trial: Trial) -> JobSpec:
        attempt = next_attempt(self._last.get(trial.trial_id), self._backend)
        return job_spec(self._study, self._grid, trial, attempt)

    def _adopt(self, trial: Trial, step: Step, handle: JobHandle) -> None:
        self._last[trial.trial_id] = handle
        self._alive[trial.trial_id] = (trial, handle)
        self._epochs[trial.trial_id] = step.epoch or 0
        self._watcher.started(trial, step)

    def _found_ended(self, step: Step, result: Outcome) -> None:
        """Takes note of a trial that another submitter brought to its end."""
        self._watcher.started(step.trial, replace(step, action="wait"))
        self._ended[step.trial.trial_id] = result
        self._watcher.ended(step.trial, result)

    def _hold(self, step: Step, why: str) -> None:
        """Lets a step wait until there may be a machine for it."""
        self._waiting.appendleft(step)
        self._hold_s = min(max(HOLD_S, self._hold_s * 2), LONGEST_HOLD_S)
        self._held_s = self._hold_s
        self._watcher.holding(why, self._hold_s)

    def _collect(self) -> None:
        statuses = self._backend.status([handle for _, handle in self._alive.values()])
        ended = [status for status in statuses if not status.state.alive]
        had = [s for s in statuses if s.state is JobState.RUNNING or not (s.state.alive or s.may_pass)]
        has_run = {status.handle.name for status in had}
        if not has_run <= self._has_run:  # machines can be had again
            self._hold_s = 0.0
        self._has_run |= has_run
        if ended:
            self._study.refresh()  # what was seen before may be from before its verdict
        for status in ended:
            trial, _ = self._alive.pop(status.handle.trial_id)
            self._held_s = 0.0  # its machine may be had
            result = run_outcome(self._study, trial.trial_id, status.state)
            if result.state not in ("done", "diverged"):
                has_got_on = result.epoch > self._epochs[trial.trial_id]
                is_lost = has_got_on and _lost_its_machine(status.state, result)
                if (status.may_pass or is_lost) and trial.trial_id not in self._dropped:
                    (step,) = plan([trial], {trial.trial_id: result})
                    self._hold(step if is_lost else _without_a_machine(step), status.word)
                    continue
                is_failure = status.state is JobState.FAILED or result.state in ("failed", "missing")
                if is_failure and result.reason and status.word and status.word not in result.reason:
                    result = replace(result, reason=f"{result.reason} ({status.word})")
            self._ended[trial.trial_id] = result
            self._watcher.ended(trial, result)


def _without_a_machine(step: Step) -> Step:
    """Returns the step that follows a job which got no machine, or none again."""
    return replace(step, action="continue" if step.epoch else "retry", why="no machine was free")


def _lost_its_machine(job: JobState, result: Outcome) -> bool:
    """Says whether a service calls a job failed whose trainer it sent SIGTERM, and which saved and left by that. The
    word may be an earlier job's: only one that has got on since is gone on with, or it would be started for ever."""
    return job is JobState.FAILED and result.state == "interrupted" and "SIGTERM" in result.reason
