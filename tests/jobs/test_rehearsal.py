"""A grid the whole way through the stand-in for the cloud: real submitter, real trainers, machines taken away."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from artclf.records import Dataset
from artclf.s3 import S3Storage
from jobs.compare import compare_runs
from jobs.gather import gather
from jobs.study import Study, open_study
from tests.conftest import PROJECT
from tests.fake_aws.__main__ import cloud
from tests.little_grid import write_grid


def submit(grid: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs", "submit", str(grid), "--yes", *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=grid.parent,
        env={**os.environ, **environment, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_grid_whose_jobs_each_lose_their_machine_twice_ends_like_the_same_grid_here(
    tiny_set: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = write_grid(tmp_path / "a folder", tiny_set, "0, 1", epochs=80)
    answer = submit(grid, "--root", tmp_path / "here")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    with cloud(tmp_path, interruptions=2) as (sagemaker, environment):
        answer = submit(grid, "--backend", "sagemaker", **environment)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        assert [(job.status, job.interruptions) for job in sagemaker.history] == [("Completed", 2)] * 2
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(grid.parent)
        there, here = open_study("s3://rehearsal/studies", "little"), Study(tmp_path / "here", "little")
        there.refresh()
        assert there.trial_ids() == here.trial_ids()
        for trial_id in here.trial_ids():
            there.fetch_model(trial_id)
            assert compare_runs(here.run(trial_id), there.run(trial_id)) == []
        assert {"results.csv", "report.html", "report.md", "best/model.keras"} <= set(S3Storage(there.uri).list())
        assert "<html" in (there.path / "report.html").read_text()
        scores = [[result.metrics for result in gather(study.path)] for study in (here, there)]
        assert scores[0] == scores[1]
        again = submit(grid, "--backend", "sagemaker", **environment)
        assert "Nothing to start" in again.stdout and len(sagemaker.history) == 2
