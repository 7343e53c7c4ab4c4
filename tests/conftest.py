"""What all tests share: no way out of this machine for their own process, no credentials, small real data sets."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from artclf.records import Dataset

pytest_plugins = ("tests.s3_servers",)

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ.update(AWS_ACCESS_KEY_ID="testing", AWS_SECRET_ACCESS_KEY="testing", AWS_EC2_METADATA_DISABLED="true")

PROJECT = Path(__file__).resolve().parents[1]
SHARED = PROJECT.parent / "shared" / "data"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


Amount = Callable[[int, int], int]
Measured = Callable[[str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="the long form of the fault tests: make soak")


def pytest_configure(config: pytest.Config) -> None:
    """Makes the verdict on a commit one of the commit alone: examples are the same each time, but for the soak, which
    looks for new ones; and are timed by nobody, since this machine may be busy."""
    is_soak = bool(config.getoption("--soak"))
    settings.register_profile("artclf", deadline=None, derandomize=not is_soak, max_examples=300 if is_soak else 100)
    settings.load_profile("artclf")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints what the fault tests measured, passed or not."""
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, []) if r.when == "call"]
    lines = [f"{r.nodeid.split('::')[-1]}: {v}" for r in reports for k, v in r.user_properties if k == "measured"]
    if lines:
        terminalreporter.section("measured")
        terminalreporter.write_line("\n".join(sorted(lines)))


@pytest.fixture(scope="session")
def amount(request: pytest.FixtureRequest) -> Amount:
    """Returns a choice between a quick number and that of the soak."""
    soak = bool(request.config.getoption("--soak"))
    return lambda quick, long: long if soak else quick


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Measured:
    """Notes a figure that is printed when all tests have ended."""
    return lambda figure: record_property("measured", figure)


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Returns what starts trainers quickly (tests.crash.Nursery)."""
    from tests.crash import Nursery

    return Nursery(tmp_path_factory.mktemp("nursery"))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuses every connection of this process that leaves this machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[0] not in LOOPBACK:
            raise AssertionError(f"a test tried to reach {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Gives the tests of this process a cache of their own."""
    cache = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("ARTCLF_CACHE", str(cache))
    return cache


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Returns the folder of real pictures beside the project, or skips."""
    if not SHARED.is_dir():
        pytest.skip("needs the real pictures in ../shared/data")
    return SHARED


@pytest.fixture(scope="session")
def tiny_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder of three classes of 30 small pictures that differ in the direction of their stripes."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(7)
    for name, step in {"across": (1, 0), "down": (0, 1), "slanted": (1, 1)}.items():
        (folder / name).mkdir()
        for number in range(30):
            rows, columns = np.mgrid[0:40, 0:40]
            wave = np.sin((rows * step[0] + columns * step[1]) * random.uniform(0.7, 1.3) + random.uniform(0, 6))
            colour = random.uniform(40, 215, size=3)
            pixels = colour + wave[..., None] * 40 + random.normal(0, 12, size=(40, 40, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{name}_{number}.png")
    return folder


@pytest.fixture(scope="session")
def tiny_set(tiny_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Returns the prepared data set of ``tiny_pictures``, 72/9/9."""
    from artclf.prepare import Options, prepare

    return prepare([str(tiny_pictures)], tmp_path_factory.mktemp("sets") / "tiny", Options())
