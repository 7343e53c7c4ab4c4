"""Opening whatever a user names as data: a prepared data set, or pictures that are prepared once into a cache.

Imports no TensorFlow, so that planning a grid stays light.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

from artclf.errors import ConfigError
from artclf.records import Dataset, is_dataset
from artclf.storage import local_path

SAMPLE = "sample:"
"""Names the generated pictures of made-up painters (artclf.sample)."""


def open_dataset(uri: str) -> Dataset:
    """Returns the data set that a name stands for.

    Args:
        uri: a prepared folder; a folder or zip of pictures (prepared into the cache on first use and
            again when a file of it changes); or ``sample:``.

    Raises:
        ConfigError: if there is nothing usable under that name.
    """
    if uri == SAMPLE:
        return _sample()
    folder = local_path(uri)
    if folder.is_dir() and is_dataset(folder):
        return Dataset.open(folder)
    if not folder.exists():
        raise ConfigError(
            f"{uri}: no such data set. Expected a folder that prepare made, a folder or zip of pictures, or {SAMPLE}"
        )
    if (folder / "manifest.json").exists():
        return Dataset.open(folder)  # says what is wrong with it
    return _prepared([str(folder)], f"{folder.name or 'data'}-{_listing_digest(folder)}")


def cache_folder() -> Path:
    """Returns the folder for what can be made again: $ARTCLF_CACHE, else below the user's own cache
    folder, else (no home, or one that cannot be written) below the temporary folder."""
    chosen = os.environ.get("ARTCLF_CACHE")
    if chosen:
        return local_path(chosen)
    home = Path(os.environ.get("HOME") or "/")
    caches = os.environ.get("XDG_CACHE_HOME") or (home / ".cache" if home.is_dir() and home != Path("/") else None)
    if caches:
        folder = Path(caches) / "artclf"
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
    return Path(tempfile.gettempdir()) / f"artclf-{os.getuid()}"


def _sample() -> Dataset:
    from artclf import sample

    folder = cache_folder() / "datasets" / f"sample-{sample.VERSION}"
    if is_dataset(folder):
        return Dataset.open(folder)
    pictures = cache_folder() / "sources" / f"sample-{sample.VERSION}"
    if not pictures.exists():
        sample.make_sample(pictures)
    return _prepared([str(pictures)], folder.name, artists=pictures / "artists.csv")


def _prepared(sources: list[str], name: str, artists: Path | None = None) -> Dataset:
    from artclf.prepare import Options, prepare

    folder = cache_folder() / "datasets" / name
    if is_dataset(folder):
        return Dataset.open(folder)
    return prepare(sources, folder, Options(artists=artists))


def _listing_digest(source: Path) -> str:
    """Returns 12 hex digits that change when a file of the source is added, removed, resized or rewritten."""
    digest = hashlib.sha256(os.fsencode(source))
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    for file in files:
        stat = file.stat()
        digest.update(os.fsencode(file) + f"\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]
