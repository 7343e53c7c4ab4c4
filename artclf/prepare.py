"""From pictures as people have them to a prepared data set: ``python -m artclf.prepare SRC… --out DATASET``.

The way, top to bottom: list the sources and settle the classes (artclf.listing), look at every picture
once and pack it (artclf.scan), group what shows the same thing (artclf.duplicates), split by group
(artclf.splits), write index and manifest, and only then give the folder its name.

All work goes on in a folder beside the output that is named after it, so the same command finds it
again after any kind of end, and goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sqlite3
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artclf.command_line import positive, run_command
from artclf.errors import ConfigError, Interrupted, StorageError, storage_error
from artclf.names import shown

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from artclf.label_tables import Artist
    from artclf.records import Dataset
    from artclf.scan import Journal
    from artclf.sources import Sources

SHOWN_WARNINGS = 8
LINE_EVERY_S = 10.0
"""Seconds between two lines of progress where there is no terminal."""

VERSION = 1
"""Part of every recipe: raise it when the same sources and options would give another data set."""

Progress = Callable[[str, int, int], None]
"""Called as (what is being done, how many are done, how many in all or 0 if not known); may raise to stop."""


@dataclass(frozen=True)
class Options:
    """How to prepare.

    Attributes:
        artists: CSV of artists (name, years, genre, nationality); if None, an artists.csv among the pictures.
        labels: CSV of labels (file, label) that decides the classes of all sources.
        max_side: pictures with a longer side are shrunk to it; None keeps all as they are.
        max_bad: (share of a class, share of all) that may be skipped.
        splits: shares of train, val and test.
        nested_zips: read archives inside sources (True), leave them (False), or stop if there are any (None).
        strict: stop at what is else a warning (artists without pictures, equal pictures in two classes).
        force: make it again, and replace what stands at the output, if that is a prepared data set.
        threads: that decode; 0 means as many as there are cores, four at most.
    """

    artists: Path | None = None
    labels: Path | None = None
    max_side: int | None = None
    max_bad: tuple[float, float] = (0.10, 0.02)
    splits: tuple[float, float, float] = (0.8, 0.1, 0.1)
    seed: int = 0
    merge_names: bool = False
    allow_empty: bool = False
    salvage: bool = False
    nested_zips: bool | None = None
    strict: bool = False
    force: bool = False
    threads: int = 0

    def check(self) -> None:
        """Raises ConfigError for a value out of range."""
        from artclf.splits import check_ratios

        check_ratios(self.splits)
        if self.max_side is not None and not 16 <= self.max_side <= 65_535:
            raise ConfigError(f"--max-side: expected 16 to 65535 pixels, received {self.max_side}.")
        if not all(0 <= share <= 1 for share in self.max_bad):
            raise ConfigError("--max-bad: expected shares from 0 to 1.")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"--seed: expected a whole number from 0 to {2**32 - 1}, received {self.seed}.")

    def for_scan(self) -> dict[str, Any]:
        """Returns the JSON form of what decides the listing and the stored bytes."""
        return {
            "labels": _content(self.labels),
            "max_side": self.max_side,
            "merge_names": self.merge_names,
            "allow_empty": self.allow_empty,
            "salvage": self.salvage,
            "nested_zips": self.nested_zips,
        }

    def recipe(self, sources_digest: str) -> dict[str, Any]:
        """Returns the JSON form of all that decides the finished data set."""
        return {
            "version": VERSION,
            "sources": sources_digest,
            **self.for_scan(),
            "artists": _content(self.artists),
            "splits": list(self.splits),
            "seed": self.seed,
        }


def _content(table: Path | None) -> str | None:
    from artclf.label_tables import read_table

    return None if table is None else hashlib.sha256(read_table(table)).hexdigest()


def prepare(
    sources: Sequence[str], out: Path, options: Options = Options(), progress: Progress = lambda *_: None
) -> Dataset:
    """Returns the data set made from the sources, which is then at ``out``; if the same one is there already, that.

    Args:
        sources: folders, zips, CSVs of labels, ``kaggle:owner/name``.
        out: the folder to make; nothing appears there before it is complete.

    Raises:
        ConfigError: if the sources, names, options or the number of bad pictures do not allow a data set.
        StorageError: if the disk refuses; the same call goes on where it stopped.
    """
    from artclf.locks import exclusive
    from artclf.records import SHARDS
    from artclf.sources import Sources
    from artclf.storage import TEMPORARY, make_folder

    options.check()
    out = out.absolute()
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{shown(str(out))}: expected a folder to make, found a file.")
    make_folder(out.parent)
    work = out.with_name(f"{TEMPORARY}prepare-{hashlib.sha256(os.fsencode(out.name)).hexdigest()[:12]}")
    lock = work.with_name(f"{work.name}.lock")
    with (
        exclusive(lock, f"{shown(str(out))}: another prepare is at work on it", remove=True),
        Sources(sources, options.nested_zips, out.parent) as opened,
    ):
        _check_apart(out, opened)
        try:
            return _prepare(opened, out, work, options, progress)
        except sqlite3.OperationalError as error:
            raise StorageError(f"{shown(str(work))}: the journal cannot be written: {error}.") from error
        finally:
            if not (work / "data" / SHARDS).exists():  # nothing is done yet that would be worth keeping
                shutil.rmtree(work, ignore_errors=True)


def _prepare(sources: Sources, out: Path, work: Path, options: Options, progress: Progress) -> Dataset:
    from artclf.finishing import Rules, finish
    from artclf.listing import ListingOptions, fingerprint, write_listing
    from artclf.records import Dataset, is_dataset
    from artclf.scan import Journal, ScanOptions, scan
    from artclf.storage import make_folder, sync_folder

    def count_files(count: int) -> None:
        progress("listing", count, 0)

    digest = fingerprint(sources, count_files) if is_dataset(out) or work.exists() else None
    if digest and not options.force and _is_finished(out, digest, options):
        shutil.rmtree(work, ignore_errors=True)
        return Dataset.open(out)
    _check_free(out, options)
    if not digest or not _can_go_on(work, _scan_key(digest, options)):
        shutil.rmtree(work, ignore_errors=True)
    data = work / "data"
    make_folder(data)
    with Journal(work / "journal.sqlite") as journal:
        if journal.key() is None:
            listing = ListingOptions(options.labels, options.merge_names, options.allow_empty)
            write_listing(journal, sources, listing, lambda digest: _scan_key(digest, options), count_files)
        sources.arrange(journal.meta("sources"))
        artists = _read_artists(journal, options)
        _check_artists(journal, artists, options)
        how = ScanOptions(options.max_side, options.salvage)
        threads = options.threads or min(4, os.cpu_count() or 1)
        scan(journal, data, sources, how, lambda done, total: progress("pictures", done, total), threads)
        rules = Rules(options.splits, options.seed, options.max_bad, options.strict)
        finish(journal, data, sources, rules, artists, options.recipe(journal.meta("digest")), progress)
    _publish(data, out, work)
    sync_folder(out.parent)
    return Dataset.open(out)


def _scan_key(digest: str, options: Options) -> str:
    text = json.dumps([VERSION, digest, options.for_scan()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_apart(out: Path, sources: Sources) -> None:
    for folder in sources.folders:
        if out.resolve().is_relative_to(folder):
            raise ConfigError(f"{shown(str(out))}: lies in a source of pictures. Choose an --out outside of it.")


def _is_finished(out: Path, digest: str, options: Options) -> bool:
    from artclf.records import is_dataset, read_manifest

    return is_dataset(out) and read_manifest(out).get("recipe") == options.recipe(digest)


def _can_go_on(work: Path, key: str) -> bool:
    """Says whether what an earlier prepare left is of the same sources and options, and whole as far as it goes."""
    from artclf.scan import Journal

    if not (work / "journal.sqlite").exists():
        return False
    try:
        with Journal(work / "journal.sqlite") as journal:
            return journal.key() == key and journal.has_its_shards(work / "data")
    except sqlite3.DatabaseError:
        return False


def _check_free(out: Path, options: Options) -> None:
    from artclf.records import is_dataset

    if not out.exists() or not any(out.iterdir()):
        return
    if not is_dataset(out):
        raise ConfigError(f"{shown(str(out))}: expected a free name, found a folder with other files in it.")
    if not options.force:
        raise ConfigError(
            f"{shown(str(out))}: holds a data set made from other pictures or with other options. "
            "Add --force to replace it, or choose another --out."
        )


def _read_artists(journal: Journal, options: Options) -> list[Artist]:
    from artclf.label_tables import read_artists, read_table

    if options.artists is not None:
        return read_artists(read_table(options.artists), options.artists.name)
    beside = journal.meta("artists")
    return [] if beside is None else read_artists(bytes.fromhex(beside), "artists.csv")


def _check_artists(journal: Journal, artists: list[Artist], options: Options) -> None:
    from artclf.finishing import unmatched_artists

    if not options.strict:
        return
    unmatched = unmatched_artists(artists, list(journal.meta("displays")))
    faults = [f"{name}: no pictures" for name in unmatched["without_pictures"]]
    faults += [f"{slug}: no row" for slug in unmatched["without_row"]]
    if faults:
        raise ConfigError(f"--strict: artists and classes differ: {'; '.join(map(shown, faults[:10]))}.")


def _publish(data: Path, out: Path, work: Path) -> None:
    """Gives the finished folder its name; whatever stood there before goes only when it is complete."""
    try:
        if out.exists():
            replaced = work / "replaced"
            shutil.rmtree(replaced, ignore_errors=True)
            os.rename(out, replaced)
        os.rename(data, out)
    except OSError as error:
        raise storage_error("give the name to the data set", out, error) from error
    shutil.rmtree(work, ignore_errors=True)


# -- the command ---------------------------------------------------------------------------------


def main(argv: list[str]) -> int:
    """Runs ``python -m artclf.prepare`` and returns its exit code."""
    from artclf.interrupt import StopRequest

    stop = StopRequest.on_signals()
    arguments = _parser().parse_args(argv)
    options = _options(arguments)
    with Display(arguments.quiet) as display:

        def progress(phase: str, done: int, total: int) -> None:
            if stop.requested:
                raise Interrupted(f"stopped by {stop.reason}: run the same command again and it goes on.")
            display.show(phase, done, total)

        dataset = prepare(arguments.sources, arguments.out, options, progress)
    if not arguments.quiet:
        if not display.worked:
            print(f"{shown(str(arguments.out))}: already prepared from these sources; nothing to do.")
        print(summary(dataset.manifest))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m artclf.prepare",
        description="Makes a prepared data set from pictures: folders of classes, <Class>_<n>.jpg files, zips, CSVs.",
        epilog="After any interruption the same command goes on. Names that begin with '-' go after --.",
    )
    add = parser.add_argument
    add("sources", nargs="+", metavar="SRC", help="folder, zip, CSV of labels (file,label), or kaggle:owner/name")
    add("--out", required=True, type=Path, metavar="DATASET", help="folder to make")
    add(
        "--artists",
        type=Path,
        metavar="CSV",
        help="name, years, genre, nationality of the artists, kept for the report",
    )
    add("--labels", type=Path, metavar="CSV", help="file,label: decides the classes of all sources")
    add(
        "--max-side",
        type=int,
        metavar="N",
        help="shrink pictures with a longer side to it (default: keep all as they are)",
    )
    add("--max-bad", type=_max_bad, default=(0.10, 0.02), metavar="SHARE[,SHARE]",
        help="stop if more of a class, or in all, cannot be used (default: 0.1,0.02)")  # fmt: skip
    add(
        "--splits",
        type=_splits,
        default=(0.8, 0.1, 0.1),
        metavar="A,B,C",
        help="shares of train, val, test (0.8,0.1,0.1)",
    )
    add("--seed", type=int, default=0, help="of the split (0)")
    add("--merge-names", action="store_true", help="make one class of names that only a repair makes equal")
    add("--allow-empty", action="store_true", help="leave out empty class folders instead of stopping")
    add("--salvage", action="store_true", help="use JPEGs that lack only their end marker")
    add("--nested-zips", action=argparse.BooleanOptionalAction, help="read zips inside the sources, or leave them")
    add("--strict", action="store_true", help="stop where artists and classes differ, or a picture is in two classes")
    add("--force", action="store_true", help="make it again; replaces another data set at DATASET")
    add("--threads", type=positive, default=0, help="decoding threads (default: one a core, four at most)")
    add("--quiet", action="store_true", help="print errors only")
    return parser


def _options(arguments: argparse.Namespace) -> Options:
    return Options(**{name: getattr(arguments, name) for name in Options.__dataclass_fields__})


def _share(text: str) -> float:
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers, received {text!r}") from None
    return value


def _max_bad(text: str) -> tuple[float, float]:
    shares = [_share(part) for part in text.split(",")]
    if len(shares) > 2:
        raise argparse.ArgumentTypeError(f"expected one share or two (class,all), received {text!r}")
    return shares[0], shares[-1]


def _splits(text: str) -> tuple[float, ...]:
    return tuple(_share(part) for part in text.split(","))


class Display:
    """Tells how far it is: a bar with the time left on a terminal, else a line now and then, on stderr."""

    def __init__(self, quiet: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._quiet = quiet
        self._clock = clock
        self._next_line = clock() + LINE_EVERY_S
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._phase = ""
        self.worked = False

    def __enter__(self) -> Display:
        if not self._quiet and sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self._bar = progress.Progress(
                progress.TextColumn("{task.description:<9}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, phase: str, done: int, total: int) -> None:
        """Takes note of how far it is."""
        self.worked = self.worked or phase != "listing"
        if self._bar is not None:
            if self._task is None or phase != self._phase:
                self._task = self._bar.add_task(phase, total=total or None)
            self._bar.update(self._task, completed=done)
        elif not self._quiet and self._clock() >= self._next_line:
            print(f"{phase}: {done:,}{f' of {total:,}' if total else ''}", file=sys.stderr, flush=True)
            self._next_line = self._clock() + LINE_EVERY_S
        self._phase = phase


def summary(manifest: dict[str, Any]) -> str:
    """Returns what a data set holds and what happened to its sources, in lines of at most 80 characters."""
    from artclf.finishing import FEW_PICTURES
    from artclf.records import SPLITS

    counts, near, conflicts = manifest["counts"], manifest["near_duplicates"], len(manifest["conflicts"])
    reasons = Counter(entry["reason"] for entry in manifest["skipped"]).most_common()
    fixed = sorted(manifest["fixed"].items(), key=lambda item: (-item[1], item[0]))
    lines = [
        ("found", f"{counts['found']:,} pictures in {len(manifest['classes']):,} classes"),
        ("ignored", f"{counts['ignored']:,} other files" if counts["ignored"] else ""),
        ("used", f"{counts['used']:,}: " + ", ".join(f"{split} {counts[split]:,}" for split in SPLITS)),
        ("skipped", f"{counts['skipped']:,} {_listed(reasons)}"),
        ("fixed", _listed(fixed)),
        ("mislabelled", f"{manifest['mislabelled']:,} in another format than named" if manifest["mislabelled"] else ""),
        ("one colour", f"{manifest['constant']:,}" if manifest["constant"] else ""),
        ("duplicates", f"{counts['duplicates']:,} equal pictures left out"),
        ("alike", f"{near['pictures']:,} in {near['groups']:,} groups, each kept in one split"),
        ("conflicts", f"{conflicts:,} of these groups hold several classes; kept in train" if conflicts else ""),
        ("smallest", ", ".join(_smallest(manifest["classes"], FEW_PICTURES))),
        ("artists", _artists_line(manifest["artists"])),
        ("digest", manifest["digest"][:16]),
    ]
    lines += [("warning", warning) for warning in manifest["warnings"][:SHOWN_WARNINGS]]
    if len(manifest["warnings"]) > SHOWN_WARNINGS:
        lines.append(("", f"and {len(manifest['warnings']) - SHOWN_WARNINGS:,} more warnings, see manifest.json"))
    return "\n".join(line for title, value in lines if value.strip() for line in _wrapped(title, value))


def _wrapped(title: str, value: str) -> list[str]:
    head = f"{title:<11} "
    return textwrap.wrap(value, 79, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False)


def _listed(counts: Iterable[tuple[str, int]]) -> str:
    parts = ", ".join(f"{name} {count:,}" for name, count in counts)
    return f"({parts})" if parts else ""


def _smallest(classes: list[dict[str, Any]], few: int) -> list[str]:
    totals = sorted((sum(entry["counts"].values()), entry["display"]) for entry in classes)
    return [f"{name} {total:,}{' (few!)' if total < few else ''}" for total, name in totals[:3]]


def _artists_line(unmatched: dict[str, list[str]]) -> str:
    parts = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for what, names in (
            ("without pictures", unmatched["without_pictures"]),
            ("without a row", unmatched["without_row"]),
        )
        if names
    ]
    return "; ".join(parts)


if __name__ == "__main__":
    run_command(main)
