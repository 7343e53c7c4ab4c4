"""YAML as people expect it (BAD_INPUTS.md, G01 to G12, as far as the parser goes)."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artclf.errors import ConfigError
from artclf.strict_yaml import load, parse_value, scalar


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1.0e-3", 0.001),
        (".5", 0.5),
        ("012", 12),
        ("12:30:45", "12:30:45"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("off", "off"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("2020-01-01", "2020-01-01"),
        ("<<", "<<"),
    ],
)
def test_a_scalar_means_what_yaml_1_2_says(text: str, value: Any) -> None:
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


def test_special_numbers_are_read() -> None:
    assert scalar(".inf") == math.inf
    assert scalar("-.inf") == -math.inf
    assert math.isnan(scalar(".nan"))


def test_quoted_scalars_are_texts() -> None:
    assert parse_value("['1e-3', \"true\", 'null', \"\"]", "x") == ["1e-3", "true", "null", ""]


def test_json_escapes_of_a_character_beyond_16_bits_are_one_character() -> None:
    assert parse_value('"\\ud83c\\udfa8"', "x") == "🎨"


def test_a_merge_key_is_a_name_like_any_other() -> None:
    assert parse_value("{<<: {a: 1}}", "x") == {"<<": {"a": 1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "x:3: 'a' stands here for the second time, the first is in line 1"),
        ("a: !!python/object/apply:os.system [id]\n", "x:1: tags .* are not accepted"),
        ("a: !!str 3\n", "x:1: tags"),
        ("!!python/name:os.system : 1\n", "x:1: tags and anchors are not accepted on a name"),
        ("&a b: 1\n", "x:1: "),
        ("a: &x [1]\nb: *x\n", "x:1: anchors"),
        ("a: *x\n", "x:1: aliases"),
        ("*x : 1\n", "x:1: "),
        ("a: &x\n  b: *x\n", "x:1: anchors"),
        ("{[1, 2]: 3}\n", "x:1: expected a name"),
        ("a: 1\n---\nb: 2\n", "x:2: expected one document"),
        ("a: [1\n", "x:2: not readable as YAML"),
        ("a: 1\n  b: 2\n", "x:2: not readable as YAML"),
        ("a: \x00\n", "not readable as YAML"),
        ("a: @b\n", "x:1: not readable as YAML"),
        ("[" * 500 + "]" * 500, "x:1: expected at most 32 levels"),
        ("\n".join(" " * n + "a:" for n in range(500)), "levels of nesting"),
    ],
)
def test_what_surprises_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(text, "x")


def test_an_alias_bomb_is_refused_at_its_first_anchor() -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    with pytest.raises(ConfigError, match="x:1: anchors"):
        load("\n".join(levels), "x")


def test_a_text_over_one_megabyte_is_refused_unread() -> None:
    with pytest.raises(ConfigError, match="at most 1,000,000 bytes"):
        load("é" * 500_001, "x")


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_a_text_without_a_value_is_none(text: str) -> None:
    assert load(text, "x").value is None


def test_a_path_has_the_line_on_which_its_name_stands() -> None:
    document = load("a:\n  b: 1\n  c:\n    - 2\n    - d: 3\n", "x")
    lines = {("a",): 1, ("a", "b"): 2, ("a", "c"): 3, ("a", "c", 0): 4, ("a", "c", 1, "d"): 5}
    assert {path: document.line(path) for path in lines} == lines


def test_a_path_that_the_file_lacks_has_the_line_of_its_nearest_part() -> None:
    document = load("a:\n  b: 1\n", "x")
    assert document.line(("a", "b", "c", 3)) == 2
    assert document.line(("z",)) == 1


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_any_value_written_in_flow_style_reads_back(value: Any) -> None:
    text = json.dumps(value).replace("\x7f", "\\u007f")  # YAML takes this character escaped only
    assert parse_value(text, "x") == value


@given(st.text(st.sampled_from("a1:-[]{}&*!|>'\"%@`#?,.~ \n\t\\é\x85\ufeff"), max_size=40) | st.text(max_size=40))
def test_any_text_is_read_or_refused_and_never_crashes(text: str) -> None:
    try:
        document = load(text, "x")
    except ConfigError as error:
        assert str(error).startswith("x:")
    else:
        assert document.line(()) >= 1
