"""A job whose credentials expire while it trains, again and again: no commit is lost, and none is torn."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from artclf.checkpoint import Checkpoints, LocalGenerations
from tests.conftest import Amount, Measured
from tests.container.conftest import Remote
from tests.s3_proxy import EXPIRED_TOKEN, FaultProxy, Request

if TYPE_CHECKING:
    from tests.s3_servers import S3Server


@dataclass
class Vendor:
    """Gives out temporary credentials as a machine's metadata service does; only the newest token is good.

    Attributes:
        number: of the token that is good now; 0: there is none to be had.
        given: how many were given out.
    """

    number: int = 1
    given: int = 0
    refused: int = 0
    url: str = ""
    _server: ThreadingHTTPServer = field(init=False)

    def __enter__(self) -> Vendor:
        vendor = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps(vendor.credentials()).encode() if vendor.number else b"{}"
                self.send_response(200 if vendor.number else 503)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/credentials"
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def credentials(self) -> dict[str, str]:
        self.given += 1
        later = (datetime.now(UTC) + timedelta(hours=6)).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "AccessKeyId": "testing",
            "SecretAccessKey": "testing",
            "Token": f"token-{self.number}",
            "Expiration": later,
        }

    def is_stale(self, request: Request) -> bool:
        stale = request.headers.get("x-amz-security-token") != f"token-{self.number}"
        self.refused += stale
        return stale


@pytest.fixture
def vendor() -> Iterator[Vendor]:
    with Vendor() as vendor:
        yield vendor


def test_credentials_that_expire_again_and_again_and_are_away_for_a_while_lose_no_commit(
    put_run: Any,
    moto_server: S3Server,
    vendor: Vendor,
    monkeypatch: pytest.MonkeyPatch,
    amount: Amount,
    measured: Measured,
    tmp_path: Path,
) -> None:
    rotations = amount(2, 20)
    remote: Remote = put_run("run", **{"train.epochs": 10_000})  # more than there is time for: it is stopped at the end
    with FaultProxy(moto_server.url, moto_server.credentials) as proxy:
        proxy.on(do=EXPIRED_TOKEN, times=None, when=vendor.is_stale)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", vendor.url)
        job = remote.start()
        lines: list[str] = []  # read as they come: a full pipe would hold the trainer up
        assert job.stdout is not None
        reader = threading.Thread(target=lines.extend, args=[job.stdout], daemon=True)
        reader.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", moto_server.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        seen = 0
        for rotation in range(rotations):
            while max(remote.committed(), default=0) <= seen:
                assert job.poll() is None, lines
            seen = max(remote.committed())
            if rotation == 1:  # away, until some calls were refused and, in the long form, ten minutes have passed
                vendor.number, refused, began = 0, vendor.refused, time.monotonic()
                while vendor.refused < refused + 5 or time.monotonic() < began + amount(0, 600):
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        job.wait(1)
                        raise AssertionError(lines)
                assert len(remote.committed()) >= 1
            vendor.number = rotation + 2
        job.terminate()
        job.wait()
        reader.join()
        job.stdout.close()
        assert job.returncode == 75, lines
    status, epochs = remote.status(), [line["epoch"] for line in remote.metrics()]
    assert status["state"] == "interrupted" and epochs == list(range(1, status["epoch"] + 1))
    newest, problems = remote.generations.fetch_newest_sound(tmp_path / "back")
    state = Checkpoints(LocalGenerations(tmp_path / "back")).restore()[0]
    assert problems == [] and newest == max(remote.committed()) and state is not None
    assert len(state.state["place"]["history"]) == status["epoch"]
    away = "until 5 calls were refused" if amount(0, 1) == 0 else "for 600 s"
    measured(
        f"{rotations} rotations and one absence {away}, {vendor.refused} calls refused, {len(epochs):,} epochs: "
        "no commit lost"
    )
