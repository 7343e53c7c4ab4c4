"""The loopback server: who asks, what for, is it allowed, and what goes back. It knows no service by name."""

from __future__ import annotations

import contextlib
import math
import re
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from tests.fake_aws.clock import Clock
from tests.fake_aws.model import Params, broken_rules
from tests.fake_aws.protocols import WIRES, HttpAnswer, HttpRequest, ServiceError, Wire
from tests.fake_aws.service import Service

ACCOUNT = "123456789012"
REGION = "us-east-1"
TICK_S = 0.05
SCOPE = re.compile(r"AWS4-HMAC-SHA256 Credential=([^/]+)/\d{8}/([^/]+)/([^/]+)/aws4_request, ?SignedHeaders=")


class Lost(Enum):
    """An answer that never arrives: the connection is closed after the request was carried out, or before."""

    ANSWER = "answer"
    REQUEST = "request"


Before = Callable[[str, str, Params], ServiceError | Lost | None]


@dataclass
class Request:
    """One request, as golden tests and counts want it.

    Attributes:
        time: the fake time, in seconds since 1970.
        outcome: ``ok``, the code of the error, or ``lost``.
    """

    service: str
    operation: str
    params: Params
    time: float
    outcome: str


class FakeAws:
    """An account on loopback: a context manager that serves until it is left.

    Leaving it raises if the stand-in itself broke, or answered what AWS's model does not allow.

    Attributes:
        url: where it listens; ``environment()`` leads botocore there.
        requests: all that came in with a known key and an operation, in their order.
        before: called with (service, operation, params) when a request is about to be carried out; what it
            returns happens instead. Must not call the server, which waits for it.
        access_keys: the keys that are known.
        changed: notified whenever something may have happened; holds the lock that all services run under.
    """

    def __init__(
        self,
        *services: Service,
        clock: Clock | None = None,
        before: Before | None = None,
        rates: Mapping[str, float] | None = None,
        account: str = ACCOUNT,
        region: str = REGION,
    ) -> None:
        """Args:
        rates: most requests a second of an operation (``sagemaker.CreateTrainingJob``), in fake time.
        """
        self.services = {service.name: service for service in services}
        self.clock = clock or Clock()
        self.before = before
        self.account = account
        self.region = region
        self.access_keys = {"testing"}
        self.requests: list[Request] = []
        self.changed = threading.Condition(threading.RLock())
        self._buckets = {name: _Bucket(rate, self.clock.now()) for name, rate in (rates or {}).items()}
        self._expired: set[str] = set()
        self._broken: list[str] = []
        self._server = _Server(self)
        self._closing = threading.Event()
        self._threads = [threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})]
        for service in services:
            service.attach(self)
        if any(service.background for service in services):
            self._threads.append(threading.Thread(target=self._tick))

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def environment(self) -> dict[str, str]:
        """Returns the variables that lead botocore here, with a known key."""
        names = [service.model.service_id.upper().replace(" ", "_") for service in self.services.values()]
        return {
            **{f"AWS_ENDPOINT_URL_{name}": self.url for name in names},
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
        }

    def expire(self, token: str) -> None:
        """Makes a session token one that has expired."""
        with self.changed:
            self._expired.add(token)

    def most_a_minute(self, *operations: str) -> int:
        """Returns how many requests the busiest minute of fake time saw, of some operations or of all."""
        times = [r.time for r in self.requests if not operations or r.operation in operations]
        return max((sum(begin <= time < begin + 60 for time in times) for begin in times), default=0)

    def wait_for(self, come_true: Callable[[], bool], timeout_s: float = 120.0) -> None:
        """Waits until something is true of services whose jobs are real processes.

        Raises:
            TimeoutError: if it does not come true within so many real seconds.
        """
        with self.changed:
            if not self.changed.wait_for(come_true, timeout_s):
                raise TimeoutError(f"still not so after {timeout_s:g} s of real time")

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._closing.set()
        self._server.close()
        for thread in self._threads:
            thread.join()
        for service in self.services.values():
            service.close()
        if self._broken and error is None:
            raise AssertionError("tests/fake_aws itself broke:\n" + "\n".join(self._broken))

    def answer(self, request: HttpRequest) -> HttpAnswer | None:
        """Returns what goes back, or None where the connection is to be closed without a word."""
        with self.changed:
            try:
                return self._answer(request)
            except Exception:
                self.note_broken()
                # 400, so that no client tries it again and again.
                broken = ServiceError("FakeAwsBroke", traceback.format_exc(limit=-3))
                return _wire(request).error(broken, None)
            finally:
                self.changed.notify_all()

    def note_broken(self) -> None:
        """Keeps the exception that is being handled, to be raised when the account is left."""
        self._broken.append(traceback.format_exc())

    def _answer(self, request: HttpRequest) -> HttpAnswer | None:
        wire, model, recorded = _wire(request), None, None
        try:
            service = self._admit(request, wire)
            wire, model = service.wire, service.model
            operation, method = service.operation(wire.operation(request))
            params = wire.params(request, operation)
            self.clock.look()
            now = self.clock.now()
            recorded = Request(service.name, operation.name, deepcopy(params), now, "ok")
            self.requests.append(recorded)
            self._throttle(service, operation.name, now)
            service.check(operation, params)
            fault = self.before(service.name, operation.name, params) if self.before is not None else None
            if isinstance(fault, ServiceError):
                raise fault
            if isinstance(fault, Lost):
                recorded.outcome = "lost"
            if fault is Lost.REQUEST:
                return None
            for other in self.services.values():
                other.settle(now)
            result = method(params, now)
        except ServiceError as error:
            if recorded is not None:
                recorded.outcome = error.code if recorded.outcome == "ok" else recorded.outcome
            return None if recorded is not None and recorded.outcome == "lost" else wire.error(error, model)
        broken = broken_rules(operation.output_shape, result) if operation.output_shape is not None else []
        if broken:
            raise AssertionError(f"answer to {operation.name}: {'; '.join(broken)}")
        return None if recorded.outcome == "lost" else wire.answer(operation, result)

    def _admit(self, request: HttpRequest, wire: Wire) -> Service:
        """Returns the service that a request was signed for. Raises ServiceError for one who may not ask."""
        scope = SCOPE.match(request.headers.get("authorization", ""))
        if scope is None:
            raise wire.refusals["missing"]
        access_key, region, name = scope.groups()
        if name not in self.services:
            raise ServiceError("UnknownOperationException", f"tests/fake_aws plays no service {name!r} here")
        refusals = self.services[name].wire.refusals
        if access_key not in self.access_keys:
            raise refusals["unknown"]
        if request.headers.get("x-amz-security-token", "") in self._expired:
            raise refusals["expired"]
        if region != self.region:
            raise refusals["region"]
        return self.services[name]

    def _throttle(self, service: Service, operation: str, now: float) -> None:
        bucket = self._buckets.get(f"{service.name}.{operation}")
        if bucket is not None and not bucket.take(now):
            raise service.throttled

    def _tick(self) -> None:
        while not self._closing.wait(TICK_S):
            try:
                for service in self.services.values():
                    service.tick()
            except Exception:
                self.note_broken()
            with self.changed:
                self.changed.notify_all()


class _Bucket:
    """A token bucket: so many requests a second, and a burst of one second's worth."""

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._tokens = self._most = max(1.0, rate)
        self._filled = now

    def take(self, now: float) -> bool:
        """Takes a token and returns True, or returns False if there is none."""
        self._tokens = min(self._most, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        if self._tokens < 1 and not math.isclose(self._tokens, 1):
            return False
        self._tokens -= 1
        return True


def _wire(request: HttpRequest) -> Wire:
    """Returns the protocol that a request looks like, for those that cannot be told by their service."""
    return WIRES["json" if "x-amz-target" in request.headers else "query"]


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # waited for at the end, so that none outlives its test
    request_queue_size = 128

    def __init__(self, aws: FakeAws) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.aws = aws
        self.connections: set[socket.socket] = set()

    def close(self) -> None:
        """Ends the server, and the connections that clients keep open for a next request."""
        self.shutdown()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keeps what went wrong; a client that was killed is no fault of ours."""
        if not isinstance(sys.exception(), ConnectionError):
            self.aws.note_broken()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        super().finish()

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.server.aws.answer(HttpRequest(self.command, self.path, headers, body))
        if answer is None:
            self.close_connection = True
            return
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815  http.server's names; a protocol says what they mean

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: requests are recorded."""
