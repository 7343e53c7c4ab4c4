"""A bucket for studies, what leads clients to the stand-in for SageMaker, and a run that began."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from artclf.config import TrainConfig
from artclf.rundir import RunDir, RunStatus
from tests.fake_aws.server import FakeAws

if TYPE_CHECKING:
    from tests.s3_servers import S3Server


@pytest.fixture
def bucket(
    moto_server: S3Server, models_parsed_once: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[str]:
    monkeypatch.chdir(tmp_path)
    for name, value in moto_server.environment().items():
        monkeypatch.setenv(name, value)
    with moto_server.fresh_bucket() as name:
        yield name


@pytest.fixture
def reach(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeAws], FakeAws]:
    """Returns what leads this process's clients to a stand-in."""

    def lead(aws: FakeAws) -> FakeAws:
        for name, value in aws.environment().items():
            monkeypatch.setenv(name, value)
        return aws

    return lead


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Returns a run that began."""
    run = RunDir(tmp_path / "run")
    run.begin(TrainConfig(), "/data", "digest")
    run.write_status(RunStatus("running", epoch=1))
    return run
