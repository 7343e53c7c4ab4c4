"""Reading and writing below one root: a folder here; artclf.s3 has the same for an s3:// prefix.

Keys are relative, with ``/`` between parts. A write is atomic and durable: readers see the old
bytes or the new ones, also after a power cut. ``create`` succeeds for exactly one of any number
of writers, which is what records that two submitters could race for are built on.
"""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from artclf.errors import ConfigError, StorageError, storage_error, without_login

TEMPORARY = ".tmp-"
"""Names that begin so are unfinished; every reader passes over them, and anyone may remove old ones."""


MARKERS = (".sagemaker-uploading", ".sagemaker-uploaded", ".sagemaker-ignore")
"""What SageMaker's agent leaves beside files ends so (CONTRACTS §4; amazon-sagemaker-examples, issue 1518)."""


class Storage(Protocol):
    """What artclf asks of a place that keeps files."""

    uri: str

    def read(self, key: str) -> bytes:
        """Returns the content. Raises FileNotFoundError, or StorageError if it cannot be read."""

    def write(self, key: str, content: bytes) -> None:
        """Replaces the content in one step."""

    def create(self, key: str, content: bytes) -> bool:
        """Writes the content if the key is free, and says whether it was."""

    def delete(self, key: str) -> None:
        """Removes a key; one that is not there is no error."""

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yields the keys below a prefix (a whole folder name or nothing), in order."""


def is_in_bucket(uri: str) -> bool:
    """Says whether a name means something in a bucket."""
    return uri.startswith("s3://")


def local_path(uri: str | os.PathLike[str]) -> Path:
    """Returns the absolute folder that a path or file:// URI names; ``~`` stays a literal name.

    Raises:
        ConfigError: if the URI names no folder of this machine.
    """
    text = os.fspath(uri)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Path(text).absolute()
    if scheme == "file" and rest.startswith("/"):
        return Path(rest).absolute()
    raise ConfigError(f"{without_login(text)}: expected a folder of this machine, received {scheme}://.")


def check_key(key: str) -> None:
    """Refuses a key that could lead out of its root or mean two things.

    Raises:
        ConfigError: if it has empty, ``.`` or ``..`` parts or a zero byte.
    """
    if "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
        raise ConfigError(f"{key!r}: expected a relative key without empty, '.' or '..' parts.")


class LocalStorage:
    """A folder of this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = str(root)

    def path(self, key: str) -> Path:
        """Returns the file behind a key, which can never lie outside the root."""
        check_key(key)
        return self.root.joinpath(*key.split("/"))

    def read(self, key: str) -> bytes:
        path = self.path(key)
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise storage_error("read", path, error) from error

    def write(self, key: str, content: bytes) -> None:
        with atomic_file(self.path(key)) as temporary:
            temporary.write_bytes(content)

    def create(self, key: str, content: bytes) -> bool:
        path = self.path(key)
        make_folder(path.parent)
        temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(6)}")
        try:
            temporary.write_bytes(content)
            sync_file(temporary)
            os.link(temporary, path)  # fails if the name is taken, for all but one of any number of racers
            sync_folder(path.parent)
            return True
        except FileExistsError:
            return False
        except OSError as error:
            raise storage_error("create", path, error) from error
        finally:
            temporary.unlink(missing_ok=True)

    def delete(self, key: str) -> None:
        path = self.path(key)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error("remove", path, error) from error

    def list(self, prefix: str = "") -> Iterator[str]:
        start = self.path(prefix) if prefix else self.root
        for folder, subfolders, names in os.walk(start):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith(TEMPORARY))
            for name in sorted(names):
                if not name.startswith(TEMPORARY):
                    yield os.path.relpath(os.path.join(folder, name), self.root).replace(os.sep, "/")


@contextmanager
def atomic_file(path: Path, size_bytes: int | None = None) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; when the block ends well it is made durable and takes the name.
    ``size_bytes``, about what goes into it, is told if the disk refuses.

    Raises:
        StorageError: naming the path, if the disk refuses.
    """
    make_folder(path.parent)
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(6)}{path.suffix}")
    try:
        yield temporary
        sync_file(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise storage_error("write", path, error, size_bytes) from error
    finally:
        with suppress(OSError):  # of a disk that refused before: what it said then is what counts
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, size_bytes: int | None = None) -> Iterator[Path]:
    """Yields a temporary folder beside ``path``; when the block ends well its files are made durable
    and it takes the name. What stood there before is moved aside just before and then removed: a reader
    meets the old folder, the new one or, for an instant, none; never a mixture. ``size_bytes``, about what
    goes into it, is told if the disk refuses.

    Raises:
        StorageError: naming the path, if the disk refuses.
    """
    make_folder(path.parent)
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(6)}")
    try:
        temporary.mkdir()
        yield temporary
        for file in sorted(temporary.rglob("*")):
            sync_file(file)
        sync_folder(temporary)
        if path.exists():
            replaced = path.with_name(f"{TEMPORARY}{secrets.token_hex(6)}")
            os.rename(path, replaced)
            os.rename(temporary, path)
            shutil.rmtree(replaced)
        else:
            os.rename(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise storage_error("write", path, error, size_bytes) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_folder(path: Path) -> None:
    """Makes a folder and those above it.

    Raises:
        StorageError: if it cannot, or a file has that name.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            sync_folder(folder.parent)
    except OSError as error:
        raise storage_error("make the folder", path, error) from error


def free_path(path: Path) -> Path:
    """Returns the path, or the first of path-1, path-2, … where nothing stands yet."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(1))
    return next(free for free in itertools.chain([path], numbered) if not os.path.lexists(free))


def check_writable(path: Path) -> None:
    """Proves that files can be made in a folder, before hours of work are spent on what goes there.

    Raises:
        ConfigError: if the path is a file.
        StorageError: if the folder cannot be made or written.
    """
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path}: expected a folder to write to, received a file.")
    make_folder(path)
    probe = path / f"{TEMPORARY}{secrets.token_hex(6)}"
    try:
        probe.write_bytes(b"x" * 4096)
        sync_file(probe)
    except OSError as error:
        raise storage_error("write to", path, error) from error
    finally:
        probe.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Forces a file's or folder's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Forces a folder's names to the disk, where the file system can do that."""
    try:
        sync_file(path)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


__all__ = [
    "LocalStorage",
    "Storage",
    "StorageError",
    "atomic_file",
    "atomic_folder",
    "check_key",
    "check_writable",
    "free_path",
    "is_in_bucket",
    "local_path",
    "make_folder",
    "sync_file",
    "sync_folder",
]
