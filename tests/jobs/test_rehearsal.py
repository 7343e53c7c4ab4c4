"""A grid the whole way through the stand-in for the cloud: real submitter, real trainers, machines taken away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import yaml

from artclf.prepare import Options, prepare
from artclf.records import Dataset
from artclf.rundir import RunDir
from artclf.s3 import S3Storage
from jobs.compare import compare_runs
from jobs.gather import gather
from jobs.grid import load_grid
from jobs.study import Study, open_study
from tests.conftest import PROJECT, Amount, Measured
from tests.fake_aws.__main__ import cloud
from tests.little_grid import write_grid

if TYPE_CHECKING:
    from tests.s3_servers import S3Server


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


def rehearse(grid: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a grid here, then in the stand-in for the cloud where each job loses its machine twice, and compares."""
    answer = submit(grid, "--root", folder / "here")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    with cloud(folder, interruptions=2) as (sagemaker, environment):
        answer = submit(grid, "--backend", "sagemaker", **environment)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(grid.parent)
        study = load_grid(grid).study
        there, here = open_study("s3://rehearsal/studies", study), Study(folder / "here", study)
        there.refresh()
        assert there.trial_ids() == here.trial_ids()
        assert [(job.status, job.interruptions) for job in sagemaker.history] == [("Completed", 2)] * len(
            here.trial_ids()
        )
        for trial_id in here.trial_ids():
            there.fetch_model(trial_id)
            assert compare_runs(here.run(trial_id), there.run(trial_id)) == []
        assert {"results.csv", "report.html", "report.md", "best/model.keras"} <= set(S3Storage(there.uri).list())
        assert "<html" in (there.path / "report.html").read_text()
        scores = [[result.metrics for result in gather(study.path)] for study in (here, there)]
        assert scores[0] == scores[1]
        started = len(sagemaker.history)
        again = submit(grid, "--backend", "sagemaker", **environment)
        assert "Nothing to start" in again.stdout and len(sagemaker.history) == started


def test_a_grid_whose_jobs_each_lose_their_machine_twice_ends_like_the_same_grid_here(
    tiny_set: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rehearse(write_grid(tmp_path / "a folder", tiny_set, "0, 1", epochs=240), tmp_path, monkeypatch)


def test_so_does_the_grid_of_real_paintings(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, amount: Amount, measured: Measured
) -> None:
    if not amount(0, 1):
        pytest.skip("long: part of make soak")
    paintings = prepare(
        [str(shared_data / "paintings")], tmp_path / "paintings", Options(artists=shared_data / "artists.csv")
    )
    settings = yaml.safe_load((PROJECT / "bench" / "artists11.yaml").read_text())
    settings["dataset"] = str(paintings.folder)
    settings["base"]["model"]["weights"] = str(shared_data / "weights" / "mobilenet_7_5_224_tf_no_top.h5")
    grid = tmp_path / "artists11.yaml"
    grid.write_text(yaml.safe_dump(settings))
    rehearse(grid, tmp_path, monkeypatch)
    scores = sorted(result.metrics["test_accuracy"] for result in gather(tmp_path / "here" / settings["study"]))
    measured(f"4 trials on {len(paintings):,} paintings, 2 interruptions each: equal, test accuracies {scores}")


def test_a_grid_on_this_machine_can_train_on_a_data_set_in_a_bucket(
    tiny_set: Dataset, tmp_path: Path, moto_server: S3Server
) -> None:
    with moto_server.fresh_bucket() as bucket:
        uri = f"s3://{bucket}/data"
        for file in tiny_set.folder.rglob("*"):
            if file.is_file():
                key = f"data/{file.relative_to(tiny_set.folder).as_posix()}"
                moto_server.client.upload_file(str(file), bucket, key)
        grid = write_grid(tmp_path, Dataset.open(tiny_set.folder, place=uri), "0", epochs=1)
        environment = {**moto_server.environment(), "ARTCLF_CACHE": str(tmp_path / "cache")}
        answer = submit(grid, "--root", tmp_path / "studies", **environment)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        (result,) = gather(tmp_path / "studies" / "little")
        assert result.state == "done" and (RunDir(result.path).read_job() or {})["dataset"] == uri
        assert "Nothing to start" in submit(grid, "--root", tmp_path / "studies", **environment).stdout


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM"])
def test_a_rehearsal_that_is_stopped_ends_in_words_and_leaves_nothing_running(
    tiny_set: Dataset, tmp_path: Path, how: str
) -> None:
    grid = write_grid(tmp_path, tiny_set, "0", epochs=2000)
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "TMPDIR": str(tmp_path)}
    rehearsal = subprocess.Popen(
        [sys.executable, "-m", "tests.fake_aws", str(grid), "--interruptions", "0"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert rehearsal.stdout is not None and any(line.startswith("starts ") for line in rehearsal.stdout)
    if how == "Ctrl-C":
        os.killpg(rehearsal.pid, signal.SIGINT)
    else:
        rehearsal.send_signal(signal.SIGTERM)
    said, _ = rehearsal.communicate()
    assert rehearsal.returncode == 75 and "Traceback" not in said
    assert "The rehearsal is over and its cloud is gone" in said
    assert not list(tmp_path.glob("artclf-rehearsal-*"))
    assert not [process for process in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(process.info)]
