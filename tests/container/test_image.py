"""The image, in real containers: what it is, what is in none of its layers, and SageMaker's folder contract."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import secrets
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from artclf.records import Dataset
from artclf.rundir import RunDir
from jobs.backends.sagemaker import LOG_GROUP, SageMakerBackend
from tests.container.conftest import Remote
from tests.container.test_sagemaker import TINY, platform
from tests.crash import metrics_of, newest_place, place_gone_on_from, unreadable
from tests.docker_engine import (
    IMAGE,
    Container,
    Containers,
    containers,
    copy_tree,
    docker,
    find_in_images,
    inspect_image,
    why_no_image,
)
from tests.fake_aws.clock import ScaledClock
from tests.fake_aws.logs import FakeLogs
from tests.fake_aws.sagemaker import FakeSageMaker
from tests.fake_aws.server import FakeAws
from tests.fake_aws.training_job import Durations
from tests.fake_aws.workloads import Image
from tests.scripted_cloud import SETTINGS, SPEC

if TYPE_CHECKING:
    from tests.s3_servers import S3Server

PROJECT = Path(__file__).resolve().parents[2]
EPOCHS = 40
"""Of a run that is stopped on its way: some ten seconds more than it takes to see the third and say so."""
LONG = {**TINY, "train.epochs": f"{EPOCHS}", "train.batch_size": "4", "data.image_size": "96"}
"""Settings of a run whose epochs are long enough to be stopped in one."""
GRACE_S = 120
"""Between SageMaker's SIGTERM and its SIGKILL (Developer Guide, "StopTrainingJob")."""


@pytest.fixture(scope="module")
def image() -> str:
    """Returns the image that tests/docker.sh made, or skips."""
    missing = why_no_image()
    if missing:
        pytest.skip(missing)
    return IMAGE


@pytest.fixture
def engine(image: str) -> Iterator[Containers]:
    """Yields what starts containers of the image; none is left at the end."""
    with containers(image) as started:
        yield started


# -- what the image is ---------------------------------------------------------------------------


def test_hadolint_has_nothing_to_say_about_the_dockerfile() -> None:
    hadolint = PROJECT / ".venv" / "bin" / "hadolint"
    if not hadolint.exists():
        pytest.skip("needs hadolint in .venv")
    answer = subprocess.run(
        [hadolint, "container/Dockerfile"], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert (answer.returncode, answer.stdout + answer.stderr) == (0, "")


def test_the_base_is_pinned_by_digest_and_nothing_is_fetched_for_the_dockerfile_itself() -> None:
    dockerfile = (PROJECT / "container" / "Dockerfile").read_text()
    assert re.search(r"^ARG BASE_IMAGE=python:3\.11-slim-bookworm@sha256:[0-9a-f]{64}$", dockerfile, re.MULTILINE)
    assert set(re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)) == {"${BASE_IMAGE}"}
    assert "# syntax=" not in dockerfile


def test_the_image_is_small_and_starts_the_entry_point_as_a_user_by_number(image: str) -> None:
    described = inspect_image(image)
    assert described["Size"] <= 2e9
    settings = described["Config"]
    assert settings["Entrypoint"] == ["python", "-m", "container.entrypoint"] and not settings["Cmd"]
    assert settings["User"] == "10001:0"
    assert not settings["WorkingDir"].startswith("/opt/ml") and not settings["Volumes"]
    commit = settings["Labels"]["org.opencontainers.image.revision"]
    assert f"ARTCLF_COMMIT={commit}" in settings["Env"] and "PYTHONUNBUFFERED=1" in settings["Env"]


def test_the_user_can_change_nothing_of_the_program_and_nothing_of_ours_is_in_sagemakers_place(
    engine: Containers,
) -> None:
    look = "id -u; find /opt/artclf -writable ! -type l; find /opt/ml -mindepth 1; ls /opt/artclf/code"
    code, output = engine.run("-c", look, options=["--entrypoint", "sh"])
    assert (code, output.split()) == (0, ["10001", "artclf", "container"])


@pytest.mark.parametrize("mode", [0o600, 0o666], ids=oct)
def test_what_the_user_can_read_and_write_does_not_depend_on_the_modes_in_the_checkout(
    image: str, tmp_path: Path, mode: int
) -> None:
    tree = copy_tree(PROJECT, tmp_path / "tree")
    for path in (*(tree / "artclf").iterdir(), tree / "container" / "sagemaker.py"):
        path.chmod(mode)
    with built(tree, base_of(image)) as mine, containers(mine) as engine:
        look = "find /opt/artclf -writable ! -type l; python -c 'import artclf.config, container.sagemaker'"
        assert engine.run("-c", look, options=["--entrypoint", "sh"]) == (0, "")


def test_the_image_holds_the_locked_packages_of_its_groups_and_no_tools_for_installing(engine: Containers) -> None:
    code, output = engine.run(
        "-c",
        "from importlib.metadata import distributions\n"
        "print(*(f'{d.name.lower()}=={d.version}' for d in distributions()), sep='\\n')",
        options=["--entrypoint", "python"],
    )
    locked = set(re.findall(r"^([a-z0-9._-]+==[^ ]+)", (PROJECT / "requirements.lock").read_text(), re.MULTILINE))
    found = {re.sub(r"[._]", "-", line.partition("==")[0]) + "==" + line.partition("==")[2] for line in output.split()}
    assert code == 0 and found <= locked
    names = {package.partition("==")[0] for package in found}
    assert {"boto3", "keras", "tensorflow-cpu"} <= names
    assert not {"pip", "uv", "pytest", "moto", "sagemaker", "mypy", "scikit-learn"} & names


def test_python_files_come_compiled(engine: Containers) -> None:
    look = (
        "import importlib.util as u, pathlib, sysconfig, artclf, container\n"
        "places = [sysconfig.get_path('purelib'), *artclf.__path__, *container.__path__]\n"
        "files = [f for p in places for f in pathlib.Path(p).rglob('*.py')]\n"
        "bare = [f for f in files if not pathlib.Path(u.cache_from_source(str(f))).exists()]\n"
        "print(len(files) > 1000, len(bare) / len(files) < 0.01)"
    )
    assert engine.run("-c", look, options=["--entrypoint", "python"]) == (0, "True True\n")


# -- no secrets ----------------------------------------------------------------------------------


LYING_ABOUT = (
    *(".env", ".netrc", ".git/config", ".venv/pip.conf", ".aws/credentials", "credentials.json", "id_rsa"),
    *("data/key.txt", "studies/demo/study.json", "artclf/token.txt", "artclf/.env", "container/key.pem"),
    *("tests/docker.py", "infra/parameters.json", "cloud.yaml", "pip.conf", "requirements.txt"),
)
OF_THE_CHECKOUT = b"planted-secret-of-the-checkout"
OF_THE_BUILD = [b"planted-secret-of-the-certificates", b"planted-secret-of-pip", b"planted-secret-of-uv"]
SEEN = b"class TrainConfig"
"""Is in every image: the search would find it."""


@pytest.fixture(scope="module")
def found(image: str, tmp_path_factory: pytest.TempPathFactory) -> dict[bytes, str]:
    """Returns what of all these was found in the image, and in one made of a checkout where secrets lie about."""
    tree = copy_tree(PROJECT, tmp_path_factory.mktemp("planted") / "tree")
    for name in LYING_ABOUT:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(OF_THE_CHECKOUT)
    with built(tree, base_of(image)) as mine:
        assert layers(mine)[:3] == layers(image)[:3], "the packages were installed once more"
        return find_in_images([image, mine], [SEEN, OF_THE_CHECKOUT, *OF_THE_BUILD, *places_of_packages()])


def test_no_secret_or_place_of_packages_that_the_build_was_given_is_in_any_layer(found: dict[bytes, str]) -> None:
    assert SEEN in found
    assert not found.keys() & {*OF_THE_BUILD, *places_of_packages()}, found


def test_what_lies_about_in_the_checkout_does_not_come_into_the_image(found: dict[bytes, str]) -> None:
    assert SEEN in found and OF_THE_CHECKOUT not in found, found


def places_of_packages() -> list[bytes]:
    """Returns the values of pip's configuration here, but that of the certificates, which is everybody's."""
    told = subprocess.run(["pip", "config", "list"], capture_output=True, text=True, check=False).stdout
    lines = [line.partition("=") for line in told.splitlines()]
    words = [word for name, _, value in lines if not name.endswith("cert") for word in value.strip("'\"").split()]
    return [word.encode() for word in words if len(word) >= 8]


def base_of(image: str) -> str:
    return str(inspect_image(image)["Config"]["Labels"]["org.opencontainers.image.base.name"])


def layers(image: str) -> list[str]:
    return list(inspect_image(image)["RootFS"]["Layers"])


@contextlib.contextmanager
def built(tree: Path, base: str) -> Iterator[str]:
    """Yields the name of the image that another tree becomes; the engine has its packages from the first one."""
    name = f"artclf-test-{secrets.token_hex(6)}"
    environment = {**os.environ, "IMAGE": name, "BASE_IMAGE": base}
    try:
        subprocess.run(
            [tree / "container" / "image.sh", "--network", "host"], env=environment, capture_output=True, check=True
        )
        yield f"{name}:latest"
    finally:
        tags = docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", name, check=False).stdout.split()
        docker("image", "rm", "--force", *tags, check=False)


# -- SageMaker's folders -------------------------------------------------------------------------


def folders(base: Path, dataset: Dataset, hyperparameters: dict[str, str]) -> Path:
    """Returns the platform's folders with read-only input and, made by root, writable ones for what comes out."""
    platform(base, dataset, hyperparameters)
    for name in ("model", "output", "checkpoints"):
        (base / name).mkdir()
        (base / name).chmod(0o777)
    return base


def mounted(base: Path) -> list[str]:
    return [f"--volume={base}:/opt/ml", f"--volume={base}/input:/opt/ml/input:ro"]


def trained(base: Path) -> dict[str, Any]:
    """Returns what of a finished training must not depend on its interruptions."""
    with zipfile.ZipFile(base / "model" / "model.keras") as archive:
        weights = hashlib.sha256(archive.read("model.weights.h5")).hexdigest()
    scores = {path.name: path.read_text() for path in sorted((base / "model" / "evaluation").glob("*.json"))}
    return {"weights": weights, "metrics": metrics_of(RunDir(base / "checkpoints")), "scores": scores}


@pytest.fixture(scope="module")
def undisturbed(image: str, tiny_set: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Returns what a container leaves that nothing interrupts."""
    base = folders(tmp_path_factory.mktemp("undisturbed") / "ml", tiny_set, LONG)
    with containers(image) as engine:
        code, output = engine.run("train", options=mounted(base))
    assert code == 0, output
    return trained(base)


@pytest.mark.parametrize("arguments", [["train"], []], ids=["train", "no argument"])
def test_string_hyperparameters_and_a_read_only_channel_become_a_model(
    engine: Containers, tiny_set: Dataset, tmp_path: Path, arguments: list[str]
) -> None:
    base = folders(tmp_path / "ml", tiny_set, TINY)
    code, output = engine.run(*arguments, options=mounted(base))
    assert code == 0, output
    assert {path.name for path in (base / "model").iterdir()} >= {"model.keras", "model.json", "evaluation"}
    assert json.loads((base / "model" / "model.json").read_text())["settings"]["train"]["learning_rate"] == 0.001
    assert json.loads((base / "model" / "environment.json").read_text())["commit"]
    assert not (base / "output" / "failure").exists()
    assert (base / "model" / "model.keras").stat().st_uid == 10001


def test_what_cannot_be_trained_ends_with_exit_code_2_and_a_failure_file(
    engine: Containers, tiny_set: Dataset, tmp_path: Path
) -> None:
    base = folders(tmp_path / "ml", tiny_set, {"model.droput": "0.5"})
    code, output = engine.run("train", options=mounted(base))
    assert code == 2 and "Traceback" not in output
    assert "Did you mean model.dropout?" in (base / "output" / "failure").read_text()


@pytest.mark.parametrize("arguments", [["serve"], ["train"], []], ids=["serve", "train, no folders", "nothing at all"])
def test_a_wrong_call_ends_with_exit_code_2_and_no_traceback(engine: Containers, arguments: list[str]) -> None:
    code, output = engine.run(*arguments)
    assert code == 2 and "error: " in output and "Traceback" not in output


def test_a_read_only_root_file_system_with_a_scratch_folder_is_enough(
    engine: Containers, tiny_set: Dataset, tmp_path: Path
) -> None:
    base = folders(tmp_path / "ml", tiny_set, TINY)
    code, output = engine.run("train", options=[*mounted(base), "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL"])
    assert code == 0, output
    assert (base / "model" / "model.keras").exists()


def test_without_any_folder_to_work_in_one_line_says_what_to_do(engine: Containers) -> None:
    code, output = engine.run("--run-uri", "s3://nowhere/runs/x", options=["--read-only"])
    assert code == 5 and output.startswith("error: no folder to work in: "), output
    assert output.count("\n") == 1 and "--tmpfs /tmp" in output


def test_a_limit_of_memory_is_kept_and_one_that_is_too_small_is_told(
    engine: Containers, tiny_set: Dataset, tmp_path: Path
) -> None:
    base = folders(tmp_path / "ml", tiny_set, TINY)
    code, output = engine.run("train", options=[*mounted(base), "--memory=2g"])
    assert code == 0, output
    tight = folders(tmp_path / "tight", tiny_set, TINY)
    code, output = engine.run("train", options=[*mounted(tight), "--memory=150m", "--memory-swap=150m"])
    assert code == 1, output
    assert "killed by SIGKILL (out of memory?)" in (tight / "output" / "failure").read_text()


# -- stopped and gone on -------------------------------------------------------------------------


def send_sigterm(container: Container) -> None:
    container.signal("TERM")


def stop_as_services_do(container: Container) -> None:
    container.stop(GRACE_S)


@pytest.mark.parametrize("stop", [send_sigterm, stop_as_services_do])
def test_a_container_stopped_in_an_epoch_saves_and_a_second_one_ends_as_if_nothing_had_happened(
    engine: Containers,
    tiny_set: Dataset,
    tmp_path: Path,
    undisturbed: dict[str, Any],
    stop: Callable[[Container], None],
) -> None:
    for number in itertools.count():
        base = folders(tmp_path / f"ml-{number}", tiny_set, LONG)
        run = RunDir(base / "checkpoints")
        first = engine.start("train", options=mounted(base))
        first.wait_for_line("epoch 3/")
        stop(first)
        if first.wait() != 0:  # else this machine was so busy that the run was over first
            break
    assert first.wait() == 75, first.output()
    assert "all is saved" in first.output() and not first.state()["OOMKilled"]
    status = run.read_status()
    assert status is not None and status.state == "interrupted" and 3 <= status.epoch < EPOCHS
    place = newest_place(run)
    assert unreadable(run) == [] and place is not None and place[0] >= 3
    assert not (base / "model" / "model.keras").exists()
    code, output = engine.run("train", options=mounted(base))
    assert code == 0, output
    assert place_gone_on_from(output) == place
    assert trained(base) == undisturbed


# -- a run in a bucket: --run-uri s3://… ---------------------------------------------------------

IN_BUCKET = {"data.image_size": 96, "train.epochs": EPOCHS}


def start_job(engine: Containers, server: S3Server, remote: Remote) -> Container:
    """Starts a container on a run, with nothing of this machine but the network and credentials."""
    settings = {**server.environment(), "TRAINING_JOB_NAME": "job-a1"}
    options = [f"--env={name}={value}" for name, value in settings.items()]
    return engine.start("--run-uri", remote.storage.uri, options=options, network="host")


def test_containers_stopped_and_killed_in_epochs_of_a_run_in_a_bucket_leave_all_that_the_next_one_needs(
    engine: Containers, moto_server: S3Server, put_run: Any, tmp_path: Path
) -> None:
    whole = put_run("whole", **IN_BUCKET)
    undisturbed = start_job(engine, moto_server, whole)
    assert undisturbed.wait() == 0, undisturbed.output()
    (tmp_path / "whole").mkdir()
    expected = whole.result(tmp_path / "whole")

    struck: list[str] = []
    for attempt in itertools.count():  # until this machine was not so busy that the run was over first
        remote, saved, number = put_run(f"broken-{attempt}", **IN_BUCKET), None, 0
        struck.clear()
        for signal, exit_code, state in (("TERM", 75, "interrupted"), ("KILL", 137, "running")):
            container = start_job(engine, moto_server, remote)
            container.wait_for_line(f"epoch {3 + (saved[0] if saved else 0)}/")
            while max(remote.committed(), default=0) < number + 2 and container.state()["Running"]:
                pass  # commits come a moment after their lines
            container.signal(signal)
            if container.wait() == 0:
                break
            struck.append(signal)
            assert container.wait() == exit_code, container.output()
            assert place_gone_on_from(container.output()) == saved
            assert remote.status()["state"] == state and "model.keras" not in set(remote.storage.list())
            back = RunDir(tmp_path / f"{attempt}-{signal}")
            newest, problems = remote.generations.fetch_newest_sound(back.checkpoints)
            assert newest is not None and newest >= number + 2 and problems == []
            saved, number = newest_place(back), newest
        if struck == ["TERM", "KILL"]:
            break
    last = start_job(engine, moto_server, remote)
    assert last.wait() == 0, last.output()
    assert place_gone_on_from(last.output()) == saved
    assert remote.result(tmp_path) == expected


def test_a_job_of_the_stand_in_for_sagemaker_trains_in_the_image(
    image: str, moto_server: S3Server, put_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = put_run("run", **{"train.epochs": 1})
    sagemaker = FakeSageMaker(Image(moto_server.environment()), durations=Durations.none())
    with FakeAws(sagemaker, FakeLogs(), clock=ScaledClock()) as aws:
        for name, value in aws.environment().items():
            monkeypatch.setenv(name, value)
        SageMakerBackend(replace(SETTINGS, image=image)).submit(replace(SPEC, run_uri=remote.storage.uri))
        job = sagemaker.jobs[SPEC.name]
        aws.wait_for(lambda: job.status != "InProgress")
        lines = "\n".join(aws.services["logs"].lines(LOG_GROUP))  # type: ignore[attr-defined]
    assert job.status == "Completed", lines
    assert "epoch 1/1" in lines and remote.status()["state"] == "done"
