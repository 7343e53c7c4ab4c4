"""The SDK's local mode: what it is asked for, what is taken from it, and, where Docker is, grids in real containers."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artclf.config import TrainConfig
from artclf.errors import ConfigError, Interrupted, StorageError
from artclf.records import Dataset
from artclf.rundir import RunDir, RunStatus
from container.sagemaker import SageMakerFolders
from jobs.backends import sagemaker_local
from jobs.backends.sagemaker_local import (
    PROJECT_LABEL,
    Containers,
    SageMakerLocalBackend,
    Signals,
    hyperparameters,
    shut_off,
    trainer_arguments,
)
from jobs.compare import compare
from jobs.spec import BackendError, JobSpec
from jobs.study import Study
from tests.container.test_sagemaker import platform
from tests.crash import place_gone_on_from
from tests.docker_engine import docker
from tests.little_grid import write_grid

PROJECT = Path(__file__).resolve().parents[2]
SPEC = JobSpec("little-0a1b2c3d-a1", "0a1b2c3d", 1, "/studies/little/runs/0a1b2c3d", "g4dn.xlarge", True, 1, None, {})
KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDINTHETEST",
    "AWS_SECRET_ACCESS_KEY": "planted-secret-of-the-caller",
    "AWS_SESSION_TOKEN": "planted-token-of-the-caller",
}


# -- what is asked for ---------------------------------------------------------------------------


def test_the_request_is_the_command_line_of_a_process_that_calls_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARTCLF_IMAGE", "other:1")
    module = [sys.executable, "-m", "jobs.backends.sagemaker_local", "--run-dir", "/studies/little/runs/0a1b2c3d"]
    assert SageMakerLocalBackend().request(SPEC) == {
        "command": [*module, "--name", "little-0a1b2c3d-a1", "--image", "other:1"],
        "cwd": str(PROJECT),
        "environment": {"PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"},
        "output": "/studies/little/jobs/little-0a1b2c3d-a1.log",
    }


def test_the_sdk_is_told_image_channels_and_every_setting_and_nothing_of_an_account() -> None:
    place = Path("/r/sagemaker-local")
    config = TrainConfig.from_settings({"model": {"name": "mobilenet", "weights": "/w/a.h5"}})
    told = trainer_arguments(
        "little-a1", "artclf:latest", "sha256:5e", place, Path("/d"), config, place / "weights" / "weights.h5"
    )
    settings = told.pop("hyperparameters")
    assert settings.keys() == config.flat().keys()
    assert settings["model.weights"] == '"/opt/ml/input/data/weights/weights.h5"'
    assert told == {
        "base_job_name": "little-a1",
        "training_image": "artclf:latest",
        "compute": {"instance_type": "local_cpu", "instance_count": 1},
        "input_data_config": [
            {"channel_name": "dataset", "data_source": "/d"},
            {"channel_name": "checkpoints", "data_source": "/r/sagemaker-local/checkpoints"},
            {"channel_name": "weights", "data_source": "/r/sagemaker-local/weights"},
        ],
        "environment": {
            "ARTCLF_CHECKPOINTS": "/opt/ml/input/data/checkpoints",
            "ARTCLF_IMAGE_DIGEST": "sha256:5e",
            "TF_CPP_MIN_LOG_LEVEL": "2",
        },
        "local_container_root": "/r/sagemaker-local/root",
    }


@pytest.mark.parametrize("folder", ["/d:e", "/$(id)"])
def test_a_folder_whose_name_compose_would_read_otherwise_is_refused(folder: str) -> None:
    with pytest.raises(ConfigError, match="Use another folder"):
        trainer_arguments("a", "b", "c", Path("/r"), Path(folder), TrainConfig(), None)


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=256)
configs = st.builds(
    lambda classes, weights, flip, rate, head, top: TrainConfig.from_settings(
        {
            "data.classes": classes if top is None else {"top": top},
            "data.augment.flip": flip,
            "model.name": "mobilenet",
            "model.weights": weights,
            "model.head": head,
            "train.learning_rate": rate,
            "train.phases": [{"epochs": 1, "learning_rate": None}],
        }
    ),
    st.lists(texts, min_size=2, max_size=4, unique=True),
    texts
    | st.sampled_from(["$(id)", "'\"\\", "a\nb\r\n\tc", "null", "1e-3", "🎨", "\x7f\x00\x85\u2028", "- [", "${HOME}"]),
    st.booleans(),
    st.floats(1e-300, 10),
    st.none() | st.lists(st.integers(1, 65536), max_size=3),
    st.none() | st.integers(2, 100_000),
)


@given(configs)
@settings(max_examples=100)
def test_every_setting_reaches_the_container_byte_for_byte(
    tiny_set: Dataset, tmp_path_factory: pytest.TempPathFactory, config: TrainConfig
) -> None:
    # As the SDK writes the file (sagemaker.core.local.image._write_json_file), and our container reads it.
    base = platform(tmp_path_factory.mktemp("ml"), tiny_set, hyperparameters(config, None))
    assert SageMakerFolders(base).begin_run().read_config() == config


def test_the_sdk_is_given_no_key_no_profile_and_nothing_to_tell_anybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ, **KEYS, "AWS_PROFILE": "mine", "AWS_ENDPOINT_URL": "http://x"})
    shut_off(tmp_path / "defaults.json")
    left = {name: value for name, value in os.environ.items() if name.startswith(("AWS", "SAGEMAKER"))}
    assert left == {
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "SAGEMAKER_VALIDATE_ROLE": "false",
        "SAGEMAKER_ADMIN_CONFIG_OVERRIDE": str(tmp_path / "defaults.json"),
        "SAGEMAKER_USER_CONFIG_OVERRIDE": str(tmp_path / "defaults.json"),
    }
    modules = json.loads((tmp_path / "defaults.json").read_text())["SageMaker"]["PythonSDK"]["Modules"]
    assert modules == {"TelemetryOptOut": True}


# -- what is missing -----------------------------------------------------------------------------

ENGINE = "case $1 in version) echo 20.10;; "


@pytest.mark.parametrize(
    ("has_sdk", "client", "said"),
    [
        (False, None, "needs the SageMaker SDK, which is not installed here: make .venv/cloud"),
        (True, None, "needs Docker, and there is no docker command here"),
        (True, "echo Cannot connect to the Docker daemon >&2; exit 1", "does not answer: Cannot connect to the Docker"),
        (True, ENGINE + "*) exit 1;; esac", "needs a compose: install"),
        (True, ENGINE + "compose) ;; *) exit 1;; esac", "Docker has no such image here. Make it with make image"),
        (True, ENGINE + "esac", ""),
    ],
    ids=["no SDK", "no Docker", "no engine", "no compose", "no image", "all there"],
)
def test_what_is_missing_is_told_in_one_line_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_sdk: bool, client: str | None, said: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if has_sdk else None)
    monkeypatch.setenv("PATH", str(tmp_path))
    if client is not None:
        (tmp_path / "docker").write_text(f"#!/bin/sh\n{client}\n")
        (tmp_path / "docker").chmod(0o755)
    backend = SageMakerLocalBackend()
    if not said:
        backend.check()
        return
    for call in (backend.check, lambda: backend.submit(SPEC)):
        with pytest.raises(ConfigError) as refusal:
            call()
        assert said in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_submit_without_docker_ends_with_exit_code_2_and_one_line(tiny_set: Dataset, tmp_path: Path) -> None:
    grid = write_grid(tmp_path, tiny_set, "0", epochs=1)
    answer = submit(grid, tmp_path / "studies", PATH="/nowhere")
    assert answer.returncode == 2 and len(answer.stderr.splitlines()) == 1
    assert "needs Docker" in answer.stderr or "make .venv/cloud" in answer.stderr
    assert not list(tmp_path.glob("studies/*/jobs/*.log"))


# -- a job, with a docker that only says what it is told ------------------------------------------

DOCKER = """#!/bin/sh
case $1 in
    ps) echo c1 ;;
    inspect) echo "$TOLD" ;;
    kill) echo "$3" >>"$0.signals" ;;
    image) echo sha256:5e ;;
esac
"""
Job = Callable[..., RunStatus]


@pytest.fixture
def job(tiny_set: Dataset, run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """Returns what carries out a job whose container ends as told, after the SDK did something in the job's folder."""
    (tmp_path / "docker").write_text(DOCKER)
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("COMPOSE_PROJECT_NAME", "")  # is changed, and put back at the end
    monkeypatch.setattr(sagemaker_local, "shut_off", lambda defaults: None)
    monkeypatch.setattr(sagemaker_local, "LOOK_S", 0.01)
    run.begin(TrainConfig(), tiny_set.place, tiny_set.digest, max_hours=1)

    def carry_out(told: str, sdk: Callable[[Path], None], keeps_folder: bool = False) -> RunStatus:
        monkeypatch.setenv("TOLD", told)
        place = run.path / "sagemaker-local"
        monkeypatch.setattr(sagemaker_local, "call_sdk", lambda arguments: sdk(place))
        with contextlib.suppress(BackendError, Interrupted, StorageError):
            sagemaker_local.Job(run, "little-a1", "artclf:latest", Signals()).run()
        assert place.exists() == keeps_folder
        status = run.read_status()
        assert status is not None
        return status

    return carry_out


def fails(place: Path) -> None:
    raise RuntimeError("Process exited with code: 1")


def tells_why(place: Path) -> None:
    (place / "root" / "algo-1" / "output" / "failure").write_text("/opt/ml/input/data/checkpoints: is full")
    raise RuntimeError("Process exited with code: 5")


def points_elsewhere(place: Path) -> None:
    (place / "root" / "algo-1" / "output" / "failure").symlink_to("/etc/passwd")
    (place / "checkpoints" / "log.txt").symlink_to("/etc/passwd")
    (place / "checkpoints" / "checkpoint" / "gen-000001").mkdir(parents=True)
    (place / "checkpoints" / "checkpoint" / "gen-000001" / "state.json").symlink_to("/etc/passwd")
    fails(place)


@pytest.mark.parametrize(
    ("told", "sdk", "reason"),
    [
        ("", fails, "no container was started: Process exited with code: 1"),
        ("137 true", fails, "the container was killed: it took more memory than Docker gives"),
        ("139 false", fails, "the container was killed by SIGSEGV"),
        ("1 false", fails, "the container ended with exit code 1 and no verdict"),
        ("5 false", tells_why, "{run}: is full"),
        ("1 false", points_elsewhere, "the container ended with exit code 1 and no verdict"),
        ("0 false", fails, "the container ended well, but the SDK did not: Process exited with code: 1"),
        ("0 false", lambda place: None, "model.tar.gz: the SDK left none."),
    ],
    ids=["no container", "memory", "killed", "no word", "failure file", "links", "SDK", "no model"],
)
def test_a_job_that_failed_leaves_a_verdict_with_the_reason_and_no_folder(
    job: Job, run: RunDir, told: str, sdk: Callable[[Path], None], reason: str
) -> None:
    status = job(told, sdk)
    assert (status.state, status.reason) == ("failed", reason.format(run=run.path))
    assert {path.name for path in run.path.iterdir()} == {"config.json", "job.json", "status.json"}


def commits(checkpoints: Path, *numbers: int) -> None:
    for number in numbers:
        (checkpoints / f"gen-{number:06d}").mkdir(parents=True)
        (checkpoints / f"gen-{number:06d}" / "manifest.json").write_text(checkpoints.parent.name)


@pytest.mark.parametrize(
    ("here", "left", "kept"),
    [((), (1, 2), "checkpoints"), ((1, 2), (2, 3), "checkpoints"), ((4, 5), (2, 3), "run"), ((4, 5), (), "run")],
    ids=["first", "newer", "another backend went on", "none"],
)
def test_commits_that_a_killed_job_left_are_taken_unless_the_run_went_on_elsewhere(
    job: Job, run: RunDir, here: tuple[int, ...], left: tuple[int, ...], kept: str
) -> None:
    commits(run.checkpoints, *here)
    commits(run.path / "sagemaker-local" / "checkpoints" / "checkpoint", *left)
    seen: list[dict[str, str]] = []

    def looks(place: Path) -> None:
        found = sorted((place / "checkpoints" / "checkpoint").glob("*/manifest.json"))
        seen.append({path.parent.name: path.read_text() for path in found})
        fails(place)

    job("1 false", looks)
    numbers = here if kept == "run" else left
    assert seen == [{f"gen-{number:06d}": kept for number in numbers}]
    assert {path.name for path in run.checkpoints.iterdir()} == seen[0].keys()


def test_commits_that_a_full_disk_refuses_to_take_wait_for_the_next_job(
    job: Job, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def commits_and_fails(place: Path) -> None:
        commits(place / "checkpoints" / "checkpoint", 1)
        monkeypatch.setattr(shutil, "copytree", refuses)
        fails(place)

    def refuses(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    status = job("1 false", commits_and_fails, True)
    assert status.state == "failed" and "No space left on device" in status.reason
    monkeypatch.undo()
    assert (run.path / "sagemaker-local" / "checkpoints" / "checkpoint" / "gen-000001").is_dir()


def test_a_job_that_has_run_for_its_hours_lets_the_container_save_and_end(
    job: Job, tiny_set: Dataset, run: RunDir, tmp_path: Path
) -> None:
    run.begin(TrainConfig(), tiny_set.place, tiny_set.digest, max_hours=1e-9)
    heard = tmp_path / "docker.signals"

    def trains(place: Path) -> None:
        (place / "checkpoints" / "job.json").touch()  # the entry point listens from here on
        while not heard.exists() or not heard.read_text():
            pass
        raise RuntimeError("Process exited with code: 75")

    status = job("75 false", trains)
    assert (status.state, status.reason) == ("interrupted", "stopped by its time limit")
    assert heard.read_text() == "TERM\n"


# -- in real containers --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine() -> None:
    """Skips unless all is here that the backend needs."""
    try:
        SageMakerLocalBackend().check()
    except (ConfigError, BackendError) as missing:
        pytest.skip(str(missing))


def command(grid: Path, root: Path, backend: str = "sagemaker-local") -> list[str]:
    return [sys.executable, "-m", "jobs", "submit", str(grid), "--backend", backend, "--root", str(root)]


def submit(
    grid: Path, root: Path, backend: str = "sagemaker-local", **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(grid, root, backend),
        cwd=PROJECT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def root(engine: None, tmp_path: Path) -> Iterator[Path]:
    """Yields where studies lie whose containers are removed at the end, however the test ends."""
    yield tmp_path / "there"
    for path in tmp_path.glob("there/*/runs/*"):
        Containers(RunDir(path)).remove()


def left_behind(root: Path) -> list[str]:
    """Returns what of a study's jobs is still there: their folders, and their containers."""
    runs = [RunDir(path) for path in root.glob("*/runs/*")]
    labels = [f"label={PROJECT_LABEL}={Containers(run).project}" for run in runs]
    found = [docker("ps", "--all", "--quiet", "--filter", label).stdout for label in labels]
    return [str(path) for path in root.rglob("sagemaker-local")] + [text for text in found if text]


def test_trials_that_were_stopped_or_whose_job_was_killed_go_on_and_end_as_on_the_local_backend(
    root: Path, tiny_set: Dataset, tmp_path: Path
) -> None:
    grid = write_grid(tmp_path, tiny_set, "0, 1", epochs=80)
    assert submit(grid, tmp_path / "here", "local").returncode == 0
    here, there = Study(tmp_path / "here", "little"), Study(root, "little")
    stopped, killed = (there.run(trial_id) for trial_id in here.trial_ids())
    submitter = subprocess.Popen(
        command(grid, root),
        cwd=PROJECT,
        env={**os.environ, **KEYS},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while min(len(run.read_metrics()) for run in (stopped, killed)) < 2:  # shown while it trains: the runs pace this
        assert submitter.poll() is None, submitter.communicate()[0]
        time.sleep(0.02)
    psutil.Process(killed.lock_holder()).kill()
    submitter.send_signal(signal.SIGINT)
    output, _ = submitter.communicate()
    status = stopped.read_status()
    assert submitter.returncode == 75, output
    assert status is not None and status.state == "interrupted" and status.epoch >= 2
    assert [str(killed.path) in path for path in left_behind(root)] == [True, False]  # its folder and container

    answer = submit(grid, root, **KEYS)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    for run in (stopped, killed):
        place = place_gone_on_from(run.log.read_text())
        assert place is not None and place[0] >= 2
        assert json.loads(run.environment.read_text())["image_digest"].startswith("sha256:")
    assert compare(here, there) == []
    assert left_behind(root) == []
    content = b"".join(path.read_bytes() for path in there.path.rglob("*") if path.is_file())
    assert len(content) > 10_000 and not [key for key in KEYS.values() if key.encode() in content]


def test_weights_that_do_not_fit_fail_the_trial_with_the_containers_reason_and_the_files_name_here(
    root: Path, tiny_set: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "not weights.h5").write_bytes(b"nothing that HDF5 knows")
    grid = tmp_path / "g.yaml"
    model = {"name": "mobilenet", "alpha": 0.25, "weights": str(tmp_path / "not weights.h5")}
    base = {"model": model, "data.image_size": 32, "train.epochs": 1}
    grid.write_text(json.dumps({"study": "g", "dataset": str(tiny_set.folder), "base": base}))
    answer = submit(grid, root)
    assert answer.returncode == 1
    assert f"model.weights {tmp_path}/not weights.h5: cannot be loaded into mobilenet" in answer.stdout
    assert left_behind(root) == []
