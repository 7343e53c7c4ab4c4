"""From scanned pictures to a finished data set: what is bad, what is alike, who trains, index and manifest.

Everything is computed from the journal, row by row or in flat arrays; a million pictures take some
150 MB here. The manifest says all that happened to the sources, so nothing is left out silently.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from artclf.duplicates import Groups, Thumb, join_near_duplicates, number_groups
from artclf.errors import ConfigError
from artclf.label_tables import Artist
from artclf.names import fold, from_bytes, shown
from artclf.records import (
    FORMAT,
    INDEX,
    INDEX_DTYPE,
    MANIFEST,
    PICTURES,
    SPLITS,
    dataset_digest,
    file_sha256,
    shard_name,
)
from artclf.rundir import write_json
from artclf.scan import Journal
from artclf.sources import Sources
from artclf.splits import assign_splits, place
from artclf.storage import atomic_file
from artclf.tables import write_csv

FEW_PICTURES = 30
"""A class with fewer is flagged: its scores rest on a handful of test pictures."""


@dataclass(frozen=True)
class Rules:
    """What decides how scanned pictures become a data set; see prepare.Options."""

    splits: tuple[float, float, float]
    seed: int
    max_bad: tuple[float, float]
    strict: bool


@dataclass(frozen=True)
class _Pictures:
    """The pictures used, in record order: the order of the journal, which is by class, source and name."""

    ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    roots: npt.NDArray[np.int64]  # the first picture of each one's group
    groups: npt.NDArray[np.uint32]
    splits: npt.NDArray[np.uint8]
    classes: list[str]


def finish(
    journal: Journal,
    folder: Path,
    sources: Sources,
    rules: Rules,
    artists: list[Artist],
    recipe: dict[str, Any],
    progress: Callable[[str, int, int], None],
) -> None:
    """Writes index, pictures.csv and, last, the manifest into the folder that has the shards.

    Args:
        recipe: what the data set was made from, kept to recognise it; see prepare.

    Raises:
        ConfigError: if too many pictures were bad, or a class cannot be in every split.
    """
    check_bad(journal, sources, rules.max_bad)
    progress("grouping", 0, 0)
    pictures = _arrange(journal, rules)
    progress("writing", 0, 0)
    conflicts = _conflicts(journal, sources, pictures)
    if conflicts and rules.strict and any(conflict["same"] == "pixels" for conflict in conflicts):
        raise ConfigError(_conflict_message(conflicts))
    _write_index(journal, folder, pictures)
    _write_pictures(journal, folder, sources, pictures)
    manifest = _manifest(journal, folder, sources, rules, artists, pictures, conflicts)
    write_json(folder / MANIFEST, {**manifest, "recipe": recipe})


# -- too many bad pictures -----------------------------------------------------------------------


def check_bad(journal: Journal, sources: Sources, limits: tuple[float, float]) -> None:
    """Checks the share of pictures skipped, per class and in all.

    Raises:
        ConfigError: naming the worst classes with the reasons.
    """
    found = Counter(dict(journal.sql.execute("SELECT ifnull(class, ''), count(*) FROM pictures GROUP BY 1")))
    skipped: dict[str, Counter[str]] = {}
    for label, reason, count in journal.sql.execute(
        "SELECT ifnull(class, ''), reason, count(*) FROM pictures WHERE verdict = 'skipped' GROUP BY 1, 2"
    ):
        skipped.setdefault(label, Counter())[reason] += count
    total, bad = found.total(), sum(reasons.total() for reasons in skipped.values())
    shares = {label: reasons.total() / found[label] for label, reasons in skipped.items() if label}
    worst = sorted(shares, key=lambda label: (-shares[label], label))
    over = [label for label in worst if shares[label] > limits[0]]
    if not over and bad <= limits[1] * total:
        return
    lines = [
        f"  {label}: {skipped[label].total()} of {found[label]} ({_reasons(skipped[label])})" for label in worst[:5]
    ]
    raise ConfigError(
        f"too many pictures cannot be used: {bad:,} of {total:,} "
        f"(at most {limits[1]:.0%} in all and {limits[0]:.0%} of a class are accepted). Worst:\n"
        + "\n".join(lines)
        + f"\n  for example {', '.join(_examples(journal, sources))}\n"
        f"Replace or remove them, or accept this many with --max-bad {_enough(shares, bad / total)} "
        "(what is done is kept)."
    )


def _enough(shares: Mapping[str, float], overall: float) -> str:
    """Returns the smallest whole-percent --max-bad that accepts these shares."""
    worst = math.ceil(100 * max([overall, *shares.values()]))
    return f"{min(worst, 100)}%"


def _reasons(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in reasons.most_common(3))


def _examples(journal: Journal, sources: Sources) -> list[str]:
    rows = journal.sql.execute(
        "SELECT source, name FROM pictures JOIN files USING (id) WHERE verdict = 'skipped' ORDER BY id LIMIT 10"
    )
    return [shown(sources.full_name(source, from_bytes(name))) for source, name in rows]


# -- groups and splits ---------------------------------------------------------------------------


def _arrange(journal: Journal, rules: Rules) -> _Pictures:
    sql = journal.sql
    count = int(sql.execute("SELECT count(*) FROM pictures WHERE verdict = 'used'").fetchone()[0])
    classes = [row[0] for row in sql.execute("SELECT DISTINCT class FROM pictures WHERE verdict = 'used' ORDER BY 1")]
    _check_no_class_lost(sql, classes)
    numbers = {name: number for number, name in enumerate(classes)}
    ids, labels = np.empty(count, np.int64), np.empty(count, np.int64)
    places = np.empty(count, np.uint64)
    hashes = np.zeros((count, 32), np.uint8)
    rows = sql.execute("SELECT id, class, pixels, hash FROM pictures WHERE verdict = 'used' ORDER BY id")
    for number, (ids[number], label, pixels, code) in enumerate(rows):
        labels[number], places[number] = numbers[label], place(rules.seed, pixels)
        if code:
            hashes[number] = np.frombuffer(code, np.uint8)
    roots = _group(sql, ids, hashes)
    _share_places(sql, ids, roots, places, rules.seed)
    splits = assign_splits(labels, roots, places, rules.splits, classes)
    return _Pictures(ids, labels, roots, number_groups(roots), splits, classes)


def _check_no_class_lost(sql: sqlite3.Connection, classes: list[str]) -> None:
    lost = [row[0] for row in sql.execute("SELECT DISTINCT class FROM files WHERE class IS NOT NULL")]
    lost = sorted(set(lost) - set(classes))
    if lost:
        raise ConfigError(
            f"no picture of {', '.join(lost[:5])} can be used. Replace them, or move the class out of the sources."
        )


def _group(sql: sqlite3.Connection, ids: npt.NDArray[np.int64], hashes: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Returns (N,) the lowest picture of each one's group: equal pixels (in two classes), and near duplicates."""
    groups = Groups(len(ids))
    equal = sql.execute(
        "SELECT pixels, id FROM pictures WHERE verdict = 'used' AND pixels IN "
        "(SELECT pixels FROM pictures WHERE verdict = 'used' GROUP BY pixels HAVING count(*) > 1) ORDER BY 1, 2"
    )
    first: dict[bytes, int] = {}
    for pixels, number in equal:
        at = int(np.searchsorted(ids, number))
        groups.join(first.setdefault(pixels, at), at)

    def thumb_of(picture: int) -> Thumb:
        (thumb,) = sql.execute("SELECT thumb FROM pictures WHERE id = ?", (int(ids[picture]),)).fetchone()
        return np.frombuffer(thumb, np.uint8).reshape(16, 16, 3)

    members = np.flatnonzero(hashes.any(axis=1))
    join_near_duplicates(groups, members, hashes[members].view(np.uint64), thumb_of)
    return groups.roots()


def _share_places(
    sql: sqlite3.Connection,
    ids: npt.NDArray[np.int64],
    roots: npt.NDArray[np.int64],
    places: npt.NDArray[np.uint64],
    seed: int,
) -> None:
    """Gives all pictures of a group one place: that of its smallest content, whoever was listed first."""
    smallest: dict[int, bytes] = {}
    shared = np.flatnonzero(np.bincount(roots, minlength=len(roots))[roots] > 1)
    for picture in shared.tolist():
        (pixels,) = sql.execute("SELECT pixels FROM pictures WHERE id = ?", (int(ids[picture]),)).fetchone()
        root = int(roots[picture])
        smallest[root] = min(pixels, smallest.get(root, pixels))
    for picture in shared.tolist():
        places[picture] = place(seed, smallest[int(roots[picture])])


def _members(pictures: _Pictures) -> Iterator[npt.NDArray[np.int64]]:
    """Yields the pictures of each group of more than one."""
    shared = np.flatnonzero(np.bincount(pictures.roots, minlength=len(pictures.roots))[pictures.roots] > 1)
    shared = shared[np.argsort(pictures.roots[shared], kind="stable")]
    yield from np.split(shared, np.flatnonzero(np.diff(pictures.roots[shared])) + 1) if len(shared) else ()


def _conflicts(journal: Journal, sources: Sources, pictures: _Pictures) -> list[dict[str, Any]]:
    """Returns the groups with pictures of several classes, saying whether some have the very same pixels."""
    conflicts = []
    for members in _members(pictures):
        labels = pictures.labels[members]
        if (labels != labels[0]).any():
            content = {_row(journal, pictures, picture, "pixels") for picture in members.tolist()}
            conflicts.append(
                {
                    "same": "pixels" if len(content) < len(members) else "subject",
                    "classes": [pictures.classes[label] for label in np.unique(labels)],
                    "pictures": _names(journal, sources, pictures, members),
                }
            )
    return conflicts


def _conflict_message(conflicts: list[dict[str, Any]]) -> str:
    same = [conflict for conflict in conflicts if conflict["same"] == "pixels"]
    examples = "; ".join(" = ".join(conflict["pictures"]) for conflict in same[:5])
    return f"{len(same)} pictures stand in two classes: {examples}. Remove the wrong one, or go on without --strict."


def _row(journal: Journal, pictures: _Pictures, picture: int, column: str) -> Any:
    query = f"SELECT {column} FROM pictures JOIN files USING (id) WHERE id = ?"
    return journal.sql.execute(query, (int(pictures.ids[picture]),)).fetchone()[0]


def _names(journal: Journal, sources: Sources, pictures: _Pictures, members: npt.NDArray[np.int64]) -> list[str]:
    return [
        shown(
            sources.full_name(
                _row(journal, pictures, picture, "source"), from_bytes(_row(journal, pictures, picture, "name"))
            )
        )
        for picture in members.tolist()
    ]


# -- what is written -----------------------------------------------------------------------------


def _write_index(journal: Journal, folder: Path, pictures: _Pictures) -> None:
    index = np.empty(len(pictures.ids), INDEX_DTYPE)
    columns = ("shard", "offset", "size", "crc", "width", "height")
    rows = journal.sql.execute(f"SELECT {', '.join(columns)} FROM pictures WHERE verdict = 'used' ORDER BY id")
    for number, row in enumerate(rows):
        for column, value in zip(columns, row, strict=True):
            index[column][number] = value
    index["label"], index["split"], index["group"] = pictures.labels, pictures.splits, pictures.groups
    with atomic_file(folder / INDEX) as temporary:
        np.save(temporary, index)


def _write_pictures(journal: Journal, folder: Path, sources: Sources, pictures: _Pictures) -> None:
    rows = journal.sql.execute(
        "SELECT source, name, width, height, sha, fixes FROM pictures JOIN files USING (id) "
        "WHERE verdict = 'used' ORDER BY id"
    )
    write_csv(
        folder / PICTURES,
        ("record", "name", "class", "split", "width", "height", "group", "sha256", "fixed"),
        (
            (
                number,
                sources.full_name(source, from_bytes(name)),
                pictures.classes[pictures.labels[number]],
                SPLITS[pictures.splits[number]],
                width,
                height,
                int(pictures.groups[number]),
                sha.hex(),
                "; ".join(json.loads(fixes)),
            )
            for number, (source, name, width, height, sha, fixes) in enumerate(rows)
        ),
    )


def _manifest(
    journal: Journal,
    folder: Path,
    sources: Sources,
    rules: Rules,
    artists: list[Artist],
    pictures: _Pictures,
    conflicts: list[dict[str, Any]],
) -> dict[str, Any]:
    sql = journal.sql
    splits = np.bincount(pictures.splits, minlength=len(SPLITS)).tolist()
    verdicts: Counter[str] = Counter(dict(sql.execute("SELECT verdict, count(*) FROM pictures GROUP BY 1")))
    shas = sql.execute("SELECT sha FROM pictures WHERE verdict = 'used' ORDER BY id")
    near = [_names(journal, sources, pictures, members) for members in _members(pictures)]
    classes = _classes(journal, pictures, artists)
    return {
        "format": FORMAT,
        "digest": dataset_digest(
            pictures.classes,
            (
                (sha.hex(), int(label), int(split))
                for (sha,), label, split in zip(shas, pictures.labels, pictures.splits, strict=True)
            ),
        ),
        "classes": classes,
        "counts": {
            "found": verdicts.total(),
            "used": verdicts["used"],
            "skipped": verdicts["skipped"],
            "duplicates": verdicts["duplicate"],
            "ignored": journal.meta("ignored"),
            **dict(zip(SPLITS, splits, strict=True)),
        },
        "splits": {"ratios": list(rules.splits), "seed": rules.seed},
        "shards": _shards(sql, folder),
        "files": {name: {"sha256": file_sha256(folder / name)} for name in (INDEX, PICTURES)},
        "skipped": _skipped(sql, sources),
        "duplicates": _duplicates(sql, sources),
        "fixed": _fixed(sql),
        "mislabelled": _count(sql, "mislabelled"),
        "constant": _count(sql, "constant"),
        "repaired_names": journal.meta("repaired"),
        "near_duplicates": {"groups": len(near), "pictures": sum(map(len, near)), "list": near},
        "conflicts": conflicts,
        "artists": unmatched_artists(artists, pictures.classes),
        "warnings": [*journal.meta("warnings"), *_warnings(classes, conflicts)],
        "sources": [shown(label) for label in sources.labels],
    }


def _classes(journal: Journal, pictures: _Pictures, artists: list[Artist]) -> list[dict[str, Any]]:
    known = {fold(artist.name): artist for artist in artists}
    displays = journal.meta("displays")
    counts = np.zeros((len(pictures.classes), len(SPLITS)), np.int64)
    np.add.at(counts, (pictures.labels, pictures.splits), 1)
    names = [
        known[fold(slug)].name.replace("_", " ") if fold(slug) in known else displays[slug] for slug in pictures.classes
    ]
    return [
        {
            "slug": slug,
            "display": name if names.count(name) == 1 else displays[slug],
            "about": known[fold(slug)].about if fold(slug) in known else {},
            "counts": dict(zip(SPLITS, row.tolist(), strict=True)),
        }
        for slug, name, row in zip(pictures.classes, names, counts, strict=True)
    ]


def unmatched_artists(artists: list[Artist], classes: list[str]) -> dict[str, list[str]]:
    """Returns the artists of a table that have no pictures, and the classes that no row tells of."""
    if not artists:
        return {"without_pictures": [], "without_row": []}
    rows, slugs = {fold(artist.name) for artist in artists}, {fold(slug) for slug in classes}
    return {
        "without_pictures": [artist.name for artist in artists if fold(artist.name) not in slugs],
        "without_row": [slug for slug in classes if fold(slug) not in rows],
    }


def _shards(sql: sqlite3.Connection, folder: Path) -> list[dict[str, Any]]:
    rows = sql.execute(
        "SELECT shard, sum(size), count(*) FROM pictures WHERE verdict = 'used' GROUP BY shard ORDER BY shard"
    )
    return [
        {"name": shard_name(shard), "bytes": size, "records": count, "sha256": file_sha256(folder / shard_name(shard))}
        for shard, size, count in rows
    ]


def _skipped(sql: sqlite3.Connection, sources: Sources) -> list[dict[str, str]]:
    rows = sql.execute(
        "SELECT source, name, reason FROM pictures JOIN files USING (id) WHERE verdict = 'skipped' ORDER BY id"
    )
    return [
        {"name": shown(sources.full_name(source, from_bytes(name))), "reason": reason} for source, name, reason in rows
    ]


def _duplicates(sql: sqlite3.Connection, sources: Sources) -> list[dict[str, str]]:
    rows = sql.execute(
        "SELECT f.source, f.name, k.source, k.name FROM pictures JOIN files AS f USING (id) "
        "JOIN files AS k ON k.id = same_as WHERE verdict = 'duplicate' ORDER BY f.id"
    )
    return [
        {
            "name": shown(sources.full_name(source, from_bytes(name))),
            "same_as": shown(sources.full_name(kept_source, from_bytes(kept))),
        }
        for source, name, kept_source, kept in rows
    ]


def _fixed(sql: sqlite3.Connection) -> dict[str, int]:
    rows = sql.execute("SELECT fixes, count(*) FROM pictures WHERE verdict = 'used' GROUP BY fixes")
    fixed: Counter[str] = Counter()
    for fixes, count in rows:
        for fix in set(json.loads(fixes)):
            fixed[fix] += count
    return dict(sorted(fixed.items()))


def _count(sql: sqlite3.Connection, column: str) -> int:
    return int(sql.execute(f"SELECT ifnull(sum({column}), 0) FROM pictures WHERE verdict = 'used'").fetchone()[0])


def _warnings(classes: list[dict[str, Any]], conflicts: list[dict[str, Any]]) -> list[str]:
    totals = {entry["slug"]: sum(entry["counts"].values()) for entry in classes}
    small = sorted((slug for slug in totals if totals[slug] < FEW_PICTURES), key=lambda slug: (totals[slug], slug))
    warnings = [f"{slug}: only {totals[slug]} pictures" for slug in small]
    for conflict in conflicts:
        what = "the same picture" if conflict["same"] == "pixels" else "nearly the same picture"
        warnings.append(f"{what} in {' and '.join(conflict['classes'])}: {', '.join(conflict['pictures'])}")
    return warnings
