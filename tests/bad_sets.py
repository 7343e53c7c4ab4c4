"""Data sets as they come in wrong (BAD_INPUTS: I28-I38 and D01-D25), generated with fixed seeds.

Each case builds its sources in a folder and says what prepare has to make of them: the message it stops
with, or values of the manifest. D21 is a manifest on S3, which this version does not read. I28 (a crop
larger than a picture) is for the trainer to judge; it finds every width and height in the index.
"""

from __future__ import annotations

import io
import os
import struct
import unicodedata
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PER_CLASS = 6
NFD = unicodedata.normalize("NFD", "Albrecht_Dürer")
AS_CP1252 = NFD.encode().decode("cp1252")
AS_CP437 = NFD.encode().decode("cp437")


def pixels(seed: int, side: int = 32) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Returns a picture of random patches, unlike that of any other seed."""
    patches = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    return np.kron(patches, np.ones((side // 16, side // 16, 1), np.uint8))


def encoded(image: np.ndarray[Any, np.dtype[np.uint8]], form: str = "PNG", **options: Any) -> bytes:
    """Returns the image as the bytes of a file."""
    Image.fromarray(image).save(content := io.BytesIO(), form, **options)
    return content.getvalue()


def picture(seed: int) -> bytes:
    """Returns a small sound PNG."""
    return encoded(pixels(seed))


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Writes files below a folder and returns it."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def classes(*names: str, first_seed: int = 0, count: int = PER_CLASS) -> dict[str, bytes]:
    """Returns the files of a folder per class."""
    return {
        f"{name}/{number}.png": picture(first_seed + 1000 * place + number)
        for place, name in enumerate(names)
        for number in range(count)
    }


def archive(files: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """Returns a zip of files, names as given."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as target:
        for name, data in files.items():
            target.writestr(zipfile.ZipInfo(name), data, compression)
    return content.getvalue()


@dataclass(frozen=True)
class Case:
    """One wrong data set and its verdict: ``stops`` (a pattern of the message) or ``gives`` (manifest values)."""

    id: str
    name: str
    build: Callable[[Path], Sequence[Path]]
    stops: str = ""
    gives: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def _folder(files: Mapping[str, bytes]) -> Callable[[Path], Sequence[Path]]:
    return lambda folder: [write(folder / "set", files)]


def _zip(content: bytes) -> Callable[[Path], Sequence[Path]]:
    return lambda folder: [write(folder, {"set.zip": content}) / "set.zip"]


TWO = classes("Ada", "Ben")


def _equal_pixels_in_two_files() -> dict[str, bytes]:
    return {"Ada/copy.png": TWO["Ada/0.png"], "Ada/other bytes.png": encoded(pixels(0), compress_level=1)}


def _with_table(table: bytes, name: str) -> Callable[[Path], Sequence[Path]]:
    def build(folder: Path) -> Sequence[Path]:
        write(folder, {name: table})
        return [write(folder / "set", TWO)]

    return build


def _linked(folder: Path) -> Sequence[Path]:
    root = write(folder / "set", classes("Ada", "Ben", count=30))
    outside = write(folder / "elsewhere", {"secret.png": picture(77)})
    (root / "Ada" / "inside.png").symlink_to(root / "Ada" / "0.png")
    (root / "Ada" / "outside.png").symlink_to(outside / "secret.png")
    (root / "Ben" / "dangling.png").symlink_to(root / "nothing.png")
    (root / "Ben" / "circle.png").symlink_to(root / "Ben" / "circle.png")
    (root / "Ben" / "whole set").symlink_to(root)
    (root / "Ben" / "other class").symlink_to(root / "Ada")
    return [root]


def _sparse(folder: Path) -> Sequence[Path]:
    root = write(folder / "set", TWO)
    with open(root / "Ada" / "huge.png", "wb") as file:
        file.truncate(10 * 2**30)
    return [root]


def _fifo(folder: Path) -> Sequence[Path]:
    root = write(folder / "set", TWO)
    os.mkfifo(root / "Ada" / "pipe.png")
    return [root]


def _odd_bytes(folder: Path) -> Sequence[Path]:
    root = write(folder / "set", TWO)
    os.rename(root / "Ben", os.fsencode(root) + b"/B\xffn")
    os.rename(root / "Ada" / "0.png", os.fsencode(root) + b"/Ada/\xfe.png")
    return [root]


def _empty_class(folder: Path) -> Sequence[Path]:
    root = write(folder / "set", {**TWO, "Cleo/.DS_Store": b"x"})
    return [root]


def _link_entry() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as target:
        link = zipfile.ZipInfo("Ada/link")
        link.external_attr = 0o120777 << 16
        target.writestr(link, "/etc")
        target.writestr("Ada/link/passwd", b"x")
    return content.getvalue()


def _device_entry() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as target:
        device = zipfile.ZipInfo("Ada/disk.png")
        device.external_attr = 0o060666 << 16
        target.writestr(device, "")
    return content.getvalue()


def _encrypted() -> bytes:
    content = bytearray(archive(TWO))
    at = content.rfind(b"PK\1\2")
    content[at + 8] |= 1
    return bytes(content)


def _bomb() -> bytes:
    return archive({f"Ada/{number}.png": bytes(2**26) for number in range(6)}, zipfile.ZIP_DEFLATED)


def _overlapping() -> bytes:
    """Returns a zip whose directory names one stretch of data many times (as D. Fifield's bombs do)."""
    content = archive({"Ada/0.png": picture(0)})
    at = content.index(b"PK\1\2")
    entry, end = content[at : content.index(b"PK\5\6")], content[content.index(b"PK\5\6") :]
    names = [b"Ada/%d.png" % number for number in range(8)]
    directory = b"".join(entry.replace(b"Ada/0.png", name) for name in names)
    counts = struct.pack("<HHL", len(names), len(names), len(directory))
    return content[:at] + directory + end[:8] + counts + end[16:]


def _million_entries(claimed: int) -> bytes:
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    directory = entry * 1_000_000
    return directory + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, claimed, claimed, len(directory), 0, 0)


def _nested(depth: int) -> bytes:
    content = archive(TWO)
    for _ in range(depth):
        content = archive({"inner.zip": content, **classes("Ada", "Ben", first_seed=500)})
    return content


ARTISTS = "id,name,years,genre,nationality\n1,Ada,1900 - 1950,Cubism,Dutch\n2,Ben,1901 - 1951,Fauvism,French\n"

CASES = [
    Case(
        "I30",
        "exact duplicates in one class are kept once",
        _folder({**TWO, **_equal_pixels_in_two_files()}),
        gives={"counts.found": 14, "counts.used": 12, "counts.duplicates": 2},
    ),
    Case(
        "I31",
        "the same pixels in two classes are a listed conflict",
        _folder({**TWO, "Ben/again.png": TWO["Ada/0.png"]}),
        gives={
            "counts.used": 13,
            "conflicts": [{"same": "pixels", "classes": ["Ada", "Ben"], "pictures": ["Ada/0.png", "Ben/again.png"]}],
        },
    ),
    Case(
        "I31",
        "the same pixels in two classes stop a strict prepare",
        _folder({**TWO, "Ben/again.png": TWO["Ada/0.png"]}),
        stops=r"two classes: Ada/0\.png = Ben/again\.png",
        options={"strict": True},
    ),
    Case(
        "I32",
        "a resized copy is grouped with its original",
        _folder({**TWO, "Ada/small.jpg": encoded(pixels(3, 128), "JPEG", quality=80)}),
        gives={"near_duplicates": {"groups": 1, "pictures": 2, "list": [["Ada/3.png", "Ada/small.jpg"]]}},
    ),
    Case(
        "I33",
        "pictures of one colour are kept and counted, and are not alike",
        _folder(
            {
                **TWO,
                "Ada/black.png": encoded(np.zeros((20, 20, 3), np.uint8)),
                "Ben/red.png": encoded(pixels(1) * 0 + 9),
            }
        ),
        gives={"counts.used": 14, "constant": 2, "near_duplicates.groups": 0},
    ),
    Case(
        "I37",
        "links inside are kept once, links out, to nothing and in circles are skipped",
        _linked,
        gives={"counts.used": 60, "counts.duplicates": 1, "counts.skipped": 4, "counts.ignored": 1},
        options={"max_bad": (0.1, 0.1)},
    ),
    Case(
        "I38",
        "a sparse file of 10 GB is skipped by its size",
        _sparse,
        gives={"skipped": [{"name": "Ada/huge.png", "reason": "too large"}]},
        options={"max_bad": (1, 1)},
    ),
    Case(
        "I38",
        "a pipe is skipped and never opened",
        _fifo,
        gives={"skipped": [{"name": "Ada/pipe.png", "reason": "not a regular file"}]},
        options={"max_bad": (1, 1)},
    ),
    Case(
        "D01",
        "a name read in code page 1252 beside the right one stops",
        _folder(classes(AS_CP1252, "Albrecht_Dürer", "Ben")),
        stops="--merge-names",
    ),
    Case(
        "D01",
        "a name read in code page 1252 is merged when asked",
        _folder(classes(AS_CP1252, "Albrecht_Dürer", "Ben")),
        gives={"classes": ["Albrecht_Dürer", "Ben"], "counts.used": 18, "repaired_names": 1},
        options={"merge_names": True},
    ),
    Case(
        "D02",
        "a name read in code page 437 is repaired",
        _folder(classes(AS_CP437, "Ben")),
        gives={"classes": ["Albrecht_Dürer", "Ben"], "repaired_names": 1},
    ),
    Case(
        "D03",
        "NFC and NFD spellings are one class without asking",
        _folder(classes(NFD, "Albrecht_Dürer", "Ben")),
        gives={"classes": ["Albrecht_Dürer", "Ben"], "counts.used": 18, "repaired_names": 0},
    ),
    Case(
        "D05",
        "names that other systems cannot hold are kept, escaped",
        _folder(classes("CON", "Ada ", "Ben.", "a:b")),
        gives={"classes": ["%43ON", "Ada%20", "Ben%2E", "a%3Ab"], "counts.used": 24},
    ),
    Case("D06", "names of odd bytes are kept", _odd_bytes, gives={"classes": ["Ada", "B%FFn"], "counts.used": 12}),
    Case(
        "D08",
        "names that are markup or formulas are kept as text",
        _folder(classes("<script>", '"><img onerror=x>', "=HYPERLINK()", "@SUM", "javascript:")),
        gives={
            "displays": ['"><img onerror=x>', "<script>", "=HYPERLINK()", "@SUM", "javascript:"],
            "counts.used": 30,
        },
    ),
    Case("D10", "an empty class folder stops", _empty_class, stops=r"Cleo: .*--allow-empty"),
    Case(
        "D10",
        "an empty class folder is left out when allowed",
        _empty_class,
        gives={"classes": ["Ada", "Ben"]},
        options={"allow_empty": True},
    ),
    Case("D12", "a single class stops", _folder(classes("Ada")), stops="only one class found, Ada"),
    Case("D12", "nothing but other files stops", _folder({"readme.txt": b"x"}), stops="no pictures found"),
    Case(
        "D12",
        "pictures at the top level stop",
        _folder({**TWO, "cover.png": picture(99)}),
        stops=r"cover\.png: expected every picture in a folder",
    ),
    Case(
        "D13",
        "what systems leave behind is ignored and counted",
        _folder(
            {
                **TWO,
                "__MACOSX/Ada/._0.png": b"x",
                ".DS_Store": b"x",
                "Ada/Thumbs.db": b"x",
                "Ben/.ipynb_checkpoints/0-checkpoint.png": picture(5),
                "Ben/._0.png": b"x",
                "notes.txt": b"x",
            }
        ),
        gives={"classes": ["Ada", "Ben"], "counts.found": 12, "counts.ignored": 6},
    ),
    *(
        Case("D14", f"a zip with the path {name} stops", _zip(archive({**TWO, name: b"x"})), stops="own folder")
        for name in ("../x.png", "/abs.png", "C:\\x.png", "Ada\\x.png", "Ada/../../x.png")
    ),
    Case("D15", "a zip with a link and a file through it stops", _zip(_link_entry()), stops="symbolic link"),
    Case("D15", "a zip with a device stops", _zip(_device_entry()), stops="no regular file"),
    Case("D15", "a tar is not read", lambda f: [write(f, {"set.tar": b"x" * 600}) / "set.tar"], stops="Unpack it"),
    Case("D16", "a zip bomb stops", _zip(_bomb()), stops="would unpack to 402,653,184"),
    Case("D16", "overlapping entries stop", _zip(_overlapping()), stops="overlap"),
    Case("D16", "a million entries stop", _zip(_million_entries(0xFFFE)), stops="at most 200,000 entries"),
    Case(
        "D16",
        "a million entries that claim to be five stop",
        _zip(_million_entries(5)),
        stops="directory of 47,000,000",
    ),
    Case("D16", "an encrypted zip stops", _zip(_encrypted()), stops="encrypted"),
    Case("D16", "half a zip stops", _zip(archive(TWO)[:900]), stops="ends too early. Download it again"),
    Case("D18", "a zip in a zip stops and asks", _zip(_nested(1)), stops="--nested-zips"),
    Case(
        "D18",
        "a zip in a zip is read when asked",
        _zip(_nested(1)),
        gives={"counts.used": 24, "sources": ["set.zip", "set.zip/inner.zip"]},
        options={"nested_zips": True},
    ),
    Case(
        "D18",
        "a zip in a zip is left when asked",
        _zip(_nested(1)),
        gives={"counts.used": 12, "counts.ignored": 1},
        options={"nested_zips": False},
    ),
    Case("D18", "a third level stops", _zip(_nested(2)), stops="zip in a zip in a zip", options={"nested_zips": True}),
    Case(
        "D19",
        "an artists' table with a mark, CRLF and quoted line breaks is read",
        _with_table(
            b"\xef\xbb\xbf" + ARTISTS.replace("Dutch", '"Dutch\nGerman"').replace("\n", "\r\n").encode(), "artists.csv"
        ),
        gives={"classes.0.about": {"years": "1900 - 1950", "genre": "Cubism", "nationality": "Dutch\r\nGerman"}},
        options={"artists": "artists.csv"},
    ),
    Case(
        "D19",
        "an artists' table in code page 1252 is read",
        _with_table(ARTISTS.replace("Ada,", "Adà,").encode("cp1252"), "artists.csv"),
        gives={"displays": ["Adà", "Ben"]},
        options={"artists": "artists.csv"},
    ),
    Case(
        "D19",
        "an artists' table without names stops",
        _with_table(b"id,nome\n1,Ada\n", "artists.csv"),
        stops="row 1: expected a column 'name'",
        options={"artists": "artists.csv"},
    ),
    Case(
        "D19",
        "an id that comes twice stops",
        _with_table(ARTISTS.replace("2,Ben", "1,Ben").encode(), "artists.csv"),
        stops=r"artists\.csv: row 3: the id '1' already stands in row 2",
        options={"artists": "artists.csv"},
    ),
    Case(
        "D20",
        "artists without pictures and classes without a row are listed",
        _with_table(ARTISTS.replace("Ben", "Cleo").encode(), "artists.csv"),
        gives={"artists": {"without_pictures": ["Cleo"], "without_row": ["Ben"]}},
        options={"artists": "artists.csv"},
    ),
    Case(
        "D20",
        "artists without pictures stop a strict prepare",
        _with_table(ARTISTS.replace("Ben", "Cleo").encode(), "artists.csv"),
        stops="Cleo: no pictures; Ben: no row",
        options={"artists": "artists.csv", "strict": True},
    ),
    *(
        Case("D23", f"the ratios {ratios} stop", _folder(TWO), stops="sum to 1", options={"splits": ratios})
        for ratios in ((0.8, 0.1, 0.2), (0.9, 0.1, 0.0), (float("nan"), 0.5, 0.5), (1.2, -0.1, -0.1), (0.5, 0.5))
    ),
]
