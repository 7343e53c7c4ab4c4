"""The one decoder: the bytes of a file in, 8-bit RGB pixels or a reason out.

Preparing, training and prediction all read pictures here, so a model is never shown pixels that
were decoded in another way than those it learned from. The rules:

- The content decides what a file is, never its name. Accepted are the formats of ``EXTENSIONS``,
  all decoded by Pillow itself; no other program is ever started.
- Size is judged from the header, before memory is asked for.
- Everything becomes 8-bit RGB, upright: EXIF rotation is applied; alpha is laid on white; 16 bits
  are divided by 257; of several frames or pages the first is taken. CMYK becomes (1-C)(1-K), …,
  inverted if Adobe's marker says so.
- Embedded colour profiles are ignored: numbers are taken as sRGB. That is what the decoders did
  that ImageNet weights come from, and it depends on no colour library's version.
- 32-bit numbers are read as 0..1 (floats only), 0..255 or 0..65535, whichever is the first to hold
  the largest; negative ones are black. NaN or larger numbers are no picture.

Pillow's plugins are called directly, not through ``Image.open``: that guesses among all formats,
and warns or raises about sizes by limits that are global to the process. Nothing here changes
Pillow's or Python's global state after import, so any number of threads may decode at once.
"""

from __future__ import annotations

import importlib
import io
import struct
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from artclf.errors import ArtclfError

MAX_PIXELS = 100_000_000
"""Most pixels a picture may have by its header: about 1 GB while it is decoded, 3 GB if of 16-bit colour."""
MAX_BYTES = 256 * 1024 * 1024
"""Most bytes a picture's file may have."""
MAX_FRAMES = 1000
"""Most frames of an animation; with more it is a film or an attack, not a work of art."""
_MAX_ICON_PIXELS = 4096 * 4096
_MAX_SCANS = 200  # a progressive JPEG has about ten; each costs a pass over all pixels
_MAX_PACKED_CHUNKS = 64  # of a PNG's metadata; Pillow unpacks each to at most 1 MB

EXTENSIONS: dict[str, frozenset[str]] = {
    "JPEG": frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"}),
    "PNG": frozenset({".png", ".apng"}),
    "WEBP": frozenset({".webp"}),
    "TIFF": frozenset({".tif", ".tiff"}),
    "BMP": frozenset({".bmp", ".dib"}),
    "GIF": frozenset({".gif"}),
    "AVIF": frozenset({".avif", ".avifs"}),
    "ICO": frozenset({".ico"}),
    "JPEG2000": frozenset({".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc"}),
}
"""The accepted formats and the extensions their files go by."""

Pixels = npt.NDArray[np.uint8]

# A TIFF's odd tags are worth no line on a user's terminal: either its pixels can be read or it is left out.
warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")


class Unreadable(ArtclfError):
    """A file is no picture that can be used.

    Attributes:
        reason: in a word or three, the same for all files with the same fault, to count by.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)  # as given, so that it can be passed between processes
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"not readable as a picture: {self.reason}{f' ({self.detail})' if self.detail else ''}."


@dataclass(frozen=True)
class Picture:
    """A decoded picture.

    Attributes:
        pixels: (H, W, 3) uint8 RGB, upright; may be read-only.
        format: what the content is, a key of EXTENSIONS.
        fixes: what was converted, in order; empty for an ordinary picture.
    """

    pixels: Pixels
    format: str
    fixes: tuple[str, ...] = ()


def read_picture(content: bytes, *, salvage: bool = False) -> Picture:
    """Returns the picture that a file's bytes hold.

    Args:
        content: the whole file.
        salvage: accept a JPEG without its end marker if all its pixels are there.

    Raises:
        Unreadable: if it is empty, of no accepted format, cut short, damaged or too large.
    """
    check_bytes(len(content))
    form = _sniff(content)
    try:
        return _decode(content, form)
    except Unreadable as error:
        if salvage and form == "JPEG" and error.reason == "truncated" and (whole := _salvaged(content)):
            return whole
        raise


def check_bytes(size_bytes: int) -> None:
    """Judges a file's length, before it is read.

    Raises:
        Unreadable: if it is empty or longer than MAX_BYTES.
    """
    if size_bytes == 0:
        raise Unreadable("empty")
    if size_bytes > MAX_BYTES:
        raise Unreadable("too large", f"{size_bytes:,} bytes, at most {MAX_BYTES:,} are read")


def is_mislabelled(name: str, format: str) -> bool:
    """Says whether a file's extension is that of another picture format than its content's."""
    extension = PurePath(name).suffix.lower()
    return extension not in EXTENSIONS[format] and any(extension in known for known in EXTENSIONS.values())


# -- what a file is ------------------------------------------------------------------------------

_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"BM": "BMP",
    b"\0\0\1\0": "ICO",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG2000",
    b"\xff\x4f\xff\x51": "JPEG2000",
}
_REFUSED = {b"%PDF": "PDF", b"%!PS": "PostScript", b"8BPS": "Photoshop", b"\xc5\xd0\xd3\xc6": "EPS"}


def _sniff(content: bytes) -> str:
    """Returns the format that the first bytes announce."""
    start = content[:64]
    for magic, form in _MAGIC.items():
        if start.startswith(magic):
            return form
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    if start[4:8] == b"ftyp":
        # ISO 14496-12, 4.3: one major brand, and from byte 16 on the other brands that the file meets
        if b"avif" in start[8:] or b"avis" in start[8:]:
            return "AVIF"
        raise Unreadable("unsupported format", start[8:12].decode("ascii", "replace"))
    for magic, name in _REFUSED.items():
        if start.startswith(magic):
            raise Unreadable("unsupported format", name)
    if _is_text(content[:512]):
        raise Unreadable("not an image", "text")
    raise Unreadable("unknown format")


def _is_text(start: bytes) -> bool:
    text = start.decode("utf-8", "ignore")  # a few letters may be of another encoding, the last one may be cut
    return len(text.encode()) > len(start) * 0.9 and all(c.isprintable() or c in "\r\n\t\f\ufeff" for c in text)


# -- judged before it is decoded -----------------------------------------------------------------


def _check_size(width: int, height: int, limit: int = MAX_PIXELS) -> None:
    if width <= 0 or height <= 0:
        raise Unreadable("damaged", f"{width} x {height} pixels")
    if width * height > limit:
        raise Unreadable("too large", f"{width} x {height} pixels, at most {limit:,} are decoded")


def _check_png(content: bytes) -> None:
    """Judges the chunks that make a small file dear to open, or of which Pillow would warn."""
    at, packed, animations = 8, 0, 0
    while at + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        packed += kind in (b"zTXt", b"iTXt", b"iCCP")
        if kind == b"acTL":
            animations += 1
            (frames,) = struct.unpack_from(">I", content, at + 8)
            if not 0 < frames < 2**31 or animations > 1:
                raise Unreadable("damaged", "animation control")
        elif kind == b"IEND":
            break
        at += 12 + length
    if packed > _MAX_PACKED_CHUNKS:
        raise Unreadable("too large", f"{packed} compressed texts or profiles")


def _check_webp(content: bytes) -> None:
    """Judges the canvas, for which the plugin asks memory as it opens (RFC 9649, 2.5 to 2.7)."""
    kind = content[12:16]
    if kind == b"VP8X":
        _check_size(1 + int.from_bytes(content[24:27], "little"), 1 + int.from_bytes(content[27:30], "little"))
    elif kind == b"VP8L":
        bits = int.from_bytes(content[21:25], "little")
        _check_size((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    elif kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", content, 26)
        _check_size(width & 0x3FFF, height & 0x3FFF)


def _check_gif(content: bytes) -> None:
    """Judges the first frame, which may reach beyond the screen, and the number of frames (GIF89a, 18 to 24)."""
    frames, at = 0, 13 + _colour_table(content[10])
    while at < len(content) and content[at] in b"\x21\x2c\x00":
        if content[at] == 0x2C:
            frames += 1
            left, top, width, height, flags = struct.unpack_from("<4HB", content, at + 1)
            if frames == 1:
                _check_size(left + width, top + height)
            if frames > MAX_FRAMES:
                raise Unreadable("too many frames", f"at most {MAX_FRAMES:,} are accepted")
            at += 11 + _colour_table(flags)
        else:
            at += 2 if content[at] else 0
        while at < len(content) and content[at]:
            at += content[at] + 1
        at += 1


def _colour_table(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _check_ico(content: bytes) -> None:
    """Judges the pictures inside by their own headers, not by the directory's claims."""
    (count,) = struct.unpack_from("<H", content, 4)
    for entry in range(count):
        (start,) = struct.unpack_from("<I", content, 6 + 16 * entry + 12)
        if content[start : start + 4] == b"\x89PNG":
            width, height = struct.unpack_from(">II", content, start + 16)
            _check_png(content[start:])
        else:
            width, height = struct.unpack_from("<ii", content, start + 4)
            height = abs(height) // 2  # colours above mask
        _check_size(width, height, _MAX_ICON_PIXELS)


_CHECKS: dict[str, Callable[[bytes], None]] = {
    "PNG": _check_png,
    "WEBP": _check_webp,
    "GIF": _check_gif,
    "ICO": _check_ico,
}


# -- decoding ------------------------------------------------------------------------------------


def _decode(content: bytes, form: str) -> Picture:
    try:
        if form in _CHECKS:
            _CHECKS[form](content)
        image = _open(content, form)
        _check_size(*image.size)
        fixes = _frames(image, form)
        _check_scans(image, content)
        orientation = _orientation(image)
        image = _eight_bits(image, content, form, fixes)
        orientation = orientation or _orientation(image)  # a PNG may tell it after its pixels
        pixels = np.asarray(_rgb(image, fixes))
        return Picture(_upright(pixels, orientation, fixes), form, tuple(fixes))
    except (Unreadable, MemoryError):
        raise
    except Exception as error:  # a decoder given hostile bytes raises nearly anything, and it is the file's fault
        raise _unreadable(error) from error


def _unreadable(error: Exception) -> Unreadable:
    text = str(error) or type(error).__name__
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning) or "too large" in text:
        return Unreadable("too large", text)
    if isinstance(error, struct.error | EOFError) or "truncated" in text.lower():
        return Unreadable("truncated", text)
    return Unreadable("damaged", text)


class _Jpeg(JpegImageFile):
    """Pillow's JPEG without its look for a resolution in EXIF, which takes time and warns of damaged tags."""

    def _read_dpi_from_exif(self) -> None:
        pass


_PLUGINS = {
    "PNG": "PngImagePlugin.PngImageFile",
    "WEBP": "WebPImagePlugin.WebPImageFile",
    "TIFF": "TiffImagePlugin.TiffImageFile",
    "BMP": "BmpImagePlugin.BmpImageFile",
    "GIF": "GifImagePlugin.GifImageFile",
    "AVIF": "AvifImagePlugin.AvifImageFile",
    "ICO": "IcoImagePlugin.IcoFile",
    "JPEG2000": "Jpeg2KImagePlugin.Jpeg2KImageFile",
}


@cache
def _plugin(form: str) -> Callable[[io.BytesIO], Any]:
    if form == "JPEG":
        return _Jpeg
    module, _, name = _PLUGINS[form].partition(".")
    plugin: Callable[[io.BytesIO], Any] = getattr(importlib.import_module(f"PIL.{module}"), name)
    return plugin


def _open(content: bytes, form: str) -> Image.Image:
    opened = _plugin(form)(io.BytesIO(content))
    image: Image.Image = opened.frame(0) if form == "ICO" else opened  # an icon's frame 0 is its largest
    if form == "JPEG" and image.mode == "CMYK" and "adobe" not in image.info:
        _decode_as(image, "CMYK")  # Pillow takes every CMYK JPEG for one of Adobe's, which are inverted
    return image


def _decode_as(image: Image.Image, rawmode: str) -> None:
    """Tells the decoder of an opened image to take the file's samples for another layout."""
    assert isinstance(image, ImageFile.ImageFile)
    image.tile = [
        tile._replace(args=(rawmode, *tile.args[1:]) if isinstance(tile.args, tuple) else rawmode)
        for tile in image.tile
    ]


def _frames(image: Image.Image, form: str) -> list[str]:
    """Returns the fix that tells of more than one frame or page."""
    if not getattr(image, "is_animated", False):
        return []
    if form == "TIFF":
        return ["pages"]
    frames = image.n_frames if form in ("PNG", "WEBP", "AVIF") else 2  # type: ignore[attr-defined]
    if frames > MAX_FRAMES:
        raise Unreadable("too many frames", f"{frames:,}, at most {MAX_FRAMES:,} are accepted")
    return ["animation"]


def _check_scans(image: Image.Image, content: bytes) -> None:
    if image.info.get("progressive") and content.count(b"\xff\xda") > _MAX_SCANS:
        raise Unreadable("too large", f"a progressive JPEG of more than {_MAX_SCANS} scans")


# -- numbers of other widths than 8 bits ---------------------------------------------------------

_OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


def _eight_bits(image: Image.Image, content: bytes, form: str, fixes: list[str]) -> Image.Image:
    """Returns the image with samples of 8 bits, decoded."""
    rawmode = _rawmode(image)
    if rawmode == "LA;16B":
        fixes.append("16-bit")
        return _deep_grey_alpha(image)
    if rawmode.startswith(("RGB;16", "RGBA;16")):
        fixes.append("16-bit")
        return _deep_colour(image, content, form, rawmode)
    image.load()
    if image.mode.startswith("I;16"):
        fixes.append("16-bit")
        return _deep_grey(image, 4095 if rawmode == "I;12" else 65535)
    if image.mode in ("I", "F"):
        fixes.append("float" if image.mode == "F" else "32-bit")
        return _with_info(Image.fromarray(_scaled(np.asarray(image))), image)
    return image


def _rawmode(image: Image.Image) -> str:
    """Returns the layout of the samples in the file, as Pillow names it; empty if the plugin does not tell."""
    tiles = getattr(image, "tile", [])
    args = tiles[0].args if tiles else ""
    layout = args[0] if isinstance(args, tuple) and args else args
    return layout if isinstance(layout, str) else ""


def _by_257(values: npt.NDArray[Any]) -> Pixels:
    """Returns uint16 samples in 8 bits, to the nearest: 65535 / 255 is 257."""
    return (values // 257 + (values % 257 > 128)).astype(np.uint8)


def _deep_grey(image: Image.Image, top: int) -> Image.Image:
    values = np.asarray(image).astype(np.uint16)
    grey = _by_257(values) if top == 65535 else np.rint(values * (255 / top)).astype(np.uint8)
    clear = image.info.get("transparency")
    if clear is None:
        return Image.fromarray(grey)
    alpha = np.where(values == clear, 0, 255).astype(np.uint8)
    return _with_info(Image.fromarray(np.stack([grey, alpha], axis=-1), "LA"), image)


def _deep_grey_alpha(image: Image.Image) -> Image.Image:
    # Four bytes a pixel, as in RGBA of 8 bits: high and low byte of grey, high and low byte of alpha.
    _decode_as(image, "RGBA")
    both = np.asarray(image).astype(np.uint16)
    return _with_info(Image.fromarray(_by_257(both[..., 0::2] << 8 | both[..., 1::2]), "LA"), image)


def _deep_colour(image: Image.Image, content: bytes, form: str, rawmode: str) -> Image.Image:
    # Pillow keeps one byte of each sample, the high one. Told the wrong byte order it keeps the low one.
    twin = _open(content, form)
    _decode_as(twin, rawmode[:-1] + _OTHER_BYTE[rawmode[-1]])
    values = np.asarray(image).astype(np.uint16) << 8 | np.asarray(twin)
    colours = _by_257(values)
    clear = image.info.get("transparency")
    if clear is not None and image.mode == "RGB":
        alpha = np.where((values == clear).all(axis=-1), 0, 255).astype(np.uint8)
        colours = np.concatenate([colours, alpha[..., None]], axis=-1)
    return _with_info(Image.fromarray(colours), image)


def _with_info(image: Image.Image, source: Image.Image) -> Image.Image:
    """Returns the image with what else the file said, but for the transparency, which is now in the alpha."""
    image.info = {name: value for name, value in source.info.items() if name != "transparency"}
    return image


def _scaled(values: npt.NDArray[Any]) -> Pixels:
    """Returns 32-bit samples in 8 bits, by the rule at the top of the module."""
    if not np.isfinite(values).all():
        raise Unreadable("not finite", "NaN or infinity among its numbers")
    largest = values.max()
    if largest > 65535:
        raise Unreadable("unsupported range", f"numbers up to {largest:.3g}")
    top = 255 if largest <= 255 else 65535
    if largest <= 1 and values.dtype.kind == "f":
        top = 1
    return np.rint(values.clip(0) * np.float32(255 / top)).astype(np.uint8)


# -- colours -------------------------------------------------------------------------------------

_CONVERTED = {
    "1": ("one bit",),
    "L": ("greyscale",),
    "LA": ("greyscale", "alpha"),
    "La": ("greyscale", "alpha"),
    "P": ("palette",),
    "PA": ("palette", "alpha"),
    "RGBA": ("alpha",),
    "RGBa": ("alpha",),
    "RGBX": (),
    "CMYK": ("cmyk",),
    "YCbCr": ("ycbcr",),
    "LAB": ("lab",),
}


def _rgb(image: Image.Image, fixes: list[str]) -> Image.Image:
    """Returns an image of 8-bit samples as RGB, what is transparent in it on white."""
    clear = image.has_transparency_data
    if image.mode == "RGB" and not clear:
        return image
    if image.mode not in _CONVERTED and image.mode != "RGB":
        raise Unreadable("unsupported format", f"colours of mode {image.mode}")
    fixes.extend(_CONVERTED.get(image.mode, ()))
    if not clear:
        return image.convert("RGB")
    if "alpha" not in fixes:
        fixes.append("alpha")
    if image.mode == "La":
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    white = Image.new("RGB", rgba.size, "white")
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


# -- EXIF rotation -------------------------------------------------------------------------------

_ORIENTATION = 0x0112
_TURNS: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: p.swapaxes(0, 1)[:, ::-1],
    7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
    8: lambda p: p.swapaxes(0, 1)[::-1],
}
"""How to bring pixels upright, by EXIF orientation (CIPA DC-008, 4.6.5.1.6)."""


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, or 0 if the file tells none."""
    tags = getattr(image, "tag_v2", None)
    if tags is not None:
        return -1 if tags.get(_ORIENTATION, 1) in _TURNS else 0  # Pillow turns TIFFs itself as it decodes them
    exif = image.info.get("exif")
    return _exif_orientation(exif) if isinstance(exif, bytes) else 0


def _exif_orientation(exif: bytes) -> int:
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2], "")
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _ = struct.unpack_from(f"{order}HHI", tiff, entry)
            if tag == _ORIENTATION:
                return int(struct.unpack_from(f"{order}{'I' if kind == 4 else 'H'}", tiff, entry + 8)[0])
    except struct.error:
        pass  # a damaged EXIF block says nothing
    return 0


def _upright(pixels: Pixels, orientation: int, fixes: list[str]) -> Pixels:
    if orientation == -1:
        fixes.append("exif rotation")
    if orientation not in _TURNS:
        return pixels
    fixes.append("exif rotation")
    return np.ascontiguousarray(_TURNS[orientation](pixels))


# -- a JPEG without end marker -------------------------------------------------------------------

_END = b"\xff\xd9"


def _salvaged(content: bytes) -> Picture | None:
    """Returns a JPEG that lacks only its end marker, or None if pixels are missing too.

    libjpeg fills up what is missing and Pillow does not tell. So the picture is decoded with different
    bytes in place of the missing ones: if all pixels were there, none of these can change any.
    """
    content = content.rstrip(b"\xff")  # half an end marker, or half an escaped byte
    if not _all_scans(content):
        return None
    try:
        first, *others = (_decode(content + tail + _END, "JPEG") for tail in (b"", b"\x55" * 512, b"\xaa" * 512))
    except Unreadable:
        return None
    if not all(np.array_equal(first.pixels, other.pixels) for other in others):
        return None
    return Picture(first.pixels, "JPEG", (*first.fixes, "end marker"))


def _all_scans(content: bytes) -> bool:
    """Says whether a scan was begun for every coefficient of every component, to the last bit (ISO 10918-1, B.2)."""
    missing: dict[int, set[int]] = {}
    try:
        at = 2
        while (at := _next_marker(content, at)) < len(content):
            marker, length = content[at + 1], struct.unpack_from(">H", content, at + 2)[0]
            body = content[at + 4 : at + 2 + length]
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                missing = {body[6 + 3 * i]: set(range(64)) for i in range(body[5])}
            elif marker == 0xDA:
                first, last, bits = body[-3:]
                for component in body[1 : 1 + 2 * body[0] : 2]:
                    if bits & 15 == 0:
                        missing[component] -= set(range(first, last + 1))
            at += 2 + length
    except (struct.error, IndexError, KeyError, ValueError):
        return False
    return bool(missing) and not any(missing.values())


def _next_marker(content: bytes, at: int) -> int:
    """Returns where the next segment begins; escaped bytes, fill bytes and restart markers begin none."""
    while (at := content.find(b"\xff", at)) >= 0 and at + 1 < len(content):
        if content[at + 1] not in (0x00, 0xFF, *range(0xD0, 0xD8)):
            return at
        at += 1
    return len(content)
