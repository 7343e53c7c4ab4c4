"""Every picture that comes in wrong, made from nothing: one case a kind, the same bytes each time.

The ids are those of the table of bad inputs. A case's name is a file name as it would come in, so
all cases together can be written out as a corpus. Each case shows a scene of its own, but for those
of EXIF rotation (I21), which are one scene in all positions.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

Pixels = npt.NDArray[np.uint8]

WIDTH, HEIGHT = 48, 32


@dataclass(frozen=True)
class Case:
    """One file.

    Attributes:
        id: its line in the table of bad inputs.
        name: the file's name.
        make: returns its content.
        verdict: what becomes of it.
        reason: why it is left out, if its verdict is skip.
        fixes: what is converted, if its verdict is fix.
    """

    id: str
    name: str
    make: Callable[[], bytes]
    verdict: Literal["keep", "fix", "skip"]
    reason: str = ""
    fixes: tuple[str, ...] = ()


# -- scenes --------------------------------------------------------------------------------------


def scene(name: str, width: int = WIDTH, height: int = HEIGHT) -> Pixels:
    """Returns a smooth coloured scene that depends on the name.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    random = np.random.default_rng(zlib.crc32(name.encode()))
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    planes = []
    for _ in range(3):
        plane = np.zeros((height, width))
        for _ in range(3):
            waves, phase = random.uniform(-9, 9, 2), random.uniform(0, 6.28)
            plane += np.sin(waves[0] * x + waves[1] * y + phase)
        planes.append(plane)
    return np.asarray(127.5 + 40 * np.stack(planes, axis=-1)).clip(0, 255).astype(np.uint8)


def encoded(image: Image.Image | Pixels, form: str, **options: Any) -> bytes:
    """Returns an image as a file of a format."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, form, **options)
    return file.getvalue()


def picture(form: str, name: str, mode: str = "RGB", **options: Any) -> bytes:
    """Returns the scene of a name as a file, in one of Pillow's modes."""
    return encoded(Image.fromarray(scene(name)).convert(mode), form, **options)


def jpeg(name: str, **options: Any) -> bytes:
    """Returns the scene of a name as a good JPEG."""
    return picture("JPEG", name, **{"quality": 95, "subsampling": 0, **options})


def half(name: str, form: str = "JPEG", **options: Any) -> bytes:
    """Returns the first half of a file, large enough to be cut among its pixels."""
    content = encoded(scene(name, 320, 240), form, **options)
    return content[: len(content) // 2]


# -- PNG by hand ---------------------------------------------------------------------------------


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Returns one chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    """Returns a PNG of raw samples.

    Args:
        width: in pixels.
        height: in pixels.
        depth: bits a sample.
        colour: PNG's colour type: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA.
        rows: the samples, row by row, without filter bytes.
        extra: chunks to stand before the pixels.
    """
    stride = len(rows) // height
    filtered = b"".join(b"\0" + rows[i * stride : (i + 1) * stride] for i in range(height))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            png_chunk(b"IHDR", header),
            *extra,
            png_chunk(b"IDAT", zlib.compress(filtered, 9)),
            png_chunk(b"IEND", b""),
        )
    )


def samples16(name: str, channels: int) -> npt.NDArray[np.uint16]:
    """Returns a 16-bit scene whose low bytes matter.

    Returns:
        (HEIGHT, WIDTH, channels) uint16.
    """
    random = np.random.default_rng(zlib.crc32(name.encode()))
    high = np.concatenate([scene(name), scene(name + " more")], axis=-1)[..., :channels]
    both = high.astype(np.uint16) * 256 + random.integers(0, 256, high.shape)
    return both.astype(np.uint16)


def png16(name: str, colour: int) -> bytes:
    """Returns a 16-bit PNG of a colour type."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    return png(WIDTH, HEIGHT, 16, colour, samples16(name, channels).astype(">u2").tobytes())


def png_with(name: str, *extra: bytes) -> bytes:
    """Returns an ordinary PNG with more chunks before its pixels."""
    return png(WIDTH, HEIGHT, 8, 2, scene(name).tobytes(), *extra)


def flat_png(width: int, height: int) -> bytes:
    """Returns a white PNG of 1 bit a pixel, tiny however large it says it is."""
    packer = zlib.compressobj(9)
    row = b"\0" + b"\xff" * ((width + 7) // 8)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def png_saying(width: int, height: int) -> bytes:
    """Returns a PNG whose header says a size that its pixels do not have."""
    content = png_with("saying")
    header = png_chunk(b"IHDR", struct.pack(">II", width, height) + content[24:29])
    return content[:8] + header + content[33:]


def zeros_packed(megabytes: int) -> bytes:
    """Returns so many megabytes of zeros, compressed."""
    packer = zlib.compressobj(9)
    block = bytes(1 << 20)
    return b"".join(packer.compress(block) for _ in range(megabytes)) + packer.flush()


# -- JPEG by hand --------------------------------------------------------------------------------


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def patched(content: bytes, marker: int, offset: int, value: bytes) -> bytes:
    """Returns a JPEG with some bytes of a segment's body replaced."""
    at = content.index(bytes((0xFF, marker))) + 4 + offset
    return content[:at] + value + content[at + len(value) :]


def cmyk_inks(name: str) -> Pixels:
    """Returns the inks of a scene: (HEIGHT, WIDTH, 4) uint8, 255 is full ink."""
    inks = np.concatenate([255 - scene(name), scene(name + " black")[..., :1] // 2], axis=-1)
    return inks[::8, ::8].repeat(8, axis=0).repeat(8, axis=1)  # flat in each of JPEG's blocks, so stored exactly


def inks_as_rgb(inks: Pixels) -> Pixels:
    """Returns what ink on white paper looks like: R = (1 - C)(1 - K), and so on."""
    light = (255 - inks.astype(np.float64)) / 255
    return np.rint(255 * light[..., :3] * light[..., 3:]).astype(np.uint8)


def _four_components(stored: Pixels, adobe_transform: int | None) -> bytes:
    """Returns a JPEG of four components with exactly these samples, up to rounding."""
    # Pillow inverts a CMYK image's samples on saving and writes Adobe's marker with transform 0.
    content = encoded(Image.fromarray(255 - stored, "CMYK"), "JPEG", quality=100, subsampling=0)
    if adobe_transform is None:
        at = content.index(b"\xff\xee")
        return content[:at] + content[at + 16 :]
    return patched(content, 0xEE, 11, bytes((adobe_transform,)))


def cmyk_jpeg(name: str) -> bytes:
    """Returns a CMYK JPEG without Adobe's marker: its samples are ink."""
    return _four_components(cmyk_inks(name), None)


def adobe_cmyk_jpeg(name: str) -> bytes:
    """Returns a CMYK JPEG as Photoshop writes it: 255 is no ink."""
    return _four_components(255 - cmyk_inks(name), 0)


def ycck_jpeg(name: str) -> bytes:
    """Returns a YCCK JPEG as Photoshop writes it: the inks C, M, Y turned into Y, Cb, Cr; black inverted."""
    inks = cmyk_inks(name)
    ycc = np.asarray(Image.fromarray(np.ascontiguousarray(inks[..., :3])).convert("YCbCr"))
    return _four_components(np.concatenate([ycc, 255 - inks[..., 3:]], axis=-1), 2)


def lossless_samples(name: str) -> Pixels:
    """Returns the grey samples of the lossless JPEG: (HEIGHT, WIDTH) uint8."""
    return scene(name)[..., 0]


def lossless_jpeg(name: str) -> bytes:
    """Returns a lossless JPEG (ISO 10918-1, annex H): left neighbour as predictor, all codes of 4 bits."""
    samples = lossless_samples(name).astype(int)
    before = np.empty_like(samples)
    before[:, 1:] = samples[:, :-1]
    before[1:, 0] = samples[:-1, 0]
    before[0, 0] = 128
    bits = []
    for difference in (samples - before).ravel().tolist():
        size = abs(difference).bit_length()
        extra = difference if difference > 0 else difference + (1 << size) - 1
        bits.append(f"{size:04b}" + (f"{extra:0{size}b}" if size else ""))
    stream = "".join(bits)
    stream += "1" * (-len(stream) % 8)
    packed = int(stream, 2).to_bytes(len(stream) // 8, "big").replace(b"\xff", b"\xff\0")
    return b"".join(
        (
            b"\xff\xd8",
            _segment(0xC3, struct.pack(">BHHB3B", 8, HEIGHT, WIDTH, 1, 1, 0x11, 0)),
            _segment(0xC4, bytes((0, 0, 0, 0, 9, *[0] * 12, *range(9)))),
            _segment(0xDA, bytes((1, 1, 0, 1, 0, 0))),
            packed,
            b"\xff\xd9",
        )
    )


def arithmetic_jpeg(name: str) -> bytes:
    """Returns an arithmetic-coded JPEG. Any bytes are a valid code of something; these are a scene's."""
    tables = _segment(0xDB, bytes((0, *[16] * 64)))
    frame = _segment(0xC9, struct.pack(">BHHB3B", 8, HEIGHT, WIDTH, 1, 1, 0x11, 0))
    code = scene(name).tobytes()[:400].replace(b"\xff", b"\xfe")
    return b"\xff\xd8" + tables + frame + _segment(0xDA, bytes((1, 1, 0, 0, 63, 0))) + code + b"\xff\xd9"


def many_scans_jpeg(name: str) -> bytes:
    """Returns a progressive JPEG whose last scan is repeated a thousand times."""
    content = jpeg(name, progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * 1000 + b"\xff\xd9"


def exif(orientation: int) -> bytes:
    """Returns an EXIF block that tells an orientation, as it stands in a JPEG."""
    return b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def turned(pixels: Pixels, orientation: int) -> Pixels:
    """Returns the pixels as a camera held so would store them: EXIF's rotation undone."""
    stored: dict[int, Callable[[], Pixels]] = {
        1: lambda: pixels,
        2: lambda: np.fliplr(pixels),
        3: lambda: np.rot90(pixels, 2),
        4: lambda: np.flipud(pixels),
        5: lambda: pixels.swapaxes(0, 1),
        6: lambda: np.rot90(pixels),  # shown turned to the right, so stored turned to the left
        7: lambda: np.rot90(pixels, 2).swapaxes(0, 1),
        8: lambda: np.rot90(pixels, -1),
    }
    return np.ascontiguousarray(stored[orientation]())


def rotated(form: str, orientation: int) -> bytes:
    """Returns one and the same scene stored in an orientation."""
    return encoded(turned(scene("upright", 64, 48), orientation), form, exif=exif(orientation), **_BEST[form])


_BEST: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "PNG": {},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 95},
}


# -- others --------------------------------------------------------------------------------------


def hidden(name: str) -> bytes:
    """Returns an RGBA PNG whose left half is transparent, with noise beneath."""
    pixels = np.dstack([scene(name), np.full((HEIGHT, WIDTH), 255, np.uint8)])
    noise = np.random.default_rng(17).integers(0, 256, (HEIGHT, WIDTH // 2, 3), dtype=np.uint8)
    pixels[:, : WIDTH // 2, :3], pixels[:, : WIDTH // 2, 3] = noise, 0
    return encoded(pixels, "PNG")


def palette_with_alpha(name: str) -> bytes:
    """Returns a palette PNG whose colours have each an alpha of their own."""
    image = Image.fromarray(scene(name)).quantize(16)
    return encoded(image, "PNG", transparency=bytes(range(0, 256, 16)))


def animation(form: str, name: str, frames: int = 3, **options: Any) -> bytes:
    """Returns an animation that begins with the scene of a name."""
    first, *others = (Image.fromarray(scene(f"{name}{n or ''}")) for n in range(frames))
    return encoded(first, form, save_all=True, append_images=others, **options)


def animated_avif(name: str) -> bytes:
    """Returns an animated AVIF whose boxes do not tell when it was made (ISO/IEC 14496-12, 8.2.2, 8.3.2, 8.4.2:
    in version 1 two numbers of 8 bytes after the box's name, version and flags)."""
    content = animation("AVIF", name)
    for box in (b"mvhd", b"tkhd", b"mdhd"):
        start = content.index(box + b"\1") + 8
        content = content[:start] + bytes(16) + content[start + 16 :]
    return content


def film(name: str, frames: int) -> bytes:
    """Returns a GIF of many one-pixel frames."""
    first = encoded(Image.fromarray(scene(name)).quantize(16), "GIF")[:-1]
    return first + (b"\x2c" + struct.pack("<4HB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0") * frames + b";"


def float_tiff(name: str, top: float, *, broken: bool = False) -> bytes:
    """Returns a grey TIFF of 32-bit floats from 0 to a top."""
    values = scene(name)[..., 0].astype(np.float32) / 255 * top
    if broken:
        values[3, 4] = np.nan
    return encoded(Image.fromarray(values), "TIFF")


def undated(profile: bytes) -> bytes:
    """Returns an ICC profile without the second it was made in (bytes 24 to 35 of its header, ICC.1:2022, 7.2)."""
    return profile[:24] + bytes(12) + profile[36:]


def lab_tiff(name: str) -> bytes:
    """Returns a TIFF in CIE Lab."""
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(Image.fromarray(scene(name)), to_lab)
    assert lab is not None
    lab.info["icc_profile"] = undated(lab.info["icc_profile"])
    return encoded(lab, "TIFF")


def profiled(name: str) -> bytes:
    """Returns a JPEG with a profile whose red and green are exchanged, as far from sRGB as can be seen."""
    profile = undated(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    exchanged = profile.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")
    return jpeg(name, icc_profile=exchanged)


def zero_jpeg() -> bytes:
    """Returns a JPEG whose header says 0 x 0."""
    return patched(jpeg("zero"), 0xC0, 1, bytes(4))


def negative_bmp() -> bytes:
    """Returns a BMP whose header says a negative width."""
    content = picture("BMP", "negative")
    return content[:18] + struct.pack("<i", -WIDTH) + content[22:]


def lying_icon() -> bytes:
    """Returns an icon that says 16 x 16 in its directory and holds a PNG of 20,000 x 20,000."""
    inside = flat_png(20_000, 20_000)
    return struct.pack("<HHH4BHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inside), 22) + inside


def offset_gif() -> bytes:
    """Returns a GIF of a small screen whose first frame says 65,535 x 65,535."""
    content = picture("GIF", "offset", "P")
    at = content.index(b"\x2c\0\0\0\0")
    return content[: at + 5] + b"\xff\xff\xff\xff" + content[at + 9 :]


def huge_webp() -> bytes:
    """Returns a WebP whose canvas says 16,384 x 16,384."""
    body = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\x3f\0" * 2
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


HTML = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>Not found.</body></html>\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>\n'
PDF = b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<< /Type /Catalog >>\nendobj\ntrailer\n<< /Root 1 0 R >>\n%%EOF\n"
PSD = b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 4, 4, 8, 3) + bytes(12) + bytes(2 + 48)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n0 0 moveto 9 9 lineto stroke\nshowpage\n"


def _case(id: str, name: str, make: Callable[[], bytes], *fixes: str) -> Case:
    return Case(id, name, make, "fix" if fixes else "keep", fixes=fixes)


def _skip(id: str, name: str, make: Callable[[], bytes], reason: str) -> Case:
    return Case(id, name, make, "skip", reason)


def _ordinary() -> list[Case]:
    return [
        _case("I06", "trailing.jpg", lambda: jpeg("trailing") + b"\0garbage" * 99),
        _case("I09", "png_inside.jpg", partial(picture, "PNG", "png inside")),
        _case("I09", "jpeg_inside.png", partial(jpeg, "jpeg inside")),
        _case("I10", "webp.webp", partial(picture, "WEBP", "webp")),
        _case("I10", "tiff.tiff", partial(picture, "TIFF", "tiff")),
        _case("I10", "lzw.tif", partial(picture, "TIFF", "lzw", compression="tiff_lzw")),
        _case("I10", "avif.avif", partial(picture, "AVIF", "avif")),
        _case("I10", "icon.ico", partial(picture, "ICO", "icon", "RGBA", sizes=[(32, 32)]), "alpha"),
        _case(
            "I10", "old icon.ico", partial(picture, "ICO", "old icon", sizes=[(32, 32)], bitmap_format="bmp"), "alpha"
        ),
        _case("I10", "bmp.bmp", partial(picture, "BMP", "bmp")),
        _case("I10", "jfif.jfif", partial(jpeg, "jfif")),
        _case("I10", "gif.gif", partial(picture, "GIF", "gif", "P"), "palette"),
        _case("I10", "jpeg2000.jp2", partial(picture, "JPEG2000", "jpeg2000")),
        _case("I11", "upper.JPG", partial(jpeg, "upper")),
        _case("I11", "upper.JPEG", partial(jpeg, "upper long")),
        _case("I11", "upper.Jpg", partial(jpeg, "upper mixed")),
        _case("I29", "progressive.jpg", partial(jpeg, "progressive", progressive=True)),
        _case("I29", "arithmetic.jpg", partial(arithmetic_jpeg, "arithmetic"), "greyscale"),
        _case("I29", "lossless.jpg", partial(lossless_jpeg, "lossless"), "greyscale"),
        _case("I33", "black.png", lambda: encoded(np.zeros((HEIGHT, WIDTH, 3), np.uint8), "PNG")),
        _case("I33", "constant.jpg", lambda: encoded(np.full((HEIGHT, WIDTH, 3), 90, np.uint8), "JPEG")),
    ]


def _converted() -> list[Case]:
    return [
        _case("I13", "cmyk.jpg", partial(cmyk_jpeg, "cmyk"), "cmyk"),
        _case("I14", "adobe_cmyk.jpg", partial(adobe_cmyk_jpeg, "adobe cmyk"), "cmyk"),
        _case("I14", "ycck.jpg", partial(ycck_jpeg, "ycck"), "cmyk"),
        _case("I15", "grey.jpg", partial(picture, "JPEG", "grey", "L"), "greyscale"),
        _case("I15", "grey_alpha.png", partial(picture, "PNG", "grey alpha", "LA"), "greyscale", "alpha"),
        _case("I15", "one_bit.png", partial(picture, "PNG", "one bit", "1"), "one bit"),
        _case("I15", "fax.tif", partial(picture, "TIFF", "fax", "1", compression="group4"), "one bit"),
        _case("I15", "palette.png", partial(picture, "PNG", "palette", "P"), "palette"),
        _case("I17", "hidden.png", partial(hidden, "hidden"), "alpha"),
        _case("I17", "palette_alpha.png", partial(palette_with_alpha, "palette alpha"), "palette", "alpha"),
        _case("I18", "grey16.png", partial(png16, "grey16", 0), "16-bit", "greyscale"),
        _case("I18", "rgb16.png", partial(png16, "rgb16", 2), "16-bit"),
        _case("I18", "grey_alpha16.png", partial(png16, "grey alpha16", 4), "16-bit", "greyscale", "alpha"),
        _case("I18", "rgba16.png", partial(png16, "rgba16", 6), "16-bit", "alpha"),
        _case("I19", "float.tif", partial(float_tiff, "float", 1.0), "float", "greyscale"),
        _case("I19", "float255.tif", partial(float_tiff, "float255", 255.0), "float", "greyscale"),
        _case("I19", "lab.tif", partial(lab_tiff, "lab"), "lab"),
        _case("I19", "ycbcr.tif", partial(picture, "TIFF", "ycbcr", "YCbCr"), "ycbcr"),
        _case("I19", "profile.jpg", partial(profiled, "profile")),
        _case("I20", "animated.gif", partial(animation, "GIF", "animated gif"), "animation", "palette"),
        _case("I20", "animated.webp", partial(animation, "WEBP", "animated webp", lossless=True), "animation"),
        _case("I20", "animated.png", partial(animation, "PNG", "animated png"), "animation"),
        _case("I20", "animated.avif", partial(animated_avif, "animated avif"), "animation"),
        _case("I20", "pages.tif", partial(animation, "TIFF", "pages"), "pages"),
        *(
            _case("I21", f"turned_{n}.jpg", partial(rotated, "JPEG", n), *(["exif rotation"] if n > 1 else []))
            for n in range(1, 9)
        ),
        _case("I21", "turned_6.png", partial(rotated, "PNG", 6), "exif rotation"),
        _case("I21", "turned_8.webp", partial(rotated, "WEBP", 8), "exif rotation"),
        _case("I21", "turned_5.avif", partial(rotated, "AVIF", 5), "exif rotation"),
        _case("I21", "turned_7.tif", lambda: encoded(turned(scene("tiff turned"), 7), "TIFF", tiffinfo={274: 7}),
              "exif rotation"),
    ]  # fmt: skip


def _broken() -> list[Case]:
    return [
        _skip("I01", "empty.jpg", bytes, "empty"),
        _skip("I02", "one_byte.jpg", lambda: b"\xff", "unknown format"),
        _skip("I03", "cut.jpg", partial(half, "cut"), "truncated"),
        _skip("I03", "cut_progressive.jpg", partial(half, "cut progressive", progressive=True), "truncated"),
        _skip("I03", "cut.png", partial(half, "cut png", "PNG"), "truncated"),
        _skip("I04", "no_end.jpg", lambda: jpeg("no end")[:-2], "truncated"),
        _skip("I07", "error.jpg", lambda: HTML, "not an image"),
        _skip("I08", "svg.jpg", lambda: SVG, "not an image"),
        _skip("I08", "pdf.jpg", lambda: PDF, "unsupported format"),
        _skip("I08", "psd.jpg", lambda: PSD, "unsupported format"),
        _skip("I08", "eps.jpg", lambda: EPS, "unsupported format"),
        _skip("I19", "nan.tif", partial(float_tiff, "nan", 1.0, broken=True), "not finite"),
        _skip("I19", "vast.tif", partial(float_tiff, "vast", 1e9), "unsupported range"),
        _skip("I23", "vast.png", partial(flat_png, 20_000, 20_000), "too large"),
        _skip("I24", "large.png", partial(flat_png, 12_000, 12_000), "too large"),
        _skip("I24", "frame.gif", offset_gif, "too large"),
        _skip("I24", "canvas.webp", huge_webp, "too large"),
        _skip("I24", "icon.ico", lying_icon, "too large"),
        _skip("I25", "text_bomb.png",
              lambda: png_with("text bomb", png_chunk(b"zTXt", b"k\0\0" + zeros_packed(64))), "too large"),
        _skip("I25", "profile_bomb.png",
              lambda: png_with("profile bomb", png_chunk(b"iCCP", b"k\0\0" + zeros_packed(64))), "too large"),
        _skip("I25", "many_profiles.png",
              lambda: png_with("many", png_chunk(b"iCCP", b"k\0\0" + zeros_packed(1)) * 1000), "too large"),
        _skip("I25", "film.gif", partial(film, "film", 10_000), "too many frames"),
        _skip("I25", "scans.jpg", partial(many_scans_jpeg, "scans"), "too large"),
        _skip("I27", "zero.png", partial(png_saying, 0, 0), "damaged"),
        _skip("I27", "zero.jpg", zero_jpeg, "damaged"),
        _skip("I27", "huge.png", partial(png_saying, 2**31 - 1, 2**31 - 1), "too large"),
        _skip("I27", "negative.bmp", negative_bmp, "too large"),
        _skip("I29", "twelve_bit.jpg", lambda: patched(jpeg("twelve"), 0xC0, 0, b"\x0c"), "damaged"),
    ]  # fmt: skip


CASES: list[Case] = sorted(_ordinary() + _converted() + _broken(), key=lambda case: case.id)
