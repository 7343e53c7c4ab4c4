"""CSV files that are safe to open in a spreadsheet: written in one step, no cell a formula."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from artclf.storage import atomic_file

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a UTF-8 CSV with Unix line ends; undecodable bytes of names survive."""
    with (
        atomic_file(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([cell(value) for value in row] for row in rows)


def cell(value: Any) -> Any:
    """Returns the value as it may stand in a cell: a text that a spreadsheet would run gets a leading
    apostrophe (OWASP, CSV injection), and so does one that already looks like that, so that ``plain``
    gives every text back; numbers stay numbers, None is empty."""
    if isinstance(value, str) and value.lstrip("'").startswith(_FORMULA_STARTS):
        return f"'{value}"
    return "" if value is None else value


def plain(text: str) -> str:
    """Returns the text that ``cell`` was given."""
    return text[1:] if text.startswith("'") and text.lstrip("'").startswith(_FORMULA_STARTS) else text
