from __future__ import annotations

import unicodedata

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from artclf.names import display, flat_label, fold, from_bytes, repair, slug, to_bytes
from tests.bad_sets import AS_CP437, AS_CP1252, NFD

LETTERS = st.characters(
    min_codepoint=0x20, max_codepoint=0x24F, categories=("Lu", "Ll", "Nd"), exclude_characters="²³¹"
)
NAMES = st.text(st.one_of(LETTERS, st.characters(min_codepoint=0x370, max_codepoint=0x4FF, categories=("Lu", "Ll"))))


@pytest.mark.parametrize(
    "broken", [AS_CP1252, AS_CP437, AS_CP437.encode().decode("cp437"), NFD, unicodedata.normalize("NFD", AS_CP1252)]
)
def test_a_name_read_in_a_wrong_code_page_is_repaired(broken: str) -> None:
    assert repair(broken) == "Albrecht_Dürer"


@given(NAMES, st.sampled_from(["cp1252", "cp437", "latin-1"]), st.sampled_from(["NFC", "NFD"]))
def test_whatever_a_code_page_could_do_to_a_name_is_undone(name: str, page: str, form: str) -> None:
    right = unicodedata.normalize("NFC", name)
    assume(repair(right) == right)  # a name that looks as if it had been through a code page before cannot be told
    try:
        broken = unicodedata.normalize(form, name).encode().decode(page)  # type: ignore[arg-type]
    except UnicodeDecodeError:
        return
    if broken.isprintable():
        assert repair(broken) == right


@given(st.text(st.characters(min_codepoint=0xC0, max_codepoint=0x17F, categories=("Lu", "Ll")), max_size=1), NAMES)
def test_a_name_with_single_accents_is_left_alone(accent: str, rest: str) -> None:
    name = unicodedata.normalize("NFC", f"A{accent}b")
    assert repair(name) == name
    assert repair(repair(rest)) == repair(rest)


def test_blanks_and_unicode_forms_make_no_other_slug() -> None:
    assert slug("Albrecht Dürer") == slug(unicodedata.normalize("NFD", "Albrecht_Dürer")) == "Albrecht_Dürer"


@given(st.text(), st.text())
def test_different_names_have_different_slugs(first: str, second: str) -> None:
    def plain(name: str) -> str:
        return unicodedata.normalize("NFC", name)

    if plain(first).replace(" ", "_") != plain(second).replace(" ", "_"):
        assert slug(first) != slug(second)


@given(st.binary(max_size=20))
def test_a_slug_is_safe_in_a_path_whatever_the_bytes_of_the_name(name: bytes) -> None:
    made = slug(from_bytes(name))
    assert made.encode("utf-8").decode() == made
    assert made.isprintable()
    assert made not in (".", "..") and not set(made) & set('/\\:*?"<>|\0')
    assert not made.endswith((" ", "."))
    assert to_bytes(from_bytes(name)) == name


@pytest.mark.parametrize("name", ["CON", "nul", "Aux.jpg", "com1", "LPT9.tar.gz"])
def test_device_names_are_escaped(name: str) -> None:
    assert slug(name).startswith("%")


def test_display_is_for_people() -> None:
    assert display("Henri_de_Toulouse-Lautrec") == "Henri de Toulouse-Lautrec"
    assert display(AS_CP1252) == "Albrecht Dürer"
    assert display("B\udcffn") == "B\\xffn"
    assert display("a\nb\x1b[31m") == "a\\nb\\x1b[31m"


def test_folding_finds_the_same_artist_spelt_otherwise() -> None:
    assert fold("Albrecht_Durer") == fold("Albrecht Dürer") == fold(AS_CP437)
    assert fold("Asger Jørn") == fold("asger-jorn")
    assert fold("Titian") != fold("Tizian")


@pytest.mark.parametrize(
    ("file", "label"),
    [
        ("Henri_de_Toulouse-Lautrec_12.jpg", "Henri_de_Toulouse-Lautrec"),
        ("Period_2_3.png", "Period_2"),
        ("1900_1950_7.jpeg", "1900_1950"),
        ("Titian_1", "Titian"),
        ("Titian.jpg", None),
        ("_3.jpg", None),
        ("IMG-0001.jpg", None),
    ],
)
def test_the_class_is_what_stands_before_the_last_number(file: str, label: str | None) -> None:
    assert flat_label(file) == label
