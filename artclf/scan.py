"""The one pass over the pictures: each read once, judged, and packed into shards, with a journal.

The journal (an SQLite file beside the growing shards) holds the listing and, for every picture done,
its verdict and place. It is committed only after the bytes it speaks of are on the disk, so a scan
that was killed at any instant goes on behind the last commit. Nothing here holds the set in memory.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artclf.duplicates import Signature, signature
from artclf.names import from_bytes
from artclf.records import ShardWriter, shard_name
from artclf.sources import CannotRead, Sources

if TYPE_CHECKING:
    from artclf.images import Picture

COMMIT_EVERY = 256
"""Pictures between two commits: what a killed scan does again."""

Verdict = str  # "used", "skipped" or "duplicate"

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT);
CREATE TABLE files (id INTEGER PRIMARY KEY, source INT, name BLOB, size INT, problem TEXT, class TEXT);
CREATE TABLE pictures (
    id INTEGER PRIMARY KEY, verdict TEXT, reason TEXT, same_as INT, class TEXT,
    shard INT, offset INT, size INT, crc INT, width INT, height INT,
    sha BLOB, pixels BLOB, hash BLOB, thumb BLOB, fixes TEXT, mislabelled INT, constant INT);
CREATE INDEX by_pixels ON pictures (pixels) WHERE verdict = 'used';
"""


@dataclass(frozen=True)
class ScanOptions:
    """What decides the bytes that are stored."""

    max_side: int | None
    salvage: bool


@dataclass(frozen=True)
class File:
    """One picture file to look at."""

    id: int
    source: int
    name: str
    size: int
    problem: str
    label: str | None


@dataclass(frozen=True)
class Judged:
    """What came of one file; ``content`` is what to store, empty if it is skipped for ``reason``."""

    reason: str = ""
    content: bytes = b""
    width: int = 0
    height: int = 0
    fixes: tuple[str, ...] = ()
    mislabelled: bool = False
    signature: Signature | None = None


class Journal:
    """The listing and the verdicts, in one SQLite file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.sql = sqlite3.connect(path, isolation_level=None)
        self.sql.execute("PRAGMA journal_mode = WAL")
        self.sql.execute("PRAGMA synchronous = FULL")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.sql.close()

    def key(self) -> str | None:
        """Returns what the listing was made from, or None if there is no whole listing."""
        try:
            row = self.sql.execute("SELECT value FROM meta WHERE key = 'key'").fetchone()
        except sqlite3.DatabaseError:  # a journal of another version, or none yet
            return None
        return None if row is None else str(row[0])

    def set_key(self, key: str) -> None:
        """Writes down what the listing was made from, which says that it is whole."""
        self.sql.execute("INSERT INTO meta VALUES ('key', ?)", (key,))

    def meta(self, key: str) -> Any:
        """Returns a value kept with the listing."""
        return json.loads(self.sql.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()[0])

    def set_meta(self, key: str, value: Any) -> None:
        """Keeps a JSON value with the listing."""
        self.sql.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))

    def begin_listing(self) -> None:
        """Opens a transaction with empty tables; ``commit`` ends it."""
        self.sql.execute("BEGIN IMMEDIATE")
        for table in ("meta", "files", "pictures", "listing", "labels"):
            self.sql.execute(f"DROP TABLE IF EXISTS {table}")
        for statement in _SCHEMA.split(";\n"):
            self.sql.execute(statement)

    def commit(self) -> None:
        """Makes all since ``begin`` last."""
        self.sql.execute("COMMIT")

    def files(self, after: int = 0) -> Iterator[File]:
        """Yields the files with a higher number, in order."""
        while True:  # page by page: an open cursor would keep SQLite from ever shortening its log
            rows = self.sql.execute(
                "SELECT id, source, name, size, problem, class FROM files WHERE id > ? ORDER BY id LIMIT ?",
                (after, COMMIT_EVERY),
            ).fetchall()
            if not rows:
                return
            for number, source, name, size, problem, label in rows:
                yield File(number, source, from_bytes(name), size, problem, label)
            after = rows[-1][0]

    def done(self) -> int:
        """Returns the number of the last file judged and committed."""
        return int(self.sql.execute("SELECT coalesce(max(id), 0) FROM pictures").fetchone()[0])

    def end_of_shards(self) -> tuple[int, int]:
        """Returns (shard, offset) behind the last record committed."""
        row = self.sql.execute(
            "SELECT shard, offset + size FROM pictures WHERE verdict = 'used' ORDER BY id DESC LIMIT 1"
        ).fetchone()
        return (0, 0) if row is None else (int(row[0]), int(row[1]))

    def has_its_shards(self, folder: Path) -> bool:
        """Says whether every shard is at least as long as committed: a power cut may leave less than was promised."""
        ends = self.sql.execute(
            "SELECT shard, max(offset + size) FROM pictures WHERE verdict = 'used' GROUP BY shard"
        ).fetchall()
        paths = [(folder / shard_name(shard), end) for shard, end in ends]
        return all(path.is_file() and path.stat().st_size >= end for path, end in paths)

    def same_pixels(self, pixels: bytes, label: str) -> int | None:
        """Returns the file of this class already used that shows the same pixels."""
        row = self.sql.execute(
            "SELECT id FROM pictures WHERE verdict = 'used' AND pixels = ? AND class = ?", (pixels, label)
        ).fetchone()
        return None if row is None else int(row[0])

    def add(self, file: File, verdict: Verdict, judged: Judged, place: tuple[int, int], same_as: int | None) -> None:
        """Writes down what came of a file."""
        mark = judged.signature
        used = verdict == "used" and mark is not None
        self.sql.execute(
            f"INSERT INTO pictures VALUES ({', '.join('?' * 18)})",
            (
                file.id,
                verdict,
                judged.reason,
                same_as,
                file.label,
                *(place if used else (None, None)),
                len(judged.content) if used else None,
                zlib.crc32(judged.content) if used else None,
                judged.width,
                judged.height,
                hashlib.sha256(judged.content).digest() if used else None,
                *((mark.pixels, mark.hash, mark.thumb) if used and mark else (None, None, None)),
                json.dumps(judged.fixes),
                int(judged.mislabelled),
                int(mark is not None and mark.constant),
            ),
        )


def scan(
    journal: Journal,
    folder: Path,
    sources: Sources,
    options: ScanOptions,
    progress: Callable[[int, int], None],
    threads: int,
) -> None:
    """Judges every file of the listing that is not judged yet and packs what is used into ``folder``.

    Args:
        progress: called with (files done, files in all) after each; may raise to stop the scan, which
            goes on there at the next call.
    """
    total = int(journal.sql.execute("SELECT count(*) FROM files").fetchone()[0])
    done = journal.done()
    shards = ShardWriter(folder, *journal.end_of_shards())
    journal.sql.execute("BEGIN")
    try:
        for file, judged in _in_order(journal.files(done), lambda file: judge(file, sources, options), threads):
            _settle(journal, shards, file, judged)
            done += 1
            if done % COMMIT_EVERY == 0:
                shards.sync()
                journal.commit()
                journal.sql.execute("BEGIN")
            progress(done, total)
    finally:  # also when stopped in between: every file so far is settled whole
        shards.close()
        journal.commit()


def _in_order(files: Iterator[File], work: Callable[[File], Judged], threads: int) -> Iterator[tuple[File, Judged]]:
    """Yields each file with its result, in order; a few are worked on ahead, so memory stays bounded."""
    pending: deque[tuple[File, Future[Judged]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for file in files:
                pending.append((file, pool.submit(work, file)))
                if len(pending) > 2 * threads:
                    first, result = pending.popleft()
                    yield first, result.result()
            while pending:
                first, result = pending.popleft()
                yield first, result.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _settle(journal: Journal, shards: ShardWriter, file: File, judged: Judged) -> None:
    if judged.signature is None or file.label is None:
        journal.add(file, "skipped", judged, (0, 0), None)
        return
    same_as = journal.same_pixels(judged.signature.pixels, file.label)
    if same_as is not None:
        journal.add(file, "duplicate", judged, (0, 0), same_as)
    else:
        journal.add(file, "used", judged, shards.append(judged.content), None)


def judge(file: File, sources: Sources, options: ScanOptions) -> Judged:
    """Returns what is to be stored of a file, or why nothing is."""
    from artclf.images import MAX_BYTES, Unreadable, check_bytes, is_mislabelled, read_picture

    if file.problem:
        return Judged(file.problem)
    try:
        check_bytes(file.size)
        content = sources.read(file.source, file.name, MAX_BYTES)
        if len(content) != file.size:
            return Judged("changed since it was listed")
        picture = read_picture(content, salvage=options.salvage)
    except (CannotRead, Unreadable) as error:
        return Judged(error.reason)
    stored, width, height, fixes = _stored(content, picture, options.max_side)
    return Judged(
        content=stored,
        width=width,
        height=height,
        fixes=fixes,
        mislabelled=is_mislabelled(file.name, picture.format),
        signature=signature(picture.pixels),
    )


def _stored(content: bytes, picture: Picture, max_side: int | None) -> tuple[bytes, int, int, tuple[str, ...]]:
    """Returns (bytes to store, width, height, what was changed).

    A sound JPEG keeps its own bytes, and a plain PNG too: encoding again would lose quality or space
    and gain nothing, since the one decoder turns both into the same RGB pixels at any time. The rest
    is stored as those pixels, without loss.
    """
    from io import BytesIO

    from PIL import Image

    height, width, _ = picture.pixels.shape
    if max_side is not None and max(width, height) > max_side:
        scale = max_side / max(width, height)
        width, height = max(1, round(width * scale)), max(1, round(height * scale))
        small = Image.fromarray(picture.pixels).resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
        small.save(encoded := BytesIO(), "JPEG", quality=95, subsampling=0)
        return encoded.getvalue(), width, height, (*picture.fixes, "shrunk")
    salvaged = "end marker" in picture.fixes  # its bytes are refused by every later decoding
    if (picture.format == "JPEG" and not salvaged) or (picture.format == "PNG" and not picture.fixes):
        return content, width, height, picture.fixes
    Image.fromarray(picture.pixels).save(encoded := BytesIO(), "PNG", compress_level=6)
    return encoded.getvalue(), width, height, picture.fixes
