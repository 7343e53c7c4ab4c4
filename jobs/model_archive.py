"""model.tar.gz, as a container leaves it: nothing in it is believed before it was looked at."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from artclf.errors import storage_error
from artclf.rundir import RunDir, read_json, write_json
from artclf.storage import make_folder, sync_folder
from jobs.spec import BackendError

MAX_ENTRIES, MAX_UNPACKED_BYTES = 1000, 8 * 2**30
"""Of a model.tar.gz: what a run leaves are a dozen files, and the largest backbones here take 600 MB."""
FREE_BYTES, MAX_RATIO = 256 * 2**20, 200  # as for zip archives of pictures (artclf.archives)
_LEFT = re.compile(r"(status|model|environment)\.json|metrics\.jsonl|model\.keras|log\.txt|evaluation(/[a-z]\w*\.\w+)?")


def take_model(archive: Path, aside: Path, run: RunDir) -> None:
    """Puts what a finished run left into its directory, status.json last. Nothing changes if it is not sound.

    Args:
        aside: an empty folder to unpack into, on the disk of the run directory.

    Raises:
        BackendError: if the archive is not sound, or not what a finished run leaves.
    """
    unpack(archive, aside)
    left = RunDir(aside)
    status = left.known_status()
    if status is None or status.state != "done" or not left.is_complete():
        raise BackendError(
            f"{archive.name}: lacks files of a finished run: the image is older than this version. Run make image."
        )
    model = read_json(left.model_json)
    model["settings"] = run.read_config().model_dump(mode="json")  # a file of weights lies elsewhere in the container
    write_json(left.model_json, model)
    shutil.rmtree(run.evaluation, ignore_errors=True)
    for path in sorted(aside.iterdir(), key=lambda path: path == left.status):
        os.replace(path, run.path / path.name)
    sync_folder(run.path)


def unpack(archive: Path, target: Path) -> None:
    """Unpacks a model.tar.gz that holds nothing but what a run leaves.

    Raises:
        BackendError: naming the entry and what is wrong with it; nothing of the archive is to be used then.
    """
    make_folder(target / "evaluation")
    try:
        with open(archive, "rb") as file:
            content: Any = _Unpacked(file, archive)
            with tarfile.open(fileobj=content, mode="r|") as members:
                for member in _sound_members(members, archive):
                    source = members.extractfile(member)
                    assert source is not None, "it is a regular file"
                    with open(target / member.name, "wb") as written:
                        shutil.copyfileobj(source, written)
                        os.fsync(written.fileno())
    except FileNotFoundError as error:
        raise BackendError(f"{archive.name}: the SDK left none.") from error
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError, OverflowError) as error:
        raise BackendError(f"{archive.name}: not readable as a tar.gz archive: {error}.") from error
    except OSError as error:
        raise storage_error("unpack to", target, error) from error


def _sound_members(members: tarfile.TarFile, archive: Path) -> Iterator[tarfile.TarInfo]:
    """Yields the regular files, each before it is read."""
    seen: set[str] = set()
    total = 0
    for member in members:
        total += member.size
        problem = _problem(member)
        if member.name in seen:
            problem = problem or "its name comes twice"
        elif len(seen) >= MAX_ENTRIES or total > MAX_UNPACKED_BYTES:
            problem = problem or f"more than {MAX_ENTRIES:,} entries or {MAX_UNPACKED_BYTES:,} bytes are not accepted"
        if problem:
            raise BackendError(f"{archive.name}: entry {member.name!r:.200}: {problem}. Nothing was taken from it.")
        seen.add(member.name)
        if member.isreg():
            yield member


def _problem(member: tarfile.TarInfo) -> str:
    if not (member.isdir() or member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)) or member.issparse():
        return "it is no regular file"
    if not _LEFT.fullmatch(member.name):
        return "a run leaves no file of that name"
    if member.isdir() != (member.name == "evaluation"):
        return "a run leaves no such folder"
    return ""


class _Unpacked:
    """The content of a gzip file; ends with an error where it can only be a bomb."""

    def __init__(self, file: IO[bytes], archive: Path) -> None:
        self._archive = archive
        self._packed = os.fstat(file.fileno()).st_size
        self._content = gzip.GzipFile(fileobj=file)
        self._count = 0

    def read(self, size: int) -> bytes:
        """Returns the next bytes."""
        block = self._content.read(size)
        self._count += len(block)
        if self._count > max(FREE_BYTES, MAX_RATIO * self._packed):
            raise BackendError(
                f"{self._archive.name}: refused: {self._packed:,} bytes would unpack to more than "
                f"{MAX_RATIO} times as many."
            )
        return block
