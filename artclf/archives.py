"""Zip archives from strangers: judged whole before anything of them is read, never unpacked to named files.

An archive with one entry that no honest tool writes (a path out of the folder, a link, overlapping
entries, a size that can only be a bomb) is refused whole: nothing in it can be trusted then.
"""

from __future__ import annotations

import re
import stat
import struct
import zipfile
from pathlib import Path
from typing import IO

from artclf.errors import ConfigError
from artclf.names import shown

MAX_ENTRIES = 200_000
"""Most entries of one archive. zipfile keeps some 500 bytes for each; larger sets belong in folders or several zips."""
MAX_DIRECTORY_BYTES = 24 * 2**20
"""Largest central directory, for archives that lie about their number of entries: read in about a second."""
MAX_RATIO = 200
"""Largest ratio of unpacked to packed size of a whole archive above FREE_BYTES. Pictures are packed already
(ratio near 1); deflate ends at 1032 (zlib's technical notes), which is what bombs use."""
FREE_BYTES = 256 * 2**20
"""Unpacked size up to which no ratio is asked for: it cannot hurt."""
MAX_UNPACKED_BYTES = 2 * 2**40

_END = struct.Struct("<4s4H2LH")  # end of central directory: APPNOTE.TXT 4.3.16
_END64 = struct.Struct("<4sQ2H2L4Q")  # zip64 end of central directory: 4.3.14
_LOCATOR64 = struct.Struct("<4sLQL")  # 4.3.15
_LOCAL_HEADER_BYTES = 30  # 4.3.7
_DRIVE = re.compile(r"[A-Za-z]:")


def open_zip(file: IO[bytes], where: str) -> zipfile.ZipFile:
    """Returns an archive whose every entry was found harmless to read.

    Raises:
        ConfigError: naming the entry and what is wrong with it, or if it is no readable zip.
    """
    _check_directory(file, where)
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error, OSError) as error:
        raise ConfigError(f"{where}: not readable as a zip archive: {error}. Download it again.") from error
    _check_entries(archive.infolist(), where)
    return archive


def is_zip(path: Path) -> bool:
    """Says whether a file is a zip archive, or the beginning of one, by its content."""
    if zipfile.is_zipfile(path):
        return True
    with open(path, "rb") as file:
        return file.read(4) == b"PK\3\4"


def _check_directory(file: IO[bytes], where: str) -> None:
    """Refuses a directory that would cost much time or memory, from its last few bytes alone."""
    size = file.seek(0, 2)
    start = max(0, size - _END.size - 0xFFFF)
    file.seek(start)
    tail = file.read()
    place = tail.rfind(b"PK\5\6")
    if place < 0 or place + _END.size > len(tail):
        raise ConfigError(f"{where}: not readable as a zip archive: it ends too early. Download it again.")
    _, _, _, _, entries, directory_bytes, _, _ = _END.unpack_from(tail, place)
    if entries == 0xFFFF or directory_bytes == 0xFFFFFFFF:
        entries, directory_bytes = _zip64_sizes(file, start + place) or (entries, directory_bytes)
    if entries > MAX_ENTRIES or directory_bytes > MAX_DIRECTORY_BYTES:
        raise ConfigError(
            f"{where}: expected at most {MAX_ENTRIES:,} entries, found {entries:,} "
            f"in a directory of {directory_bytes:,} bytes. Unpack it and name the folder."
        )


def _zip64_sizes(file: IO[bytes], end: int) -> tuple[int, int] | None:
    if end < _LOCATOR64.size:
        return None
    file.seek(end - _LOCATOR64.size)
    signature, *_ = _LOCATOR64.unpack(file.read(_LOCATOR64.size))
    if signature != b"PK\6\7":
        return None
    # zipfile reads the record just before the locator, so that one is judged, whatever place the locator names
    before = end - _LOCATOR64.size - _END64.size
    if before < 0:
        return None
    file.seek(before)
    record = _END64.unpack(file.read(_END64.size))
    return (record[7], record[8]) if record[0] == b"PK\6\6" else None


def _check_entries(entries: list[zipfile.ZipInfo], where: str) -> None:
    if len(entries) > MAX_ENTRIES:
        raise ConfigError(f"{where}: expected at most {MAX_ENTRIES:,} entries, found {len(entries):,}.")
    seen: set[str] = set()
    for entry in entries:
        problem = _problem(entry) or ("its name comes twice" if entry.filename in seen else "")
        if problem:
            raise ConfigError(
                f"{where}: entry {shown(entry.orig_filename)!r:.200}: {problem}. Nothing was read from it."
            )
        seen.add(entry.filename)
    _check_sizes(entries, where)
    _check_overlaps(entries, where)


def _problem(entry: zipfile.ZipInfo) -> str:
    name = entry.orig_filename
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if entry.flag_bits & 0x1:
        return "it is encrypted; unpack the archive with its password and name the folder"
    if name.startswith("/") or "\\" in name or "\0" in name or _DRIVE.match(name) or ".." in name.split("/"):
        return "its path leaves the archive's own folder"
    if kind == stat.S_IFLNK:
        return "it is a symbolic link"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "it is no regular file"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "it is compressed in a way that is not read here (expected stored or deflated); pack it again"
    return ""


def _check_sizes(entries: list[zipfile.ZipInfo], where: str) -> None:
    packed = sum(entry.compress_size for entry in entries)
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > MAX_UNPACKED_BYTES or (unpacked > FREE_BYTES and unpacked > MAX_RATIO * packed):
        raise ConfigError(
            f"{where}: refused: {packed:,} bytes would unpack to {unpacked:,} "
            f"(at most {MAX_RATIO} times as many are accepted)."
        )


def _check_overlaps(entries: list[zipfile.ZipInfo], where: str) -> None:
    end, previous = 0, ""
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < end:
            raise ConfigError(
                f"{where}: entries {shown(previous)!r:.100} and {shown(entry.filename)!r:.100} overlap. "
                "Nothing was read from it."
            )
        end = entry.header_offset + _LOCAL_HEADER_BYTES + len(entry.orig_filename) + entry.compress_size
        previous = entry.filename
