"""The Docker engine and the image that tests/docker.sh made, for tests that start real containers."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

IMAGE = "artclf:latest"
LABEL = "artclf.test"
"""Marks what tests start, for whoever finds one left behind."""


def docker(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Returns the ended client, its output as text."""
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=check)


def why_no_engine() -> str:
    """Returns why no Docker engine is at hand, or an empty text if one is."""
    if shutil.which("docker") is None:
        return "needs Docker"
    answer = docker("version", "--format", "{{.Server.Version}}", check=False)
    return "" if answer.returncode == 0 else "needs a Docker engine; tests/docker.sh starts one where it may"


def why_no_image(image: str = IMAGE) -> str:
    """Returns why no container of the image can be started, or an empty text if one can."""
    missing = why_no_engine()
    if missing:
        return missing
    has_it = docker("image", "inspect", image, check=False).returncode == 0
    return "" if has_it else f"needs the image {image}; tests/docker.sh makes it"


def inspect_image(image: str = IMAGE) -> dict[str, Any]:
    """Returns what the engine tells of an image."""
    (described,) = json.loads(docker("image", "inspect", image).stdout)
    return dict(described)


class Container:
    """A container that was started, and is not removed until ``containers`` ends."""

    def __init__(self, name: str) -> None:
        self.name = name

    def wait(self) -> int:
        """Waits for its end and returns its exit code."""
        return int(docker("wait", self.name).stdout)

    def output(self) -> str:
        """Returns all that it printed so far."""
        printed = docker("logs", self.name)
        return printed.stdout + printed.stderr

    def wait_for_line(self, words: str) -> None:
        """Waits until it prints a line with these words.

        Raises:
            AssertionError: if it ends without.
        """
        command = ["docker", "logs", "--follow", self.name]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as following:
            assert following.stdout is not None
            found = any(words in line for line in following.stdout)
            following.kill()
        assert found, f"ended without printing {words!r}:\n{self.output()}"

    def signal(self, name: str) -> None:
        """Sends a signal to its first process, unless it has ended."""
        docker("kill", "--signal", name, self.name, check=False)

    def stop(self, grace_s: int) -> None:
        """Stops it as services do: SIGTERM, and SIGKILL if it has not ended after the grace."""
        docker("stop", "--time", str(grace_s), self.name)

    def state(self) -> dict[str, Any]:
        """Returns what the engine tells of how it stands or ended."""
        return dict(json.loads(docker("inspect", "--format", "{{json .State}}", self.name).stdout))


class Containers:
    """Starts containers of one image."""

    def __init__(self, image: str) -> None:
        self.image = image
        self.names: list[str] = []

    def start(self, *arguments: str, options: Iterable[str] = (), network: str = "none") -> Container:
        """Starts the image with these arguments; ``options`` are those of ``docker run``."""
        name = f"artclf-test-{secrets.token_hex(6)}"
        self.names.append(name)
        named = ["--name", name, "--label", LABEL, "--network", network]
        docker("run", "--detach", *named, *options, self.image, *arguments)
        return Container(name)

    def run(self, *arguments: str, options: Iterable[str] = (), network: str = "none") -> tuple[int, str]:
        """Runs the image to its end and returns the exit code and what it printed."""
        container = self.start(*arguments, options=options, network=network)
        return container.wait(), container.output()


@contextlib.contextmanager
def containers(image: str = IMAGE) -> Iterator[Containers]:
    """Yields what starts containers, and removes them all at the end."""
    started = Containers(image)
    try:
        yield started
    finally:
        if started.names:
            docker("rm", "--force", "--volumes", *started.names, check=False)


def find_in_images(images: Sequence[str], needles: Sequence[bytes]) -> dict[bytes, str]:
    """Returns which of these byte strings occur in images, and in which layer or description: in names and content
    of all files, those that later layers hide too, in the settings and the history."""
    found: dict[bytes, str] = {}
    with subprocess.Popen(["docker", "save", *images], stdout=subprocess.PIPE) as saving:
        assert saving.stdout is not None
        with tarfile.open(fileobj=saving.stdout, mode="r|") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                if content is not None:
                    found |= dict.fromkeys(_found_in(content, needles), member.name)
    assert saving.returncode == 0, f"docker save failed: {images}"
    return found


def _found_in(content: IO[bytes], needles: Sequence[bytes]) -> set[bytes]:
    """Returns which byte strings occur in a stream, which some engines keep compressed."""
    block = content.read(1 << 22)
    expand = zlib.decompressobj(wbits=31).decompress if block[:2] == b"\x1f\x8b" else bytes
    overlap = max(map(len, needles)) - 1
    found: set[bytes] = set()
    end = b""
    while block:
        text = end + expand(block)
        found |= {needle for needle in needles if needle in text}
        end = text[-overlap:]
        block = content.read(1 << 22)
    return found


def copy_tree(project: Path, target: Path) -> Path:
    """Copies what the image is built from to another folder, where a test may plant things."""
    for name in ("artclf", "container"):
        shutil.copytree(project / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".dockerignore", "pyproject.toml", "requirements.lock"):
        shutil.copy2(project / name, target / name)
    return target
