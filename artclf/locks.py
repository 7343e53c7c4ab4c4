"""Locks between processes of one machine. The lock of a dead process is free by itself."""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from artclf.errors import ConfigError, storage_error
from artclf.storage import make_folder

TOLD_AFTER_S = 30.0
"""After so long it is said which lock is waited for."""


def is_held(lock: Path) -> bool:
    """Says whether a living process holds a lock file."""
    try:
        descriptor = os.open(lock, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise storage_error("open", lock, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


def holder(lock: Path) -> int | None:
    """Returns the id of the process that holds a lock file, or None."""
    if not is_held(lock):
        return None
    try:
        process = int(lock.read_text())
    except (OSError, ValueError):
        return None  # it was released, or is being taken, in this instant
    return process if process > 1 else None  # nobody may signal all processes, or the first one


@contextmanager
def exclusive(lock: Path, problem: str, *, remove: bool = False) -> Iterator[Callable[[], bool]]:
    """Holds a lock file for this process; ``remove`` takes the file away at the end. Yields what says whether
    the lock still stands at its name, or somebody removed it and another process may hold a new one.

    Raises:
        ConfigError: ``problem`` with the holder's process id, if another process holds it.
    """
    with _opened(lock) as descriptor:
        try:
            _take(descriptor)
        except BlockingIOError:
            other = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise ConfigError(f"{problem} (process {other}). Wait for it, or stop it first.") from None
        if not _is_at(descriptor, lock):  # its last holder removed it between our opening and taking it
            raise ConfigError(f"{problem}, or just was. Start again.")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        try:
            yield lambda: _is_at(descriptor, lock)
        finally:
            os.ftruncate(descriptor, 0)  # nobody signals this process as the holder any more
            if remove:
                lock.unlink(missing_ok=True)  # while it is held: nobody can take what is no longer at its name


@contextmanager
def _opened(lock: Path) -> Iterator[int]:
    make_folder(lock.parent)
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise storage_error("open", lock, error) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, lock: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(lock))
    except FileNotFoundError:
        return False


@contextmanager
def turn(lock: Path) -> Iterator[None]:
    """Holds a lock file for this process, after waiting for whoever holds it now."""
    with _opened(lock) as descriptor:
        try:
            _take(descriptor, TOLD_AFTER_S)
        except BlockingIOError:
            print(f"waiting for another process to let go of {lock}", file=sys.stderr, flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def _take(descriptor: int, seconds: float = 1.0) -> None:
    """Takes the lock; tries for a while, since another process's is_held has it for an instant."""
    until, pause_s = time.monotonic() + seconds, 0.001
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= until:
                raise
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, 0.05)
