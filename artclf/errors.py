"""Every error a user can meet, one class for each thing a caller does differently about it.

    ArtclfError            exit 1   anything else we can put into words
    ├── ConfigError        exit 2   mend the input; nothing was started
    ├── ResumeError        exit 3   what is on disk cannot be continued as asked
    ├── CapacityError      exit 4   wait, or ask for a higher quota
    ├── StorageError       exit 5   a disk or bucket refused; what was committed stays sound
    ├── DivergedError      exit 6   the loss is not finite
    ├── HungError          exit 7   no step ended for far too long
    └── Interrupted        exit 75  stopped as asked; start again and it goes on from what is committed

A message is one or two sentences: where, what was expected, what came, what to do.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterable


class ArtclfError(Exception):
    """Base of all errors that are reported without a traceback."""

    exit_code = 1


class ConfigError(ArtclfError):
    """The input is wrong; nothing was started."""

    exit_code = 2


class ResumeError(ArtclfError):
    """A run cannot be continued as asked."""

    exit_code = 3


class CapacityError(ArtclfError):
    """No machine or quota is free at present."""

    exit_code = 4


class StorageError(ArtclfError):
    """A file or object could not be read or written."""

    exit_code = 5


class DivergedError(ArtclfError):
    """The loss is no longer a finite number."""

    exit_code = 6


class HungError(ArtclfError):
    """A step did not end in many times its usual duration."""

    exit_code = 7


class Interrupted(ArtclfError):
    """The run was asked to stop, and did; what is committed stands."""

    exit_code = 75


DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


def storage_error(
    action: str, path: os.PathLike[str] | str, cause: OSError, size_bytes: int | None = None
) -> StorageError:
    """Returns the StorageError that says which path the system refused and why.

    Args:
        action: what was tried, as in "cannot write".
        path: what it was tried on.
        cause: the system's refusal.
        size_bytes: how much should have been written there, if that is known.
    """
    figures = [f"{size_bytes:,} bytes are needed"] if size_bytes is not None else []
    if cause.errno in (errno.ENOSPC, errno.EDQUOT):
        free = _free_bytes(os.fspath(path))
        figures += [f"{free:,} are free"] if free is not None else []
    told = f" ({', '.join(figures)})" if figures else ""
    return StorageError(f"{os.fspath(path)}: cannot {action}: {cause.strerror or cause}{told}.")


def _free_bytes(path: str) -> int | None:
    """Returns what is free on the disk of a path or of the nearest folder above it that exists."""
    while not os.path.exists(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    try:
        return shutil.disk_usage(path or ".").free
    except OSError:
        return None


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns `` Did you mean X?`` for the closest known name, or an empty string."""
    import difflib

    names = list(known)
    close = [full for full in names if full.endswith(f".{name}")] or difflib.get_close_matches(name, names, 1, 0.6)
    return f" Did you mean {close[0]}?" if close else ""


def without_login(text: str) -> str:
    """Returns the text without what may be a login in its URLs: all from :// to the last @ of a word."""
    return re.sub(r"://\S*@", "://…@", text)


def printable(text: str) -> str:
    """Returns the text with undecodable bytes and control characters but newlines shown escaped."""
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
