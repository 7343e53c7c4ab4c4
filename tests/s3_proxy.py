"""A loopback proxy in front of an S3 server that breaks what passes, as networks and services do.

    with FaultProxy(server.url, server.credentials, seed=7) as proxy:
        proxy.shares = {SLOW_DOWN: 0.05, Break.LOSE_ANSWER: 0.01}
        proxy.on("PutObject", "a/b", do=Break.LOSE_ANSWER)

Shares are drawn from the seed, the operation, the key and how often the proxy met the two: neither threads nor the
name of a bucket change the story. Rules come first, and a request that one applies to is spared by the shares.

Requests go on as they came, the Host header too, so their signatures fit; what is rewritten is signed anew.
"""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit
from xml.sax.saxutils import escape

_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "expect"})
_BY_QUERY = {
    ("GET", "uploads"): "ListMultipartUploads",
    ("GET", "uploadId"): "ListParts",
    ("PUT", "partNumber"): "UploadPart",
    ("POST", "uploads"): "CreateMultipartUpload",
    ("POST", "uploadId"): "CompleteMultipartUpload",
    ("POST", "delete"): "DeleteObjects",
    ("DELETE", "uploadId"): "AbortMultipartUpload",
}
_OF_OBJECTS = {"GET": "GetObject", "HEAD": "HeadObject", "PUT": "PutObject", "DELETE": "DeleteObject"}
_OF_BUCKETS = {"GET": "ListObjectsV2", "HEAD": "HeadBucket", "PUT": "CreateBucket", "DELETE": "DeleteBucket"}
_PAGE_SIZES = {"ListObjectsV2": "max-keys", "ListMultipartUploads": "max-uploads"}


# -- what can happen -----------------------------------------------------------------------------


class Break(Enum):
    """What a network does. Flips are of one bit, of an object's content only: nothing can check what XML says."""

    RESET = "reset before the request was passed on"
    LOSE_ANSWER = "closed without an answer after the request was carried out"
    CUT_ANSWER = "answer ended halfway"
    FLIP_ANSWER = "a bit flipped in a content read"
    FLIP_UPLOAD = "a bit flipped in a content sent"


@dataclass(frozen=True)
class Refuse:
    """An answer in the server's place; the request is not passed on."""

    status: int
    code: str
    message: str = "The proxy says so."
    headers: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return f"{self.status} {self.code}"

    def xml(self) -> bytes:
        """Returns the body, in S3's form."""
        return (
            f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{escape(self.code)}</Code>'
            f"<Message>{escape(self.message)}</Message><RequestId>proxy</RequestId></Error>"
        ).encode()


@dataclass(frozen=True)
class Edit:
    """Changes the body of the answer, in a way that has a name."""

    name: str
    change: Callable[[bytes], bytes]

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Meanwhile:
    """Something happens just before the request is passed on."""

    action: Callable[[], object]


Fault = Break | Refuse | Edit | Meanwhile

SLOW_DOWN = Refuse(503, "SlowDown", "Please reduce your request rate.")
INTERNAL_ERROR = Refuse(500, "InternalError", "We encountered an internal error. Please try again.")
EXPIRED_TOKEN = Refuse(400, "ExpiredToken", "The provided token has expired.")
ACCESS_DENIED = Refuse(403, "AccessDenied", "Access Denied")


@dataclass(frozen=True)
class Request:
    """A request that came; the key is whole, as the bucket has it, header names are in small letters."""

    operation: str
    bucket: str
    key: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    size_bytes: int


@dataclass
class Rule:
    """What happens to certain requests, after some were spared, so many times (None: always)."""

    operations: tuple[str, ...]
    key: str | None
    faults: tuple[Fault, ...]
    times: int | None
    spared: int
    when: Callable[[Request], bool]

    def takes(self, request: Request) -> bool:
        """Says whether it applies to this request, and counts it."""
        fits = not self.operations or request.operation in self.operations
        fits = fits and (self.key is None or request.key == self.key or request.key.endswith(f"/{self.key}"))
        if not fits or self.times == 0 or not self.when(request):
            return False
        if self.spared:
            self.spared -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return True


# -- the proxy -----------------------------------------------------------------------------------


@dataclass
class FaultProxy:
    """A proxy on a free port of loopback, from entering the block to its end.

    Attributes:
        server_url: what it stands before.
        credentials: access keys and secrets, to sign anew what it rewrites.
        seed: of all that happens by chance; printed at the end.
        shares: how often each fault happens, of the requests that it can happen to.
        page_size: that every listing is asked for, whatever the client asked.
        dropped: names of headers, in small letters, that are not passed on: a server that does not know them.
        requests: all that came.
        counts: what was done, by the fault's words or the code of an error.
    """

    server_url: str
    credentials: Mapping[str, str] = field(repr=False)
    seed: int = 0
    shares: Mapping[Break | Refuse, float] = field(default_factory=dict)
    page_size: int | None = None
    dropped: Sequence[str] = ()
    requests: list[Request] = field(default_factory=list, repr=False)
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._rules: list[Rule] = []
        self._met: Counter[tuple[str, ...]] = Counter()
        self._lock = threading.Lock()

    def __enter__(self) -> FaultProxy:
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.close_connections()
        self._server.server_close()
        print(f"fault proxy, seed {self.seed}: {len(self.requests)} requests, {dict(self.counts)}")

    def on(
        self,
        operation: str | tuple[str, ...] = (),
        key: str | None = None,
        *,
        do: Fault | tuple[Fault, ...],
        times: int | None = 1,
        after: int = 0,
        when: Callable[[Request], bool] = lambda request: True,
    ) -> None:
        """Makes something happen to requests to come.

        Args:
            operation: one or several of S3's operations ("PutObject"); all if none.
            key: the whole key, or the end of it from a slash on; any if none.
            do: what happens; several happen together.
            times: to so many requests; None for all.
            after: so many are spared before.
            when: a further condition.
        """
        operations = (operation,) if isinstance(operation, str) else operation
        faults = do if isinstance(do, tuple) else (do,)
        with self._lock:
            self._rules.append(Rule(operations, key, faults, times, after, when))

    def calm(self) -> None:
        """Ends all rules and shares."""
        with self._lock:
            self._rules.clear()
            self.shares = {}

    def sent(self, operation: str, key: str | None = None) -> list[Request]:
        """Returns the requests of an operation that came, for a key given as in ``on``."""
        rule = Rule((operation,), key, (), None, 0, lambda request: True)
        return [request for request in list(self.requests) if rule.takes(request)]

    def judge(self, request: Request) -> tuple[tuple[Fault, ...], random.Random]:
        """Returns what happens to a request, and the chance for the rest of its story."""
        with self._lock:
            self.requests.append(request)
            what = (request.operation, request.key, request.query.get("partNumber", ""))
            self._met[what] += 1
            chance = random.Random(repr((self.seed, what, self._met[what])))
            for rule in self._rules:
                if rule.takes(request):
                    return rule.faults, chance
            return tuple(fault for fault, share in self.shares.items() if chance.random() < share), chance

    def note(self, what: str) -> None:
        """Counts what was done."""
        with self._lock:
            self.counts[what] += 1


class _Server(ThreadingHTTPServer):
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self._open: set[socket.socket] = set()
        self.daemon_threads = False  # so that none is left behind

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        """Ends connections that clients keep open."""
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # it ended by itself
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        import sys

        if not isinstance(sys.exception(), ConnectionError):  # clients may leave
            super().handle_error(request, client_address)


def _handler(proxy: FaultProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1  # head and body leave together

        def handle_expect_100(self) -> bool:
            is_expected = super().handle_expect_100()
            self.wfile.flush()
            return is_expected

        def pass_on(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = _described(self.command, self.path, headers, len(content))
            faults, chance = proxy.judge(request)
            for fault in faults:
                if isinstance(fault, Meanwhile):
                    fault.action()
            if Break.RESET in faults:
                proxy.note(Break.RESET.value)
                return self.reset()
            for fault in faults:
                if isinstance(fault, Refuse):
                    proxy.note(fault.code)
                    about = [("Content-Type", "application/xml"), ("Date", formatdate(usegmt=True)), *fault.headers]
                    return self.answer(fault.status, about, fault.xml())
            if Break.FLIP_UPLOAD in faults and request.operation in ("PutObject", "UploadPart") and content:
                proxy.note(Break.FLIP_UPLOAD.value)
                content = _flipped(content, chance)
            status, about, answer = _asked(proxy, request.operation, self.command, self.path, headers, content)
            if Break.LOSE_ANSWER in faults:
                proxy.note(Break.LOSE_ANSWER.value)
                self.close_connection = True
                return None
            for fault in faults:
                if isinstance(fault, Edit):
                    answer = fault.change(answer)
            if Break.FLIP_ANSWER in faults and request.operation == "GetObject" and status in (200, 206) and answer:
                proxy.note(Break.FLIP_ANSWER.value)
                answer = _flipped(answer, chance)
            is_cut = Break.CUT_ANSWER in faults and status < 300 and bool(answer)
            if is_cut:
                proxy.note(Break.CUT_ANSWER.value)
            return self.answer(status, about, answer, is_cut)

        def answer(self, status: int, headers: list[tuple[str, str]], body: bytes, is_cut: bool = False) -> None:
            self.send_response_only(status)
            told = {name.lower() for name, _ in headers}
            if self.command != "HEAD" or "content-length" not in told:
                headers = [(name, value) for name, value in headers if name.lower() != "content-length"]
                if status not in (204, 304):
                    headers.append(("Content-Length", "0" if self.command == "HEAD" else str(len(body))))
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[: len(body) // 2] if is_cut else body)
            self.close_connection = self.close_connection or is_cut

        def reset(self) -> None:
            # Closed with no time to linger, a connection ends with RST instead of FIN.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            socket.close(self.connection.detach())

        def log_message(self, format: str, *args: Any) -> None:
            pass

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = pass_on  # noqa: N815

    return Handler


# -- requests ------------------------------------------------------------------------------------


def _described(method: str, path: str, headers: Mapping[str, str], size_bytes: int) -> Request:
    parts = urlsplit(path)
    bucket, _, key = parts.path.removeprefix("/").partition("/")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    operation = next((name for (verb, word), name in _BY_QUERY.items() if verb == method and word in query), None)
    operation = operation or (_OF_OBJECTS if key else _OF_BUCKETS).get(method, method)
    return Request(operation, bucket, unquote(key), query, headers, size_bytes)


def _asked(
    proxy: FaultProxy, operation: str, method: str, path: str, headers: Mapping[str, str], content: bytes
) -> tuple[int, list[tuple[str, str]], bytes]:
    """Passes a request on, over a connection of its own, which can never be a stale one."""
    passed = {name: value for name, value in headers.items() if name not in {*_HOP_BY_HOP, *proxy.dropped}}
    paged = proxy.page_size is not None and operation in _PAGE_SIZES
    if paged:
        path = _with_query(path, _PAGE_SIZES[operation], str(proxy.page_size))
    if paged or any(name in headers for name in proxy.dropped):
        passed = _signed_anew(proxy.credentials, method, path, passed, content)
    address = urlsplit(proxy.server_url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in passed.items():
            connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(content)))
        connection.endheaders(content)
        answer = connection.getresponse()
        body = answer.read()
        kept = _HOP_BY_HOP - {"content-length"} if method == "HEAD" else _HOP_BY_HOP
        return answer.status, [(n, v) for n, v in answer.getheaders() if n.lower() not in kept], body
    finally:
        connection.close()


def _with_query(path: str, name: str, value: str) -> str:
    parts = urlsplit(path)
    query = [(n, v) for n, v in parse_qsl(parts.query, keep_blank_values=True) if n != name]
    return f"{parts.path}?{urlencode([*query, (name, value)], quote_via=quote, safe='')}"


def _signed_anew(
    credentials: Mapping[str, str], method: str, path: str, headers: Mapping[str, str], content: bytes
) -> dict[str, str]:
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    key, _, region = headers["authorization"].partition("Credential=")[2].split("/")[:3]
    kept = {name: value for name, value in headers.items() if name not in ("authorization", "x-amz-date")}
    request = AWSRequest(method, f"http://{headers['host']}{path}", headers=kept, data=content)
    S3SigV4Auth(Credentials(key, credentials[key]), "s3", region).add_auth(request)
    return dict(request.headers.items())


def _flipped(content: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(content))
    return b"".join((content[:place], bytes([content[place] ^ 1 << chance.randrange(8)]), content[place + 1 :]))
