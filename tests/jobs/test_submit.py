"""Submitting over a backend with state: what starts, how many at once, what happens to interruptions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from artclf.interrupt import StopRequest
from artclf.rundir import RunDir, RunStatus
from jobs.display import LineWatcher
from jobs.grid import Grid, Trial, expand, load_grid
from jobs.plan import plan
from jobs.spec import JobHandle, JobSpec, JobState, JobStatus, Outcome
from jobs.study import Study
from jobs.submit import Submission, outcomes

GRID = """
study: little
dataset: data/x
base: {model.name: cnn_tiny, train.epochs: 4}
axes: {train.seed: [0, 1, 2, 3, 4]}
"""


class FakeBackend:
    """Machines that take a few moments for each job and then leave the verdict they are told to."""

    name = "fake"
    is_remote = False
    poll_s = 0.5

    def __init__(self, moments: int = 3, verdicts: dict[str, str] | None = None) -> None:
        self.moments = moments
        self.verdicts = verdicts or {}
        self.left: dict[str, int] = {}
        self.handles: dict[str, JobHandle] = {}
        self.most_at_once = 0

    def check(self) -> None:
        pass

    def notes(self) -> list[str]:
        return []

    def request(self, spec: JobSpec) -> dict[str, Any]:
        return {"name": spec.name}

    def submit(self, spec: JobSpec) -> JobHandle:
        assert spec.name not in self.handles, "a job's name is taken for ever"
        handle = JobHandle(self.name, spec.name, "7", spec.trial_id, spec.attempt, spec.run_uri)
        self.handles[spec.name], self.left[spec.name] = handle, self.moments
        RunDir(Path(spec.run_uri)).write_status(RunStatus("running"))
        self.most_at_once = max(self.most_at_once, sum(left > 0 for left in self.left.values()))
        return handle

    def status(self, handles: Sequence[JobHandle]) -> list[JobStatus]:
        return [JobStatus(h, JobState.RUNNING if self.left.get(h.name, 0) > 0 else JobState.STOPPED) for h in handles]

    def stop(self, handle: JobHandle) -> None:
        self._end(handle.name, "interrupted")

    def logs(self, handle: JobHandle) -> Iterator[str]:
        yield from ()

    def pass_time(self, seconds: float) -> None:
        for name, left in list(self.left.items()):
            if left == 1:
                self._end(name, self.verdicts.get(self.handles[name].trial_id, "done"))
            elif left > 1:
                self.left[name] = left - 1

    def _end(self, name: str, state: Any) -> None:
        self.left[name] = 0
        run = RunDir(Path(self.handles[name].run_uri))
        if state == "done":
            files = [run.model, run.model_json, run.environment, run.metrics]
            files += [path(split) for split in ("val", "test") for path in (run.evaluation_json, run.predictions_csv)]
            for path in files:
                path.parent.mkdir(exist_ok=True)
                path.touch()
        if state != "vanished":
            run.write_status(RunStatus(state, epoch=2))


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    path = tmp_path / "little.yaml"
    path.write_text(GRID)
    return load_grid(path)


def submit(
    study: Study, grid: Grid, backend: FakeBackend, parallel: int = 2, stop: StopRequest | None = None
) -> dict[str, Outcome]:
    expansion = expand(grid, "digest")
    study.record(grid, "/data/x", "digest", expansion)
    steps = plan(expansion.trials, outcomes(study, expansion.trials, backend))
    submission = Submission(
        study, grid, backend, "/data/x", "digest", LineWatcher(study, len(steps)), sleep=backend.pass_time
    )
    return submission.run(steps, parallel, stop or StopRequest())


def trials(grid: Grid) -> tuple[Trial, ...]:
    return expand(grid, "digest").trials


def test_every_trial_runs_and_never_more_at_once_than_allowed(tmp_path: Path, grid: Grid) -> None:
    backend = FakeBackend()
    ended = submit(Study(tmp_path, "little"), grid, backend, parallel=2)
    assert [result.state for result in ended.values()] == ["done"] * 5
    assert backend.most_at_once == 2


def test_resubmitting_starts_nothing_that_is_done(tmp_path: Path, grid: Grid) -> None:
    study, backend = Study(tmp_path, "little"), FakeBackend()
    submit(study, grid, backend)
    assert submit(study, grid, backend) == {}
    assert len(backend.handles) == 5


def test_resubmitting_starts_only_the_failed_and_vanished_trials_again(tmp_path: Path, grid: Grid) -> None:
    first, second, *_ = [trial.trial_id for trial in trials(grid)]
    study = Study(tmp_path, "little")
    ended = submit(study, grid, FakeBackend(verdicts={first: "failed", second: "vanished"}))
    assert ended[second].reason.startswith("ended without a verdict")
    again = submit(study, grid, FakeBackend())
    assert set(again) == {first, second}
    assert study.last_jobs()[first].name == f"little-{first}-a2"


def test_a_stop_launches_no_more_and_lets_the_running_trials_save(tmp_path: Path, grid: Grid) -> None:
    stop, backend = StopRequest(), FakeBackend(moments=1000)

    def sleep(seconds: float) -> None:
        stop.reason = "SIGINT"

    backend.pass_time = sleep  # type: ignore[method-assign]
    ended = submit(Study(tmp_path, "little"), grid, backend, parallel=2, stop=stop)
    assert [result.state for result in ended.values()] == ["interrupted"] * 2
    assert len(backend.handles) == 2


def test_trials_that_outlived_their_submitter_are_waited_for_and_not_started_twice(tmp_path: Path, grid: Grid) -> None:
    study, backend = Study(tmp_path, "little"), FakeBackend(moments=4)

    def die(seconds: float) -> None:
        raise KeyboardInterrupt

    living = backend.pass_time
    backend.pass_time = die  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        submit(study, grid, backend, parallel=3)
    backend.pass_time = living  # type: ignore[method-assign]
    ended = submit(study, grid, backend, parallel=3)
    assert [result.state for result in ended.values()] == ["done"] * 5
    assert len(backend.handles) == 5


def test_growing_an_axis_keeps_the_old_trials_and_starts_only_the_new(tmp_path: Path, grid: Grid) -> None:
    study, backend = Study(tmp_path, "little"), FakeBackend()
    submit(study, grid, backend)
    grid.path.write_text(GRID.replace("3, 4]", "3, 4, 5]"))
    grown = load_grid(grid.path)
    assert {t.trial_id for t in trials(grid)} < {t.trial_id for t in trials(grown)}
    assert len(submit(study, grown, backend)) == 1


def test_a_study_is_not_continued_with_other_data(tmp_path: Path, grid: Grid) -> None:
    from artclf.errors import ConfigError

    study = Study(tmp_path, "little")
    study.record(grid, "/data/x", "digest", expand(grid, "digest"))
    with pytest.raises(ConfigError, match="submitted with the data digest"):
        study.record(grid, "/data/x", "other", expand(grid, "other"))


def test_a_finished_run_that_lost_a_file_is_finished_again(tmp_path: Path, grid: Grid) -> None:
    study, backend = Study(tmp_path, "little"), FakeBackend()
    submit(study, grid, backend)
    (lost, *_) = trials(grid)
    study.run(lost.trial_id).evaluation_json("val").unlink()
    assert list(submit(study, grid, backend)) == [lost.trial_id]


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"state": "done", "attempt": "x"}', "[" * 100_000])
def test_one_unreadable_status_stops_no_other_trial_and_is_mended(tmp_path: Path, grid: Grid, damage: str) -> None:
    study, backend = Study(tmp_path, "little"), FakeBackend()
    submit(study, grid, backend)
    (hurt, *_) = trials(grid)
    study.run(hurt.trial_id).status.write_text(damage)
    assert list(submit(study, grid, backend)) == [hurt.trial_id]


@pytest.mark.parametrize("damage", ["", "[]", '{"trial_id": [1]}', "[" * 100_000])
def test_an_unreadable_job_record_stops_nothing(tmp_path: Path, grid: Grid, damage: str) -> None:
    study, backend = Study(tmp_path, "little"), FakeBackend()
    submit(study, grid, backend)
    (tmp_path / "little" / "jobs" / "little-0-a1.json").write_text(damage)
    assert submit(study, grid, backend) == {}
