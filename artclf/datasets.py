"""Opening whatever a user names as data: a prepared data set, or pictures that are prepared once into a cache.

Imports no TensorFlow, so that planning a grid stays light.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from artclf.cache import cache_folder, fetched_dataset
from artclf.errors import ConfigError
from artclf.locks import turn
from artclf.records import Dataset, is_dataset
from artclf.sources import KAGGLE
from artclf.storage import is_in_bucket, local_path

SAMPLE = "sample:"
"""Names the generated pictures of made-up painters (artclf.sample)."""


def open_dataset(uri: str, check_stop: Callable[[], None] = lambda: None, *, ahead: bool = True) -> Dataset:
    """Returns the data set that a name stands for.

    Args:
        uri: a prepared folder, here or in a bucket (``s3://…``); a folder or zip of pictures (prepared into
            the cache on first use and again when a file of it changes); or ``sample:``.
        check_stop: is called now and then while pictures are prepared; may raise to stop.
        ahead: whether all of a bucket's data set is fetched in the background, as one that trains on it wants;
            else only what is read.

    Raises:
        ConfigError: if there is nothing usable under that name.
    """
    if uri == SAMPLE:
        return _sample(check_stop)
    if is_in_bucket(uri):
        return fetched_dataset(uri, ahead=ahead)
    if uri.startswith(KAGGLE):
        return _prepared(uri, cache_folder() / "datasets" / uri.replace(":", "-").replace("/", "-"), None, check_stop)
    folder = local_path(uri)
    if folder.is_dir() and is_dataset(folder):
        return Dataset.open(folder)
    if not folder.exists():
        raise ConfigError(
            f"{uri}: no such data set (looked at {folder}). "
            f"Expected a folder that prepare made, a folder or zip of pictures, or {SAMPLE}"
        )
    if (folder / "manifest.json").exists():
        return Dataset.open(folder)  # says what is wrong with it
    name = f"{folder.name or 'data'}-{_listing_digest(folder)}"
    return _prepared(folder, cache_folder() / "datasets" / name, None, check_stop)


def _sample(check_stop: Callable[[], None]) -> Dataset:
    from artclf import sample

    folder = cache_folder() / "datasets" / f"sample-{sample.VERSION}"
    pictures = cache_folder() / "sources" / f"sample-{sample.VERSION}"
    if not is_dataset(folder):
        with turn(pictures.with_name(f".{pictures.name}.lock")):
            if not pictures.exists():
                sample.make_sample(pictures)
    return _prepared(pictures, folder, pictures / "artists.csv", check_stop)


def _prepared(source: Path | str, folder: Path, artists: Path | None, check_stop: Callable[[], None]) -> Dataset:
    """Returns the data set of a source in the cache, made by one process while others wait for it."""
    from artclf.prepare import Display, Options, prepare

    if is_dataset(folder):
        return Dataset.open(folder)
    with turn(folder.with_name(f".{folder.name}.lock")), Display(quiet=False) as display:

        def progress(phase: str, done: int, total: int) -> None:
            check_stop()
            display.show(phase, done, total)

        return prepare([str(source)], folder, Options(artists=artists), progress)


def _listing_digest(source: Path) -> str:
    """Returns 12 hex digits of where a source lies and what prepare finds listed in it: they change when a
    file is added, removed, resized or rewritten."""
    from artclf.listing import fingerprint
    from artclf.sources import Sources

    with Sources([str(source)], None, Path(tempfile.gettempdir())) as opened:
        listed = fingerprint(opened, lambda count: None)
    return hashlib.sha256(os.fsencode(source) + listed.encode()).hexdigest()[:12]
