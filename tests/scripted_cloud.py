"""A cloud whose jobs take fake time and leave what a run leaves, and grids that are submitted to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from artclf.interrupt import StopRequest
from artclf.rundir import RunDir, RunStatus
from artclf.s3 import S3Storage
from jobs.backends.sagemaker import SageMakerBackend
from jobs.bucket_study import BucketStudy
from jobs.display import LineWatcher
from jobs.grid import Grid, expand, load_grid
from jobs.plan import plan
from jobs.settings import CloudSettings
from jobs.spec import JobSpec, Outcome
from jobs.submit import Submission, outcomes
from tests.fake_aws.sagemaker import FakeSageMaker
from tests.fake_aws.server import ACCOUNT, REGION
from tests.fake_aws.training_job import Durations, Job
from tests.fake_aws.workloads import Scripted

SETTINGS = CloudSettings(
    bucket="my-art",
    region=REGION,
    role_arn=f"arn:aws:iam::{ACCOUNT}:role/artclf",
    image=f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/artclf@sha256:{'a' * 64}",
    account=ACCOUNT,
)
SPEC = JobSpec(
    name="artists-3f9a1c2b-a1",
    trial_id="3f9a1c2b",
    attempt=1,
    run_uri="s3://my-art/studies/artists/runs/3f9a1c2b",
    instance="g4dn.xlarge",
    spot=True,
    max_hours=6,
    max_wait_hours=None,
    tags={"artclf:study": "artists", "artclf:trial": "3f9a1c2b", "team": "art"},
)
SPOT_QUOTA = "ml.g4dn.xlarge for spot training job usage"
GRID = """
study: many
dataset: data/x
base: {{model.name: cnn_tiny, train.epochs: 4}}
axes: {{train.seed: [{seeds}]}}
resources: {{max_parallel: {parallel}}}
"""


class Cloud:
    """The stand-in with jobs that take fake time and leave in the bucket what a run leaves."""

    def __init__(self, bucket: str, seconds: float = 300, **knobs: Any) -> None:
        self.storage = S3Storage(f"s3://{bucket}/studies")
        self.seconds = seconds
        self.sagemaker = FakeSageMaker(self._work, durations=Durations(), **knobs)
        self.root = self.storage.uri

    def _work(self, job: Job) -> Scripted:
        return Scripted(seconds=self.seconds, on_start=self._begin, on_end=self._end)

    def _run(self, job: Job) -> S3Storage:
        uri: str = job.request["AlgorithmSpecification"]["ContainerArguments"][1]
        return self.storage.below(uri.removeprefix(f"{self.storage.uri}/"))

    def _begin(self, job: Job) -> None:
        self._run(job).write("status.json", json.dumps(vars(RunStatus("running"))).encode())

    def _end(self, job: Job, how: str) -> None:
        run = self._run(job)
        if how == "finished":
            for path in RunDir(Path()).left_when_done():
                run.write(path.as_posix(), b"{}")
            run.write("status.json", json.dumps(vars(RunStatus("done", epoch=4))).encode())
        elif how == "terminated":
            run.write("status.json", json.dumps(vars(RunStatus("interrupted", epoch=2))).encode())


def read_grid(folder: Path, seeds: int, parallel: int) -> Grid:
    path = folder / "many.yaml"
    path.write_text(GRID.format(seeds=", ".join(map(str, range(seeds))), parallel=parallel))
    return load_grid(path)


def submit(
    cloud: Cloud,
    grid: Grid,
    sleep: Callable[[float], None],
    stop: StopRequest | None = None,
    settings: CloudSettings = SETTINGS,
    asked_before: str | None = None,
) -> dict[str, Outcome]:
    """Submits a grid as the command does, with time that passes when it waits."""
    slept_s = 0.0

    def passing(seconds: float) -> None:
        nonlocal slept_s
        slept_s += seconds
        sleep(seconds)

    backend = SageMakerBackend(settings, sleep=passing, clock=lambda: slept_s)
    study = BucketStudy(cloud.root, grid.study)
    study.refresh()
    expansion = expand(grid, "digest")
    study.record(grid, "s3://my-art/data", "digest", expansion)
    steps = plan(expansion.trials, outcomes(study, expansion.trials, backend))
    watcher = LineWatcher(study, len(steps))
    submission = Submission(study, grid, backend, "s3://my-art/data", "digest", watcher, sleep=passing)
    return submission.run(steps, grid.resources.max_parallel, stop or StopRequest(), asked_before)
