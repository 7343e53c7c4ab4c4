"""Names of classes as people's disks, archives and spreadsheets spell them, and the one spelling used here.

A class has a *slug* (its identity: NFC, underscores for blanks, what is unsafe in a path escaped as
``%XX``) and a *display* name for people. No path on this machine is ever built from either.
"""

from __future__ import annotations

import re
import unicodedata

from artclf.errors import printable

_CODE_PAGES = ("cp1252", "cp437", "latin-1")
"""What UTF-8 names are wrongly read as: Windows' western page, the zip format's own (APPNOTE.TXT, D.1), Latin-1."""

_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*%]')
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")
_FLAT = re.compile(r"(?P<label>.*[^\W_].*)_[0-9]+", re.DOTALL)
_NO_DECOMPOSITION = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "æ": "ae", "œ": "oe", "ð": "d", "þ": "th", "ı": "i"})


def repair(name: str) -> str:
    """Returns the name in NFC, read again as UTF-8 where its letters prove that it was read in a wrong code page.

    ``Albrecht_DuÌˆrer`` and ``Albrecht_Du╠êrer`` become ``Albrecht_Dürer``, also when it happened twice.
    Only a text whose every non-ASCII part forms valid UTF-8 in the wrong page, and gives letters or
    marks in the right one, is touched; an honest name practically never does.
    """
    for _ in range(3):
        name = unicodedata.normalize("NFC", name)
        better = next((read for page in _CODE_PAGES if (read := _read_again(name, page)) is not None), None)
        if better is None:
            break
        name = better
    return unicodedata.normalize("NFC", name)


def _read_again(name: str, page: str) -> str | None:
    if name.isascii():
        return None
    try:
        read = name.encode(page).decode("utf-8")
    except UnicodeError:
        return None
    # letters, marks, punctuation, and the symbols that letters look like when they were misread twice
    plausible = all(c.isascii() or unicodedata.category(c)[0] in "LMPS" for c in read)
    return read if plausible and read.isprintable() else None


def slug(name: str) -> str:
    """Returns the identity of a class name: equal for spellings that differ in blanks or Unicode form only.

    Different names never share a slug for any other reason (``%`` itself is escaped). Undecodable bytes
    (surrogate escapes) are escaped too, so a slug is always valid UTF-8.
    """
    text = unicodedata.normalize("NFC", name)
    inner = text.strip(" .") if text.strip(" .") else ""
    start = text.find(inner) if inner else len(text)
    lead, tail = text[:start], text[start + len(inner) :]
    middle = _UNSAFE.sub(_escaped, inner.replace(" ", "_"))
    middle = "".join(_escaped(c) if 0xD800 <= ord(c) <= 0xDFFF or not c.isprintable() else c for c in middle)
    if _RESERVED.fullmatch(middle):
        middle = _escaped(middle[0]) + middle[1:]
    return _escaped(lead) + middle + _escaped(tail)


def _escaped(found: re.Match[str] | str) -> str:
    text = found if isinstance(found, str) else found.group()
    return "".join(f"%{byte:02X}" for byte in to_bytes(text))


def display(name: str) -> str:
    """Returns the name for people: repaired, blanks for underscores, control characters and odd bytes shown escaped."""
    return shown(repair(name).replace("_", " ").strip()) or shown(name)


def shown(name: str) -> str:
    """Returns a name on one line, undecodable bytes as ``\\xff`` and control characters escaped."""
    return printable(to_bytes(name).decode("utf-8", "backslashreplace")).replace("\n", "\\n")


def to_bytes(name: str) -> bytes:
    """Returns the bytes of a file name, undecodable ones as they were; independent of the locale."""
    return name.encode("utf-8", "surrogateescape")


def from_bytes(name: bytes) -> str:
    """Returns the text of a file name's bytes, undecodable ones as surrogate escapes."""
    return name.decode("utf-8", "surrogateescape")


def fold(name: str) -> str:
    """Returns a name without accents, case, blanks and punctuation, to find the same name spelt otherwise."""
    text = unicodedata.normalize("NFKD", repair(name).casefold().translate(_NO_DECOMPOSITION))
    return "".join(c for c in text if c.isalnum())


def flat_label(file_name: str) -> str | None:
    """Returns ``Henri_de_Toulouse-Lautrec`` for ``Henri_de_Toulouse-Lautrec_12.jpg``, or None without ``_<number>``."""
    stem = file_name.rpartition(".")[0] or file_name
    found = _FLAT.fullmatch(stem)
    return found["label"] if found else None
