"""Pushing an image: ECR's calls against moto, Docker's against a real registry on loopback."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import secrets
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from moto import mock_aws

from artclf.errors import ArtclfError, ConfigError
from jobs.docker import REVISION, TENSORFLOW
from jobs.push import (
    MANIFEST,
    Docker,
    Pushed,
    clean_commit,
    digest_of,
    login_of,
    note,
    open_repository,
    push,
    repository_request,
    tag_of,
)
from tests import moto_server
from tests.docker_engine import docker, why_no_engine

if TYPE_CHECKING:
    from mypy_boto3_ecr import ECRClient

PROJECT = Path(__file__).resolve().parents[2]
REGISTRY = PROJECT / ".cache" / "docker-registry"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LOGIN = ("AWS", "a password with : and $ in it")


@pytest.fixture
def ecr() -> Iterator[ECRClient]:
    """Yields a client of an empty account."""
    with mock_aws():
        yield boto3.client("ecr", region_name="eu-central-1")


class NoDocker(Docker):
    """Is not to be asked for anything."""

    def push(self, image: str, target: str, registry: str, user: str, password: str) -> None:
        raise AssertionError(f"pushed {target}")


class ThatPuts(Docker):
    """Puts a manifest into ECR as a push does, and may fail afterwards."""

    def __init__(self, ecr: ECRClient, manifest: dict[str, Any], digest: str, error: str = "") -> None:
        self.ecr = ecr
        self.manifest = manifest
        self.digest = digest
        self.error = error
        self.login: tuple[str, ...] = ()

    def push(self, image: str, target: str, registry: str, user: str, password: str) -> None:
        self.login = (registry, user, password)
        name, _, tag = target.partition("/")[2].rpartition(":")
        self.ecr.put_image(
            repositoryName=name, imageTag=tag, imageDigest=self.digest, imageManifest=json.dumps(self.manifest)
        )
        if self.error:
            raise ArtclfError(self.error)


DIGEST = f"sha256:{'5' * 64}"
DOCKERS = {"schemaVersion": 2, "mediaType": MANIFEST, "config": {"size": 7}, "layers": []}


# -- plain values --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "tag"),
    [
        ({REVISION: COMMIT, TENSORFLOW: "tensorflow-cpu"}, COMMIT),
        ({REVISION: COMMIT, TENSORFLOW: "tensorflow[and-cuda]"}, f"{COMMIT}-gpu"),
    ],
)
def test_a_tag_is_the_commit_and_tells_the_gpu_image_from_the_other(labels: dict[str, str], tag: str) -> None:
    assert tag_of(labels, COMMIT, "artclf:latest") == tag


@pytest.mark.parametrize("revision", [None, "unknown", f"{COMMIT}-dirty", "f" * 40])
def test_an_image_of_anything_but_the_commit_is_refused(revision: str | None) -> None:
    with pytest.raises(ConfigError, match="Run make image"):
        tag_of({REVISION: revision} if revision else {}, COMMIT, "artclf:latest")


def test_a_login_is_taken_apart() -> None:
    data: Any = {"authorizationToken": "QVdTOmE6Yg==", "proxyEndpoint": "https://1.dkr.ecr.eu-central-1.amazonaws.com"}
    assert login_of(data) == ("1.dkr.ecr.eu-central-1.amazonaws.com", "AWS", "a:b")


def test_a_note_replaces_the_one_before(tmp_path: Path) -> None:
    for digest in ("sha256:1", "sha256:2"):
        note(Pushed(f"registry/artclf@{digest}", COMMIT, COMMIT), tmp_path / "new" / "image.json")
    written = json.loads((tmp_path / "new" / "image.json").read_text())
    assert written == {"image": "registry/artclf@sha256:2", "tag": COMMIT, "commit": COMMIT}


# -- ECR -----------------------------------------------------------------------------------------


def test_a_missing_repository_is_made_with_tags_that_stay_and_scans(ecr: ECRClient) -> None:
    uri = open_repository(ecr, "team/artclf")
    (made,) = ecr.describe_repositories()["repositories"]
    assert made["repositoryUri"] == uri and made["repositoryName"] == "team/artclf"
    assert made["imageTagMutability"] == "IMMUTABLE" and made["imageScanningConfiguration"] == {"scanOnPush": True}
    assert open_repository(ecr, "team/artclf") == uri


def test_a_repository_whose_tags_can_be_moved_is_refused_and_left_as_it_is(ecr: ECRClient) -> None:
    ecr.create_repository(repositoryName="artclf")
    with pytest.raises(ConfigError, match="expected one whose tags are immutable, received MUTABLE"):
        push(ecr, NoDocker(), "artclf:latest", "artclf", COMMIT, COMMIT)
    assert ecr.describe_repositories()["repositories"][0]["imageTagMutability"] == "MUTABLE"


def test_a_push_logs_in_with_what_ecr_gave_and_names_the_image_by_digest(ecr: ECRClient) -> None:
    client = ThatPuts(ecr, DOCKERS, DIGEST)
    pushed = push(ecr, client, "artclf:latest", "artclf", COMMIT, COMMIT)
    uri = ecr.describe_repositories()["repositories"][0]["repositoryUri"]
    assert pushed == Pushed(f"{uri}@{DIGEST}", COMMIT, COMMIT)
    assert client.login[1] == "AWS" and client.login[2]


def test_a_tag_that_is_there_is_not_pushed_again(ecr: ECRClient) -> None:
    first = push(ecr, ThatPuts(ecr, DOCKERS, DIGEST), "artclf:latest", "artclf", COMMIT, COMMIT)
    assert push(ecr, NoDocker(), "artclf:latest", "artclf", COMMIT, COMMIT) == first


def test_of_two_pushes_of_one_commit_the_slower_takes_what_the_faster_left(ecr: ECRClient) -> None:
    client = ThatPuts(ecr, DOCKERS, DIGEST, error="docker push: tag is immutable")
    assert push(ecr, client, "artclf:latest", "artclf", COMMIT, COMMIT).image.endswith(DIGEST)


def test_a_kind_of_manifest_that_sagemaker_refuses_is_refused_here(ecr: ECRClient) -> None:
    ecr.create_repository(**repository_request("artclf"))
    answer: Any = {
        "imageDetails": [{"imageDigest": DIGEST, "imageManifestMediaType": "application/vnd.oci.image.index.v1+json"}]
    }
    # moto does not tell the media type
    ecr.meta.events.register("after-call.ecr.DescribeImages", lambda parsed, **_: parsed.update(answer))
    ecr.put_image(repositoryName="artclf", imageTag=COMMIT, imageManifest=json.dumps(DOCKERS))
    with pytest.raises(ConfigError, match=r"received application/vnd\.oci\.image\.index"):
        digest_of(ecr, "artclf", COMMIT)


# -- Docker and a registry -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yields the address of an empty registry that asks for ``LOGIN``."""
    missing = why_no_engine() or ("" if REGISTRY.exists() else "needs a registry; tests/docker.sh gets it on Debian")
    if missing:
        pytest.skip(missing)
    folder = tmp_path_factory.mktemp("registry")
    code = "import crypt; print(crypt.crypt(input(), crypt.mksalt(crypt.METHOD_BLOWFISH, rounds=16)))"
    hashed = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], input=LOGIN[1], capture_output=True, text=True, check=True
    )
    (folder / "users").write_text(f"{LOGIN[0]}:{hashed.stdout}")
    settings = {
        "version": "0.1",
        "storage": {"filesystem": {"rootdirectory": str(folder / "images")}},
        "http": {"addr": "127.0.0.1:0"},
        "auth": {"htpasswd": {"realm": "test", "path": str(folder / "users")}},
    }
    (folder / "settings.yml").write_text(json.dumps(settings))
    command = [str(REGISTRY), "serve", str(folder / "settings.yml")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as serving:
        assert serving.stderr is not None
        listening = re.search(
            r"listening on (127\.0\.0\.1:\d+)", next(line for line in serving.stderr if "listening on" in line)
        )
        assert listening is not None
        yield listening[1]
        serving.terminate()
        serving.communicate()


@pytest.fixture
def small_image() -> Iterator[str]:
    """Yields an image of one file that says it was built from ``COMMIT``."""
    name = f"artclf-test-{secrets.token_hex(6)}"
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    change = f"LABEL {REVISION}={COMMIT} {TENSORFLOW}=tensorflow-cpu"
    subprocess.run(["docker", "import", "--change", change, "-", name], input=content.getvalue(), check=True)
    yield name
    tags = docker("image", "ls", "--no-trunc", "--format", "{{.ID}}", name).stdout.split()
    docker("image", "rm", "--force", *tags, check=False)


def test_an_image_goes_to_a_real_registry_and_no_login_is_left_behind(
    registry: str, small_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    client = Docker()
    assert tag_of(client.labels(small_image), COMMIT, small_image) == COMMIT
    client.push(small_image, f"{registry}/artclf:{COMMIT}", registry, *LOGIN)
    client.push(small_image, f"{registry}/artclf:{COMMIT}", registry, *LOGIN)
    assert "digest: sha256:" in capfd.readouterr().out
    assert not any(path.is_file() and "auth" in path.read_text() for path in tmp_path.rglob("*"))
    assert manifest_of(registry, "artclf", COMMIT)["mediaType"] == MANIFEST


def manifest_of(registry: str, name: str, tag: str) -> dict[str, Any]:
    passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
    passwords.add_password(None, f"http://{registry}", *LOGIN)
    opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(passwords))
    request = urllib.request.Request(f"http://{registry}/v2/{name}/manifests/{tag}", headers={"Accept": MANIFEST})
    with opener.open(request) as answer:
        return dict(json.load(answer))


def test_a_login_that_the_registry_refuses_is_told_without_the_password(registry: str, small_image: str) -> None:
    with pytest.raises(ArtclfError, match=r"docker login: .*401") as refused:
        Docker().push(small_image, f"{registry}/artclf:{COMMIT}", registry, "AWS", "wrong-password")
    assert "wrong-password" not in str(refused.value)


def test_a_missing_image_says_how_to_make_it(registry: str) -> None:
    with pytest.raises(ConfigError, match=r"No such image.*Run make image"):
        Docker().labels("artclf-test:never-built")


# -- the command ---------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Returns a checkout of one commit, and beside it a client of Docker that knows an image of that commit."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "file").write_text("one")
    (folder / ".gitignore").write_text(".artclf/\n")
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        git(folder, *arguments)
    knows(folder)
    return folder


def knows(checkout: Path) -> None:
    """Makes a client of Docker that knows an image of a checkout's commit, and can do nothing else."""
    client = checkout.parent / "bin" / "docker"
    client.parent.mkdir(exist_ok=True)
    labels = json.dumps({REVISION: clean_commit(checkout)})
    client.write_text(f"#!/bin/sh\ncase $1 in image) echo '{labels}';; *) exit 1;; esac\n")
    client.chmod(0o755)


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run(["git", "-C", folder, *who, *arguments], check=True, capture_output=True)


def run_push(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    path = f"{checkout.parent / 'bin'}:{os.environ['PATH']}"
    none = {
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    return subprocess.run(
        [sys.executable, "-m", "jobs.push"],
        cwd=checkout,
        env={**kept, "PYTHONPATH": str(PROJECT), "PATH": path, **none, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_checkout_with_changes_is_refused(checkout: Path) -> None:
    (checkout / "artclf").mkdir()
    (checkout / "artclf" / "new file").write_text("two")
    answer = run_push(checkout)
    assert answer.returncode == 2 and "expected no changes to what is in the image" in answer.stderr
    assert "artclf" in answer.stderr and "Traceback" not in answer.stderr


def test_a_grid_of_ones_own_that_is_in_no_commit_keeps_nobody_from_pushing(checkout: Path) -> None:
    commit = clean_commit(checkout)
    (checkout / "mine.yaml").write_text("study: mine")
    assert clean_commit(checkout) == commit


KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"AWS_DEFAULT_REGION": "eu-central-1"}, "no AWS credentials found"),
        (KEYS, "no region is named: set AWS_REGION"),
        ({**KEYS, "AWS_REGION": "eu-central-1", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "Amazon ECR: "),
    ],
    ids=["no credentials", "no region", "no network"],
)
def test_without_an_account_a_push_ends_with_one_line(checkout: Path, environment: dict[str, str], told: str) -> None:
    answer = run_push(checkout, **environment)
    assert answer.returncode == 2 and answer.stderr.startswith(f"error: {told}")
    assert answer.stderr.count("\n") == 1 and not (checkout / ".artclf").exists()


def test_an_image_is_pushed_only_with_the_account_and_to_the_region_of_cloud_yaml(checkout: Path) -> None:
    with moto() as address:
        (checkout / ".gitignore").write_text(".artclf/\ncloud.yaml\n")
        git(checkout, "commit", "-qam", "two")
        knows(checkout)
        (checkout / "cloud.yaml").write_text('region: eu-west-1\naccount: "999999999999"\n')
        answer = run_push(checkout, AWS_ENDPOINT_URL=address, **KEYS)
        assert answer.returncode == 2
        assert "are of the account 123456789012, cloud.yaml expects 999999999999" in answer.stderr
        regions = [
            boto3.client("ecr", region_name=region, endpoint_url=address) for region in ("us-east-1", "eu-west-1")
        ]
        assert [ecr.describe_repositories()["repositories"] for ecr in regions] == [[], []]
        (checkout / "cloud.yaml").write_text('region: eu-west-1\naccount: "123456789012"\n')
        run_push(checkout, AWS_ENDPOINT_URL=address, AWS_DEFAULT_REGION="us-east-1", **KEYS)
        assert [len(ecr.describe_repositories()["repositories"]) for ecr in regions] == [0, 1]


def test_a_folder_that_is_no_checkout_is_told(tmp_path: Path) -> None:
    with contextlib.suppress(ArtclfError):
        clean_commit(tmp_path)
        raise AssertionError("took a folder for a checkout")


def test_pushing_what_is_there_notes_it_and_leaves_the_checkout_clean(checkout: Path) -> None:
    with moto() as address:
        ecr = boto3.client("ecr", region_name="eu-central-1", endpoint_url=address)
        ecr.create_repository(**repository_request("artclf"))
        commit = clean_commit(checkout)
        ecr.put_image(repositoryName="artclf", imageTag=commit, imageDigest=DIGEST, imageManifest=json.dumps(DOCKERS))
        for _ in range(2):
            answer = run_push(checkout, AWS_ENDPOINT_URL=address, AWS_DEFAULT_REGION="eu-central-1", **KEYS)
            assert answer.returncode == 0, answer.stderr
            assert "note: this image is for CPUs" in answer.stdout
        written = json.loads((checkout / ".artclf" / "image.json").read_text())
        assert written["image"].endswith(f"/artclf@{DIGEST}") and written["tag"] == written["commit"] == commit


@contextlib.contextmanager
def moto() -> Iterator[str]:
    """Yields the address of a server that stands for an empty account."""
    from moto.ecr.models import ecr_backends

    with moto_server.serve() as url:
        for account in ecr_backends.values():  # no other service's: buckets of other tests may be in use
            account.reset()
        yield url
