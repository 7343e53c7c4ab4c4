"""Reading people's CSV files: labels of pictures, and what is known of the artists.

A file is read whole or refused with the number of the row (counting from 1, the header being row 1).
UTF-8 with or without a byte order mark is read, else Windows' western code page; quoted line breaks are kept.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from artclf.errors import ConfigError, nearest, storage_error
from artclf.names import fold, repair, shown

MAX_BYTES = 256 * 2**20
"""Longest CSV file: several million labels."""
ABOUT = ("years", "genre", "nationality")

_FILE_COLUMNS = ("file", "filename", "file_name", "path", "image", "picture")
_LABEL_COLUMNS = ("label", "class", "artist", "category", "name")


@dataclass(frozen=True)
class Artist:
    """One row of an artists' table."""

    name: str
    about: dict[str, str]


@dataclass(frozen=True)
class Label:
    """One row of a table of labels; ``file`` is a relative path with ``/`` between its parts."""

    file: str
    label: str
    row: int


def read_artists(content: bytes, where: str) -> list[Artist]:
    """Returns the artists of a CSV with a column ``name`` and any of ``years genre nationality``, in its order.

    Raises:
        ConfigError: naming the row, for a missing column, a ragged row, or an id or a name that comes twice.
    """
    header, rows = _parse(content, where)
    name_column = _column(header, ("name", "artist"), where)
    about = {title: header.index(title) for title in ABOUT if title in header}
    seen: dict[tuple[str, str], int] = {}
    artists = []
    for number, row in rows:
        name = row[name_column].strip()
        if not name:
            raise ConfigError(f"{where}: row {number}: expected a name, found an empty cell.")
        keys = [("name", fold(name) or name)]
        if "id" in header and row[header.index("id")].strip():
            keys.append(("id", row[header.index("id")].strip()))
        for key in keys:
            if key in seen:
                raise ConfigError(f"{where}: row {number}: the {key[0]} {key[1]!r} already stands in row {seen[key]}.")
            seen[key] = number
        artists.append(Artist(repair(name), {title: row[place].strip() for title, place in about.items()}))
    return artists


def read_labels(path: Path) -> Iterator[Label]:
    """Yields the rows of a CSV with a column for the file and one for its label.

    Raises:
        ConfigError: naming the row, for a missing column, a ragged row, an empty cell or a path that
            leaves the folder.
    """
    header, rows = _parse(read_table(path), path.name)
    file_column = _column(header, _FILE_COLUMNS, path.name)
    label_column = _column(header, _LABEL_COLUMNS, path.name)
    for number, row in rows:
        file, label = row[file_column].strip().replace("\\", "/"), row[label_column].strip()
        if not file or not label:
            raise ConfigError(f"{path.name}: row {number}: expected a file and a label, found an empty cell.")
        parts = file.split("/")
        if file.startswith("/") or ".." in parts or file[1:2] == ":":
            raise ConfigError(f"{path.name}: row {number}: expected a path below the pictures' folder, found {file!r}.")
        yield Label("/".join(part for part in parts if part not in ("", ".")), label, number)


def read_table(path: Path) -> bytes:
    """Returns the content of a CSV file.

    Raises:
        ConfigError: if it is not there or too long to be a table.
        StorageError: if it cannot be read.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: expected a CSV of at most {MAX_BYTES:,} bytes.")
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: expected a CSV file, found nothing there.") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: expected a CSV file, found a folder.") from None
    except OSError as error:
        raise storage_error("read", path, error) from error


def _parse(content: bytes, where: str) -> tuple[list[str], Iterable[tuple[int, list[str]]]]:
    text = _decode(content, where)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows = _numbered(reader, where)
    header = [title.strip().casefold() for title in next(rows, (0, []))[1]]
    if not header:
        raise ConfigError(f"{where}: expected a table with a header row, found an empty file.")
    return header, _complete(rows, len(header), where)


def _decode(content: bytes, where: str) -> str:
    if b"\0" in content[:4096]:
        raise ConfigError(f"{where}: expected a CSV in UTF-8, found binary content (UTF-16? Save it as UTF-8).")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace")


def _numbered(reader: Iterator[list[str]], where: str) -> Iterator[tuple[int, list[str]]]:
    number = 0
    while True:
        number += 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ConfigError(f"{where}: row {number}: not readable as CSV: {error}.") from error
        if any(cell.strip() for cell in row):
            yield number, row


def _complete(rows: Iterable[tuple[int, list[str]]], width: int, where: str) -> Iterator[tuple[int, list[str]]]:
    for number, row in rows:
        if len(row) != width:
            raise ConfigError(f"{where}: row {number}: expected {width} cells as in the header, found {len(row)}.")
        yield number, row


def _column(header: list[str], names: tuple[str, ...], where: str) -> int:
    for name in names:
        if name in header:
            return header.index(name)
    found = ", ".join(shown(title) for title in header)
    close = next((hint for title in header if (hint := nearest(title, names))), "")
    raise ConfigError(f"{where}: row 1: expected a column {names[0]!r}, found {found:.200}.{close}")
