"""Tables of figures as both forms of the report show them: a value's text, and what it sorts by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cell:
    """A table's cell: its text, what it sorts by, and how far its bar reaches (0 to 1), if it has one."""

    text: str
    sort: float | str = ""
    share: float | None = None


@dataclass(frozen=True)
class Table:
    """A table for both forms of the report; ``numeric`` says which columns hold figures."""

    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numeric: Sequence[bool]
    hints: Sequence[str] = ()
    marked: int | None = None


def rate(value: float | None, *, bar: bool = False) -> Cell:
    if value is None:
        return Cell("–")
    return Cell(f"{value:.4f}", value, min(max(value, 0.0), 1.0) if bar else None)


def word(value: Any) -> Cell:
    text = "" if value is None else str(value)
    return Cell(text, text)


def signed(value: float | None) -> Cell:
    return Cell("–") if value is None else Cell(f"{value:+.4f}", value)


def share(value: float) -> Cell:
    return Cell(f"{value:.0%}", value)


def whole(value: int | None) -> Cell:
    return Cell("–") if value is None else Cell(f"{value:,}", value)


def amount(value: float | None) -> Cell:
    return Cell("–") if value is None else Cell(f"{value:,.0f}" if value >= 10 else f"{value:.1f}", value)


def time(seconds: float | None) -> Cell:
    return Cell("–") if seconds is None else Cell(duration(seconds), seconds)


def money(value: float | None) -> Cell:
    return Cell("–") if value is None else Cell(f"${value:,.2f}", value)


def parameters(value: int | None) -> Cell:
    if value is None:
        return Cell("–")
    return Cell(
        f"{value / 1e6:,.2f} M" if value >= 1e6 else f"{value / 1e3:,.0f} k" if value >= 1e4 else f"{value:,}", value
    )


def counted(count: int, thing: str) -> str:
    """Returns a number of things as people say it: ``1 trial``, ``12 trials``."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """Returns a time as people say it: ``45 s``, ``3 min 20 s``, ``41 min``, ``2 h 05 min``."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s" if rounded < 600 else f"{round(rounded / 60)} min"
    return f"{rounded // 3600:,} h {rounded % 3600 // 60:02d} min"
