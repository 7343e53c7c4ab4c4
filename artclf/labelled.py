"""Pictures of a plain source with the class that their place means, for scoring without preparing."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from artclf.errors import ConfigError
from artclf.images import MAX_BYTES
from artclf.layout import Layout
from artclf.sources import CannotRead, Sources


def labelled_pictures(source: str) -> Iterator[tuple[str, str | None, bytes]]:
    """Yields (name, class as spelt there or None, content) of every picture of a folder or zip, in order of name.

    Raises:
        ConfigError: if there is no such source, it is refused, or it holds no picture.
    """
    with Sources([source], True, Path(tempfile.gettempdir())) as opened:
        layouts: dict[int, Layout] = {}
        pictures: list[tuple[int, str]] = []
        for place, entry in opened.entries():
            if entry.kind == "picture" and not entry.problem:
                layouts.setdefault(place, Layout()).add(entry.name)
                pictures.append((place, entry.name))
        if not pictures:
            raise ConfigError(f"{source}: holds no pictures.")
        for layout in layouts.values():
            layout.settle()
        for place, name in sorted(pictures):
            try:
                content = opened.read(place, name, MAX_BYTES)
            except CannotRead:
                content = b""
            yield opened.full_name(place, name), layouts[place].label(name), content
