"""``make push``: this commit's image into Amazon's registry (ECR), and its digest to where submit reads it.

A tag is a commit and is never moved. Pushing again what is there already only notes its digest.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artclf import aws
from artclf.command_line import run_command
from artclf.errors import ArtclfError, ConfigError
from artclf.storage import atomic_file
from jobs.docker import REVISION, TENSORFLOW
from jobs.settings import GPU_TAG, MAKE_GPU, PUSHED, named_place, wrong_account

if TYPE_CHECKING:
    from mypy_boto3_ecr import ECRClient
    from mypy_boto3_ecr.type_defs import AuthorizationDataTypeDef

IN_IMAGE = ("artclf", "container", "pyproject.toml", "requirements.lock", ".dockerignore")
"""What of a checkout goes into the image or says what does (.dockerignore), as in container/image.sh."""
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
"""The only kind that SageMaker takes; it refuses OCI's ("Unsupported manifest media type", buildkit issue 5480)."""


@dataclass(frozen=True)
class Pushed:
    """An image in the registry: ``image`` names it by digest, as jobs are started with."""

    image: str
    tag: str
    commit: str


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.push", description="Push this commit's image to ECR.")
    parser.add_argument("--image", default="artclf:latest", help="what make image built (%(default)s)")
    parser.add_argument("--repository", default="artclf", help="in ECR; is made if it is missing (%(default)s)")
    arguments = parser.parse_args(argv)
    commit = clean_commit(Path.cwd())
    docker = Docker()
    tag = tag_of(docker.labels(arguments.image), commit, arguments.image)
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        pushed = push(open_ecr(), docker, arguments.image, arguments.repository, tag, commit)
    except (BotoCoreError, ClientError) as error:
        raise ConfigError(f"Amazon ECR: {aws.reason(error)}. Check credentials, region and permissions.") from error
    note(pushed, PUSHED)
    print(f"{pushed.image}\nnoted in {PUSHED}")
    if not tag.endswith(GPU_TAG):
        print(f"note: this image is for CPUs, also on machines with a GPU\nnote: {MAKE_GPU}")
    return 0


def open_ecr() -> ECRClient:
    """Returns a client of the region that cloud.yaml names; without that file, of this machine's own.

    Raises:
        ConfigError: if there are no credentials, they are not of the account that cloud.yaml names, or nothing
            names a region.
    """
    region, account = named_place()
    session = aws.aws_session()
    region = region or aws.named_region()
    if region is None:
        raise ConfigError("no region is named: set AWS_REGION, or region in cloud.yaml.")
    if account:
        found = aws.client(session, "sts", region_name=region).get_caller_identity()["Account"]
        if found != account:
            raise ConfigError(wrong_account(found, account))
    return aws.client(session, "ecr", region_name=region)  # type: ignore[no-any-return]


def clean_commit(checkout: Path) -> str:
    """Returns the commit that a checkout is, whole.

    Raises:
        ConfigError: if it has changes to IN_IMAGE that are in no commit, or is no checkout.
    """
    changed = _ran(["git", "-C", str(checkout), "status", "--porcelain", "--", *IN_IMAGE]).splitlines()
    if changed:
        raise ConfigError(
            f"{checkout}: expected no changes to what is in the image, since its tag is a commit; "
            f"found {len(changed)} ({changed[0][3:]} first). Commit them, or set them aside."
        )
    return _ran(["git", "-C", str(checkout), "rev-parse", "HEAD"]).strip()


def tag_of(labels: dict[str, str], commit: str, image: str) -> str:
    """Returns the tag of an image: its commit, and GPU_TAG behind it if it holds CUDA's libraries.

    Raises:
        ConfigError: if the image was not built from the commit.
    """
    built_from = labels.get(REVISION, "")
    if built_from != commit:
        raise ConfigError(
            f"{image}: expected an image of commit {commit}, received one of {built_from or 'unknown'}. Run make image."
        )
    return f"{commit}{GPU_TAG}" if "cuda" in labels.get(TENSORFLOW, "") else commit


def push(ecr: ECRClient, docker: Docker, image: str, repository: str, tag: str, commit: str) -> Pushed:
    """Brings an image into a repository under a tag, unless that tag is there, and returns what is there then.

    Raises:
        ConfigError: if the repository lets tags be moved, or SageMaker would refuse the image.
        ArtclfError: if Docker fails.
    """
    uri = open_repository(ecr, repository)
    digest = digest_of(ecr, repository, tag)
    if digest is None:
        data = ecr.get_authorization_token()["authorizationData"][0]
        try:
            docker.push(image, f"{uri}:{tag}", *login_of(data))
        except ArtclfError:
            if digest_of(ecr, repository, tag) is None:  # else another push of this commit was faster
                raise
        digest = digest_of(ecr, repository, tag)
    if digest is None:
        raise ArtclfError(f"{uri}:{tag}: was pushed and is not there. Push again.")
    return Pushed(f"{uri}@{digest}", tag, commit)


def open_repository(ecr: ECRClient, name: str) -> str:
    """Returns the URI of a repository, which is made if it is missing.

    Raises:
        ConfigError: if its tags can be moved.
    """
    repository: Any
    try:
        repository = ecr.describe_repositories(repositoryNames=[name])["repositories"][0]
    except ecr.exceptions.RepositoryNotFoundException:
        try:
            repository = ecr.create_repository(**repository_request(name))["repository"]
        except ecr.exceptions.RepositoryAlreadyExistsException:  # made by someone else in this instant
            repository = ecr.describe_repositories(repositoryNames=[name])["repositories"][0]
    if repository["imageTagMutability"] != "IMMUTABLE":
        raise ConfigError(
            f"repository {name}: expected one whose tags are immutable, received {repository['imageTagMutability']}. "
            f"Change its tag setting, or name another with --repository."
        )
    return str(repository["repositoryUri"])


def repository_request(name: str) -> Any:
    """Returns the request for a repository whose tags stay and whose images are scanned when they arrive."""
    return {
        "repositoryName": name,
        "imageTagMutability": "IMMUTABLE",
        "imageScanningConfiguration": {"scanOnPush": True},
    }


def digest_of(ecr: ECRClient, repository: str, tag: str) -> str | None:
    """Returns the digest of the image with a tag, None if there is none.

    Raises:
        ConfigError: if it is of a kind that SageMaker refuses.
    """
    try:
        details = ecr.describe_images(repositoryName=repository, imageIds=[{"imageTag": tag}])["imageDetails"]
    except ecr.exceptions.ImageNotFoundException:
        return None
    kind = details[0].get("imageManifestMediaType", MANIFEST)
    if kind != MANIFEST:
        raise ConfigError(
            f"{repository}:{tag}: expected an image with Docker's manifest, the only one that SageMaker takes, "
            f"received {kind}. Remove it there, and build and push with an engine that does not keep images in "
            f"containerd."
        )
    return details[0]["imageDigest"]


def login_of(data: AuthorizationDataTypeDef) -> tuple[str, str, str]:
    """Returns registry, user and password of an authorization."""
    user, _, password = base64.b64decode(data["authorizationToken"]).decode().partition(":")
    return data["proxyEndpoint"].partition("://")[2], user, password


def note(pushed: Pushed, path: Path) -> None:
    """Writes what was pushed to a file, in one step."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(asdict(pushed), indent=2) + "\n", encoding="utf-8")


class Docker:
    """Docker's client."""

    def labels(self, image: str) -> dict[str, str]:
        """Returns an image's labels. Raises ConfigError if there is no such image."""
        try:
            told = _ran(["docker", "image", "inspect", "--format", "{{json .Config.Labels}}", image])
        except ArtclfError as error:
            raise ConfigError(f"{error} Run make image.") from error
        return dict(json.loads(told) or {})

    def push(self, image: str, target: str, registry: str, user: str, password: str) -> None:
        """Pushes an image under another name.

        Raises:
            ArtclfError: with Docker's words, if it fails.
        """
        engine = _ran(["docker", "context", "inspect", "--format", "{{.Endpoints.docker.Host}}"]).strip()
        # The login lasts twelve hours: it goes into a folder of its own and not into the user's configuration, which
        # also says which engine to talk to.
        with tempfile.TemporaryDirectory(prefix="artclf-") as folder:
            environment = {**os.environ, "DOCKER_CONFIG": folder, "DOCKER_HOST": engine}
            _ran(["docker", "login", "--username", user, "--password-stdin", registry], environment, password)
            _ran(["docker", "tag", image, target], environment)
            _ran(["docker", "push", target], environment, shown=True)


def _ran(
    command: Sequence[str], environment: dict[str, str] | None = None, given: str = "", *, shown: bool = False
) -> str:
    """Returns what a command printed; ``shown`` lets it print for itself."""
    if shutil.which(command[0]) is None:
        raise ConfigError(f"{command[0]}: not found on this machine. Install it.")
    ended = subprocess.run(
        command,
        env=environment,
        input=given,
        stdout=None if shown else subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if ended.returncode:
        words = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
        raise ArtclfError(f"{' '.join(command[:2])}: {words[-1]}")
    return ended.stdout or ""


if __name__ == "__main__":
    run_command(main)
