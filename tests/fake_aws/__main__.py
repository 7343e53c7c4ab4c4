"""``python -m tests.fake_aws GRID --backend B``: the cloud path without an account, for ``make rehearse``.

An S3 server and the stand-in for the services run on this machine; the grid is submitted to them by the very
command that submits it to the cloud, every trial really trains, and machines are taken away in between.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import boto3

from artclf.interrupt import catch_stop_signals
from jobs.bucket_study import COPIES
from tests import moto_server
from tests.fake_aws.clock import ScaledClock
from tests.fake_aws.logs import FakeLogs
from tests.fake_aws.sagemaker import FakeSageMaker
from tests.fake_aws.server import ACCOUNT, REGION, FakeAws
from tests.fake_aws.sts import FakeSts
from tests.fake_aws.training_job import Durations, Job
from tests.fake_aws.workloads import EntryPoint

BUCKET = "rehearsal"
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": REGION}
CLOUD = f"""
bucket: {BUCKET}
region: {REGION}
account: "{ACCOUNT}"
role_arn: arn:aws:iam::{ACCOUNT}:role/artclf
image: {ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/artclf@sha256:{"0" * 64}
poll_seconds: 1
"""
QUICK = Durations(starting=0.4, pending=0.4, downloading=0.2, uploading=0.2)
"""Machines come in a moment instead of minutes; all else takes its time, or the limits of a grid would cut it off."""


@contextlib.contextmanager
def cloud(
    folder: Path, interruptions: int, max_jobs: int | None = None
) -> Iterator[tuple[FakeSageMaker, dict[str, str]]]:
    """Yields SageMaker's stand-in and the environment that leads commands to it and to an S3 server.

    Args:
        folder: where cloud.yaml is written.
        interruptions: how often each job loses its machine, each time after one more commit.
        max_jobs: the quota of running jobs.
    """
    with moto_server.serve() as endpoint:
        yield from _cloud(folder, interruptions, max_jobs, endpoint)


def _cloud(
    folder: Path, interruptions: int, max_jobs: int | None, endpoint: str
) -> Iterator[tuple[FakeSageMaker, dict[str, str]]]:
    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name=REGION, aws_access_key_id="testing", aws_secret_access_key="testing"
    )
    client.create_bucket(Bucket=BUCKET)
    (folder / "cloud.yaml").write_text(CLOUD)
    reaches = {**KEYS, "AWS_ENDPOINT_URL_S3": endpoint, "ARTCLF_CACHE": str(folder / "cache")}
    seen: dict[tuple[str, int], int] = {}

    def loses_machine(job: Job) -> bool:
        """Says yes once a job has committed anything since it last lost its machine."""
        if job.starts > interruptions:
            return False
        prefix = job.request["AlgorithmSpecification"]["ContainerArguments"][1].removeprefix(f"s3://{BUCKET}/")
        listed = client.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/checkpoint/").get("Contents", [])
        newest = max((item["Key"] for item in listed if item["Key"].endswith("manifest.json")), default="")
        number = int(newest.split("gen-")[1].split("/")[0]) if newest else 0
        first = seen.setdefault((job.name, job.starts), number)
        return number > first

    usage = "spot training job usage"
    service = FakeSageMaker(
        EntryPoint(reaches, instead={"ARTCLF_INSTANCE": ""}),  # a report names this machine, not the one asked for
        durations=QUICK,
        quotas={} if max_jobs is None else {f"ml.g4dn.xlarge for {usage}": max_jobs},
        interrupt_when=loses_machine if interruptions else None,
    )
    try:
        with FakeAws(service, FakeLogs(), FakeSts(), clock=ScaledClock()) as aws:
            yield service, {**reaches, **aws.environment(), "ARTCLF_CLOUD": str(folder / "cloud.yaml")}
    finally:  # for the next one of this process
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
            for item in page.get("Contents", ()):
                client.delete_object(Bucket=BUCKET, Key=item["Key"])
        client.delete_bucket(Bucket=BUCKET)


def main() -> int:
    """Rehearses one grid and returns the exit code of its submit."""
    parser = argparse.ArgumentParser(prog="make rehearse", description="Submit a grid to a stand-in for the cloud.")
    parser.add_argument("grid")
    parser.add_argument("--backend", default="sagemaker", choices=["sagemaker"])
    parser.add_argument(
        "--interruptions", type=int, default=2, metavar="N", help="how often each job loses its machine"
    )
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="artclf-rehearsal-") as folder,
        cloud(Path(folder), arguments.interruptions) as (service, environment),
    ):
        command = [sys.executable, "-m", "jobs", "submit", arguments.grid, "--backend", arguments.backend, "--yes"]
        process = subprocess.Popen(command, env={**os.environ, **environment})

        def heard(number: int, frame: object) -> None:
            if number == signal.SIGTERM:  # those of a terminal reach the submit too; its end is ours
                process.send_signal(number)

        catch_stop_signals(heard)
        code = process.wait()
        for job in service.history:
            machines = "1 machine" if job.starts == 1 else f"{job.starts} machines, one after the other"
            print(f"{job.name}  {job.status}  on {machines}")
        print(f"The rehearsal is over and its cloud is gone; what it left is below {COPIES / BUCKET}.")
    return code


if __name__ == "__main__":
    sys.exit(main())
