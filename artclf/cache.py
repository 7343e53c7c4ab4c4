"""What can be made or fetched again: where it lies on this machine, and how it gets there from a bucket.

A data set of a bucket is used while its later shards still arrive: whoever needs a shard first fetches it,
every process of this machine finds it afterwards, and each is checked by the hash in the manifest before it
takes its name. What was not used for longest makes room when the cache is full.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from artclf.errors import ArtclfError, ConfigError, StorageError, storage_error
from artclf.locks import turn
from artclf.records import INDEX, MANIFEST, PICTURES, Dataset, file_sha256
from artclf.storage import TEMPORARY, atomic_file, check_key, is_in_bucket, local_path, make_folder

if TYPE_CHECKING:
    from artclf.s3 import S3Storage

LIMIT_GB = "ARTCLF_CACHE_GB"
"""The environment variable that says how much data sets of buckets may take here, in 10^9 bytes."""
_DEFAULT_LIMIT_GB = 100.0
_IN_USE = ".in-use"


def cache_folder() -> Path:
    """Returns the folder for what can be made again: $ARTCLF_CACHE, else below the user's own cache
    folder, else (no home, or one that cannot be written) below the temporary folder."""
    chosen = os.environ.get("ARTCLF_CACHE")
    if chosen:
        return local_path(chosen)
    home = Path(os.environ.get("HOME") or "/")
    caches = os.environ.get("XDG_CACHE_HOME") or (home / ".cache" if home.is_dir() and home != Path("/") else None)
    if caches:
        folder = Path(caches) / "artclf"
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
    return Path(tempfile.gettempdir()) / f"artclf-{os.getuid()}"


def local_file(name: str) -> Path:
    """Returns a file of this machine that a path or s3:// URI means; one of a bucket is fetched once.

    Raises:
        ConfigError: if there is no such object.
        StorageError: if it cannot be had.
    """
    if not is_in_bucket(name):
        return Path(name).expanduser()
    from artclf.s3 import S3Storage

    place, _, key = name.rpartition("/")
    storage = S3Storage(place)
    version = storage.version(key) if key else None
    if version is None:
        raise ConfigError(f"{name}: there is no such object.")
    named = hashlib.sha256(f"{name} {version}".encode()).hexdigest()[:16]
    path = cache_folder() / "files" / named / key
    proof = path.parent / ".sha256"
    with turn(path.parent / ".lock"):
        if not (path.is_file() and proof.is_file() and proof.read_text() == file_sha256(path)):
            storage.download(key, path)
            with atomic_file(proof) as temporary:
                temporary.write_text(file_sha256(path))
    return path


def fetched_dataset(uri: str, *, ahead: bool = True) -> Dataset:
    """Returns a prepared data set of a bucket, ready to be read; its shards arrive while it is.

    Args:
        uri: where it lies.
        ahead: whether room is made for all of it and shards are fetched before anybody reads them.

    Raises:
        ConfigError: if there is no prepared data set under the URI.
        StorageError: if the bucket refuses, or what is there is not what its manifest says.
    """
    from artclf.s3 import S3Storage

    storage = S3Storage(uri)
    try:
        manifest = storage.read(MANIFEST)
    except FileNotFoundError:
        raise ConfigError(
            f"{uri}: no prepared data set here (no {MANIFEST}). Make one with: python -m artclf.prepare SOURCE --out "
            f"FOLDER; submit puts it into the bucket."
        ) from None
    sha256, whole = _described(manifest, uri)
    size = whole if ahead else 0
    folder = cache_folder() / "buckets" / hashlib.sha256(manifest).hexdigest()[:16]
    with turn(folder.with_name(".lock")):  # of all sets: nobody makes room between our look and our note
        if _noted_size(folder) < size or not (folder / MANIFEST).exists():
            _make_room(folder, size)
        _note_use(folder, size)
    fetcher = _Fetcher(storage, folder, sha256)
    for name in (INDEX, PICTURES):
        fetcher.fetch(name)
    fetcher.fetch(MANIFEST, again=True)
    dataset = Dataset.open(folder, fetcher.fetch, storage.uri)
    if ahead:
        threading.Thread(target=fetcher.fetch_all, name="fetcher", daemon=True).start()
    return dataset


class _Fetcher:
    """Gets the files of one data set, each by one process at a time; ``sha256`` is what each must have."""

    def __init__(self, storage: S3Storage, folder: Path, sha256: dict[str, str]) -> None:
        self._storage, self._folder, self._sha256 = storage, folder, sha256

    def fetch(self, name: str, *, again: bool = False) -> None:
        """Gets a file if it is not here yet, or (``again``) if what is here is not as the manifest says.

        Raises:
            StorageError: if it cannot be had as the manifest says.
        """
        path = self._folder / name
        with turn(path.with_name(f".{path.name}.lock")):
            if path.exists() and not (again and self._is_damaged(name)):
                return
            try:
                self._storage.download(name, path, self._sha256.get(name))
            except FileNotFoundError as error:
                raise StorageError(f"{error}: a part of the data set is missing. Put it there again.") from error

    def _is_damaged(self, name: str) -> bool:
        return name in self._sha256 and file_sha256(self._folder / name) != self._sha256[name]

    def fetch_all(self) -> None:
        """Gets all files, one after the other, while others are read."""
        for name in self._sha256:
            with contextlib.suppress(ArtclfError):  # whoever needs it tries again, and tells
                self.fetch(name)


def _described(manifest: bytes, uri: str) -> tuple[dict[str, str], int]:
    """Returns the SHA-256 of each file of a data set by its name, and how much its shards take."""
    try:
        told = json.loads(manifest)
        sha256 = {MANIFEST: hashlib.sha256(manifest).hexdigest()}
        sha256 |= {name: str(about["sha256"]) for name, about in told.get("files", {}).items()}
        sha256 |= {shard["name"]: str(shard["sha256"]) for shard in told["shards"]}
        for name in sha256:
            check_key(name)
        return sha256, sum(int(shard["bytes"]) for shard in told["shards"])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, ConfigError) as error:
        raise ConfigError(f"{uri}/{MANIFEST}: not the manifest of a prepared data set ({error!r}).") from error


def _make_room(folder: Path, needed: int) -> None:
    """Removes what was not used for longest until a data set fits; what a process uses stays.

    Raises:
        StorageError: if it does not fit all the same.
    """
    try:
        limit = float(os.environ.get(LIMIT_GB) or _DEFAULT_LIMIT_GB) * 1e9
    except ValueError:
        raise ConfigError(f"{LIMIT_GB}: expected a number of 10^9 bytes, received {os.environ[LIMIT_GB]!r}.") from None
    others = [path for path in folder.parent.iterdir() if path.is_dir() and path != folder]
    sizes = {path: _sizes(path) for path in others}

    def free() -> float:
        whole, there = sum(whole for whole, _ in sizes.values()), sum(there for _, there in sizes.values())
        return min(limit - whole, shutil.disk_usage(folder.parent).free - (whole - there))

    for path in sorted(others, key=_used_at):
        if needed <= free():
            return
        if _remove_unused(path):
            del sizes[path]
    if needed > free():
        raise StorageError(
            f"{folder.parent}: the data set takes {needed:,} bytes, {max(0, int(free())):,} are free there. "
            f"Free some, raise {LIMIT_GB}, or set ARTCLF_CACHE to a larger disk."
        )


def _sizes(folder: Path) -> tuple[int, int]:
    """Returns the bytes that a data set will take once all of it is here, and those that are here."""
    there = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # another process has just given it its name
            there += path.stat().st_size if path.is_file() else 0
    return max(_noted_size(folder), there), there


def _noted_size(folder: Path) -> int:
    """Returns how many bytes somebody who uses a data set said that it will take; 0 where nobody did."""
    with contextlib.suppress(OSError, ValueError):
        return int((folder / _IN_USE).read_text())
    return 0


def _used_at(folder: Path) -> float:
    with contextlib.suppress(OSError):
        return (folder / _IN_USE).stat().st_mtime
    return 0.0


_held: dict[Path, int] = {}
"""The locks of the data sets that this process uses; they are free again when it ends."""


def _note_use(folder: Path, size: int) -> None:
    """Keeps a data set from being removed while this process lives, and notes what it will take."""
    make_folder(folder)
    path = folder / _IN_USE
    try:
        if folder not in _held or os.fstat(_held[folder]).st_nlink == 0:  # somebody deleted the cache under us
            if (old := _held.pop(folder, None)) is not None:
                os.close(old)
            descriptor = _held[folder] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for left in [*folder.rglob(f"{TEMPORARY}*")]:  # by a process that was killed: nobody else is here
                    left.unlink()
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        if _noted_size(folder) < size:
            path.write_text(f"{size}")
        os.utime(path)
    except OSError as error:
        raise storage_error("write", path, error) from error


def _remove_unused(folder: Path) -> bool:
    """Removes a data set that no process uses, and says whether it did."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder / _IN_USE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (folder / MANIFEST).unlink(missing_ok=True)  # first: without it nobody takes the rest for a data set
            shutil.rmtree(folder)
            return True
        finally:
            os.close(descriptor)
    return False
