"""What is fetched from a bucket into the cache: once, whole, checked, and no more than there is room for."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from artclf.cache import LIMIT_GB, local_file
from artclf.datasets import open_dataset
from artclf.errors import ArtclfError, ConfigError, StorageError
from artclf.prepare import Options, prepare
from artclf.records import INDEX, MANIFEST, PICTURES, Dataset
from artclf.s3 import S3Storage
from artclf.storage import is_in_bucket
from jobs.bucket_study import BucketStudy
from tests.conftest import PROJECT, Amount, Measured
from tests.s3_proxy import SLOW_DOWN, Break, FaultProxy, Meanwhile
from tests.s3_servers import wait_for_fetchers

if TYPE_CHECKING:
    from tests.s3_servers import S3Server

PATIENCE_S = 60.0
"""So long a thread waits for another before the test gives up."""
only_moto = pytest.mark.parametrize("s3_server", ["moto"], indirect=True)
READER = (
    "import hashlib, sys; from artclf.command_line import run_command; from artclf.datasets import open_dataset\n"
    "def main(uris):\n"
    "    for uri in uris:\n"
    "        data = open_dataset(uri)\n"
    "        print(hashlib.sha256(b''.join(map(data.read, range(len(data))))).hexdigest(), flush=True)\n"
    "    return 0 if sys.stdin.readline() is not None else 1\n"
    "run_command(main)"
)
"""A process that opens data sets, reads all of each, and goes on to use them until its input ends."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Gives each test an empty cache."""
    monkeypatch.setenv("ARTCLF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def local(tiny_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Returns a prepared data set of several shards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("artclf.records.SHARD_BYTES", 80_000)
        made = prepare([str(tiny_pictures)], tmp_path_factory.mktemp("sets") / "shards", Options())
    assert len(made.manifest["shards"]) >= 5
    return made


@pytest.fixture
def place(bucket: str, proxy: FaultProxy) -> S3Storage:
    """Returns a prefix of a bucket, behind the proxy."""
    return S3Storage(f"s3://{bucket}/sets")


Put = Callable[[str], str]


@pytest.fixture
def put(place: S3Storage, local: Dataset, proxy: FaultProxy) -> Put:
    """Returns what puts the data set into the bucket, as another set for each name, and returns its URI."""

    def put_as(name: str) -> str:
        there = place.below(name)
        for file in (INDEX, PICTURES, *shards(local)):
            there.upload(file, local.folder / file)
        manifest = json.loads((local.folder / MANIFEST).read_bytes()) | {"put_as": name}
        there.write(MANIFEST, json.dumps(manifest).encode())
        proxy.requests.clear()
        return there.uri

    return put_as


def shards(dataset: Dataset) -> list[str]:
    return [shard["name"] for shard in dataset.manifest["shards"]]


def contents(dataset: Dataset) -> list[bytes]:
    return [dataset.read(record) for record in range(len(dataset))]


def size_of(dataset: Dataset) -> int:
    return sum(shard["bytes"] for shard in dataset.manifest["shards"])


def cached(cache: Path) -> list[Path]:
    """Returns the folders of the data sets in the cache."""
    return [path.parent for path in (cache / "buckets").glob(f"*/{MANIFEST}")]


def litter(cache: Path) -> list[Path]:
    return list(cache.rglob(".tmp-*"))


def times_fetched(proxy: FaultProxy) -> Counter[str]:
    """Returns how often each object's content was asked for, by the end of its key."""
    return Counter("/".join(request.key.split("/")[2:]) for request in proxy.sent("GetObject"))


def reader(*uris: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", READER, *uris],
        cwd=PROJECT,
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def read_by_another(*uris: str, **environment: str) -> tuple[int, str]:
    """Returns the exit code and output of a process that read the data sets and has ended."""
    process = reader(*uris, **environment)
    output, _ = process.communicate()
    return process.returncode, output


# -- a data set of a bucket -----------------------------------------------------------------------


def test_a_shared_data_set_reads_as_the_local_one(
    bucket: str, proxy: FaultProxy, place: S3Storage, local: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = BucketStudy(place.uri, "study").share_dataset(local, lambda text: None)
    there = open_dataset(uri)
    assert contents(there) == contents(local)
    assert list(there.pictures()) == list(local.pictures())
    assert (there.digest, there.manifest) == (local.digest, local.manifest)


@only_moto
def test_a_picture_is_read_while_other_shards_still_arrive(
    put: Put, place: S3Storage, local: Dataset, cache: Path, proxy: FaultProxy
) -> None:
    uri = put("one")
    is_read = threading.Event()
    proxy.on("GetObject", shards(local)[0], do=Meanwhile(lambda: is_read.wait(PATIENCE_S)))
    there = open_dataset(uri)
    last = len(local) - 1
    assert there.read(last) == local.read(last)
    assert not (there.folder / shards(local)[0]).exists()
    is_read.set()
    assert contents(there) == contents(local)
    fetched = times_fetched(proxy)
    assert {fetched[name] for name in shards(local)} == {1}


@only_moto
def test_all_shards_arrive_though_nobody_reads_them(put: Put, place: S3Storage, local: Dataset) -> None:
    there = open_dataset(put("one"))
    wait_for_fetchers()
    assert all((there.folder / name).is_file() for name in shards(local))


def test_a_data_set_arrives_sound_through_faults(put: Put, local: Dataset, proxy: FaultProxy, cache: Path) -> None:
    uri = put("one")
    proxy.shares = {SLOW_DOWN: 0.1, Break.RESET: 0.1, Break.CUT_ANSWER: 0.2, Break.FLIP_ANSWER: 0.1}
    assert contents(open_dataset(uri)) == contents(local)
    assert proxy.counts
    assert litter(cache) == []


@only_moto
@pytest.mark.parametrize("name", ["shards/00001.bin", INDEX, PICTURES])
def test_a_file_that_is_not_what_the_manifest_says_is_refused_by_name_until_it_is_mended(
    name: str, put: Put, place: S3Storage, local: Dataset
) -> None:
    uri = put("one")
    sound = (local.folder / name).read_bytes()
    place.below("one").write(name, sound[:-1] + bytes([sound[-1] ^ 1]))
    with pytest.raises(StorageError, match=f"{uri}/{name}: not as it was written"):
        contents(open_dataset(uri))
    place.below("one").write(name, sound)
    assert contents(open_dataset(uri)) == contents(local)


@only_moto
def test_a_damaged_shard_keeps_nobody_from_the_others(put: Put, place: S3Storage, local: Dataset) -> None:
    uri = put("one")
    place.below("one").write("shards/00001.bin", b"other")
    there = open_dataset(uri)
    sound = [record for record in range(len(local)) if local.index[record]["shard"] != 1]
    assert [there.read(record) for record in sound] == [local.read(record) for record in sound]
    assert not (there.folder / "shards/00001.bin").exists()


@only_moto
@pytest.mark.parametrize("name", ["shards/00001.bin", INDEX, PICTURES, MANIFEST])
@pytest.mark.parametrize("damage", ["other content", "cut"])
def test_what_is_damaged_in_the_cache_is_fetched_again(name: str, damage: str, put: Put, local: Dataset) -> None:
    uri = put("one")
    path = open_dataset(uri).folder / name
    wait_for_fetchers()
    sound = path.read_bytes()
    path.write_bytes(sound[:-7] if damage == "cut" else bytes(len(sound)))
    assert contents(open_dataset(uri)) == contents(local)
    assert path.read_bytes() == sound


@only_moto
def test_processes_that_open_a_damaged_cache_at_once_mend_it_together(put: Put, local: Dataset, cache: Path) -> None:
    uri = put("one")
    folder = open_dataset(uri).folder
    wait_for_fetchers()
    for name in (INDEX, PICTURES, MANIFEST, *shards(local)):
        (folder / name).write_bytes(b"damaged")
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", READER, uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=PROJECT, text=True
        )
        for _ in range(4)
    ]
    said = {reader.communicate("\n")[0] for reader in readers}
    assert said == {f"{hashlib.sha256(b''.join(contents(local))).hexdigest()}\n"}


@only_moto
def test_what_becomes_damaged_in_the_cache_while_it_is_used_is_fetched_again(put: Put, local: Dataset) -> None:
    there = open_dataset(put("one"))
    wait_for_fetchers()
    for shard in shards(local):
        (there.folder / shard).write_bytes(bytes(100))
    assert contents(there) == contents(local)


@only_moto
@pytest.mark.parametrize("name", ["shards/00001.bin", INDEX])
def test_a_file_that_is_missing_is_named(name: str, put: Put, place: S3Storage) -> None:
    uri = put("one")
    place.below("one").delete(name)
    with pytest.raises(StorageError, match=f"{uri}/{name}: a part of the data set is missing"):
        contents(open_dataset(uri))


@only_moto
def test_where_no_data_set_is_one_is_told_how_to_get_one(place: S3Storage) -> None:
    with pytest.raises(ConfigError, match=f"{place.uri}/none: no prepared data set here"):
        open_dataset(f"{place.uri}/none")


@only_moto
def test_a_manifest_that_makes_no_sense_is_named(place: S3Storage) -> None:
    for manifest in (
        *(b"", b"\xff", b"[]", b"{}", b"[" * 100_000, b'{"shards": 1}', b'{"shards": [{"name": 1}]}'),
        *(b'{"shards": [{"name": "a", "bytes": 1}]}', b'{"shards": [{"name": "a", "sha256": "", "bytes": Infinity}]}'),
    ):
        place.write(MANIFEST, manifest)
        with pytest.raises(ConfigError, match=f"{place.uri}/{MANIFEST}: not the manifest of a prepared data set"):
            open_dataset(place.uri)


@only_moto
def test_a_manifest_cannot_lead_out_of_the_cache(place: S3Storage, local: Dataset, tmp_path: Path) -> None:
    for name in ("../../../out.bin", "/out.bin", "shards//out.bin", "shards/../../out.bin"):
        [first, *others] = local.manifest["shards"]
        manifest = {**local.manifest, "shards": [{**first, "name": name}, *others]}
        place.write(MANIFEST, json.dumps(manifest).encode())
        with pytest.raises(ConfigError, match="not the manifest of a prepared data set"):
            open_dataset(place.uri)
    assert [path for path in tmp_path.rglob("*") if "out" in path.name] == []


# -- processes ------------------------------------------------------------------------------------


@only_moto
def test_a_process_that_is_killed_in_the_middle_of_a_shard_leaves_nothing_half(
    put: Put, local: Dataset, cache: Path, proxy: FaultProxy
) -> None:
    uri, name = put("one"), shards(local)[2]
    processes: list[subprocess.Popen[str]] = []
    is_started = threading.Event()

    def kill() -> None:
        is_started.wait(PATIENCE_S)
        processes[0].kill()

    proxy.on("GetObject", name, do=Break.CUT_ANSWER)
    proxy.on("GetObject", name, do=Meanwhile(kill))
    processes.append(reader(uri))
    is_started.set()
    processes[0].communicate()
    assert processes[0].returncode == -9
    [folder] = cached(cache)
    assert not (folder / name).exists()
    assert [path.parent.name for path in litter(cache)] == ["shards"]
    there = {shard for shard in shards(local) if (folder / shard).exists()}
    proxy.requests.clear()
    assert contents(open_dataset(uri)) == contents(local)
    assert litter(cache) == []
    assert {INDEX, PICTURES, *there}.isdisjoint(times_fetched(proxy))


@only_moto
def test_processes_share_one_copy(put: Put, local: Dataset, cache: Path, proxy: FaultProxy, measured: Measured) -> None:
    uri = put("one")
    processes = [reader(uri) for _ in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert len(set(outputs)) == 1
    assert contents(open_dataset(uri)) == contents(local)
    fetched = times_fetched(proxy)
    assert {fetched[name] for name in (INDEX, PICTURES, *shards(local))} == {1}
    measured(f"3 readers, {len(shards(local))} shards: each fetched once")


@only_moto
def test_who_only_looks_fetches_the_shards_that_are_read_and_makes_no_room_for_the_others(
    put: Put, local: Dataset, proxy: FaultProxy, room: Callable[[float], None], cache: Path
) -> None:
    uri = put("one")
    room(0.5)
    looks = [open_dataset(uri, ahead=False) for _ in range(3)]
    assert looks[0].place == uri
    assert set(times_fetched(proxy)) == {MANIFEST, INDEX, PICTURES}
    assert looks[0].read(0) == local.read(0)
    fetched = times_fetched(proxy)
    assert [name for name in shards(local) if fetched[name]] == [shards(local)[int(local.index[0]["shard"])]]
    room(1.5)
    assert contents(open_dataset(uri)) == contents(local)


@only_moto
def test_a_data_set_can_be_brought_here_whole(put: Put, local: Dataset, cache: Path) -> None:
    there = open_dataset(put("one"), ahead=False)
    there.fetch_all()
    assert contents(Dataset.open(there.folder)) == contents(local)


@only_moto
def test_a_data_set_looked_at_again_and_again_takes_one_descriptor(put: Put) -> None:
    uri = put("one")
    open_dataset(uri, ahead=False)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        open_dataset(uri, ahead=False)
    assert len(os.listdir("/proc/self/fd")) < before + 10


# -- room -----------------------------------------------------------------------------------------


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch, local: Dataset) -> Callable[[float], None]:
    """Returns what sets the limit of the cache, in data sets of that size."""
    return lambda count: monkeypatch.setenv(LIMIT_GB, f"{size_of(local) * count / 1e9:.9f}")


@only_moto
def test_what_was_not_used_for_longest_makes_room(put: Put, cache: Path, room: Callable[[float], None]) -> None:
    uris = [put(name) for name in ("one", "two", "three")]
    room(2.5)
    folders: dict[str, Path] = {}
    for uri in uris[:2]:
        code, output = read_by_another(uri)
        assert code == 0, output
        [folders[uri]] = set(cached(cache)) - set(folders.values())
    read_by_another(uris[0])
    code, output = read_by_another(uris[2])
    assert code == 0, output
    assert folders[uris[0]] in cached(cache)
    assert not folders[uris[1]].exists()
    assert len(cached(cache)) == 2


@only_moto
def test_what_a_process_uses_is_never_removed(
    put: Put, local: Dataset, cache: Path, room: Callable[[float], None]
) -> None:
    one, two = put("one"), put("two")
    room(1.5)
    user = reader(one)
    assert user.stdout is not None
    assert len(user.stdout.readline()) == 65
    [used] = cached(cache)
    code, output = read_by_another(two)
    assert code == StorageError.exit_code
    assert f"the data set takes {size_of(local):,} bytes" in output and "Traceback" not in output
    assert cached(cache) == [used]
    user.communicate()
    code, output = read_by_another(two)
    assert code == 0, output
    assert used not in cached(cache)


@only_moto
def test_what_still_arrives_counts_as_whole(
    put: Put, place: S3Storage, local: Dataset, proxy: FaultProxy, room: Callable[[float], None]
) -> None:
    one, two = put("one"), put("two")
    room(1.5)
    is_refused = threading.Event()
    proxy.on("GetObject", shards(local)[0], do=Meanwhile(lambda: is_refused.wait(PATIENCE_S)))
    first = open_dataset(one)
    with pytest.raises(StorageError, match="the data set takes"):
        open_dataset(two)
    is_refused.set()
    assert contents(first) == contents(local)


@only_moto
def test_a_data_set_that_does_not_fit_is_refused_before_any_of_it_is_fetched(
    put: Put, local: Dataset, cache: Path, proxy: FaultProxy, room: Callable[[float], None]
) -> None:
    uri = put("one")
    room(0.5)
    with pytest.raises(StorageError, match=rf"takes {size_of(local):,} bytes, .* are free there.*raise {LIMIT_GB}"):
        open_dataset(uri)
    assert set(times_fetched(proxy)) == {MANIFEST}
    assert cached(cache) == []


@only_moto
def test_a_limit_that_is_no_number_is_named(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = put("one")
    monkeypatch.setenv(LIMIT_GB, "much")
    with pytest.raises(ConfigError, match=f"{LIMIT_GB}: expected a number.*'much'"):
        open_dataset(uri)


@only_moto
def test_processes_that_push_each_other_out_read_right_or_are_told(
    put: Put, local: Dataset, cache: Path, room: Callable[[float], None], amount: Amount
) -> None:
    uris = [put(name) for name in ("one", "two")]
    room(1.5)
    right = read_by_another(uris[0])[1]
    assert len(right) == 65
    refused = 0
    for _ in range(amount(1, 20)):
        processes = [reader(uri) for uri in uris * 2]
        for process in processes:
            output, _ = process.communicate()
            assert (process.returncode, output) == (0, right) or (
                process.returncode == StorageError.exit_code and "the data set takes" in output
            ), output
            refused += process.returncode != 0
        assert len(cached(cache)) == 1
    assert refused <= 2 * amount(1, 20)  # those who used the same one were not in each other's way


# -- a single file --------------------------------------------------------------------------------


@only_moto
def test_a_file_of_a_bucket_is_fetched_once_and_again_when_it_changed(place: S3Storage, proxy: FaultProxy) -> None:
    place.write("w/a.weights.h5", b"one")
    path = local_file(f"{place.uri}/w/a.weights.h5")
    assert (path.name, path.read_bytes()) == ("a.weights.h5", b"one")
    assert local_file(f"{place.uri}/w/a.weights.h5") == path
    assert len(proxy.sent("GetObject")) == 1
    place.write("w/a.weights.h5", b"two")
    assert local_file(f"{place.uri}/w/a.weights.h5").read_bytes() == b"two"
    assert path.read_bytes() == b"one"


@only_moto
@pytest.mark.parametrize("damage", [b"", b"two", b"onetwo"])
def test_a_file_of_a_bucket_that_is_damaged_here_is_fetched_again(place: S3Storage, damage: bytes) -> None:
    place.write("w/a.weights.h5", b"one")
    local_file(f"{place.uri}/w/a.weights.h5").write_bytes(damage)
    assert local_file(f"{place.uri}/w/a.weights.h5").read_bytes() == b"one"


@only_moto
def test_files_of_the_same_name_in_two_places_are_two(place: S3Storage) -> None:
    for folder in ("a", "b"):
        place.write(f"{folder}/w.h5", folder.encode())
    assert [local_file(f"{place.uri}/{folder}/w.h5").read_bytes() for folder in ("a", "b")] == [b"a", b"b"]


@only_moto
def test_a_file_that_is_not_in_the_bucket_is_named(place: S3Storage) -> None:
    place.write("w/a.h5", b"")
    for name in ("none.h5", "w", "w/"):
        with pytest.raises(ConfigError, match=f"{place.uri}/{name}: there is no such object"):
            local_file(f"{place.uri}/{name}")


@only_moto
def test_a_file_that_cannot_be_had_leaves_nothing(place: S3Storage, s3_server: S3Server, cache: Path) -> None:
    place.write("a.h5", b"sound")
    bucket, _, prefix = place.uri.removeprefix("s3://").partition("/")
    metadata = {"sha256": "0" * 64}
    s3_server.client.put_object(Bucket=bucket, Key=f"{prefix}/a.h5", Body=b"damaged", Metadata=metadata)
    with pytest.raises(ArtclfError, match=f"{place.uri}/a.h5: not as it was written"):
        local_file(f"{place.uri}/a.h5")
    assert [path for path in cache.rglob("*.h5*") if not path.name.startswith(".")] == []


def test_a_file_of_this_machine_is_itself() -> None:
    assert local_file("/a/b.h5") == Path("/a/b.h5")
    assert local_file("~/b.h5") == Path.home() / "b.h5"
    assert not is_in_bucket("/a/s3://b")
