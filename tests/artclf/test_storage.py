"""Files below one root: whole or not at all, one winner, and never outside."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artclf.errors import ConfigError, StorageError
from artclf.storage import (
    TEMPORARY,
    LocalStorage,
    atomic_file,
    atomic_folder,
    check_writable,
    local_path,
)

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "root")


@contextmanager
def disk_that_takes(size_bytes: int) -> Iterator[None]:
    """Makes the system refuse files beyond a size, as a full disk does in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def everything_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_what_is_written_is_read(storage: LocalStorage) -> None:
    storage.write("a/b.bin", b"one")
    storage.write("a/b.bin", b"two")
    assert storage.read("a/b.bin") == b"two"


def test_a_key_that_is_not_there_is_told_apart_from_a_broken_one(storage: LocalStorage) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read("a")
    storage.write("a/b", b"")
    with pytest.raises(StorageError, match="cannot read"):
        storage.read("a")


def test_deleting_twice_is_no_error(storage: LocalStorage) -> None:
    storage.write("a", b"x")
    storage.delete("a")
    storage.delete("a")
    assert list(storage.list()) == []


def test_keys_are_listed_in_order_below_a_folder_and_unfinished_files_are_passed_over(storage: LocalStorage) -> None:
    for key in ("b/2", "b/10", "a", "c/x/y", f"b/{TEMPORARY}123", f"{TEMPORARY}folder/z"):
        storage.write(key, b"")
    assert list(storage.list()) == ["a", "b/10", "b/2", "c/x/y"]
    assert list(storage.list("b")) == ["b/10", "b/2"]
    assert list(storage.list("nowhere")) == []


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", "./a", "a/.", "a\0b"])
def test_a_key_cannot_leave_its_root(key: str, storage: LocalStorage) -> None:
    with pytest.raises(ConfigError, match="expected a relative key"):
        storage.path(key)


@given(st.text(st.sampled_from("ab./\\~\0 é%"), max_size=12))
def test_any_key_is_refused_or_lies_below_its_root(key: str) -> None:
    root = Path("/somewhere/root")
    try:
        path = LocalStorage(root).path(key)
    except ConfigError:
        return
    assert Path(os.path.normpath(path)).is_relative_to(root)
    assert path != root


# -- one winner -----------------------------------------------------------------------------------


def test_of_16_threads_exactly_one_creates(storage: LocalStorage) -> None:
    start = threading.Barrier(16)

    def create(number: int) -> bool:
        start.wait()
        return storage.create("jobs/lock.json", f"{number}".encode())

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(create, range(16)))
    assert won.count(True) == 1
    assert storage.read("jobs/lock.json") == f"{won.index(True)}".encode()
    assert everything_below(storage.root) == ["jobs", "jobs/lock.json"]


def test_of_four_processes_exactly_one_creates_each_key(storage: LocalStorage) -> None:
    code = (
        "import sys; from pathlib import Path; from artclf.storage import LocalStorage\n"
        "storage = LocalStorage(Path(sys.argv[1])); print('ready', flush=True); sys.stdin.readline()\n"
        "print(sum(storage.create(f'{n}', sys.argv[2].encode()) for n in range(50)))"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(storage.root), str(number)],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    created = [int(racer.communicate()[0]) for racer in racers]
    assert sum(created) == 50 == len(list(storage.list()))


def test_create_never_replaces(storage: LocalStorage) -> None:
    assert storage.create("a", b"first")
    assert not storage.create("a", b"second")
    assert storage.read("a") == b"first"


# -- whole or not at all --------------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_content_and_no_litter(storage: LocalStorage) -> None:
    storage.write("a", b"old")
    with disk_that_takes(1000):
        with pytest.raises(StorageError, match=r"root/a: cannot write: File too large\."):
            storage.write("a", b"x" * 5000)
        with pytest.raises(StorageError, match="cannot create"):
            storage.create("b", b"x" * 5000)
    assert storage.read("a") == b"old"
    assert everything_below(storage.root) == ["a"]


def test_an_atomic_file_whose_block_fails_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert everything_below(tmp_path) == ["a.json"]


def test_readers_never_see_half_a_file(storage: LocalStorage) -> None:
    versions = [bytes([n]) * 50_000 for n in range(20)]
    storage.write("a", versions[0])
    written = threading.Event()
    seen = set()

    def read_until_written() -> None:
        while not written.is_set():
            seen.add(storage.read("a"))

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read_until_written)
        for version in versions:
            storage.write("a", version)
        written.set()
        reader.result()
    assert seen <= set(versions)


def test_an_atomic_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "best"
    for version in ("one", "two"):
        with atomic_folder(path) as temporary:
            (temporary / version).write_text(version)
    assert everything_below(tmp_path) == ["best", "best/two"]


def test_an_atomic_folder_whose_block_fails_keeps_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "best"
    with atomic_folder(path) as temporary:
        (temporary / "one").write_text("1")
    with pytest.raises(ZeroDivisionError), atomic_folder(path) as temporary:
        raise ZeroDivisionError
    assert everything_below(tmp_path) == ["best", "best/one"]


def test_a_killed_writer_leaves_the_old_content(storage: LocalStorage) -> None:
    storage.write("a", b"old")
    code = (
        "import os, signal, sys; from pathlib import Path; from artclf.storage import atomic_file\n"
        "with atomic_file(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_bytes(b'new'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(storage.path("a"))], cwd=PROJECT, check=False)
    assert ended.returncode == -9
    assert storage.read("a") == b"old"
    assert list(storage.list()) == ["a"]


# -- places ---------------------------------------------------------------------------------------


def test_a_file_where_a_folder_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot make the folder"):
        LocalStorage(tmp_path / "file").write("a", b"")
    with pytest.raises(ConfigError, match="expected a folder to write to, received a file"):
        check_writable(tmp_path / "file")


def test_checking_that_a_folder_can_be_written_makes_it_and_leaves_it_empty(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert everything_below(tmp_path) == ["a", "a/b"]


def test_a_folder_without_room_is_told_before_the_work(tmp_path: Path) -> None:
    with disk_that_takes(100), pytest.raises(StorageError, match="cannot write to"):
        check_writable(tmp_path)
    assert everything_below(tmp_path) == []


@pytest.mark.parametrize("name", ["mit Leerzeichen", "-x", "~", "素描 'q\" $(id)", "x" * 255, "%41"])
def test_odd_folder_names_work(name: str, tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / name)
    storage.write("a", b"x")
    assert (tmp_path / name / "a").read_bytes() == b"x"


def test_a_file_uri_is_a_folder_and_other_schemes_are_refused(tmp_path: Path) -> None:
    assert local_path(f"file://{tmp_path}") == tmp_path
    for uri in ("s3://bucket/a", "https://x/y", "file://host/a"):
        with pytest.raises(ConfigError, match="expected a folder of this machine"):
            local_path(uri)
