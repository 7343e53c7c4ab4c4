"""Objects below a prefix, on two real servers and through a proxy that breaks things: right, or refused in words."""

from __future__ import annotations

import hashlib
import random
import re
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from artclf.errors import ArtclfError, ConfigError, StorageError
from artclf.s3 import RECORD_BYTES, S3Storage
from artclf.storage import Storage
from tests.conftest import Amount, Measured
from tests.s3_proxy import (
    ACCESS_DENIED,
    EXPIRED_TOKEN,
    INTERNAL_ERROR,
    SLOW_DOWN,
    Break,
    Edit,
    Fault,
    FaultProxy,
    Meanwhile,
    Refuse,
    Request,
)

if TYPE_CHECKING:
    from tests.s3_servers import S3Server

PART = 5 * 2**20
"""The smallest part that S3 takes before the last (User Guide, "multipart upload limits")."""
ACCOUNT = "123456789012"
ODD = [
    *("%2F", "a+b", "a b", " a", "a ", "a?b=c&d", "a#b", "a\nb", "a\tb", "a\rb", "🎨", "a;b", "a:b", "*", "a'b\"c"),
    *("<x>&amp;", "a%", "~", "-x", "...", ".x", "A", "a", "é", "e\u0301", "素描", "\x7f", "a\\b", "x" * 255),
]
"""Among them twins that differ in case, and in how an accent is written."""
only_moto = pytest.mark.parametrize("s3_server", ["moto"], indirect=True)
only_seaweedfs = pytest.mark.parametrize("s3_server", ["seaweedfs"], indirect=True)


class FakeTime(threading.local):
    """A clock that moves when somebody sleeps; each thread has its own. One that waits for ever is told so."""

    now = 0.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        assert self.now < 100_000, "waits for ever"


Opened = Callable[..., S3Storage]


def opened(uri: str, **options: Any) -> S3Storage:
    """Returns a storage that need not wait."""
    time = FakeTime()
    return S3Storage(uri, **{"sleep": time.sleep, "clock": time.clock, "part_bytes": PART, **options})


@pytest.fixture
def storage(bucket: str, proxy: FaultProxy) -> S3Storage:
    """Returns a storage that met its server before: from then on what fails is taken to pass."""
    storage = opened(f"s3://{bucket}/studies/one")
    storage.write("met", b"")
    storage.delete("met")
    proxy.requests.clear()
    return storage


@pytest.fixture
def stored(s3_server: S3Server, bucket: str) -> Callable[[str], bytes]:
    """Returns what tells the bytes that the server really has below the storage's prefix."""
    client = s3_server.client
    return lambda key: client.get_object(Bucket=bucket, Key=f"studies/one/{key}")["Body"].read()


def content_of(seed: object, size: int) -> bytes:
    return random.Random(repr(seed)).randbytes(size)


def takes(server: S3Server, key: str) -> bool:
    """Says whether a server can have this key at all; tests/s3_servers.py tells why not."""
    if server.name == "moto":
        return "\n" not in key
    return "\\" not in key and all(len(part.encode()) <= 255 and part != ".uploads" for part in key.split("/"))


def put_in_parts(server: S3Server, bucket: str, key: str, content: bytes) -> None:
    """Writes an object as others do: without a SHA-256, and with an ETag that is no MD5."""
    place: Any = {"Bucket": bucket, "Key": key}
    place["UploadId"] = server.client.create_multipart_upload(**place)["UploadId"]
    part = server.client.upload_part(**place, PartNumber=1, Body=content)
    parts: Any = {"Parts": [{"ETag": part["ETag"], "PartNumber": 1}]}
    server.client.complete_multipart_upload(**place, MultipartUpload=parts)


def at_once(count: int, act: Callable[[int], Any]) -> list[Any]:
    """Returns what so many threads get that act in the same moment."""
    start = threading.Barrier(count)

    def run(number: int) -> Any:
        start.wait()
        return act(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


# -- plain ----------------------------------------------------------------------------------------


def test_what_is_written_is_read(storage: S3Storage) -> None:
    as_any: Storage = storage
    as_any.write("a/b.bin", b"one")
    as_any.write("a/b.bin", b"two")
    assert as_any.read("a/b.bin") == b"two"


def test_a_key_that_is_not_there_is_told_by_its_uri(storage: S3Storage, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(f"{storage.uri}/a")):
        storage.read("a")
    with pytest.raises(FileNotFoundError, match=re.escape(f"{storage.uri}/a")):
        storage.download("a", tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_deleting_twice_is_no_error(storage: S3Storage) -> None:
    storage.write("a", b"x")
    storage.delete("a")
    storage.delete("a")
    assert list(storage.list()) == []


def test_create_never_replaces(storage: S3Storage) -> None:
    assert storage.create("a", b"first")
    assert not storage.create("a", b"second")
    assert storage.read("a") == b"first"
    storage.delete("a")
    assert storage.create("a", b"third")


def test_replace_takes_only_the_version_that_was_read(storage: S3Storage) -> None:
    storage.write("a", b"one")
    content, version = storage.read_versioned("a")
    newer = storage.replace("a", content + b"two", version)
    assert newer is not None
    assert storage.replace("a", b"lost", version) is None
    assert storage.read_versioned("a") == (b"onetwo", newer)


def test_what_was_deleted_cannot_be_replaced(storage: S3Storage) -> None:
    storage.write("a", b"one")
    _, version = storage.read_versioned("a")
    storage.delete("a")
    assert storage.replace("a", b"two", version) is None
    assert list(storage.list()) == []


def test_keys_are_listed_in_order_below_a_folder_with_sizes_and_versions(storage: S3Storage) -> None:
    for size, key in enumerate(("b/2", "b/10", "a", "c/x/y", "bb/1")):
        storage.write(key, b"x" * size)
    assert list(storage.list()) == ["a", "b/10", "b/2", "bb/1", "c/x/y"]
    assert list(storage.list("b")) == ["b/10", "b/2"]
    assert list(storage.list("nowhere")) == []
    entries = {entry.key: entry for entry in storage.entries()}
    assert {key: entry.size_bytes for key, entry in entries.items()} == {
        "b/2": 0,
        "b/10": 1,
        "a": 2,
        "c/x/y": 3,
        "bb/1": 4,
    }
    assert all(entry.version == storage.read_versioned(key)[1] for key, entry in entries.items())


def test_a_storage_sees_nothing_beside_its_prefix(storage: S3Storage, bucket: str) -> None:
    opened(f"s3://{bucket}/studies/one-more").write("a", b"beside")
    opened(f"s3://{bucket}/").write("a", b"above")
    assert list(storage.list()) == []
    assert sorted(opened(f"s3://{bucket}").list()) == ["a", "studies/one-more/a"]
    assert storage.uri == f"s3://{bucket}/studies/one"
    assert opened(f"s3://{bucket}/").uri == f"s3://{bucket}"


def test_a_storage_below_another_reads_the_same_objects(storage: S3Storage) -> None:
    storage.below("runs/1").write("config.json", b"{}")
    assert storage.read("runs/1/config.json") == b"{}"
    assert storage.below("runs/1").uri == f"{storage.uri}/runs/1"


@pytest.mark.parametrize(
    "uri",
    [
        *("s3://", "s3:///a", "s3://Bucket/a", "s3://ab", "s3://a_b/c", "s3://bucket//a", "s3://bucket/a//b"),
        *("s3://bucket/../a", "s3://bucket/a/..", "s3://bucket/./a", "https://bucket/a", "bucket/a", "s3:/bucket/a"),
    ],
)
def test_a_uri_that_names_no_prefix_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(uri)):
        opened(uri)


# -- any key, any size ----------------------------------------------------------------------------


def test_odd_keys_are_told_apart_and_listed(storage: S3Storage, s3_server: S3Server) -> None:
    keys = [f"{folder}{key}" for key in ODD if takes(s3_server, key) for folder in ("", "folder/")]
    for key in keys:
        storage.write(key, key.encode())
    assert sorted(storage.list()) == sorted(keys)
    assert {key: storage.read(key) for key in keys} == {key: key.encode() for key in keys}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40))
def test_any_key_is_refused_or_comes_back_as_it_was(storage: S3Storage, s3_server: S3Server, key: str) -> None:
    if not takes(s3_server, key):
        return
    try:
        storage.write(key, key.encode())
    except ConfigError:
        assert any(part in ("", ".", "..") for part in key.split("/"))
        return
    assert storage.read(key) == key.encode()
    assert list(storage.list()) == [key]
    storage.delete(key)
    assert list(storage.list()) == []


def test_a_key_may_have_1024_bytes_with_its_prefix(storage: S3Storage) -> None:
    room = 1024 - len("studies/one/")
    longest = "/".join(["é" * 50] * 20)[:room]
    while len(longest.encode()) > room:
        longest = longest[:-1]
    longest += "x" * (room - len(longest.encode()))
    storage.write(longest, b"long")
    assert list(storage.list()) == [longest]
    assert storage.read(longest) == b"long"


@only_seaweedfs
def test_a_key_that_is_too_long_is_refused_at_once(storage: S3Storage, proxy: FaultProxy) -> None:
    with pytest.raises(StorageError, match="KeyTooLong"):
        storage.write("/".join(["x" * 50] * 21), b"")
    assert len(proxy.requests) == 1


@only_moto
def test_a_key_cannot_leave_its_prefix(storage: S3Storage, tmp_path: Path, proxy: FaultProxy) -> None:
    (tmp_path / "file").write_bytes(b"x")
    calls: list[Callable[[str], object]] = [
        storage.read,
        lambda key: storage.write(key, b""),
        lambda key: storage.create(key, b""),
        lambda key: storage.replace(key, b"", "0"),
        lambda key: storage.upload(key, tmp_path / "file"),
        lambda key: storage.download(key, tmp_path / "new"),
        storage.delete,
        storage.below,
        lambda key: storage.holds(key, "0"),
    ]
    for key in ("", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", "./a", "a/.", "a\0b"):
        for call in calls:
            with pytest.raises(ConfigError, match="expected a relative key"):
                call(key)
    assert proxy.requests == []


@only_moto
def test_keys_that_others_made_are_listed_whole_and_cannot_be_followed_out(
    storage: S3Storage, s3_server: S3Server, bucket: str
) -> None:
    odd = ["../../etc/x", "/abs", "a//b", "a/./b", "folder/"]
    for key in odd:
        s3_server.client.put_object(Bucket=bucket, Key=f"studies/one/{key}", Body=b"x")
    storage.write("good", b"good")
    assert sorted(storage.list()) == sorted([*odd, "good"])
    for key in odd:
        with pytest.raises(ConfigError, match="expected a relative key"):
            storage.read(key)


@pytest.mark.parametrize("size", [0, PART - 1, PART, PART + 1, 2 * PART + 1])
def test_files_round_trip_one_byte_either_side_of_a_part(
    size: int, storage: S3Storage, tmp_path: Path, proxy: FaultProxy
) -> None:
    content = content_of(size, size)
    (tmp_path / "file").write_bytes(content)
    storage.upload("a", tmp_path / "file")
    storage.download("a", tmp_path / "back", hashlib.sha256(content).hexdigest())
    assert (tmp_path / "back").read_bytes() == content
    parts = -(-size // PART)
    assert len(proxy.sent("UploadPart")) == (parts if parts > 1 else 0)
    assert storage.holds("a", hashlib.sha256(content).hexdigest())
    assert not storage.holds("a", hashlib.sha256(b"other").hexdigest())


def test_what_is_too_large_for_memory_is_refused_by_read_and_downloaded(
    storage: S3Storage, tmp_path: Path, stored: Callable[[str], bytes]
) -> None:
    (tmp_path / "file").write_bytes(bytes(RECORD_BYTES + 1))
    storage.upload("a", tmp_path / "file")
    with pytest.raises(StorageError, match="expected a record of at most"):
        storage.read("a")
    storage.download("a", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == stored("a") == bytes(RECORD_BYTES + 1)


# -- what is there is what was written ------------------------------------------------------------


def test_every_object_carries_its_sha256(storage: S3Storage, s3_server: S3Server, bucket: str, tmp_path: Path) -> None:
    contents = {"written": b"w", "created": b"c", "replaced": b"new", "parts": content_of("parts", PART + 1)}
    (tmp_path / "file").write_bytes(contents["parts"])
    storage.write("written", contents["written"])
    storage.create("created", contents["created"])
    storage.write("replaced", b"old")
    storage.replace("replaced", contents["replaced"], storage.read_versioned("replaced")[1])
    storage.upload("parts", tmp_path / "file")
    for key, content in contents.items():
        head = s3_server.client.head_object(Bucket=bucket, Key=f"studies/one/{key}")
        assert head["Metadata"]["sha256"] == hashlib.sha256(content).hexdigest()


def test_an_object_that_is_not_what_its_writer_said_is_never_given_out(
    storage: S3Storage, s3_server: S3Server, bucket: str, tmp_path: Path, proxy: FaultProxy
) -> None:
    told = {"sha256": hashlib.sha256(b"right").hexdigest()}
    s3_server.client.put_object(Bucket=bucket, Key="studies/one/a", Body=b"wrong", Metadata=told)
    with pytest.raises(StorageError, match=re.escape(f"{storage.uri}/a: not as it was written")):
        storage.read("a")
    with pytest.raises(StorageError, match=re.escape(f"{storage.uri}/a: not as it was written")):
        storage.download("a", tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
    assert len(proxy.requests) < 20


def test_objects_of_others_are_read(storage: S3Storage, s3_server: S3Server, bucket: str, tmp_path: Path) -> None:
    s3_server.client.put_object(Bucket=bucket, Key="studies/one/plain", Body=b"plain")
    put_in_parts(s3_server, bucket, "studies/one/parts", b"in parts")
    assert (storage.read("plain"), storage.read("parts")) == (b"plain", b"in parts")
    storage.download("parts", tmp_path / "parts")
    assert (tmp_path / "parts").read_bytes() == b"in parts"


def test_an_object_of_others_is_checked_by_its_md5(
    storage: S3Storage, s3_server: S3Server, bucket: str, proxy: FaultProxy
) -> None:
    s3_server.client.put_object(Bucket=bucket, Key="studies/one/a", Body=b"x" * 1000)
    proxy.on("GetObject", do=Break.FLIP_ANSWER, times=2)
    assert storage.read("a") == b"x" * 1000
    proxy.on("GetObject", do=Break.FLIP_ANSWER, times=None)
    with pytest.raises(StorageError, match="not as it was written"):
        storage.read("a")


def test_an_answer_that_lacks_what_s3_says_is_told(storage: S3Storage, proxy: FaultProxy) -> None:
    storage.write("a", b"x")
    proxy.on("ListObjectsV2", do=Edit("no ETag", lambda body: re.sub(b"<ETag>.*</ETag>", b"", body)), times=None)
    with pytest.raises(StorageError, match="what the server answered lacks 'ETag': it is none for S3"):
        list(storage.list())


def test_a_server_that_never_has_the_rest_of_what_it_promised_is_given_up_soon(
    storage: S3Storage, proxy: FaultProxy, tmp_path: Path
) -> None:
    storage.write("a", b"x" * 1000)
    proxy.on("GetObject", do=Refuse(416, "InvalidRange"), times=None)
    with pytest.raises(StorageError, match="not as it was written"):
        storage.download("a", tmp_path / "a")
    assert len(proxy.sent("GetObject")) <= 10


@pytest.mark.parametrize("size", [1000, 3 * 2**20])
def test_content_that_arrives_damaged_every_time_is_given_up_soon(
    size: int, storage: S3Storage, proxy: FaultProxy, tmp_path: Path
) -> None:
    storage.write("a", content_of("damaged", size))
    proxy.on("GetObject", do=Break.FLIP_ANSWER, times=None)
    with pytest.raises(StorageError, match=re.escape(f"{storage.uri}/a: ")):
        storage.read("a")
    with pytest.raises(StorageError, match=re.escape(f"{storage.uri}/a: ")):
        storage.download("a", tmp_path / "a")
    assert len(proxy.sent("GetObject")) <= 10  # each costs the whole object, and it will not get better
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_is_not_what_was_expected_leaves_what_was_there(storage: S3Storage, tmp_path: Path) -> None:
    storage.write("a", b"new")
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(StorageError, match="expected the SHA-256"):
        storage.download("a", tmp_path / "a", hashlib.sha256(b"other").hexdigest())
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_download_whose_object_is_replaced_meanwhile_is_of_the_new_one(
    storage: S3Storage, tmp_path: Path, proxy: FaultProxy
) -> None:
    old, new = (content_of(name, PART - 7) for name in ("old", "new"))
    storage.write("a", old)
    proxy.on("GetObject", "a", do=Break.CUT_ANSWER)
    proxy.on("GetObject", "a", do=Meanwhile(lambda: storage.write("a", new)))
    storage.download("a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == new


def test_two_versions_of_an_object_of_others_are_never_mixed(
    storage: S3Storage, s3_server: S3Server, bucket: str, tmp_path: Path, proxy: FaultProxy
) -> None:
    old, new = (content_of(name, 100_000) for name in ("old", "new"))
    put_in_parts(s3_server, bucket, "studies/one/a", old)
    proxy.on("GetObject", "a", do=Break.CUT_ANSWER)
    proxy.on("GetObject", "a", do=Meanwhile(partial(put_in_parts, s3_server, bucket, "studies/one/a", new)))
    storage.download("a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == new


def test_a_download_that_was_cut_goes_on_where_it_was(storage: S3Storage, tmp_path: Path, proxy: FaultProxy) -> None:
    content = content_of("cut", PART - 1)
    storage.write("a", content)
    proxy.on("GetObject", "a", do=Break.CUT_ANSWER, times=3)
    storage.download("a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == content
    assert [request.headers.get("range") is not None for request in proxy.sent("GetObject")] == [
        False,
        True,
        True,
        True,
    ]


# -- one winner -----------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [0.0, 0.3])
def test_of_16_threads_exactly_one_creates(lost: float, storage: S3Storage, proxy: FaultProxy, amount: Amount) -> None:
    proxy.shares = {Break.LOSE_ANSWER: lost}
    for story in range(amount(2, 40)):
        key = f"jobs/{story}.json"
        won = at_once(16, lambda number, key=key: storage.create(key, f"{number}".encode()))  # type: ignore[misc]
        assert won.count(True) == 1
        assert storage.read(key) == f"{won.index(True)}".encode()


def test_of_16_threads_with_the_same_content_exactly_one_creates(
    storage: S3Storage, proxy: FaultProxy, amount: Amount
) -> None:
    proxy.shares = {Break.LOSE_ANSWER: 0.3}
    for story in range(amount(1, 20)):
        assert at_once(16, lambda _, story=story: storage.create(f"{story}", b"same")).count(True) == 1  # type: ignore[misc]


@pytest.mark.parametrize("lost", [0.0, 0.3])
def test_of_16_threads_exactly_one_replaces(lost: float, storage: S3Storage, proxy: FaultProxy, amount: Amount) -> None:
    for story in range(amount(2, 40)):
        key = f"leases/{story}.json"
        storage.write(key, b"free")
        _, version = storage.read_versioned(key)
        proxy.shares = {Break.LOSE_ANSWER: lost}
        new = at_once(16, lambda n, key=key, version=version: storage.replace(key, f"{n}".encode(), version))  # type: ignore[misc]
        [winner] = [number for number, version in enumerate(new) if version is not None]
        assert storage.read_versioned(key) == (f"{winner}".encode(), new[winner])


def test_no_change_is_lost_when_threads_replace_what_they_read(
    storage: S3Storage, proxy: FaultProxy, amount: Amount
) -> None:
    storage.write("names", b"")
    proxy.shares = {Break.LOSE_ANSWER: 0.2, SLOW_DOWN: 0.1}

    def add(number: int) -> None:
        for turn in range(amount(2, 10)):
            for _ in range(1000):
                content, version = storage.read_versioned("names")
                if storage.replace("names", content + f"{number}-{turn}\n".encode(), version) is not None:
                    break
            else:
                raise AssertionError("never let through")

    at_once(6, add)
    proxy.calm()
    names = storage.read("names").decode().split()
    assert set(names) == {f"{number}-{turn}" for number in range(6) for turn in range(amount(2, 10))}


@pytest.mark.parametrize("fault", [Break.LOSE_ANSWER, Break.RESET, SLOW_DOWN, INTERNAL_ERROR], ids=str)
def test_the_one_who_creates_is_told_so_whatever_happens_to_the_answer(
    fault: Fault, storage: S3Storage, proxy: FaultProxy
) -> None:
    proxy.on("PutObject", "a", do=fault, times=2)
    assert storage.create("a", b"mine")
    assert not storage.create("a", b"other")
    assert storage.read("a") == b"mine"


def test_the_one_who_replaces_is_told_so_though_the_answer_was_lost(storage: S3Storage, proxy: FaultProxy) -> None:
    storage.write("a", b"one")
    _, version = storage.read_versioned("a")
    proxy.on("PutObject", "a", do=Break.LOSE_ANSWER, times=2)
    newer = storage.replace("a", b"two", version)
    assert storage.read_versioned("a") == (b"two", newer)


def test_one_who_came_too_late_after_a_refusal_is_told_so(storage: S3Storage, proxy: FaultProxy, bucket: str) -> None:
    other = opened(f"s3://{bucket}/studies/one")
    proxy.on("PutObject", "a", do=SLOW_DOWN)
    proxy.on("PutObject", "a", do=Meanwhile(lambda: other.create("a", b"other")))
    assert not storage.create("a", b"mine")
    assert storage.read("a") == b"other"


def test_a_conflict_of_two_creators_is_tried_again(storage: S3Storage, proxy: FaultProxy) -> None:
    proxy.on("PutObject", "a", do=Refuse(409, "ConditionalRequestConflict"))
    assert storage.create("a", b"mine")


def test_whether_a_lost_create_went_through_is_never_guessed(storage: S3Storage, proxy: FaultProxy) -> None:
    proxy.on("PutObject", "a", do=Break.LOSE_ANSWER)
    proxy.on("HeadObject", "a", do=ACCESS_DENIED, times=None)
    with pytest.raises(StorageError, match="no right to look at it"):
        storage.create("a", b"mine")


@only_moto
def test_content_damaged_on_its_way_is_mended_by_its_creator(
    storage: S3Storage, proxy: FaultProxy, stored: Callable[[str], bytes]
) -> None:
    proxy.on("PutObject", "a", do=(Break.FLIP_UPLOAD, Break.LOSE_ANSWER))
    assert storage.create("a", b"mine")
    assert stored("a") == b"mine"
    assert not storage.create("a", b"other")


# -- faults that pass -----------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [SLOW_DOWN, INTERNAL_ERROR, *Break, Refuse(429, "TooManyRequests")], ids=str)
def test_each_call_outlasts_a_fault_that_passes(
    fault: Fault, storage: S3Storage, proxy: FaultProxy, stored: Callable[[str], bytes], tmp_path: Path
) -> None:
    content = content_of("content", 3000)

    def disturbed() -> None:
        proxy.calm()
        proxy.on(do=fault, times=2)

    disturbed()
    storage.write("a", content)
    disturbed()
    assert storage.create("b", content)
    disturbed()
    assert (storage.read("a"), stored("a"), stored("b")) == (content, content, content)
    disturbed()
    storage.download("b", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == content
    disturbed()
    assert list(storage.list()) == ["a", "b"]
    disturbed()
    assert storage.replace("a", b"new", storage.read_versioned("a")[1]) is not None
    disturbed()
    storage.delete("a")
    disturbed()
    assert storage.holds("b", hashlib.sha256(content).hexdigest())
    assert list(storage.list()) == ["b"]


@pytest.mark.parametrize(
    "code", ["RequestTimeout", "BadDigest", "XAmzContentSHA256Mismatch", "IncompleteBody", "OperationAborted"]
)
@only_moto
def test_a_refusal_that_passes_is_known_by_its_word(code: str, storage: S3Storage, proxy: FaultProxy) -> None:
    proxy.on("PutObject", do=Refuse(400, code), times=2)
    storage.write("a", b"x")
    assert storage.read("a") == b"x"


@pytest.mark.parametrize(
    ("operation", "fault"),
    [
        ("CreateMultipartUpload", SLOW_DOWN),
        ("UploadPart", Break.RESET),
        ("UploadPart", Break.LOSE_ANSWER),
        ("UploadPart", Break.FLIP_UPLOAD),
        ("CompleteMultipartUpload", SLOW_DOWN),
        ("CompleteMultipartUpload", Break.LOSE_ANSWER),
        ("CompleteMultipartUpload", Break.CUT_ANSWER),
        ("CompleteMultipartUpload", Refuse(200, "InternalError")),
    ],
    ids=str,
)
def test_an_upload_in_parts_outlasts_a_fault_and_leaves_no_parts(
    operation: str, fault: Fault, storage: S3Storage, proxy: FaultProxy, tmp_path: Path, stored: Callable[[str], bytes]
) -> None:
    content = content_of("parts", PART + 1)
    (tmp_path / "file").write_bytes(content)
    proxy.on(operation, do=fault)
    storage.upload("a", tmp_path / "file")
    assert stored("a") == content
    assert list(storage.list()) == ["a"]
    assert not storage.unfinished_uploads()


def test_a_storm_of_503_is_outlasted_with_growing_pauses(bucket: str, proxy: FaultProxy) -> None:
    time, pauses = FakeTime(), list[float]()

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        time.sleep(seconds)

    storage = opened(f"s3://{bucket}/a", sleep=sleep, clock=time.clock)
    storage.write("a", b"x")
    proxy.on(do=SLOW_DOWN, times=30)
    assert storage.read("a") == b"x"
    assert len(pauses) == 30
    assert max(pauses[:2]) < 1 < min(pauses[-10:])
    assert len(set(pauses)) > 25  # apart from each other, so that many clients do not come back together


@pytest.mark.parametrize(
    ("fault", "told"), [(SLOW_DOWN, "SlowDown"), (Break.RESET, "closed"), (Break.LOSE_ANSWER, "closed")], ids=str
)
def test_what_does_not_pass_ends_with_the_budget_and_tells_where_and_why(
    fault: Fault, told: str, bucket: str, proxy: FaultProxy
) -> None:
    time = FakeTime()
    storage = opened(f"s3://{bucket}/a", budget_s=100, sleep=time.sleep, clock=time.clock)
    storage.write("a", b"x")
    proxy.on(do=fault, times=None)
    for call in (partial(storage.read, "a"), partial(storage.create, "a", b""), partial(storage.delete, "a")):
        before = time.now
        with pytest.raises(StorageError, match=f"{re.escape(storage.uri)}/a: .*{told}") as raised:
            call()
        assert 100 <= time.now - before < 120
        assert raised.value.__cause__ is not None
        assert "\n" not in str(raised.value)
    with pytest.raises(StorageError, match=f"{re.escape(storage.uri)}: .*{told}"):
        list(storage.list())


def test_a_server_that_is_not_there_ends_with_words(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=f"s3://{bucket}/x/a: cannot read: Could not connect"):
        opened(f"s3://{bucket}/x").read("a")


# -- listings are whole ---------------------------------------------------------------------------


def test_a_listing_of_many_pages_is_whole(storage: S3Storage, proxy: FaultProxy, amount: Amount) -> None:
    count = amount(301, 3001)
    keys = [f"{number % 7}/{number:05}" for number in range(count)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda key: storage.write(key, b""), keys))
    assert list(storage.list()) == sorted(keys)
    proxy.page_size = amount(10, 100)
    proxy.shares = {SLOW_DOWN: 0.05, Break.CUT_ANSWER: 0.05, Break.RESET: 0.05}
    assert list(storage.list()) == sorted(keys)
    proxy.page_size = 1
    assert list(storage.list("3")) == [key for key in sorted(keys) if key.startswith("3/")]


@pytest.mark.parametrize(
    "fault",
    [SLOW_DOWN, Break.CUT_ANSWER, Break.RESET, Edit("half of it", lambda body: body[: len(body) // 2])],
    ids=str,
)
def test_a_fault_between_pages_passes(fault: Fault, storage: S3Storage, proxy: FaultProxy) -> None:
    for number in range(6):
        storage.write(f"{number}", b"")
    proxy.page_size = 1
    proxy.on("ListObjectsV2", do=fault, after=3)
    assert list(storage.list()) == ["0", "1", "2", "3", "4", "5"]


@pytest.mark.parametrize(
    "fault",
    [
        SLOW_DOWN,
        ACCESS_DENIED,
        Break.CUT_ANSWER,
        Edit("no token", lambda body: re.sub(b"<NextContinuationToken>.*</NextContinuationToken>", b"", body)),
    ],
    ids=str,
)
def test_a_fault_between_pages_that_stays_is_an_error_and_no_short_list(
    fault: Fault, storage: S3Storage, proxy: FaultProxy
) -> None:
    for number in range(6):
        storage.write(f"{number}", b"")
    proxy.page_size = 1
    proxy.on("ListObjectsV2", do=fault, after=3, times=None)
    with pytest.raises(StorageError, match=re.escape(storage.uri)):
        list(storage.list())


def test_s20_times_that_lie_change_nothing(storage: S3Storage, proxy: FaultProxy) -> None:
    def later(body: bytes) -> bytes:
        years = iter(range(2999, 2000, -7))
        return re.sub(rb"<LastModified>\d{4}", lambda _: b"<LastModified>%d" % next(years), body)

    for key in ("c", "a", "b"):
        storage.write(key, b"x")
    expected = list(storage.entries())
    proxy.on("ListObjectsV2", do=Edit("later", later), times=None)
    assert list(storage.entries()) == expected
    assert [entry.key for entry in expected] == ["a", "b", "c"]


# -- refusals in words ----------------------------------------------------------------------------


def test_the_expected_owner_is_named_in_every_call(bucket: str, proxy: FaultProxy, tmp_path: Path) -> None:
    storage = opened(f"s3://{bucket}/x", account=ACCOUNT)
    (tmp_path / "file").write_bytes(bytes(PART + 1))
    proxy.on("CompleteMultipartUpload", do=SLOW_DOWN)
    proxy.on("PutObject", do=Break.LOSE_ANSWER)
    storage.create("a", b"1")
    storage.check_conditional_puts()
    storage.upload("b", tmp_path / "file")
    storage.download("b", tmp_path / "b")
    storage.replace("a", b"2", storage.read_versioned("a")[1])
    storage.below("c").write("d", b"3")
    storage.delete("a")
    assert sorted(storage.list()) == ["b", "c/d"]
    assert not storage.unfinished_uploads()
    assert {request.operation for request in proxy.requests} >= {
        *("PutObject", "GetObject", "HeadObject", "DeleteObject", "ListObjectsV2", "ListMultipartUploads"),
        *("CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "AbortMultipartUpload"),
    }
    assert {request.headers.get("x-amz-expected-bucket-owner") for request in proxy.requests} == {ACCOUNT}


def test_a_bucket_of_another_account_is_refused_by_its_owner(bucket: str, proxy: FaultProxy) -> None:
    def is_not_the_owner(request: Request) -> bool:
        return request.headers.get("x-amz-expected-bucket-owner", "999999999999") != "999999999999"

    proxy.on(do=ACCESS_DENIED, times=None, when=is_not_the_owner)
    storage = opened(f"s3://{bucket}/x", account=ACCOUNT)
    for call in (partial(storage.write, "a", b""), partial(storage.read, "a"), lambda: list(storage.list())):
        with pytest.raises(StorageError, match=f"does not belong to the account {ACCOUNT}"):
            call()
    opened(f"s3://{bucket}/x").write("a", b"")


def test_a_key_that_is_refused_is_named_and_others_go_on(storage: S3Storage, proxy: FaultProxy) -> None:
    for key in ("a", "b"):
        storage.write(key, b"x")
    proxy.on(key="a", do=ACCESS_DENIED, times=None)
    calls: dict[str, Callable[[], object]] = {
        "read": partial(storage.read, "a"),
        "write": partial(storage.write, "a", b""),
        "remove": partial(storage.delete, "a"),
    }
    for action, call in calls.items():
        with pytest.raises(StorageError, match=f"{re.escape(storage.uri)}/a: no right to {action} it.*AccessDenied"):
            call()
    assert storage.read("b") == b"x"
    storage.write("b", b"y")


def test_a_key_of_kms_that_is_refused_is_told(storage: S3Storage, proxy: FaultProxy) -> None:
    told = "User: x is not authorized to perform: kms:GenerateDataKey"
    proxy.on("PutObject", "a", do=Refuse(403, "AccessDenied", told), times=None)
    with pytest.raises(StorageError, match=f"/a: no right to write it: AccessDenied: {told}"):
        storage.write("a", b"")


def test_a_bucket_that_is_missing_is_named(bucket: str, tmp_path: Path) -> None:
    storage = opened("s3://no-such-bucket-here/x")
    (tmp_path / "file").write_bytes(bytes(PART + 1))
    calls: list[Callable[[], object]] = [
        partial(storage.read, "a"),
        partial(storage.write, "a", b""),
        partial(storage.create, "a", b""),
        partial(storage.delete, "a"),
        partial(storage.upload, "a", tmp_path / "file"),
        partial(storage.download, "a", tmp_path / "new"),
        lambda: list(storage.list()),
        storage.unfinished_uploads,
        storage.check_conditional_puts,
        storage.region,
    ]
    for call in calls:
        with pytest.raises(ConfigError, match="there is no bucket no-such-bucket-here"):
            call()


def test_a_bucket_of_another_region_is_told_with_the_region(bucket: str, proxy: FaultProxy) -> None:
    moved = Refuse(301, "PermanentRedirect", "Use another endpoint.", (("x-amz-bucket-region", "eu-north-1"),))
    storage = opened(f"s3://{bucket}/x")
    proxy.on(do=moved, times=None)
    for call in (partial(storage.write, "a", b""), partial(storage.read, "a"), lambda: list(storage.list())):
        with pytest.raises(ConfigError, match="another region, eu-north-1"):
            call()


def test_a_missing_key_without_the_right_to_list_is_told_as_what_it_may_be(
    storage: S3Storage, proxy: FaultProxy
) -> None:
    proxy.on("GetObject", do=ACCESS_DENIED, times=None)
    with pytest.raises(StorageError, match=r"no right to read it .*s3:ListBucket.*object that is missing"):
        storage.read("a")


def test_a_wrong_clock_is_told_at_once(storage: S3Storage, proxy: FaultProxy) -> None:
    told = "The difference between the request time and the current time is too large."
    proxy.on(do=Refuse(403, "RequestTimeTooSkewed", told), times=None)
    with pytest.raises(ConfigError, match=r"this machine's clock is wrong.*Set the clock"):
        storage.read("a")
    assert len(proxy.requests) == 1


@only_moto
def test_without_credentials_one_line_says_so(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ConfigError, match="no AWS credentials found") as raised:
        opened(f"s3://{bucket}/x")
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 2


@only_seaweedfs
def test_a_wrong_secret_is_told_without_showing_it(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    with pytest.raises(ArtclfError, match="SignatureDoesNotMatch") as raised:
        opened(f"s3://{bucket}/x").read("a")
    assert "not-the-secret" not in str(raised.value)


@only_seaweedfs
def test_an_unknown_access_key_is_told_at_once(bucket: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    with pytest.raises(ConfigError, match="credentials of this machine are not valid"):
        opened(f"s3://{bucket}/x").read("a")
    assert len(proxy.requests) == 1


# -- credentials that run out ---------------------------------------------------------------------


class Rotation:
    """Credentials in a file, which the server's side can let expire."""

    def __init__(self, path: Path, proxy: FaultProxy) -> None:
        self.path, self.secrets, self.expired = path, proxy.credentials, set[str]()
        proxy.on(do=EXPIRED_TOKEN, times=None, when=self._is_refused)

    def _is_refused(self, request: Request) -> bool:
        return any(f"Credential={key}/" in request.headers["authorization"] for key in self.expired)

    def write(self, key: str) -> None:
        self.path.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {self.secrets[key]}\n")


@pytest.fixture
def rotation(bucket: str, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rotation:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    rotation = Rotation(tmp_path / "credentials", proxy)
    rotation.write("testing")
    return rotation


def test_expired_credentials_are_looked_up_anew(bucket: str, rotation: Rotation, amount: Amount) -> None:
    storage = opened(f"s3://{bucket}/x")
    storage.write("before", b"")
    now, other = "testing", "rotated"
    for number in range(amount(4, 20)):
        rotation.expired = {now}
        now, other = other, now
        rotation.write(now)
        storage.write(f"{number}", f"{number}".encode())
        assert storage.read(f"{number}") == f"{number}".encode()


def test_credentials_that_expire_between_a_lost_answer_and_a_look_are_looked_up_anew(
    bucket: str, proxy: FaultProxy, rotation: Rotation
) -> None:
    storage = opened(f"s3://{bucket}/x")
    storage.write("before", b"")

    def rotate() -> None:
        rotation.expired = {"testing"}
        rotation.write("rotated")

    proxy.on("PutObject", "a", do=Break.LOSE_ANSWER)
    proxy.on("PutObject", "a", do=Meanwhile(rotate))  # refused as taken, and then HeadObject meets the old credentials
    assert storage.create("a", b"mine")
    rotation.expired = {"rotated"}
    rotation.write("testing")
    assert storage.holds("a", hashlib.sha256(b"mine").hexdigest())


def test_ten_minutes_without_credentials_are_outlasted(bucket: str, rotation: Rotation) -> None:
    time = FakeTime()

    def sleep(seconds: float) -> None:
        time.sleep(seconds)
        if time.now >= 10 * 60:
            rotation.write("rotated")

    storage = opened(f"s3://{bucket}/x", sleep=sleep, clock=time.clock)
    storage.write("a", b"x")
    rotation.expired = {"testing"}
    rotation.path.unlink()
    storage.write("a", b"y")
    assert storage.read("a") == b"y"
    assert time.now >= 10 * 60


def test_credentials_that_stay_expired_end_with_the_budget(bucket: str, rotation: Rotation) -> None:
    time = FakeTime()
    storage = opened(f"s3://{bucket}/x", budget_s=30, sleep=time.sleep, clock=time.clock)
    storage.write("a", b"x")
    rotation.expired = {"testing"}
    with pytest.raises(ArtclfError, match=r"credentials of this machine are not valid \(ExpiredToken"):
        storage.write("a", b"y")
    assert 30 <= time.now < 45


def test_credentials_that_never_worked_are_told_at_once(bucket: str, proxy: FaultProxy, rotation: Rotation) -> None:
    rotation.expired = {"testing"}
    with pytest.raises(ConfigError, match="credentials of this machine are not valid"):
        opened(f"s3://{bucket}/x").read("a")
    assert len(proxy.requests) == 1


# -- uploads that nobody finished -----------------------------------------------------------------


def test_uploads_that_nobody_finished_are_shown_and_given_up(
    storage: S3Storage, s3_server: S3Server, bucket: str, proxy: FaultProxy
) -> None:
    client = s3_server.client
    for key in ("studies/one/a", "studies/one/b/c", "studies/one/b/c", "studies/one-more/a"):
        begun = client.create_multipart_upload(Bucket=bucket, Key=key)
        client.upload_part(Bucket=bucket, Key=key, UploadId=begun["UploadId"], PartNumber=1, Body=b"part")
    assert list(storage.list()) == []
    found = storage.unfinished_uploads()
    assert sorted(upload.key for upload in found) == ["a", "b/c", "b/c"]
    for upload in found:
        storage.abort(upload)
        storage.abort(upload)  # one that is gone is no error
    assert not storage.unfinished_uploads()
    assert [upload.key for upload in opened(f"s3://{bucket}").unfinished_uploads()] == ["studies/one-more/a"]


@only_moto
def test_unfinished_uploads_on_several_pages_are_all_shown(
    storage: S3Storage, s3_server: S3Server, bucket: str, proxy: FaultProxy
) -> None:
    for number in range(5):
        s3_server.client.create_multipart_upload(Bucket=bucket, Key=f"studies/one/{number // 2}")
    proxy.page_size = 2
    assert sorted(upload.key for upload in storage.unfinished_uploads()) == ["0", "0", "1", "1", "2"]


@only_seaweedfs
def test_a_server_that_does_not_say_where_the_next_uploads_are_is_told(
    storage: S3Storage, s3_server: S3Server, bucket: str, proxy: FaultProxy
) -> None:
    for number in range(3):
        s3_server.client.create_multipart_upload(Bucket=bucket, Key=f"studies/one/{number}")
    proxy.page_size = 2
    with pytest.raises(StorageError, match=re.escape(storage.uri)):
        storage.unfinished_uploads()


def test_of_a_file_that_grows_while_it_is_uploaded_what_it_held_before_is_put(
    storage: S3Storage, proxy: FaultProxy, tmp_path: Path
) -> None:
    path, content = tmp_path / "log.txt", content_of("grows", PART + 5)
    path.write_bytes(content)

    def grow() -> None:
        with open(path, "ab") as file:
            file.write(b"one line more\n")

    for operation in ("CreateMultipartUpload", "UploadPart"):
        proxy.on(operation, do=Meanwhile(grow))
    storage.upload("log.txt", path)
    storage.download("log.txt", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content


@pytest.mark.parametrize("operation", ["UploadPart", "CompleteMultipartUpload"])
def test_an_upload_in_parts_that_fails_leaves_the_old_object_and_no_parts(
    operation: str, storage: S3Storage, proxy: FaultProxy, tmp_path: Path
) -> None:
    storage.write("a", b"old")
    (tmp_path / "file").write_bytes(content_of("parts", PART + 1))
    proxy.on(operation, do=ACCESS_DENIED, times=None)
    with pytest.raises(StorageError, match="/a: no right to write it"):
        storage.upload("a", tmp_path / "file")
    assert storage.read("a") == b"old"
    assert not storage.unfinished_uploads()


@only_moto
def test_a_listing_that_never_ends_is_told(storage: S3Storage, proxy: FaultProxy) -> None:
    tokens: list[bytes] = []

    def same(body: bytes) -> bytes:
        tokens.extend(re.findall(rb"<NextContinuationToken>(.*)</NextContinuationToken>", body))
        return re.sub(
            rb"(<NextContinuationToken>).*(</NextContinuationToken>)",
            lambda found: found[1] + tokens[0] + found[2],
            body,
        )

    for key in "abcd":
        storage.write(key, b"")
    proxy.page_size = 1
    proxy.on("ListObjectsV2", do=Edit("the same page for ever", same), times=None)
    with pytest.raises(StorageError, match="cut the listing short"):
        list(storage.list())


@only_moto
def test_an_answer_that_is_no_listing_is_not_an_empty_one(storage: S3Storage, proxy: FaultProxy) -> None:
    proxy.on("ListObjectsV2", do=Edit("another document", lambda body: b"<Welcome/>"), times=None)
    with pytest.raises(StorageError, match="expected a listing, the server answered something else"):
        list(storage.list())


def test_a_write_that_is_refused_by_a_condition_it_never_made_is_no_success(
    storage: S3Storage, proxy: FaultProxy
) -> None:
    proxy.on("PutObject", do=Refuse(412, "PreconditionFailed"), times=2)
    storage.write("a", b"x")
    assert storage.read("a") == b"x"


# -- servers that only look like S3 ---------------------------------------------------------------


def test_a_server_that_keeps_its_promises_passes_and_keeps_nothing(storage: S3Storage) -> None:
    storage.check_conditional_puts()
    assert list(storage.list()) == []


def test_the_check_of_the_server_outlasts_faults(storage: S3Storage, proxy: FaultProxy, amount: Amount) -> None:
    proxy.shares = {Break.LOSE_ANSWER: 0.3, SLOW_DOWN: 0.2}
    for seed in range(amount(5, 50)):
        proxy.seed = seed
        storage.check_conditional_puts()


def test_a_look_alike_that_says_it_has_no_conditional_puts_is_refused_at_once(
    storage: S3Storage, proxy: FaultProxy
) -> None:
    proxy.on(
        "PutObject",
        do=Refuse(501, "NotImplemented"),
        times=None,
        when=lambda request: "if-none-match" in request.headers,
    )
    with pytest.raises(ConfigError, match="this server has no conditional puts"):
        storage.check_conditional_puts()
    assert sum(request.operation == "PutObject" for request in proxy.requests) == 1


def test_the_check_of_the_server_tells_the_first_thing_that_is_refused(storage: S3Storage, proxy: FaultProxy) -> None:
    proxy.on("PutObject", do=ACCESS_DENIED, times=None)
    proxy.on("DeleteObject", do=ACCESS_DENIED, times=None)
    with pytest.raises(StorageError, match="no right to write it"):
        storage.check_conditional_puts()


@pytest.mark.parametrize(
    ("dropped", "told"),
    [
        (("if-none-match", "if-match"), "ignores If-None-Match"),
        (("if-none-match",), "ignores If-None-Match"),
        (("if-match",), "ignores If-Match"),
    ],
)
def test_a_look_alike_that_ignores_conditions_is_refused(
    dropped: tuple[str, ...], told: str, storage: S3Storage, proxy: FaultProxy
) -> None:
    proxy.dropped = dropped
    with pytest.raises(ConfigError, match=f"{re.escape(storage.uri)}: this server {told}"):
        storage.check_conditional_puts()
    assert list(storage.list()) == []


# -- everything at once ---------------------------------------------------------------------------


def one_story(
    storage: S3Storage,
    proxy: FaultProxy,
    folder: Path,
    count: int,
    shares: dict[Any, float],
    *,
    lost: int,
    flipped: int = 0,
) -> dict[str, bytes]:
    """Writes objects in all ways from 4 threads, every third created by all of them at once, while some answers are
    lost, some contents flipped once on each way, and other faults have their shares; reads all back and checks them.

    Returns:
        what each object must hold.
    """
    chance = random.Random(proxy.seed)
    keys = [f"{number % 5}/{number}" for number in range(count)]
    sizes = dict(zip(keys, (chance.choice([0, 1, 300, 5_000, 70_000, 200_000]) for _ in keys), strict=True))
    sizes |= dict.fromkeys(chance.sample(keys[1::3], max(1, count // 100)), PART + 1)
    for key in chance.sample(keys, lost):
        proxy.on(("PutObject", "CompleteMultipartUpload"), key, do=Break.LOSE_ANSWER)
    for key in chance.sample([key for key in keys if 0 < sizes[key] <= PART], flipped):
        proxy.on("PutObject", key, do=Break.FLIP_UPLOAD)
        proxy.on("GetObject", key, do=Break.FLIP_ANSWER)
    proxy.shares = shares
    expected: dict[str, bytes] = {}
    created: dict[str, list[int]] = {key: [] for key in keys[::3]}

    def write(thread: int) -> None:
        for number, key in enumerate(keys):
            content = content_of((proxy.seed, key, thread), sizes[key])
            if key in created:
                if storage.create(key, content):
                    created[key].append(thread)
                    expected[key] = content
            elif number % 4 == thread:
                if number % 3 == 1:
                    path = folder / f"{proxy.seed}-{number}"
                    path.write_bytes(content)
                    storage.upload(key, path)
                else:
                    storage.write(key, content)
                expected[key] = content

    def wrong(thread: int) -> list[str]:
        return [key for key in keys[thread::4] if read_back(key) != expected[key]]

    def read_back(key: str) -> bytes:
        if len(expected[key]) % 2:
            return storage.read(key)
        path = folder / f"{proxy.seed}-back-{keys.index(key)}"
        storage.download(key, path)
        return path.read_bytes()

    at_once(4, write)
    winners = {key: threads for key, threads in created.items() if len(threads) != 1}
    assert not winners, f"seed {proxy.seed}: created by none or several"
    assert list(storage.list()) == sorted(keys), f"seed {proxy.seed}"
    assert [key for keys in at_once(4, wrong) for key in keys] == [], f"seed {proxy.seed}: wrong content accepted"
    return expected


def wrong_in_bucket(stored: Callable[[str], bytes], expected: dict[str, bytes]) -> Iterable[str]:
    return [key for key, content in expected.items() if stored(key) != content]


def test_a_thousand_objects_come_through_all_faults(
    storage: S3Storage,
    proxy: FaultProxy,
    s3_server: S3Server,
    stored: Callable[[str], bytes],
    tmp_path: Path,
    amount: Amount,
    measured: Measured,
) -> None:
    count = amount(100, 1000)
    # Fewer objects meet more of what is rare.
    cut, flip = amount(50, 10) / 1000, amount(20, 1) / 1000
    proxy.seed = 20261124
    shares = {
        SLOW_DOWN: 0.05,
        Break.RESET: 0.02,
        Break.CUT_ANSWER: cut,
        Break.FLIP_ANSWER: flip,
        Break.FLIP_UPLOAD: flip,
    }
    expected = one_story(storage, proxy, tmp_path, count, shares, lost=count // 20, flipped=4)
    assert proxy.counts[Break.LOSE_ANSWER.value] == count // 20
    assert {fault.value for fault in Break} | {"SlowDown"} == set(proxy.counts)
    assert wrong_in_bucket(stored, expected) == []
    assert not storage.unfinished_uploads()
    faults = ", ".join(f"{number} {what}" for what, number in sorted(proxy.counts.items()))
    measured(f"{s3_server.name}: {count} objects in {len(proxy.requests)} requests, 0 wrong, 0 twice; {faults}")


def test_whatever_the_seed_all_objects_come_through(
    storage: S3Storage, proxy: FaultProxy, stored: Callable[[str], bytes], tmp_path: Path, amount: Amount
) -> None:
    often = {
        SLOW_DOWN: 0.2,
        Break.RESET: 0.1,
        Break.LOSE_ANSWER: 0.2,
        Break.CUT_ANSWER: 0.1,
        Break.FLIP_ANSWER: 0.05,
        Break.FLIP_UPLOAD: 0.05,
    }
    for story in range(amount(2, 40)):
        proxy.seed = story
        proxy.calm()
        below = storage.below(f"{story}")
        expected = one_story(below, proxy, tmp_path, 12, often, lost=2)
        assert wrong_in_bucket(lambda key, story=story: stored(f"{story}/{key}"), expected) == []  # type: ignore[misc]
