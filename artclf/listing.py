"""The list of files to look at, each with its class, made before anything is read or written.

What can be known to be wrong without opening a picture is said here, all of it at once where that is
possible: no classes, one class, empty folders, pictures of no class, names that only a repair makes equal.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artclf.errors import ConfigError
from artclf.label_tables import read_labels
from artclf.layout import Layout, Naming, settle_names
from artclf.names import from_bytes, shown, to_bytes
from artclf.records import SPLITS
from artclf.scan import Journal
from artclf.sources import Entry, Sources

_SHOWN = 5
_EVERY_SOURCE = -1


@dataclass(frozen=True)
class ListingOptions:
    """What decides which files belong to which class."""

    labels: Path | None
    merge_names: bool
    allow_empty: bool


class Fingerprint:
    """A digest of all that sources list, whatever the order: it changes when a file comes, goes or changes."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._sum = 0

    def add(self, place: int, entry: Entry) -> None:
        """Takes one entry into account."""
        label = self._sources.labels[place]
        text = f"{label}\0{entry.name}\0{entry.size}\0{entry.stamp}\0{entry.kind}\0{entry.problem}"
        self._sum += int.from_bytes(hashlib.sha256(to_bytes(text)).digest(), "big")

    def hexdigest(self) -> str:
        """Returns 64 hex digits."""
        return f"{self._sum % 2**256:064x}"


def fingerprint(sources: Sources, progress: Callable[[int], None]) -> str:
    """Returns the digest of what the sources list now."""
    digest = Fingerprint(sources)
    for count, (place, entry) in enumerate(sources.entries()):
        digest.add(place, entry)
        progress(count)
    return digest.hexdigest()


def write_listing(
    journal: Journal,
    sources: Sources,
    options: ListingOptions,
    key: Callable[[str], str],
    progress: Callable[[int], None],
) -> None:
    """Fills the journal with the files of all sources, ordered by class, source and name.

    Args:
        key: turns the digest of the listing into the key that the journal is known by.
        progress: called with the number of entries so far.

    Raises:
        ConfigError: if the sources make no data set.
    """
    journal.begin_listing()
    sql = journal.sql
    sql.execute("CREATE TABLE listing (source INT, name BLOB, key BLOB, base BLOB, size INT, problem TEXT, raw BLOB)")
    sql.execute("CREATE TABLE labels (source INT, file BLOB, label BLOB, row INT)")
    notes = _list(journal, sources, progress)
    if notes.empty and not options.allow_empty:
        raise ConfigError(
            f"{_some(notes.empty)}: expected pictures, found an empty folder. "
            "Remove it, fill it, or add --allow-empty to go on without it."
        )
    _read_tables(journal, sources, options.labels)
    unlisted = _label(journal, sources, notes.layouts, options.labels is not None)
    naming = settle_names(
        from_bytes(row[0]) for row in sql.execute("SELECT DISTINCT raw FROM listing WHERE raw IS NOT NULL")
    )
    _check_clashes(naming, options)
    _order_files(journal, sources, naming)
    _check_classes(journal)
    _keep_notes(journal, sources, notes, naming, unlisted)
    journal.set_meta("artists", None if notes.artists is None else _artists_beside(sources, *notes.artists))
    journal.set_meta("digest", notes.digest.hexdigest())
    journal.set_key(key(notes.digest.hexdigest()))
    journal.commit()


def _check_clashes(naming: Naming, options: ListingOptions) -> None:
    if naming.clashes and not options.merge_names:
        clashes = "; ".join(" = ".join(map(shown, names)) for names in naming.clashes[:_SHOWN])
        raise ConfigError(
            f"one class under several names, some read in a wrong code page: {clashes}. "
            "Add --merge-names to make one class of each, or rename the folders."
        )


def _order_files(journal: Journal, sources: Sources, naming: Naming) -> None:
    """Makes the final list: by class, source and name, so that no disk's order shows in the data set."""
    slugs = {to_bytes(name): slug for name, slug in naming.slugs.items()}
    sql = journal.sql
    sql.create_function("slug_of", 1, slugs.get, deterministic=True)
    sql.create_function("label_of", 1, lambda place: to_bytes(sources.labels[place]), deterministic=True)
    sql.execute(
        "INSERT INTO files (source, name, size, problem, class) "
        "SELECT source, name, size, problem, slug_of(raw) FROM listing WHERE raw IS NOT NULL OR problem != '' "
        "ORDER BY slug_of(raw), label_of(source), name"
    )
    sql.execute("DROP TABLE listing")
    sql.execute("DROP TABLE labels")


@dataclass
class _Notes:
    digest: Fingerprint
    layouts: list[Layout]
    empty: list[str]
    ignored: int = 0
    artists: tuple[int, str] | None = None  # where an artists.csv lies among the pictures


def _list(journal: Journal, sources: Sources, progress: Callable[[int], None]) -> _Notes:
    notes = _Notes(Fingerprint(sources), [], [])
    for count, (place, entry) in enumerate(sources.entries()):
        notes.digest.add(place, entry)
        while len(notes.layouts) <= place:
            notes.layouts.append(Layout())
        if entry.kind == "picture":
            notes.layouts[place].add(entry.name)
            key = unicodedata.normalize("NFC", entry.name)
            row = (place, *map(to_bytes, (entry.name, key, key.rpartition("/")[2])), entry.size, entry.problem)
            journal.sql.execute("INSERT INTO listing VALUES (?, ?, ?, ?, ?, ?, NULL)", row)
        elif entry.kind == "empty folder":
            notes.empty.append(sources.full_name(place, entry.name))
        else:
            notes.ignored += 1
            if entry.name.rpartition("/")[2].casefold() == "artists.csv" and notes.artists is None:
                notes.artists = (place, entry.name)
        progress(count)
    return notes


def _artists_beside(sources: Sources, place: int, name: str) -> str:
    return sources.read(place, name, 2**26).hex()


def _read_tables(journal: Journal, sources: Sources, labels: Path | None) -> None:
    tables = dict(sources.tables)
    if labels is not None:
        tables[_EVERY_SOURCE] = labels
    for place, path in tables.items():
        rows = (
            (place, to_bytes(unicodedata.normalize("NFC", row.file)), to_bytes(row.label), row.row)
            for row in read_labels(path)
        )
        journal.sql.executemany("INSERT INTO labels VALUES (?, ?, ?, ?)", rows)
        journal.sql.execute("CREATE INDEX IF NOT EXISTS labels_by_file ON labels (file)")
        _check_contradictions(journal, place, path)


def _check_contradictions(journal: Journal, place: int, path: Path) -> None:
    rows = journal.sql.execute(
        "SELECT file, min(row), max(row) FROM labels WHERE source = ? "
        "GROUP BY file HAVING count(DISTINCT label) > 1 LIMIT ?",
        (place, _SHOWN),
    ).fetchall()
    if rows:
        text = "; ".join(f"{shown(from_bytes(file))!r} in rows {first} and {last}" for file, first, last in rows)
        raise ConfigError(f"{path.name}: one file with two labels: {text}. Remove the wrong row.")


def _label(journal: Journal, sources: Sources, layouts: list[Layout], one_table: bool) -> int:
    """Gives every listed file its class as spelt; returns how many stand in no table of labels."""
    sql = journal.sql
    tables = set(range(len(layouts))) if one_table else set(sources.tables)
    for place in sorted(tables):
        for column in ("key", "base"):
            sql.execute(
                f"UPDATE listing SET raw = (SELECT label FROM labels WHERE file = listing.{column} "
                "AND labels.source IN (?, ?)) WHERE source = ? AND raw IS NULL",
                (place, _EVERY_SOURCE, place),
            )
    if tables:
        _check_table_files(journal)
    for place, layout in enumerate(layouts):
        if place not in tables:
            layout.settle()
            sql.create_function("class_of", 1, _class_of(layout))
            sql.execute("UPDATE listing SET raw = class_of(name) WHERE source = ?", (place,))
    inside = f"source IN ({', '.join(map(str, tables))})" if tables else "0"
    homeless = "FROM listing WHERE raw IS NULL AND problem = ''"
    lost = sql.execute(f"SELECT source, name {homeless} AND NOT {inside} LIMIT {_SHOWN + 1}").fetchall()
    if lost:
        raise ConfigError(
            f"{_some([sources.full_name(place, from_bytes(name)) for place, name in lost])}: expected every picture "
            "in a folder named after its class, or named <Class>_<number>. Move it, or give classes with --labels."
        )
    return int(sql.execute(f"SELECT count(*) {homeless} AND {inside}").fetchone()[0])


def _class_of(layout: Layout) -> Callable[[bytes], bytes | None]:
    def class_of(name: bytes) -> bytes | None:
        label = layout.label(from_bytes(name))
        return None if label is None else to_bytes(label)

    return class_of


def _check_table_files(journal: Journal) -> None:
    for column in ("key", "base"):
        journal.sql.execute(f"CREATE INDEX listing_by_{column} ON listing ({column})")
    missing = journal.sql.execute(
        "SELECT file, row FROM labels WHERE NOT EXISTS (SELECT 1 FROM listing WHERE key = file) "
        "AND NOT EXISTS (SELECT 1 FROM listing WHERE base = file) ORDER BY row"
    ).fetchall()
    if missing:
        text = ", ".join(f"{shown(from_bytes(file))!r} (row {row})" for file, row in missing[:_SHOWN])
        raise ConfigError(
            f"the table of labels names {len(missing):,} files that are not there: {text}. "
            "Expected paths below the pictures' folder."
        )


def _check_classes(journal: Journal) -> None:
    counts = journal.sql.execute(
        "SELECT class, count(*) FROM files WHERE class IS NOT NULL GROUP BY class ORDER BY class"
    ).fetchall()
    layouts = "a folder for each class, or files named <Class>_<number>, or a table given with --labels"
    if not counts:
        raise ConfigError(f"no pictures found. Expected {layouts}.")
    if len(counts) == 1:
        raise ConfigError(f"only one class found, {counts[0][0]}. Expected at least two: {layouts}.")
    few = [f"{name} ({count})" for name, count in counts if count < len(SPLITS)]
    if few:
        raise ConfigError(
            f"expected at least {len(SPLITS)} pictures in every class, one for each of {', '.join(SPLITS)}; "
            f"too few in: {_some(few)}. Add pictures, or move these classes out of the sources."
        )


def _keep_notes(journal: Journal, sources: Sources, notes: _Notes, naming: Naming, unlisted: int) -> None:
    warnings = [f"{shown(name)}: empty folder, left out" for name in notes.empty]
    warnings += [f"{shown(name)}: read in a wrong code page, repaired to {slug}" for name, slug in naming.repaired]
    warnings += [f"{' and '.join(group)}: names that differ in case or accents only" for group in naming.alike]
    if unlisted:
        warnings.append(f"{unlisted:,} pictures stand in no table of labels and were left out")
    values: dict[str, Any] = {
        "ignored": notes.ignored + unlisted,
        "displays": naming.displays,
        "sources": sources.labels,
        "repaired": len(naming.repaired),
        "warnings": warnings,
    }
    for name, value in values.items():
        journal.set_meta(name, value)


def _some(names: list[str]) -> str:
    text = ", ".join(shown(name) for name in names[:_SHOWN])
    return text if len(names) <= _SHOWN else f"{text}, …"
