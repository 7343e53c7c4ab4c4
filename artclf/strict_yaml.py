"""YAML as people expect it: version 1.2's meaning of scalars, and nothing that surprises.

PyYAML reads the text into events; its own 1.1 rules (``1e-3`` is a text, ``no`` is false, the
last of two equal keys wins) are not used. Aliases, tags, second documents, texts over 1 MB and
nesting over 32 deep are refused, so a hostile file costs no more than an honest one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from artclf.errors import ConfigError

MAX_BYTES = 1_000_000
MAX_DEPTH = 32

Path = tuple[str | int, ...]

# YAML 1.2.2, section 10.3.2 (core schema), less octal and hexadecimal, which no setting needs.
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}


@dataclass
class Document:
    """A parsed file: its plain value, and the line on which the value at each path begins."""

    value: Any
    lines: dict[Path, int] = field(default_factory=dict)

    def line(self, path: Path) -> int:
        """Returns the line of a path, or of the nearest part of it that the file has."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def load(text: str, where: str) -> Document:
    """Parses one YAML document into dicts, lists, texts, numbers, booleans and None.

    Args:
        text: the whole file.
        where: its name, for messages.

    Raises:
        ConfigError: with ``where:line``, for anything that is not one plain document.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise ConfigError(f"{where}: expected at most {MAX_BYTES:,} bytes, received more.")
    return _Reader(text, where).document()


def parse_value(text: str, where: str) -> Any:
    """Returns the value of one YAML expression, such as ``1e-3`` or ``[64, 32]``."""
    return load(text, where).value


def scalar(text: str) -> Any:
    """Returns what an unquoted scalar means in YAML 1.2's core schema."""
    if text in _SPECIAL:
        return _SPECIAL[text]
    if _INT.fullmatch(text):
        return int(text) if len(text) < 100 else float(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


class _Reader:
    def __init__(self, text: str, where: str) -> None:
        self._where = where
        self._events: Iterator[Any] = yaml.parse(text, Loader=yaml.SafeLoader)
        self._lines: dict[Path, int] = {}

    def document(self) -> Document:
        self._next()  # the stream starts
        event = self._next()
        if isinstance(event, yaml.StreamEndEvent):
            return Document(None)
        value = self._value(self._next(), ())
        self._next()  # the document ends
        event = self._next()
        if not isinstance(event, yaml.StreamEndEvent):
            raise self._error(event, "expected one document, received a second one after '---'")
        return Document(value, self._lines)

    def _next(self) -> Any:
        try:
            return next(self._events)
        except yaml.YAMLError as error:
            mark: Any = getattr(error, "problem_mark", None)
            problem = getattr(error, "problem", None) or str(error).splitlines()[0]
            line = f":{mark.line + 1}" if mark is not None else ""
            raise ConfigError(f"{self._where}{line}: not readable as YAML: {problem}.") from error

    def _value(self, event: Any, path: Path) -> Any:
        if len(path) > MAX_DEPTH:
            raise self._error(event, f"expected at most {MAX_DEPTH} levels of nesting, received more")
        if isinstance(event, yaml.AliasEvent):
            raise self._error(event, f"aliases (*{event.anchor}) are not accepted; write the value out")
        if event.tag not in (None, "!"):
            raise self._error(event, f"tags ({event.tag}) are not accepted; write a plain value")
        if event.anchor is not None:
            raise self._error(event, f"anchors (&{event.anchor}) are not accepted; write the value out")
        self._lines[path] = _line(event)
        if isinstance(event, yaml.ScalarEvent):
            return scalar(event.value) if event.implicit[0] else _whole(event.value)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(path)
        return self._mapping(path)

    def _sequence(self, path: Path) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            items.append(self._value(event, (*path, len(items))))
        return items

    def _mapping(self, path: Path) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise self._error(event, "expected a name before ':', received a list, a mapping or an alias")
            if event.tag not in (None, "!") or event.anchor is not None:
                raise self._error(event, "tags and anchors are not accepted on a name; write it plainly")
            key = _whole(event.value)
            if key in mapping:
                first = self._lines[(*path, key)]
                raise self._error(event, f"{key!r} stands here for the second time, the first is in line {first}")
            mapping[key] = self._value(self._next(), (*path, key))
            self._lines[(*path, key)] = _line(event)
        return mapping

    def _error(self, event: Any, problem: str) -> ConfigError:
        return ConfigError(f"{self._where}:{_line(event)}: {problem}.")


def _whole(text: str) -> str:
    """Returns a text with surrogate pairs joined: JSON escapes 🎨 as two of them, and JSON is YAML."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1
