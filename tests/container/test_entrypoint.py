"""The one command that every job runs, with real processes and signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from artclf.config import TrainConfig
from artclf.records import Dataset
from artclf.rundir import RunDir, write_json
from tests.crash import place_gone_on_from

PROJECT = Path(__file__).resolve().parents[2]
SETTINGS = {"model.name": "cnn_tiny", "model.head": [8], "data.image_size": 16, "train.batch_size": 4}


def begin(folder: Path, dataset: Dataset, **settings: object) -> RunDir:
    """Returns a run directory as submit leaves it."""
    run = RunDir(folder)
    folder.mkdir(parents=True)
    config = TrainConfig.from_settings({**SETTINGS, **{k.replace("__", "."): v for k, v in settings.items()}})
    run.config.write_text(config.to_json())
    write_json(run.job, {"dataset": str(dataset.folder), "data_digest": dataset.digest})
    return run


def start(run_uri: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "container.entrypoint", "--run-uri", str(run_uri)]
    return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_epoch(run: RunDir, epoch: int, job: subprocess.Popen[str]) -> None:
    """Waits until the run has finished so many epochs; the run itself paces this, not a guess at its speed."""
    while len(run.read_metrics()) < epoch:
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.02)


def test_a_job_trains_its_run_to_the_end(tiny_set: Dataset, tmp_path: Path) -> None:
    run = begin(tmp_path / "run with a space", tiny_set, train__epochs=1)
    job = start(run.path)
    output, _ = job.communicate()
    status = run.read_status()
    assert job.returncode == 0, output
    assert status is not None and status.state == "done"
    assert "epoch 1/1" in run.log.read_text() and "epoch 1/1" in output


def test_a_stopped_job_saves_and_the_next_one_goes_on(tiny_set: Dataset, tmp_path: Path) -> None:
    run = begin(tmp_path / "run", tiny_set, train__epochs=400)
    job = start(run.path)
    wait_for_epoch(run, 2, job)
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate()
    status = run.read_status()
    assert job.returncode == 75, output
    assert "Traceback" not in output
    assert status is not None and status.state == "interrupted" and status.epoch >= 2
    saved = len(run.read_metrics())
    job = start(run.path)
    wait_for_epoch(run, saved + 1, job)
    trainer = run.lock_holder()
    assert trainer is not None
    os.kill(trainer, signal.SIGKILL)
    job.communicate()
    place = place_gone_on_from(run.log.read_text())
    assert place is not None and place[0] == saved


def test_what_is_sent_to_the_whole_group_of_a_job_reaches_its_trainer_once(tiny_set: Dataset, tmp_path: Path) -> None:
    run = begin(tmp_path / "run", tiny_set, train__epochs=400)
    command = [sys.executable, "-m", "container.entrypoint", "--run-uri", str(run.path)]
    job = subprocess.Popen(
        command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    wait_for_epoch(run, 1, job)
    trainer = run.lock_holder()
    assert trainer is not None and os.getpgid(trainer) != os.getpgid(job.pid)
    os.killpg(job.pid, signal.SIGTERM)
    output, _ = job.communicate()
    assert job.returncode == 75 and "all is saved" in output and "ended at once" not in output


def test_a_run_that_its_limit_ended_says_so_and_not_only_by_which_signal(tiny_set: Dataset, tmp_path: Path) -> None:
    run = begin(tmp_path / "run", tiny_set, train__epochs=4000)
    write_json(run.job, {"dataset": str(tiny_set.folder), "data_digest": tiny_set.digest, "max_hours": 25 / 3600})
    job = start(run.path)
    output, _ = job.communicate()
    status = run.read_status()
    assert job.returncode == 75, output
    assert status is not None and status.state == "interrupted"
    assert status.reason == "stopped by its limit of 0.00694444 hours"


STOPPED_WHILE_STARTING = """
import os, signal, subprocess, sys
from container import entrypoint
class Started(subprocess.Popen):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        act()
entrypoint.subprocess.Popen = Started
trainer = entrypoint.Trainer()
act = {"heard": lambda: trainer._heard(signal.SIGTERM, None), "lost": lambda: trainer.stop("SIGTERM")}[sys.argv[1]]
waits = "import signal, sys; sys.exit(75 if signal.sigwait([signal.SIGTERM]) else 1)"
print(trainer.run([sys.executable, "-c", waits], max_hours=1), trainer.stopped_by)
"""


@pytest.mark.parametrize("how", ["heard", "lost"])
def test_a_stop_that_comes_while_the_trainer_is_being_started_reaches_it(how: str) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", STOPPED_WHILE_STARTING, how], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert answer.stdout.split() == ["75", "SIGTERM"], answer.stderr


def test_a_trainer_that_is_killed_leaves_a_verdict_all_the_same(tiny_set: Dataset, tmp_path: Path) -> None:
    run = begin(tmp_path / "run", tiny_set, train__epochs=400)
    job = start(run.path)
    wait_for_epoch(run, 1, job)
    trainer = run.lock_holder()
    assert trainer is not None and trainer != job.pid
    os.kill(trainer, signal.SIGKILL)
    job.communicate()
    status = run.read_status()
    assert job.returncode == 1
    assert status is not None and status.state == "failed" and "SIGKILL" in status.reason


def test_a_second_job_on_one_run_is_refused_and_harms_nothing(tiny_set: Dataset, tmp_path: Path) -> None:
    run = begin(tmp_path / "run", tiny_set, train__epochs=400)
    job = start(run.path)
    wait_for_epoch(run, 1, job)
    second = start(run.path)
    output, _ = second.communicate()
    assert second.returncode == 2
    assert f"another trainer is at work in this run directory (process {run.lock_holder()})" in output
    assert job.poll() is None
    job.terminate()
    job.communicate()
    assert json.loads(run.status.read_text())["state"] == "interrupted"


@pytest.mark.parametrize("hours", ["2", [1], -1, 0, True, float("nan"), float("inf")])
def test_a_limit_that_is_none_is_refused_before_anything_starts(
    tiny_set: Dataset, tmp_path: Path, hours: object
) -> None:
    run = begin(tmp_path / "run", tiny_set)
    write_json(run.job, {"dataset": str(tiny_set.folder), "data_digest": tiny_set.digest, "max_hours": hours})
    job = start(run.path)
    output, _ = job.communicate()
    assert job.returncode == 5 and "expected max_hours to be a number above 0" in output
    assert "Traceback" not in output
    status = run.read_status()
    assert status is not None and status.state == "failed" and "expected max_hours" in status.reason


def test_a_run_whose_job_is_damaged_does_not_train_on_something_else_instead(tiny_set: Dataset, tmp_path: Path) -> None:
    run = begin(tmp_path / "run", tiny_set)
    run.job.write_text("null")
    output, _ = (job := start(run.path)).communicate()
    assert job.returncode == 5 and "expected the data set's place and digest" in output
    assert "Traceback" not in output and not run.log.exists()


def test_a_job_whose_output_nobody_takes_trains_all_the_same(tiny_set: Dataset, tmp_path: Path) -> None:
    run = begin(tmp_path / "run", tiny_set, train__epochs=1)
    command = [sys.executable, "-m", "container.entrypoint", "--run-uri", str(run.path)]
    with open("/dev/full", "w") as full:
        job = subprocess.run(command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=full, check=False)
    status = run.read_status()
    assert job.returncode == 0 and status is not None and status.state == "done"
    run = begin(tmp_path / "other", tiny_set)
    run.config.write_text('{"model": {"droput": 0.5}}')
    command[-1] = str(run.path)
    with open("/dev/full", "w") as full:
        subprocess.run(command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=full, check=False)
    status = run.read_status()
    assert status is not None and "Did you mean model.dropout?" in status.reason


@pytest.mark.parametrize(
    "arguments",
    ["", "train", "serve", "train more", "--run-uri /nonexistent/run", "--run-uri /tmp more", "--run-uri s3://b/run"],
)
def test_a_wrong_call_ends_with_exit_code_2_and_no_traceback(arguments: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "container.entrypoint", *arguments.split()]
    environment = {**os.environ, "ARTCLF_SAGEMAKER_BASE": str(tmp_path / "none")}
    answer = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert answer.stderr and "Traceback" not in answer.stderr
