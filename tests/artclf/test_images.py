"""The one decoder: what it accepts, what it converts to what, what it refuses, and at what cost."""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from artclf.images import MAX_BYTES, MAX_PIXELS, Unreadable, check_bytes, is_mislabelled, read_picture
from tests import bad_pictures as bad
from tests.bad_pictures import CASES, Case, Pixels

REPOSITORY = Path(__file__).resolve().parents[2]

# SOURCES.md of the real pictures names these.
UNREADABLE_ART = {
    *(f"painting/{n}.jpg" for n in ("0000", "0125", "0150", "0175", "0200", "0225", "0325", "2050 20.26.31")),
    *(f"sculpture/{n}.jpg" for n in ("106", "107", "210", "261", "168", "190 18.59.45", "200", "170", "374")),
    "iconography/69.jpg",
    "iconography/331.jpg",
}


def case(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def pixels_of(name: str) -> Pixels:
    return read_picture(case(name).make()).pixels


def levels_apart(one: Pixels, other: Pixels) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.id} {case.name}")
def test_every_kind_of_picture_is_judged_as_the_table_says(case: Case) -> None:
    content = case.make()
    if case.verdict == "skip":
        with pytest.raises(Unreadable) as refusal:
            read_picture(content)
        assert refusal.value.reason == case.reason
        return
    picture = read_picture(content)
    assert picture.fixes == case.fixes
    assert picture.pixels.dtype == np.uint8
    assert picture.pixels.ndim == 3
    assert picture.pixels.shape[2] == 3


def test_cases_are_the_same_bytes_whenever_they_are_made() -> None:
    contents = [case.make() for case in CASES]  # for about a second: what tells the time of day differs afterwards
    assert [case.name for case, content in zip(CASES, contents, strict=True) if case.make() != content] == []


# -- what the pixels are -------------------------------------------------------------------------


def test_a_plain_jpeg_has_the_pixels_that_pillow_decodes() -> None:
    content = bad.jpeg("plain")
    assert np.array_equal(read_picture(content).pixels, np.asarray(Image.open(io.BytesIO(content))))


@pytest.mark.parametrize("name", ["cmyk.jpg", "adobe_cmyk.jpg", "ycck.jpg"])
def test_ink_becomes_light_within_three_levels(name: str) -> None:
    scene = name.removesuffix(".jpg").replace("_", " ")
    expected = bad.inks_as_rgb(bad.cmyk_inks(scene))
    assert levels_apart(pixels_of(name), expected) <= 3


def nearest_of_257(values: np.ndarray[tuple[int, ...], np.dtype[np.uint16]]) -> Pixels:
    return np.rint(values / 257).astype(np.uint8)


def test_sixteen_bit_grey_is_divided_by_257() -> None:
    expected = np.repeat(nearest_of_257(bad.samples16("grey16", 1)), 3, axis=-1)
    assert np.array_equal(pixels_of("grey16.png"), expected)


def test_sixteen_bit_colour_is_divided_by_257() -> None:
    assert np.array_equal(pixels_of("rgb16.png"), nearest_of_257(bad.samples16("rgb16", 3)))


def test_sixteen_bit_tiff_of_either_byte_order_and_png_agree() -> None:
    values = bad.samples16("both", 3)
    png = read_picture(bad.png(bad.WIDTH, bad.HEIGHT, 16, 2, values.astype(">u2").tobytes())).pixels
    for order in "<>":
        assert np.array_equal(read_picture(rgb16_tiff(values, order)).pixels, png)


def rgb16_tiff(values: np.ndarray[tuple[int, ...], np.dtype[np.uint16]], order: str) -> bytes:
    """Returns an uncompressed TIFF of 16-bit RGB, which Pillow cannot write."""
    height, width, _ = values.shape
    data = values.astype(f"{order}u2").tobytes()
    short, long = 3, 4
    at = 8 + 2 + 12 * 9 + 4
    entries = [
        (256, short, 1, width),
        (257, short, 1, height),
        (258, short, 3, at),  # bits a sample, told below
        (259, short, 1, 1),  # not compressed
        (262, short, 1, 2),  # RGB
        (273, long, 1, at + 6),  # where the pixels are
        (277, short, 1, 3),
        (278, short, 1, height),
        (279, long, 1, len(data)),
    ]
    directory = b"".join(
        struct.pack(f"{order}HHI{'HH' if kind == short and count == 1 else 'I'}", tag, kind, count, value, *rest)
        for tag, kind, count, value in entries
        for rest in [(0,) if kind == short and count == 1 else ()]
    )
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", 8, len(entries))
    return start + directory + bytes(4) + struct.pack(f"{order}3H", 16, 16, 16) + data


@pytest.mark.parametrize(("name", "colour", "channels"), [("rgba16", 6, 4), ("grey alpha16", 4, 2)])
def test_sixteen_bit_pictures_with_alpha_are_laid_on_white(name: str, colour: int, channels: int) -> None:
    samples = bad.samples16(name, channels) / 65535
    alpha = samples[..., -1:]
    expected = 255 * (samples[..., :-1] * alpha + 1 - alpha)
    if channels == 2:
        expected = np.repeat(expected, 3, axis=-1)
    assert levels_apart(read_picture(bad.png16(name, colour)).pixels, np.rint(expected).astype(np.uint8)) <= 1


def test_a_transparent_colour_of_sixteen_bits_is_compared_in_all_of_them() -> None:
    row = np.array([[1000, 1000, 1000], [1001, 1000, 1000]], dtype=">u2")
    clear = bad.png_chunk(b"tRNS", np.array([1000, 1000, 1000], dtype=">u2").tobytes())
    pixels = read_picture(bad.png(2, 1, 16, 2, row.tobytes(), clear)).pixels
    assert pixels.tolist() == [[[255, 255, 255], [4, 4, 4]]]


def test_what_is_hidden_under_transparency_does_not_show() -> None:
    pixels = pixels_of("hidden.png")
    assert (pixels[:, : bad.WIDTH // 2] == 255).all()
    assert np.array_equal(pixels[:, bad.WIDTH // 2 :], bad.scene("hidden")[:, bad.WIDTH // 2 :])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_orientations_of_a_png_give_equal_pixels(orientation: int) -> None:
    assert np.array_equal(read_picture(bad.rotated("PNG", orientation)).pixels, bad.scene("upright", 64, 48))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_of_a_jpeg_are_turned_as_pillow_turns_them(orientation: int) -> None:
    content = bad.rotated("JPEG", orientation)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    pixels = read_picture(content).pixels
    assert np.array_equal(pixels, expected)
    assert levels_apart(pixels, bad.scene("upright", 64, 48)) <= 12


@pytest.mark.parametrize(
    "block", [b"", b"MM", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", bad.exif(9), bad.exif(0)]
)
def test_a_damaged_exif_block_leaves_the_picture_as_it_is(block: bytes) -> None:
    plain = bad.jpeg("block")
    content = plain[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + plain[2:]
    picture = read_picture(content)
    assert picture.fixes == ()
    assert np.array_equal(picture.pixels, read_picture(plain).pixels)


def test_a_png_may_tell_its_orientation_after_its_pixels() -> None:
    content = bad.encoded(bad.turned(bad.scene("late"), 6), "PNG")
    late = bad.png_chunk(b"eXIf", bad.exif(6).removeprefix(b"Exif\0\0"))
    assert np.array_equal(read_picture(content[:-12] + late + content[-12:]).pixels, bad.scene("late"))


def test_a_float_picture_is_scaled_from_0_to_1() -> None:
    assert np.array_equal(pixels_of("float.tif")[..., 0], bad.scene("float")[..., 0])


def test_a_float_picture_up_to_255_is_taken_as_it_is() -> None:
    assert np.array_equal(pixels_of("float255.tif")[..., 0], bad.scene("float255")[..., 0])


def test_lab_comes_back_as_the_colours_it_was_made_from() -> None:
    apart = np.abs(pixels_of("lab.tif").astype(int) - bad.scene("lab").astype(int))
    assert apart.mean() < 3  # Lab of 8 bits is coarse


def test_a_lossless_jpeg_is_read_without_loss() -> None:
    assert np.array_equal(pixels_of("lossless.jpg")[..., 0], bad.lossless_samples("lossless"))


@pytest.mark.parametrize("name", ["animated.png", "animated.webp", "pages.tif"])
def test_of_several_frames_the_first_is_shown(name: str) -> None:
    scene = {"animated.png": "animated png", "animated.webp": "animated webp", "pages.tif": "pages"}[name]
    assert np.array_equal(pixels_of(name), bad.scene(scene))


def test_a_colour_profile_changes_no_number() -> None:
    assert np.array_equal(pixels_of("profile.jpg"), read_picture(bad.jpeg("profile")).pixels)


# -- salvage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2}])
def test_salvage_accepts_a_jpeg_that_lacks_only_its_end_marker(options: dict[str, int]) -> None:
    whole = bad.jpeg("no end", **options)
    for content in (whole[:-2], whole[:-1]):
        picture = read_picture(content, salvage=True)
        assert picture.fixes == ("end marker",)
        assert np.array_equal(picture.pixels, read_picture(whole).pixels)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2}])
def test_salvage_still_refuses_a_jpeg_with_pixels_missing(options: dict[str, int]) -> None:
    whole = bad.encoded(bad.scene("cut", 96, 64), "JPEG", **options)
    for kept in range(len(whole) // 2, len(whole) - 6, 7):
        with pytest.raises(Unreadable, match="truncated"):
            read_picture(whole[:kept], salvage=True)


def test_salvage_changes_nothing_for_a_good_picture() -> None:
    assert read_picture(bad.jpeg("good"), salvage=True).fixes == ()


# -- names and limits ----------------------------------------------------------------------------


def test_only_another_pictures_extension_is_mislabelled() -> None:
    assert is_mislabelled("a/b.jpg", "PNG")
    assert is_mislabelled("B.PNG", "JPEG")
    assert not is_mislabelled("a.JPEG", "JPEG")
    assert not is_mislabelled("a.jfif", "JPEG")
    assert not is_mislabelled("J. Smith", "JPEG")
    assert not is_mislabelled("photo", "TIFF")


def test_a_file_is_judged_by_its_length_before_it_is_read() -> None:
    check_bytes(MAX_BYTES)
    with pytest.raises(Unreadable, match="too large"):
        check_bytes(MAX_BYTES + 1)
    with pytest.raises(Unreadable, match="empty"):
        check_bytes(0)


def test_the_limit_of_pixels_is_our_own_and_not_pillows() -> None:
    side = int(MAX_PIXELS**0.5)
    assert side * side > (Image.MAX_IMAGE_PIXELS or 0), "of this picture Image.open would warn"
    assert read_picture(bad.flat_png(side, side)).pixels.shape == (side, side, 3)


def test_a_reason_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(Unreadable("truncated", "3 bytes missing")))
    assert error.reason == "truncated"
    assert str(error) == "not readable as a picture: truncated (3 bytes missing)."


def test_refusing_bombs_takes_no_memory() -> None:
    program = (
        "import resource, sys\n"
        "from artclf.images import Unreadable, read_picture, _plugin, _PLUGINS\n"
        "from tests.bad_pictures import CASES\n"
        "bombs = [c.make() for c in CASES if c.id in ('I23', 'I24', 'I25', 'I27')]\n"
        "[_plugin(form) for form in _PLUGINS]\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for bomb in bombs:\n"
        "    try: read_picture(bomb)\n"
        "    except Unreadable: pass\n"
        "    else: sys.exit('accepted')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    grown = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert int(grown.stdout) < 50 * 1024, "kilobytes"
    assert grown.stderr == ""


def test_reading_leaves_pillow_and_the_warnings_filter_alone() -> None:
    import warnings

    from PIL import ImageFile

    before = (list(warnings.filters), Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    for name in ("vast.png", "cut.jpg", "animated.gif", "turned_6.jpg"):
        with contextlib.suppress(Unreadable):
            read_picture(case(name).make(), salvage=True)
    assert (list(warnings.filters), Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == before
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_many_threads_read_what_one_reads() -> None:
    contents = [case.make() for case in CASES if case.verdict != "skip"]
    alone = [read_picture(content).pixels for content in contents]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda content: read_picture(content).pixels, contents * 4))
    assert all(np.array_equal(one, other) for one, other in zip(alone * 4, together, strict=True))


@given(st.data())
def test_any_damage_gives_a_picture_or_a_reason(data: st.DataObject) -> None:
    small = [case for case in CASES if case.id in ("I09", "I10", "I13", "I18", "I19", "I20", "I29")]
    content = bytearray(data.draw(st.sampled_from(small)).make())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        pixels = read_picture(bytes(content)).pixels
    except Unreadable as error:
        assert error.reason
    else:
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3


@pytest.mark.shared
def test_of_the_real_pictures_exactly_the_broken_ones_are_refused(shared_data: Path) -> None:
    refused = set()
    for file in sorted(path for path in (shared_data / "art_types").rglob("*") if path.is_file()):
        try:
            read_picture(file.read_bytes())
        except Unreadable:
            refused.add(f"{file.parent.name}/{file.name}")
    assert refused == UNREADABLE_ART
