"""SageMaker's folder contract, with real folders and the real entry point."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from artclf.records import Dataset
from artclf.rundir import RunDir

PROJECT = Path(__file__).resolve().parents[2]
TINY = {
    "model.name": "cnn_tiny",
    "model.head": "[8]",
    "data.image_size": "16",
    "train.epochs": "1",
    "train.learning_rate": "1e-3",
    "data.augment.flip": "true",
    "sagemaker_submit_directory": "s3://bucket/code",
    "_tuning_objective_metric": "val_accuracy",
}


def platform(base: Path, dataset: Dataset, hyperparameters: Any = None, hosts: int = 1) -> Path:
    """Returns the base of folders as the platform leaves them: a channel, and JSON of strings."""
    config = base / "input" / "config"
    config.mkdir(parents=True)
    shutil.copytree(dataset.folder, base / "input" / "data" / "dataset")
    if hyperparameters is not None:
        (config / "hyperparameters.json").write_text(json.dumps(hyperparameters))
    names = [f"algo-{number + 1}" for number in range(hosts)]
    (config / "resourceconfig.json").write_text(json.dumps({"current_host": "algo-1", "hosts": names}))
    return base


def start(base: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "container.entrypoint", *arguments],
        cwd=PROJECT,
        env={**os.environ, "ARTCLF_SAGEMAKER_BASE": str(base)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_c15_c18_string_hyperparameters_train_from_read_only_input_and_leave_a_model(
    tiny_set: Dataset, tmp_path: Path
) -> None:
    base = platform(tmp_path / "ml", tiny_set, TINY)
    for path in (base / "input").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    answer = start(base, "train")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    settings = json.loads((base / "model" / "model.json").read_text())["settings"]
    assert settings["train"]["learning_rate"] == 0.001 and settings["data"]["augment"]["flip"] is True
    assert not (base / "output" / "failure").exists()


def test_all_of_a_finished_run_but_its_commits_is_delivered(tiny_set: Dataset, tmp_path: Path) -> None:
    base = platform(tmp_path / "ml", tiny_set, TINY)
    assert start(base).returncode == 0
    delivered = RunDir(base / "model")
    status = delivered.read_status()
    assert status is not None and status.state == "done" and delivered.is_complete()
    assert "done in" in delivered.log.read_text() and not delivered.checkpoints.exists()


def test_a_platform_without_a_folder_for_checkpoints_can_name_another_one(
    tiny_set: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = platform(tmp_path / "ml", tiny_set, TINY)
    monkeypatch.setenv("ARTCLF_CHECKPOINTS", str(tmp_path / "kept"))
    answer = start(base)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert any((tmp_path / "kept" / "checkpoint").iterdir()) and not (base / "checkpoints").exists()


@pytest.mark.parametrize(
    ("hyperparameters", "hosts", "said"),
    [
        ({"model.droput": "0.5"}, 1, "hyperparameters: model.droput: no such setting. Did you mean model.dropout?"),
        ({"model.dropout": "high"}, 1, "expected a number from 0 to 1"),
        ({"train.epochs": "[1"}, 1, "not readable as YAML"),
        (["a list"], 1, "expected an object of strings"),
        (TINY, 2, "expected one host for one trial, received 2"),
    ],
    ids=["C15 unknown", "C15 wrong type", "C15 broken value", "C15 not an object", "C16 two hosts"],
)
def test_what_cannot_be_trained_ends_with_exit_code_2_and_a_failure_file(
    tiny_set: Dataset, tmp_path: Path, hyperparameters: Any, hosts: int, said: str
) -> None:
    base = platform(tmp_path / "ml", tiny_set, hyperparameters, hosts)
    answer = start(base)
    assert answer.returncode == 2
    assert said in answer.stderr and "Traceback" not in answer.stderr
    assert said in (base / "output" / "failure").read_text()


@pytest.mark.parametrize("hyperparameters", [None, {}], ids=["missing", "empty"])
def test_c15_missing_or_empty_hyperparameters_mean_the_defaults(
    tiny_set: Dataset, tmp_path: Path, hyperparameters: Any
) -> None:
    from artclf.config import TrainConfig
    from container.sagemaker import SageMakerFolders

    run = SageMakerFolders(platform(tmp_path / "ml", tiny_set, hyperparameters)).begin_run()
    assert run.read_config() == TrainConfig()


def test_checkpoints_of_another_job_are_not_taken_for_this_ones(tiny_set: Dataset, tmp_path: Path) -> None:
    assert start(platform(tmp_path / "one", tiny_set, {**TINY, "train.seed": "1"})).returncode == 0
    base = platform(tmp_path / "two", tiny_set, {**TINY, "train.seed": "2"})
    shutil.copytree(tmp_path / "one" / "checkpoints", base / "checkpoints")
    answer = start(base)
    assert answer.returncode == 3 and "Traceback" not in answer.stderr
    assert "holds a run with other hyperparameters: train.seed" in (base / "output" / "failure").read_text()
    assert not (base / "model").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"hosts": 3}', "expected a list of hosts, received 3"),
        ('{"hosts": null}', "expected a list of hosts, received None"),
        ('{"hosts": "algo-1"}', "expected a list of hosts, received 'algo-1'"),
        ("[" * 100_000, "not readable as JSON"),
    ],
    ids=["a number", "null", "a text", "deep"],
)
def test_c15_an_odd_resource_configuration_is_told(tiny_set: Dataset, tmp_path: Path, content: str, said: str) -> None:
    base = platform(tmp_path / "ml", tiny_set, TINY)
    (base / "input" / "config" / "resourceconfig.json").write_text(content)
    answer = start(base)
    assert answer.returncode == 2 and "Traceback" not in answer.stderr
    assert said in (base / "output" / "failure").read_text()


def test_c15_a_name_that_is_no_text_is_told(tiny_set: Dataset, tmp_path: Path) -> None:
    base = platform(tmp_path / "ml", tiny_set, {"model.\ud800": "1"})
    answer = start(base)
    assert answer.returncode == 2 and "Traceback" not in answer.stderr
    assert "model.\\ud800: no such setting" in (base / "output" / "failure").read_text()


def test_a_model_that_does_not_fit_is_told_and_so_is_a_reason_that_cannot_be_left(
    tiny_set: Dataset, tmp_path: Path
) -> None:
    base = platform(tmp_path / "ml", tiny_set, TINY)
    (base / "model").mkdir()
    (base / "model" / "model.keras").symlink_to("/dev/full")
    (base / "output").write_text("a file where a folder should be")
    answer = start(base)
    assert answer.returncode == 5 and "Traceback" not in answer.stderr
    assert f"{base / 'model' / 'model.keras'}: cannot write: No space left on device" in answer.stderr


def test_a_missing_channel_is_named(tiny_set: Dataset, tmp_path: Path) -> None:
    base = platform(tmp_path / "ml", tiny_set, TINY)
    shutil.rmtree(base / "input" / "data" / "dataset")
    assert "expected an input channel named dataset" in start(base, "train").stderr
