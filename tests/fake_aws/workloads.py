"""What a job does on its machine: the real entry point as a child, the real image under Docker, or a script.

The first two play the platform's part: SageMaker's folders, input channels, the log, model.tar.gz.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from urllib.parse import urlsplit

import boto3
import psutil
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.fake_aws.model import Params
from tests.fake_aws.training_job import End, Job, Machine, Start

PROJECT = Path(__file__).resolve().parents[2]
TICK_S = 0.05
IMAGE_ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "PYTHONUNBUFFERED": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""What stands for the ENV lines of the image where the entry point runs without one, and keeps boto off the network."""


# -- no process ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scripted:
    """A job that is only told: takes so long, prints some lines, and ends with an exit code.

    Attributes:
        seconds: how long it takes, in fake time, or a function of the job.
        failure: the text of its failure file.
        stops_after_s: how long it goes on after SIGTERM; infinite: it does not listen.
        on_start, on_end: called with the job, and at the end with ``finished``, ``terminated`` or ``killed``;
            they may leave things in S3, but not call the server, which waits for them.
    """

    seconds: float | Callable[[Job], float] = 60.0
    exit_code: int = 0
    failure: str = ""
    lines: Sequence[str] = ()
    stops_after_s: float = 0.0
    on_start: Callable[[Job], None] = lambda job: None
    on_end: Callable[[Job, str], None] = lambda job, how: None
    real: bool = field(default=False, init=False)

    def start(self, start: Start) -> Machine:
        """Starts the work on a fresh machine."""
        self.on_start(start.job)
        for line in self.lines:
            start.log(line, start.at)
        seconds = self.seconds(start.job) if callable(self.seconds) else self.seconds
        return _Told(self, start.job, start.at + seconds)


@dataclass
class _Told:
    script: Scripted
    job: Job
    ends_at: float
    how: str = "finished"

    def terminate(self, now: float) -> None:
        self._end("terminated", now + self.script.stops_after_s)

    def kill(self, now: float) -> None:
        self._end("killed", now)

    def result(self) -> End:
        self.script.on_end(self.job, self.how)
        codes = {"finished": self.script.exit_code, "terminated": 143, "killed": 137}
        return End(codes[self.how], self.script.failure if self.how == "finished" else "")

    def _end(self, how: str, at: float) -> None:
        if at < self.ends_at:
            self.how, self.ends_at = how, at


# -- real processes ------------------------------------------------------------------------------


@dataclass(frozen=True)
class EntryPoint:
    """The real entry point, as a child of this process, in folders that are thrown away at its end.

    Nothing of this process's own environment reaches it but PATH.

    Attributes:
        environment: what the platform adds: endpoints, credentials, AWS_REGION. AWS_ENDPOINT_URL_S3 or
            AWS_ENDPOINT_URL says where input channels come from and models go to.
        command: what runs; the request's ContainerArguments follow it, or ``train`` where it has none.
        instead: takes the place of what the request's Environment says.
    """

    environment: Mapping[str, str]
    command: Sequence[str] = (sys.executable, "-m", "container.entrypoint")
    instead: Mapping[str, str] = field(default_factory=dict)
    real: bool = field(default=True, init=False)

    def start(self, start: Start) -> Machine:
        """Starts the work on a fresh machine."""
        return _Host(self, start)

    def launch(self, start: Start, folder: Path) -> subprocess.Popen[bytes]:
        """Starts the container's first process, in a session of its own."""
        home, scratch = folder / "home", folder / "tmp"
        home.mkdir()
        scratch.mkdir()
        places = {"HOME": home, "TMPDIR": scratch, "ARTCLF_SAGEMAKER_BASE": folder / "ml"}
        return subprocess.Popen(
            [*self.command, *_arguments(start.job.request)],
            cwd=PROJECT,
            env={
                "PATH": os.environ["PATH"],
                **IMAGE_ENVIRONMENT,
                **_environment(self.environment, start),
                **self.instead,
                **{name: str(place) for name, place in places.items()},
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def kill(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        """Kills all that was started in the container. Frozen first, so that none sees another die."""
        home, frozen = str(folder / "home"), set[int]()
        while found := set(_processes_at_home(home, frozen)) - frozen:
            _signal(found, signal.SIGSTOP)
            frozen |= found
        _signal(frozen, signal.SIGKILL)


@dataclass(frozen=True)
class Image:
    """The request's TrainingImage under this machine's Docker engine, on the host's network.

    Attributes:
        environment: as for EntryPoint.
        options: more arguments for ``docker run``.
    """

    environment: Mapping[str, str]
    options: Sequence[str] = ()
    real: bool = field(default=True, init=False)

    def start(self, start: Start) -> Machine:
        """Starts the work on a fresh machine."""
        return _Host(self, start)

    def launch(self, start: Start, folder: Path) -> subprocess.Popen[bytes]:
        """Starts the container; the client passes our signals on to its first process."""
        algorithm = start.job.request["AlgorithmSpecification"]
        environment = _environment(self.environment, start)
        for place in [folder / "ml", *(folder / "ml").rglob("*")]:
            if place.is_dir():
                place.chmod(0o777)  # the image's user is not ours
        entry, *rest = algorithm.get("ContainerEntrypoint", [""])
        command = [
            "docker",
            "run",
            "--rm",
            "--name",
            folder.name,
            "--network",
            "host",
            "-v",
            f"{folder / 'ml'}:/opt/ml",
        ]
        for name in environment:
            command += ["-e", name]  # by name only: a value here could be read in the list of processes
        command += [*self.options, *(["--entrypoint", entry] if entry else [])]
        return subprocess.Popen(
            [*command, algorithm["TrainingImage"], *rest, *_arguments(start.job.request)],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def kill(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        """Kills the container."""
        subprocess.run(["docker", "kill", folder.name], capture_output=True, check=False)


class _Container(Protocol):
    @property
    def environment(self) -> Mapping[str, str]: ...

    def launch(self, start: Start, folder: Path) -> subprocess.Popen[bytes]: ...

    def kill(self, process: subprocess.Popen[bytes], folder: Path) -> None: ...


class _Host:
    """A machine of its own folders, on which a container runs from a thread that does the platform's part."""

    def __init__(self, container: _Container, start: Start) -> None:
        self.ends_at = math.inf
        self._container = container
        self._start = start
        self._request = start.job.request
        self._folder = Path(tempfile.mkdtemp(prefix=f"fake-sagemaker-{uuid.uuid4().hex[:8]}-"))
        self._guard = threading.Lock()  # between the start of the process and the signals for it
        self._process: subprocess.Popen[bytes] | None = None
        self._signalled: signal.Signals | None = None
        self._end = End(1)
        self._thread = threading.Thread(target=self._live)
        self._thread.start()

    def terminate(self, now: float) -> None:
        with self._guard:
            self._signalled = signal.SIGTERM
            if self._process is not None:
                self._process.send_signal(signal.SIGTERM)

    def kill(self, now: float) -> None:
        with self._guard:
            self._signalled = signal.SIGKILL
            if self._process is not None:
                self._container.kill(self._process, self._folder)

    def result(self) -> End:
        self._thread.join()
        return self._end

    def _live(self) -> None:
        try:
            self._end = self._work()
        except (ClientError, BotoCoreError, _NoData) as error:
            self._end = End(1, f"ClientError: {error}")
        except Exception:
            self._end = End(1, f"tests/fake_aws itself broke: {traceback.format_exc()}")
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
            self.ends_at = self._start.now()

    def _work(self) -> End:
        ml = self._folder / "ml"
        self._lay_out(ml)
        with self._guard:
            if self._signalled is not None:
                return End(128 + self._signalled)
            self._process = process = self._container.launch(self._start, self._folder)
        reader = threading.Thread(target=self._copy_output, args=[process])
        reader.start()
        code = process.wait()
        self._end_all(process, reader)
        has_won = code == 0 or self._start.job.status == "Stopping"
        if has_won and self._signalled != signal.SIGKILL:
            self._deliver(ml / "model")
        failure = ml / "output" / "failure"
        text = failure.read_text(encoding="utf-8", errors="replace") if failure.is_file() else ""
        return End(code if code >= 0 else 128 - code, text)

    def _end_all(self, process: subprocess.Popen[bytes], reader: threading.Thread) -> None:
        """Ends what the first process left behind: with it, a container ends.

        Again while one holds the pipe: a process that is just being started has no environment to be known by.
        """
        self._container.kill(process, self._folder)
        while reader.is_alive():
            reader.join(TICK_S)
            self._container.kill(process, self._folder)

    def _copy_output(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self._start.log(line.decode(errors="replace").rstrip("\r\n"), self._start.now())

    def _lay_out(self, ml: Path) -> None:
        """Makes the folders of the Developer Guide, "How Amazon SageMaker Provides Training Information"."""
        for name in ("input/config", "input/data", "model", "output/data", "checkpoints"):
            (ml / name).mkdir(parents=True)
        hosts = [f"algo-{number + 1}" for number in range(self._start.job.instances)]
        instance = self._request["ResourceConfig"]["InstanceType"]
        group = {"instance_group_name": "homogeneousCluster", "instance_type": instance, "hosts": hosts}
        configs: dict[str, Any] = {
            "hyperparameters": self._request.get("HyperParameters", {}),
            "inputdataconfig": {c["ChannelName"]: _channel_config(c, self._request) for c in self._channels()},
            "resourceconfig": {
                "current_host": hosts[0],
                "current_instance_type": instance,
                "current_group_name": "homogeneousCluster",
                "hosts": sorted(hosts),
                "instance_groups": [group],
                "network_interface_name": "eth0",
            },
        }
        for name, content in configs.items():
            (ml / "input" / "config" / f"{name}.json").write_text(json.dumps(content))
        for channel in self._channels():
            self._download(channel, ml / "input" / "data" / channel["ChannelName"])

    def _channels(self) -> list[Params]:
        channels: list[Params] = self._request.get("InputDataConfig", [])
        return channels

    def _download(self, channel: Params, folder: Path) -> None:
        source = channel.get("DataSource", {}).get("S3DataSource", {})
        mode = channel.get("InputMode", self._request["AlgorithmSpecification"]["TrainingInputMode"])
        if source.get("S3DataType") != "S3Prefix" or mode == "Pipe":
            raise _NoData("tests/fake_aws plays only channels of an S3Prefix in File or FastFile mode")
        s3, (bucket, prefix) = self._s3(), _split(source["S3Uri"])
        keys = [
            item["Key"]
            for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
            for item in page.get("Contents", [])
        ]
        if not keys:
            raise _NoData(f"Data download failed: No S3 objects found under S3 URL {source['S3Uri']!r}")
        folder.mkdir()
        for key in keys:
            path = folder / PurePosixPath(key.removeprefix(prefix).lstrip("/") or PurePosixPath(key).name)
            if not path.resolve().is_relative_to(folder.resolve()):
                raise _NoData(f"Data download failed: the key {key!r} leads out of its channel")
            if not key.endswith("/"):
                path.parent.mkdir(parents=True, exist_ok=True)
                s3.download_file(bucket, key, str(path))

    def _deliver(self, model: Path) -> None:
        """Packs /opt/ml/model to where model.tar.gz belongs."""
        if not any(model.iterdir()):
            return
        packed = self._folder / "model.tar.gz"
        with tarfile.open(packed, "w:gz") as archive:
            archive.add(model, ".")
        bucket, prefix = _split(self._request["OutputDataConfig"]["S3OutputPath"].rstrip("/"))
        key = "/".join(part for part in (prefix, self._start.job.name, "output/model.tar.gz") if part)
        self._s3().upload_file(str(packed), bucket, key)

    def _s3(self) -> Any:
        environment = self._container.environment
        return boto3.session.Session().client(
            "s3",
            endpoint_url=environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL"),
            region_name=environment.get("AWS_REGION", self._start.region),
            aws_access_key_id=environment.get("AWS_ACCESS_KEY_ID", "testing"),
            aws_secret_access_key=environment.get("AWS_SECRET_ACCESS_KEY", "testing"),
            aws_session_token=environment.get("AWS_SESSION_TOKEN"),
            config=Config(s3={"addressing_style": "path"}),
        )


class _NoData(Exception):
    """An input channel cannot be had."""


def _arguments(request: Params) -> list[str]:
    """Returns what follows the image: the platform says ``train`` where the request says nothing."""
    algorithm = request["AlgorithmSpecification"]
    if "ContainerArguments" in algorithm or "ContainerEntrypoint" in algorithm:
        return list(algorithm.get("ContainerArguments", []))
    return ["train"]


def _environment(given: Mapping[str, str], start: Start) -> dict[str, str]:
    """Returns what the platform sets, and the request's Environment."""
    return {
        "AWS_REGION": start.region,
        **given,
        "TRAINING_JOB_NAME": start.job.name,
        "TRAINING_JOB_ARN": start.job.arn,
        **start.job.request.get("Environment", {}),
    }


def _channel_config(channel: Params, request: Params) -> dict[str, str]:
    source = channel.get("DataSource", {}).get("S3DataSource", {})
    config = {
        "TrainingInputMode": channel.get("InputMode", request["AlgorithmSpecification"]["TrainingInputMode"]),
        "S3DistributionType": source.get("S3DataDistributionType", "FullyReplicated"),
        "RecordWrapperType": channel.get("RecordWrapperType", "None"),
    }
    return {**config, **({"ContentType": channel["ContentType"]} if "ContentType" in channel else {})}


def _split(uri: str) -> tuple[str, str]:
    """Returns the bucket and the key of an s3:// URI."""
    parts = urlsplit(uri, allow_fragments=False)
    return parts.netloc, parts.path.removeprefix("/")


def _processes_at_home(home: str, parents: set[int]) -> Iterator[int]:
    """Yields the processes of one container: those with its home, also if their parents are gone, and children."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.ppid() in parents or process.environ().get("HOME") == home:
                yield process.pid


def _signal(processes: set[int], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)
