"""Where pictures come from: folders, zip archives (one inside another on request), CSVs of labels, Kaggle.

A source lists what it holds without reading it and gives the bytes of one entry when asked. What can
be judged by name or kind alone (system files, links, devices, sizes) is judged here; whether bytes
are a picture is for artclf.images, and which class a path means for artclf.layout.
"""

from __future__ import annotations

import importlib
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, Protocol

from artclf.archives import is_zip, open_zip
from artclf.errors import ConfigError, storage_error
from artclf.names import from_bytes, shown, to_bytes
from artclf.records import is_dataset
from artclf.storage import local_path

Kind = Literal["picture", "ignored", "empty folder", "zip"]

KAGGLE = "kaggle:"
JUNK = frozenset({"__MACOSX", "Thumbs.db", "ehthumbs.db", "desktop.ini", "@eaDir", "$RECYCLE.BIN", "Icon\r"})
"""Names that systems leave behind; so are those with a leading dot (.DS_Store, ._x.jpg, .ipynb_checkpoints)."""
OTHER_FILES = frozenset(
    f".{suffix}"
    for group in (
        ("txt", "csv", "tsv", "json", "jsonl", "xml", "htm", "html", "md", "rst", "yaml", "yml", "toml", "ini", "cfg"),
        ("log", "py", "ipynb", "r", "js", "css", "sh", "bat", "pdf", "svg", "psd", "ai", "eps", "doc", "docx", "xls"),
        ("xlsx", "odt", "ods", "db", "sqlite", "npy", "npz", "pkl", "pickle", "pt", "h5", "hdf5", "keras", "parquet"),
        ("tar", "tgz", "gz", "bz2", "xz", "7z", "rar", "mp3", "mp4", "avi", "mov", "mkv", "webm", "wav", "url", "lnk"),
    )
    for suffix in group
)
"""Suffixes of files that claim to be no picture: counted as ignored, never opened. All else is tried."""


class CannotRead(Exception):
    """An entry's bytes cannot be had; ``reason`` says why in a few words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Entry:
    """One thing that a source lists.

    Attributes:
        name: its path in the source, ``/`` between the parts, undecodable bytes as surrogate escapes.
        size: bytes.
        stamp: changes when the content does (time of change, or a zip's CRC).
        problem: why it is to be skipped unread, or empty.
    """

    name: str
    size: int
    stamp: int
    kind: Kind
    problem: str = ""


class Source(Protocol):
    """One place that pictures come from; safe to read from several threads."""

    label: str

    def entries(self) -> Iterator[Entry]:
        """Yields what is there, in no particular order."""

    def read(self, name: str, limit: int) -> bytes:
        """Returns the content of an entry, at most ``limit`` bytes and one. Raises CannotRead."""

    def open_zip(self, name: str, scratch: Path) -> ZipSource:
        """Returns an archive that lies in this source. Raises ConfigError if it is not acceptable."""

    def close(self) -> None:
        """Frees what it holds."""


class FolderSource:
    """A folder of this machine with all below it; links are followed only to files inside it."""

    def __init__(self, root: Path, label: str) -> None:
        self.root = root.resolve()
        self.label = label

    def entries(self) -> Iterator[Entry]:
        pending = [("", False)]
        while pending:
            folder, junk = pending.pop()
            empty = True
            for item in self._scan(folder):
                part = from_bytes(item.name)
                name = f"{folder}{part}"
                is_junk = junk or _is_junk(part)
                empty = empty and is_junk
                if item.is_dir(follow_symlinks=False):
                    pending.append((f"{name}/", is_junk))
                else:
                    yield self._entry(item, name, is_junk)
            if empty and folder and not junk:
                yield Entry(folder.rstrip("/"), 0, 0, "empty folder")

    def _scan(self, folder: str) -> Iterator[os.DirEntry[bytes]]:
        path = self._path(folder)
        try:
            with os.scandir(path) as items:
                yield from items
        except OSError as error:
            raise storage_error("list", shown(from_bytes(path)), error) from error

    def _entry(self, item: os.DirEntry[bytes], name: str, junk: bool) -> Entry:
        if junk or _suffix(name) in OTHER_FILES:
            return Entry(name, 0, 0, "ignored")
        try:
            if item.is_symlink() and not os.path.realpath(item.path, strict=True).startswith(self._path("")):
                return Entry(name, 0, 0, "picture", "link out of the folder")
            status = item.stat()
        except OSError:  # a link to nothing or in a circle, or a file that went away in this instant
            return Entry(name, 0, 0, "picture", "link to nothing" if item.is_symlink() else "gone")
        if stat.S_ISDIR(status.st_mode):
            return Entry(name, 0, 0, "ignored")  # a link to a folder inside: its files are read where they lie
        if not stat.S_ISREG(status.st_mode):
            return Entry(name, 0, 0, "picture", "not a regular file")
        kind: Kind = "zip" if _suffix(name) == ".zip" else "picture"
        return Entry(name, status.st_size, status.st_mtime_ns, kind)

    def read(self, name: str, limit: int) -> bytes:
        try:
            with open(self._path(name), "rb") as file:
                return file.read(limit + 1)
        except FileNotFoundError:
            raise CannotRead("gone since it was listed") from None
        except OSError as error:
            raise CannotRead(f"cannot be read ({error.strerror})") from error

    def open_zip(self, name: str, scratch: Path) -> ZipSource:
        return ZipSource(open_file(Path(os.fsdecode(self._path(name)))), f"{self.label}/{name}")

    def _path(self, name: str) -> bytes:
        return os.path.join(os.fsencode(self.root), to_bytes(name))  # bytes: file names do not depend on the locale

    def close(self) -> None:
        pass


class ZipSource:
    """A zip archive, read in place."""

    def __init__(self, file: IO[bytes], label: str, depth: int = 0) -> None:
        self.label = label
        self._depth = depth
        self._file = file
        try:
            self._archive = open_zip(file, shown(label))
        except BaseException:
            file.close()
            raise

    def entries(self) -> Iterator[Entry]:
        names = self._archive.namelist()
        parents = {
            name.rstrip("/").rpartition("/")[0] for name in names if not _is_junk(name.rstrip("/").split("/")[-1])
        }
        for info in self._archive.infolist():
            name = info.filename
            junk = any(_is_junk(part) for part in name.split("/"))
            if info.is_dir():
                if not junk and name.rstrip("/") not in parents:
                    yield Entry(name.rstrip("/"), 0, 0, "empty folder")
            elif junk or _suffix(name) in OTHER_FILES:
                yield Entry(name, 0, 0, "ignored")
            else:
                yield Entry(name, info.file_size, info.CRC, "zip" if _suffix(name) == ".zip" else "picture")

    def read(self, name: str, limit: int) -> bytes:
        try:
            with self._archive.open(name) as file:
                return file.read(limit + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
            raise CannotRead(f"damaged in the archive ({error})") from error
        except OSError as error:
            raise CannotRead(f"cannot be read ({error.strerror})") from error

    def open_zip(self, name: str, scratch: Path) -> ZipSource:
        where = f"{self.label}/{name}"
        if self._depth > 0:
            raise ConfigError(f"{shown(where)}: a zip in a zip in a zip is not read. Unpack the outer one.")
        # a copy without a name: an archive must be read at any place, which a packed entry cannot be
        copy = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 - closed by the source that owns it
        try:
            with self._archive.open(name) as packed:
                shutil.copyfileobj(packed, copy, 2**20)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            copy.close()
            raise ConfigError(f"{shown(where)}: damaged: {error}. Download it again.") from error
        return ZipSource(copy, where, self._depth + 1)

    def close(self) -> None:
        self._archive.close()
        self._file.close()


class Sources:
    """All sources of a data set, in the order named; archives found inside them come behind.

    Args:
        names: folders, zip archives, CSVs of labels, or ``kaggle:owner/name``.
        nested_zips: read archives inside (True), leave them (False), or stop and ask (None).
        scratch: a folder for unnamed temporary copies of archives inside archives.
    """

    def __init__(self, names: Sequence[str], nested_zips: bool | None, scratch: Path) -> None:
        if not names:
            raise ConfigError("expected at least one source of pictures, received none.")
        self._scratch = scratch
        self._nested_zips = nested_zips
        self._inner: dict[tuple[int, str], int] = {}
        self.tables: dict[int, Path] = {}
        self._sources: list[Source] = []
        try:
            for name in names:
                self._add(name)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._sources)

    def __enter__(self) -> Sources:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes all sources."""
        for source in self._sources:
            source.close()

    def _add(self, name: str) -> None:
        path = _locate(name)
        if path.suffix.casefold() == ".csv" and path.is_file():
            self.tables[len(self)] = path
            path = path.parent
        self._sources.append(_open(path, name, self._free_label(path)))

    @property
    def labels(self) -> list[str]:
        """What each source is called: the last part of its path."""
        return [source.label for source in self._sources]

    def arrange(self, labels: list[str]) -> None:
        """Puts the sources in the order of these labels: archives inside are found in the order of a disk's listing."""
        self._sources.sort(key=lambda source: labels.index(source.label))

    @property
    def folders(self) -> list[Path]:
        """The folders among the sources."""
        return [source.root for source in self._sources if isinstance(source, FolderSource)]

    def entries(self) -> Iterator[tuple[int, Entry]]:
        """Yields (place of the source, entry) of all sources, and of archives inside them if so asked.

        Raises:
            ConfigError: for an archive inside, if it was not said what to do with it, or it is refused.
        """
        place = 0
        while place < len(self._sources):
            for entry in self._sources[place].entries():
                yield place, self._resolve_zip(place, entry) if entry.kind == "zip" else entry
            place += 1

    def _resolve_zip(self, place: int, entry: Entry) -> Entry:
        if self._nested_zips is None:
            raise ConfigError(
                f"{shown(self._sources[place].label)}: holds the archive {shown(entry.name)!r}. "
                "Add --nested-zips to read it too, or --no-nested-zips to leave it."
            )
        if self._nested_zips and (place, entry.name) not in self._inner:
            self._inner[place, entry.name] = len(self._sources)
            self._sources.append(self._sources[place].open_zip(entry.name, self._scratch))
        return Entry(entry.name, entry.size, entry.stamp, "ignored")

    def read(self, place: int, name: str, limit: int) -> bytes:
        """Returns the content of an entry, at most ``limit`` bytes and one. Raises CannotRead."""
        return self._sources[place].read(name, limit)

    def full_name(self, place: int, name: str) -> str:
        """Returns what a data set calls a picture: its path, below its source's name if there are several."""
        return name if len(self._sources) == 1 else f"{self._sources[place].label}/{name}"

    def _free_label(self, path: Path) -> str:
        wanted = path.name or "pictures"
        taken = set(self.labels)
        return next(
            label for number in range(1, len(taken) + 2)
            if (label := wanted if number == 1 else f"{wanted}-{number}") not in taken
        )  # fmt: skip


def _locate(name: str) -> Path:
    if name.startswith(KAGGLE):
        return _download_from_kaggle(name.removeprefix(KAGGLE))
    if not name:
        raise ConfigError("expected a folder, zip or CSV of pictures, received an empty name.")
    path = local_path(name)
    if not os.path.lexists(path):
        raise ConfigError(f"{shown(name)}: no such folder, zip or CSV.")
    return path


def _open(path: Path, name: str, label: str) -> Source:
    if path.is_dir():
        if is_dataset(path):
            raise ConfigError(f"{shown(name)}: is a prepared data set already; name the pictures it was made from.")
        return FolderSource(path, label)
    if not path.is_file() or not is_zip(path):
        hint = " Unpack it and name the folder." if {".tar", ".tgz", ".rar", ".7z", ".gz"} & set(path.suffixes) else ""
        raise ConfigError(f"{shown(name)}: expected a folder, a zip or a CSV of labels, received another file.{hint}")
    return ZipSource(open_file(path), label)


def open_file(path: Path) -> IO[bytes]:
    """Returns a file opened for reading. Raises StorageError."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise storage_error("read", shown(str(path)), error) from error


def _download_from_kaggle(handle: str) -> Path:
    try:
        kagglehub = importlib.import_module("kagglehub")
    except ImportError:
        raise ConfigError(
            f"{KAGGLE}{handle}: needs Kaggle's own client. Install it with: pip install kagglehub"
        ) from None
    try:
        return Path(kagglehub.dataset_download(handle))
    except Exception as error:  # the client has no error class of its own: network, login, unknown name
        raise ConfigError(f"{KAGGLE}{handle}: not downloaded: {error}") from error


def _is_junk(part: str) -> bool:
    return part in JUNK or part.startswith(".")


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].casefold()
