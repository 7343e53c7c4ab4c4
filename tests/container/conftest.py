"""Runs that lie in a bucket as submit puts them there, and what starts jobs on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from artclf.config import TrainConfig
from artclf.records import Dataset
from artclf.s3 import S3Storage
from container.generations import BucketGenerations
from tests.conftest import PROJECT

if TYPE_CHECKING:
    from tests.s3_servers import S3Server

SETTINGS = {
    "model.name": "cnn_small",
    "model.head": [8],
    "data.image_size": 24,
    "data.augment.flip": True,
    "train.batch_size": 4,
    "train.epochs": 12,
}


@pytest.fixture
def bucket(moto_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Storage]:
    """Yields a prefix of a fresh bucket."""
    for name, value in moto_server.environment().items():
        monkeypatch.setenv(name, value)
    with moto_server.fresh_bucket() as name:
        yield S3Storage(f"s3://{name}/study")


@dataclass(frozen=True)
class Remote:
    """A run in a bucket and what starts jobs on it."""

    storage: S3Storage
    cache: Path

    def start(self, job: str = "job-a1") -> subprocess.Popen[str]:
        environment = {**os.environ, "TRAINING_JOB_NAME": job, "ARTCLF_CACHE": str(self.cache)}
        command = [sys.executable, "-m", "container.entrypoint", "--run-uri", self.storage.uri]
        return subprocess.Popen(
            command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def status(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self.storage.read("status.json")))
        except FileNotFoundError:
            return {}

    @property
    def generations(self) -> BucketGenerations:
        return BucketGenerations(self.storage.below("checkpoint"))

    def committed(self) -> list[int]:
        return self.generations.numbers()

    def metrics(self) -> list[dict[str, Any]]:
        try:
            text = self.storage.read("metrics.jsonl").decode()
        except FileNotFoundError:
            return []
        clocked = ("seconds", "images_per_second")
        return [{k: v for k, v in json.loads(line).items() if k not in clocked} for line in text.splitlines()]

    def result(self, folder: Path) -> list[Any]:
        """Returns the weights and predictions of the finished run."""
        self.storage.download("model.keras", folder / "model.keras")
        with zipfile.ZipFile(folder / "model.keras") as model:
            weights = model.read("model.weights.h5")
        self.storage.download("evaluation/predictions_test.csv", folder / "predictions.csv")
        return [weights, (folder / "predictions.csv").read_bytes(), self.metrics()]


@pytest.fixture
def put_run(bucket: S3Storage, tiny_set: Dataset, own_cache: Path) -> Any:
    """Returns what makes runs in the bucket, as submit does."""

    def put(name: str, **settings: Any) -> Remote:
        data = bucket.below("data")
        for file in sorted(tiny_set.folder.rglob("*")):
            if file.is_file():
                data.upload(file.relative_to(tiny_set.folder).as_posix(), file)
        run = bucket.below(f"runs/{name}")
        config = TrainConfig.from_settings({**SETTINGS, **settings})
        run.write("config.json", config.to_json().encode())
        run.write("job.json", json.dumps({"dataset": data.uri, "data_digest": tiny_set.digest}).encode())
        return Remote(run, own_cache)

    return put
