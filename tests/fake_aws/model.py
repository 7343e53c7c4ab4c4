"""Values held against AWS's own service models (those in botocore): requests that come in, answers that go out.

Stricter than botocore, which sends what breaks a pattern, an enum or a maximum and leaves the refusal to the service.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from typing import Any

import botocore.session
from botocore.model import ListShape, MapShape, ServiceModel, Shape, StringShape, StructureShape

Params = dict[str, Any]

KINDS: dict[str, tuple[type, ...]] = {
    "structure": (dict,),
    "map": (dict,),
    "list": (list,),
    "string": (str,),
    "blob": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "long": (int,),
    "float": (int, float),
    "double": (int, float),
    "timestamp": (int, float),  # seconds since 1970, on the wire of the JSON protocols too
}


@cache
def service_model(name: str) -> ServiceModel:
    """Returns the model of a service, by botocore's name for it."""
    return botocore.session.get_session().get_service_model(name)


def broken_rules(shape: Shape, value: Any, path: str = "") -> list[str]:
    """Returns what a value breaks, one sentence each in AWS's style; empty if it keeps every rule of the shape."""
    kinds = KINDS[shape.type_name]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        return [_broken(value, path, f"Member must be of type {shape.type_name}")]
    return [*_own_rules(shape, value, path), *_rules_inside(shape, value, path)]


def _rules_inside(shape: Shape, value: Any, path: str) -> Iterator[str]:
    if isinstance(shape, StructureShape):
        for name in shape.required_members:
            if name not in value:
                yield _broken(None, _below(path, name), "Member must not be null")
        for name, inner in value.items():
            if name in shape.members:
                yield from broken_rules(shape.members[name], inner, _below(path, name))
            else:
                yield _broken(inner, _below(path, name), f"Member is unknown to {shape.name}")
    elif isinstance(shape, ListShape):
        for number, inner in enumerate(value, 1):
            yield from broken_rules(shape.member, inner, f"{path}.{number}.member")
    elif isinstance(shape, MapShape):
        for key, inner in value.items():
            yield from broken_rules(shape.key, key, f"{path}.key")
            yield from broken_rules(shape.value, inner, f"{path}.{key}")


def _own_rules(shape: Shape, value: Any, path: str) -> Iterator[str]:
    rules = shape.metadata
    if isinstance(value, str | list | dict):
        size, word = len(value), "length"
    else:
        size, word = value, "value"
    if "min" in rules and size < rules["min"]:
        yield _broken(value, path, f"Member must have {word} greater than or equal to {rules['min']}")
    if "max" in rules and size > rules["max"]:
        yield _broken(value, path, f"Member must have {word} less than or equal to {rules['max']}")
    if isinstance(shape, StringShape) and shape.enum and value not in shape.enum:
        yield _broken(value, path, f"Member must satisfy enum value set: [{', '.join(shape.enum)}]")
    pattern = compiled_pattern(rules["pattern"]) if "pattern" in rules else None
    if pattern is not None and not pattern.fullmatch(value):
        yield _broken(value, path, f"Member must satisfy regular expression pattern: {rules['pattern']}")


def _broken(value: Any, path: str, rule: str) -> str:
    shown = "null" if value is None else f"'{value}'"
    return f"Value {shown} at '{path}' failed to satisfy constraint: {rule}"


def _below(path: str, name: str) -> str:
    name = name[:1].lower() + name[1:]
    return f"{path}.{name}" if path else name


@cache
def compiled_pattern(pattern: str) -> re.Pattern[str] | None:
    """Returns AWS's pattern for Python, or None for the few that only Java reads.

    A test sees to it that no operation which is played has one of those.
    """
    ascii_only = pattern.replace(r"\p{Alnum}", "a-zA-Z0-9")
    translated = re.sub(r"\\p\{([A-Z])\}", lambda found: _category(found[1]), ascii_only)
    try:
        return re.compile(translated)
    except re.error:
        return None


@cache
def _category(letter: str) -> str:
    """Returns the characters of a Unicode category, as ranges to stand between the brackets of a pattern."""
    ranges = []
    points = (c for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)).startswith(letter))
    for _, run in groupby(enumerate(points), lambda numbered: numbered[1] - numbered[0]):
        members = [point for _, point in run]
        ranges.append(f"{re.escape(chr(members[0]))}-{re.escape(chr(members[-1]))}")
    return "".join(ranges)
