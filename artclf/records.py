"""The data set on disk: packed pictures, an index of fixed-width rows, and a manifest.

    DATASET/
      manifest.json       classes, counts, splits, digest, SHA-256 of every file, what was skipped and why
      index.npy           one row a picture (INDEX_DTYPE), memory-mapped
      pictures.csv        the same rows for people: record, name, class, split, width, height, group, sha256, fixed
      shards/00000.bin …  the encoded pictures, one after the other

A record is an encoded picture (mostly the source's own JPEG bytes); decoding is not done here.
A picture is read by one pread at a known place, so any order costs the same and memory does not
grow with the set. Every read is checked against the row's CRC-32.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from artclf.errors import ConfigError, StorageError, storage_error
from artclf.storage import make_folder, sync_folder

FORMAT = "artclf-dataset/1"
SPLITS = ("train", "val", "test")
INDEX_DTYPE = np.dtype(
    [
        ("shard", "<u4"),
        ("offset", "<u8"),
        ("size", "<u4"),
        ("crc", "<u4"),
        ("label", "<i4"),
        ("split", "u1"),  # place in SPLITS
        ("width", "<u4"),
        ("height", "<u4"),
        ("group", "<u4"),  # pictures of one group are the same or nearly the same and share a split
    ]
)
MANIFEST, INDEX, PICTURES, SHARDS = "manifest.json", "index.npy", "pictures.csv", "shards"

Index = npt.NDArray[np.void]


@dataclass(frozen=True)
class ClassInfo:
    """One class: its slug (stable, ASCII-safe name used in files), its display name and what is known of it."""

    slug: str
    display: str
    about: dict[str, str]


def shard_name(number: int) -> str:
    """Returns the key of a shard below the data set's folder."""
    return f"{SHARDS}/{number:05d}.bin"


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's content as hex digits."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise storage_error("read", path, error) from error


def dataset_digest(classes: Iterable[str], rows: Iterable[tuple[str, int, int]]) -> str:
    """Returns the name of a data set by content: its class slugs and, in order, each picture's
    (SHA-256 of the stored bytes, label, split). Where it lies and when it was made do not count."""
    digest = hashlib.sha256(json.dumps([FORMAT, list(classes)], ensure_ascii=False).encode())
    for sha, label, split in rows:
        digest.update(f"{sha} {label} {split}\n".encode())
    return digest.hexdigest()


SHARD_BYTES = 64 * 2**20
"""A shard is closed once it is this long: large enough for steady reading, small enough to fetch in a second."""


class ShardWriter:
    """Appends records to shards; continues after the last one that is known to be whole.

    Args:
        folder: the data set's folder.
        shard: the shard to go on with, and ``offset`` its sound length; what lies behind is cut off.
    """

    def __init__(self, folder: Path, shard: int = 0, offset: int = 0) -> None:
        self._folder = folder
        self.shard, self.offset = shard, offset
        number = shard + 1
        while (later := folder / shard_name(number)).exists():
            later.unlink()
            number += 1
        self._file = self._open()

    def append(self, content: bytes) -> tuple[int, int]:
        """Writes a record and returns its (shard, offset)."""
        if self.offset >= SHARD_BYTES:
            self.close()
            self.shard, self.offset = self.shard + 1, 0
            self._file = self._open()
        place = (self.shard, self.offset)
        try:
            self._file.write(content)
        except OSError as error:
            raise storage_error("write", self._folder / shard_name(self.shard), error) from error
        self.offset += len(content)
        return place

    def sync(self) -> None:
        """Forces all that was appended to the disk."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise storage_error("write", self._folder / shard_name(self.shard), error) from error

    def close(self) -> None:
        """Forces all to the disk and closes the shard."""
        try:
            self.sync()
        finally:
            with contextlib.suppress(OSError):  # told by sync already: the same bytes cannot be written
                self._file.close()

    def _open(self) -> BufferedRandom:
        path = self._folder / shard_name(self.shard)
        make_folder(path.parent)
        try:
            path.touch()
            file = path.open("r+b")
            sync_folder(path.parent)
            found = file.seek(0, os.SEEK_END)
            if found < self.offset:
                raise StorageError(f"{path}: expected at least {self.offset:,} bytes, found {found:,}.")
            file.truncate(self.offset)
            file.seek(self.offset)
        except OSError as error:
            raise storage_error("open", path, error) from error
        return file


class Fetch(Protocol):
    """What brings a file of a data set, by its name, from where the set is kept."""

    def __call__(self, name: str, *, again: bool = False) -> None:
        """Brings it if it is not there yet, or (``again``) if what is there is not as it should be."""


class Dataset:
    """A prepared data set, open for reading; safe to share between threads.

    Attributes:
        folder: where it lies, or arrives.
        place: where it can be opened again, also by others: the folder, or the s3:// URI it came from.
        manifest: the whole manifest.json.
        classes: in label order.
        index: (N,) INDEX_DTYPE, memory-mapped.
    """

    def __init__(
        self,
        folder: Path,
        manifest: dict[str, Any],
        index: Index,
        fetch: Fetch | None = None,
        place: str = "",
    ) -> None:
        self.folder = folder
        self.place = place or str(folder.absolute())
        self.manifest = manifest
        self.index = index
        self._fetch = fetch
        self.classes = [ClassInfo(c["slug"], c["display"], c.get("about") or {}) for c in manifest["classes"]]

    @classmethod
    def open(cls, folder: Path, fetch: Fetch | None = None, place: str = "") -> Dataset:
        """Opens a prepared data set and checks that its parts belong together.

        Args:
            folder: where it lies.
            fetch: brings a shard, by its name, if it is not there yet; without it all must be there.
            place: the s3:// URI that it is fetched from.

        Raises:
            ConfigError: if the folder holds no prepared data set, or one of another format.
            StorageError: if a part is missing or has another size than the manifest says.
        """
        manifest = read_manifest(folder)
        for name, expected in manifest.get("files", {}).items():
            path = folder / name
            if file_sha256(path) == expected["sha256"]:
                continue
            if fetch is not None:
                fetch(name, again=True)  # damaged here; where it comes from it is sound
            if fetch is None or file_sha256(path) != expected["sha256"]:
                raise StorageError(f"{path}: not as prepare wrote it. Run prepare again.")
        try:
            index = np.load(folder / INDEX, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise StorageError(f"{folder / INDEX}: not readable ({error}). Run prepare again.") from error
        if index.dtype != INDEX_DTYPE or len(index) != manifest["counts"]["used"]:
            raise StorageError(f"{folder / INDEX}: does not belong to {MANIFEST}. Run prepare again.")
        for shard in manifest["shards"]:
            path = folder / shard["name"]
            size = path.stat().st_size if path.is_file() else None
            if fetch is not None:  # whoever reads it fetches it, also where it is damaged
                continue
            if size != shard["bytes"]:
                raise StorageError(
                    f"{path}: expected {shard['bytes']:,} bytes, found "
                    f"{'no file' if size is None else f'{size:,}'}. Run prepare again."
                )
        return cls(folder, manifest, index, fetch, place)

    def summary(self) -> str:
        """Returns how much there is of what: ``7,100 pictures of 50 classes``."""
        return f"{len(self):,} pictures of {len(self.classes)} classes"

    @property
    def digest(self) -> str:
        """The data set's name by content."""
        return str(self.manifest["digest"])

    def __len__(self) -> int:
        return len(self.index)

    def read(self, record: int) -> bytes:
        """Returns the encoded picture of a record.

        Raises:
            StorageError: if its bytes are not those that prepare wrote.
        """
        row = self.index[record]
        content = self._read(row)
        if content is None and self._fetch is not None:  # damaged on this machine: where it comes from it is sound
            self._fetch(shard_name(int(row["shard"])), again=True)
            content = self._read(row)
        if content is None:
            raise StorageError(
                f"{self.folder / shard_name(int(row['shard']))}: record {record} is damaged "
                f"(at byte {int(row['offset']):,}). Run prepare again."
            )
        return content

    def _read(self, row: Any) -> bytes | None:
        """Returns the bytes of a row of the index, None if they are damaged."""
        size, shard = int(row["size"]), int(row["shard"])
        try:
            descriptor = self._open_shard(shard)
            try:
                content = os.pread(descriptor, size, int(row["offset"]))
            finally:
                os.close(descriptor)
        except OSError as error:
            raise storage_error("read", self.folder / shard_name(shard), error) from error
        return content if len(content) == size and zlib.crc32(content) == row["crc"] else None

    def _open_shard(self, shard: int) -> int:
        """Returns a descriptor, opened for each read: a few microseconds, and no limit on how many shards there are."""
        path = self.folder / shard_name(shard)
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            if self._fetch is None:
                raise
            self._fetch(shard_name(shard))
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def fetch_all(self) -> None:
        """Brings every shard that is not here yet. Raises StorageError if one cannot be had."""
        if self._fetch is not None:
            for shard in self.manifest["shards"]:
                self._fetch(shard["name"])

    def select(self, split: str, labels: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.int64]:
        """Returns the record numbers of a split, those of the given labels only if labels are given, in order."""
        chosen = np.asarray(self.index["split"] == SPLITS.index(split))
        if labels is not None:
            chosen &= np.isin(self.index["label"], labels)
        return np.flatnonzero(chosen)

    def pictures(self) -> Iterator[dict[str, str]]:
        """Yields the rows of pictures.csv, in record order."""
        with open(self.folder / PICTURES, newline="", encoding="utf-8", errors="surrogateescape") as file:
            yield from csv.DictReader(file)

    def names(self, records: npt.NDArray[np.int64]) -> list[str]:
        """Returns the source names of some records, in the order asked."""
        wanted = set(records.tolist())
        found = {i: row["name"] for i, row in enumerate(self.pictures()) if i in wanted}
        return [found[record] for record in records.tolist()]


def is_dataset(folder: Path) -> bool:
    """Says whether a folder holds a prepared data set (a manifest of ours), not raw pictures."""
    try:
        read_manifest(folder)
    except (ConfigError, StorageError):
        return False
    return True


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns the manifest of a prepared data set without opening the rest.

    Raises:
        ConfigError: if there is none, or it is of another format.
        StorageError: if it cannot be read.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(
            f"{folder}: no prepared data set here (no {MANIFEST}). "
            f"Make one with: python -m artclf.prepare SOURCE --out {folder}"
        ) from None
    except OSError as error:
        raise storage_error("read", path, error) from error
    except ValueError as error:
        raise ConfigError(f"{path}: not readable as JSON: {error}.") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise ConfigError(f"{path}: expected a manifest of format {FORMAT}, received {found!r}.")
    lacking = [part for part in ("classes", "counts", "digest", "shards") if part not in manifest]
    if lacking:
        raise StorageError(f"{path}: lacks {', '.join(lacking)}. Run prepare again.")
    if not _is_whole(manifest):
        raise StorageError(f"{path}: a value in it is of the wrong kind. Run prepare again.")
    return dict(manifest)


def _is_whole(manifest: dict[str, Any]) -> bool:
    """Says whether all that is read of a manifest is of its kind."""
    counts, classes, shards, files = (manifest.get(part, {}) for part in ("counts", "classes", "shards", "files"))
    return (
        isinstance(manifest["digest"], str)
        and isinstance(counts, dict)
        and _is_count(counts.get("used"))
        and isinstance(classes, list)
        and all(_has(c, slug=str, display=str) and isinstance(c.get("about") or {}, dict) for c in classes)
        and isinstance(shards, list)
        and all(_has(shard, name=str, sha256=str) and _is_count(shard.get("bytes")) for shard in shards)
        and isinstance(files, dict)
        and all(_has(about, sha256=str) for about in files.values())
    )


def _has(value: Any, **kinds: type) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), kind) for name, kind in kinds.items())


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
