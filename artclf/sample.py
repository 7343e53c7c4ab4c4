"""Sample pictures, generated: five made-up painters who differ in their hand and their light.

Every picture begins as a motif (landscape, sea, still life, portrait) in one of a few palettes,
drawn by chance alike for all painters. Each painter has it lit from another side and paints it with
another hand: dots, broad slanted strokes, swirls, facets or hatching. Brightness, contrast and colours
tell next to nothing about the painter; a network has to learn strokes and composition. The sample is
there so that everything can be tried without data, network or account.

A picture is a pure function of (seed, painter, number, size).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from artclf.errors import ConfigError
from artclf.storage import atomic_folder

VERSION = 1
"""Changes whenever the pictures do, so that a cache of older ones is not taken for these."""

Random = np.random.Generator
Colours = npt.NDArray[np.float64]
Ground = npt.NDArray[np.float64]

_CANVAS = 192  # painted at this size and then reduced, which smooths the edges of strokes
_ARTISTS = "artists.csv"

_PALETTES = [
    ["#23395b", "#406e8e", "#8ea8c3", "#e8c07d", "#c8553d", "#f4ead5"],
    ["#2f3e2f", "#588157", "#a3b18a", "#dad7cd", "#b56576", "#e9c46a"],
    ["#3d2c2e", "#7a4b3a", "#b98b5f", "#e0c9a6", "#5b7b7a", "#d1495b"],
    ["#1d3557", "#457b9d", "#a8dadc", "#f1faee", "#e76f51", "#f4a261"],
    ["#372248", "#5b507a", "#9f86c0", "#e0b1cb", "#d8a47f", "#f6e7cb"],
    ["#283618", "#606c38", "#dda15e", "#fefae0", "#bc6c25", "#6a8eae"],
]


@dataclass(frozen=True)
class Painter:
    """A made-up painter, as listed in artists.csv.

    Attributes:
        light: where the light stands in this painter's pictures, from the middle (0, 0) to (1, 1), below right.
        hand: paints a scene.
    """

    name: str
    years: str
    genre: str
    nationality: str
    bio: str
    light: tuple[float, float]
    hand: Callable[[Random, Ground], Image.Image]

    @property
    def folder(self) -> str:
        """The name of the painter's folder and the beginning of that of each picture."""
        return self.name.replace(" ", "_")


def make_sample(folder: Path, per_class: int = 120, size: int = 96, seed: int = 0) -> Path:
    """Returns the folder, filled with pictures by five painters and a list of the painters.

    It appears whole or not at all; a sample that stood there before is replaced.

        <folder>/<Painter_Name>/<Painter_Name>_<n>.jpg    n from 1
        <folder>/artists.csv

    Args:
        folder: where to.
        per_class: pictures a painter.
        size: side of a picture in pixels.
        seed: of all that is random; another seed gives other pictures by the same painters.

    Raises:
        ConfigError: if something other than a sample stands there.
        StorageError: if the disk refuses.
    """
    if folder.exists() and not _is_replaceable(folder):
        raise ConfigError(f"{folder}: expected a free name or an earlier sample, found something else. Name another.")
    with atomic_folder(folder) as temporary:
        for number, painter in enumerate(PAINTERS):
            (temporary / painter.folder).mkdir()
            for n in range(1, per_class + 1):
                image = paint(number, n, size, seed)
                image.save(temporary / painter.folder / f"{painter.folder}_{n}.jpg", quality=90, subsampling=0)
        (temporary / _ARTISTS).write_text(_artists_csv(per_class), encoding="utf-8", newline="")
    return folder


def paint(painter: int, n: int, size: int = 96, seed: int = 0) -> Image.Image:
    """Returns the n-th picture of a painter.

    Args:
        painter: place in PAINTERS.
        n: its number.
        size: its side in pixels.
        seed: as for make_sample.

    Returns:
        An RGB image of size x size.
    """
    random = np.random.default_rng((seed, painter, n))
    ground = _lit(random, _motif(random), PAINTERS[painter].light)
    painted = PAINTERS[painter].hand(random, ground)
    small = painted.resize((size, size), Image.Resampling.LANCZOS)
    return _varnished(random, small)


def _is_replaceable(folder: Path) -> bool:
    """Says whether nothing of anyone's is lost with a folder: it is empty or holds just what a sample does."""
    if not folder.is_dir():
        return False
    inside = {path.name for path in folder.iterdir()}
    return not inside or inside == {painter.folder for painter in PAINTERS} | {_ARTISTS}


def _artists_csv(per_class: int) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["id", "name", "years", "genre", "nationality", "bio", "paintings"])
    for number, painter in enumerate(PAINTERS):
        rows.writerow([number, painter.name, painter.years, painter.genre, painter.nationality, painter.bio, per_class])
    return text.getvalue()


def _varnished(random: Random, image: Image.Image) -> Image.Image:
    """Returns the picture with a contrast and a brightness that chance gives all painters alike."""
    pixels = np.asarray(image, dtype=np.float64)
    grey = pixels.mean(axis=-1)
    contrast, brightness = random.uniform(34, 52), random.uniform(105, 160)
    pixels = (pixels - grey.mean()) * (contrast / max(grey.std(), 1)) + brightness
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _lit(random: Random, ground: Ground, light: tuple[float, float]) -> Ground:
    """Returns the scene with light that falls off from about where the painter likes to have it."""
    x, y = np.array(light) + random.normal(0, 0.12, 2)
    down, across = np.mgrid[-1 : 1 : _CANVAS * 1j, -1 : 1 : _CANVAS * 1j]
    fall = np.hypot(across - x, down - y)
    return np.asarray((ground - random.uniform(70, 95) * (fall - fall.mean())[..., None]).clip(0, 255))


# -- motifs --------------------------------------------------------------------------------------


def _motif(random: Random) -> Ground:
    """Returns a scene without any brushwork: (_CANVAS, _CANVAS, 3) from 0 to 255."""
    palette = _PALETTES[random.integers(len(_PALETTES))]
    colours = [_tinted(random, palette[i]) for i in random.permutation(len(palette))]
    image = _gradient(random, colours[0], colours[1])
    draw = ImageDraw.Draw(image)
    scene = (_landscape, _sea, _still_life, _portrait)[random.integers(4)]
    scene(random, draw, colours[2:])
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(1.5)), dtype=np.float64)
    mean = pixels.mean(axis=(0, 1))
    return np.asarray(mean + (pixels - mean) * 0.65)  # muted, as the light and the strokes come on top


Colour = tuple[int, int, int]


def _tinted(random: Random, colour: str) -> Colour:
    base = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    red, green, blue = (base + random.normal(0, 10, 3)).clip(0, 255).astype(int).tolist()
    return red, green, blue


def _gradient(random: Random, first: Colour, second: Colour) -> Image.Image:
    slope = random.uniform(-0.5, 0.5)
    down, across = np.mgrid[0:_CANVAS, 0:_CANVAS] / _CANVAS
    share = (down + slope * (across - 0.5)).clip(0, 1)[..., None]
    return Image.fromarray((np.array(first) * (1 - share) + np.array(second) * share).astype(np.uint8))


def _ridge(random: Random, height: float, rough: float) -> list[tuple[float, float]]:
    """Returns the outline of hills or of a shore, closed along the lower edge."""
    x = np.linspace(0, _CANVAS, 33)
    y = np.full_like(x, height)
    for wave in range(1, 5):
        y += rough / wave * np.sin(x / _CANVAS * 2 * np.pi * wave * random.uniform(0.5, 1) + random.uniform(0, 6.3))
    return [(0, _CANVAS), *zip(x.tolist(), y.tolist(), strict=True), (_CANVAS, _CANVAS)]


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, wide: float, high: float, colour: Colour) -> None:
    draw.ellipse((x - wide, y - high, x + wide, y + high), fill=colour)


def _landscape(random: Random, draw: ImageDraw.ImageDraw, colours: list[Colour]) -> None:
    sun = random.uniform(9, 20)
    _disc(draw, random.uniform(20, 172), random.uniform(20, 60), sun, sun, colours[0])
    for depth, colour in enumerate(colours[1:4]):
        draw.polygon(_ridge(random, 75 + 38 * depth + random.uniform(-12, 12), 14), fill=colour)
    for _ in range(random.integers(1, 6)):
        x, y, tall = random.uniform(10, 182), random.uniform(110, 175), random.uniform(25, 60)
        draw.line((x, y, x, y - tall), fill=colours[0], width=4)
        _disc(draw, x, y - tall, tall * random.uniform(0.25, 0.45), tall * 0.45, colours[random.integers(1, 3)])


def _sea(random: Random, draw: ImageDraw.ImageDraw, colours: list[Colour]) -> None:
    horizon, sun = random.uniform(70, 115), random.uniform(10, 24)
    _disc(draw, random.uniform(20, 172), random.uniform(15, horizon), sun, sun, colours[0])
    draw.rectangle((0, horizon, _CANVAS, _CANVAS), fill=colours[1])
    for _ in range(random.integers(1, 5)):
        x, y, long = random.uniform(20, 172), random.uniform(horizon + 5, 165), random.uniform(12, 34)
        draw.polygon([(x - long, y), (x + long, y), (x + long * 0.6, y + 9), (x - long * 0.6, y + 9)], fill=colours[2])
        draw.polygon([(x, y - 3), (x, y - long * 1.7), (x + long * 0.8, y - 5)], fill=colours[3])
    draw.polygon(_ridge(random, random.uniform(150, 185), 8), fill=colours[2])


def _still_life(random: Random, draw: ImageDraw.ImageDraw, colours: list[Colour]) -> None:
    table = random.uniform(105, 140)
    draw.rectangle((0, table, _CANVAS, _CANVAS), fill=colours[0])
    x, tall = random.uniform(50, 142), random.uniform(50, 85)
    draw.rectangle((x - 9, table - tall, x + 9, table), fill=colours[1])
    _disc(draw, x, table - tall * 0.2, random.uniform(17, 30), tall * 0.42, colours[1])
    for _ in range(random.integers(3, 8)):
        wide = random.uniform(11, 21)
        x, y = random.uniform(15, 177), random.uniform(table - 2, 172)
        _disc(draw, x, y, wide, wide * random.uniform(0.8, 1), colours[random.integers(2, 4)])


def _portrait(random: Random, draw: ImageDraw.ImageDraw, colours: list[Colour]) -> None:
    x, y, wide = random.uniform(70, 122), random.uniform(65, 95), random.uniform(24, 36)
    _disc(draw, x, 195, wide * 2.3, random.uniform(65, 85), colours[0])
    _disc(draw, x, y - wide * 0.25, wide * random.uniform(1.15, 1.4), wide * 1.35, colours[1])
    draw.rectangle((x - wide * 0.35, y, x + wide * 0.35, y + wide * 2), fill=colours[2])
    _disc(draw, x, y, wide * 0.9, wide * 1.2, colours[2])
    for side in (-1, 1):
        _disc(draw, x + side * wide * 0.35, y - wide * 0.1, wide * 0.14, wide * 0.09, colours[1])
    _disc(draw, x, y + wide * 0.62, wide * 0.28, wide * 0.09, colours[3])


# -- hands ---------------------------------------------------------------------------------------


def _spread(random: Random, step: float) -> npt.NDArray[np.float64]:
    """Returns points about a step apart all over the canvas, in random order: (N, 2) x and y."""
    line = np.arange(-step / 2, _CANVAS + step, step)
    points = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    return random.permutation(points + random.uniform(-step / 2, step / 2, points.shape))


def _colours_at(ground: Ground, points: npt.NDArray[np.float64], noise: Colours) -> list[Colour]:
    """Returns the scene's colours at points, (N, 2), changed by (N, 3) or (N, 1) of noise."""
    at = points.astype(int).clip(0, _CANVAS - 1)
    return [tuple(c) for c in (ground[at[:, 1], at[:, 0]] + noise).clip(0, 255).astype(int).tolist()]


def _underpainting(ground: Ground, blur: float) -> Image.Image:
    return Image.fromarray(ground.astype(np.uint8)).filter(ImageFilter.GaussianBlur(blur))


def _dots(random: Random, ground: Ground) -> Image.Image:
    """Small round touches of unmixed colour, side by side."""
    image = _underpainting(ground, 6)
    draw = ImageDraw.Draw(image)
    points = _spread(random, random.uniform(10, 11.5))
    radii = random.uniform(4, 6.2, len(points)).tolist()
    colours = _colours_at(ground, points, random.normal(0, 34, (len(points), 3)))
    for (x, y), radius, colour in zip(points.tolist(), radii, colours, strict=True):
        _disc(draw, x, y, radius, radius, colour)
    return image


def _slanted(random: Random, ground: Ground) -> Image.Image:
    """Broad straight strokes, all leaning one way, each a little lighter or darker than the last."""
    image = _underpainting(ground, 3)
    draw = ImageDraw.Draw(image)
    points = _spread(random, 11)
    angle = np.radians(random.uniform(-55, -35))
    angles = angle + random.normal(0, 0.12, len(points))
    half = random.uniform(12, 24, len(points))
    reach = np.stack([np.cos(angles), np.sin(angles)], axis=-1) * half[:, None]
    colours = _colours_at(ground, points, random.normal(0, 34, (len(points), 1)))
    ends = np.concatenate([points - reach, points + reach], axis=-1).tolist()
    for end, width, colour in zip(ends, random.integers(7, 12, len(points)).tolist(), colours, strict=True):
        draw.line(end, fill=colour, width=width)
    return image


def _swirls(random: Random, ground: Ground) -> Image.Image:
    """Thin curved strokes that flow around a few centres."""
    image = _underpainting(ground, 3)
    draw = ImageDraw.Draw(image)
    points = _spread(random, 7)
    centres = random.uniform(20, 172, (random.integers(2, 5), 2))
    turns = random.choice([-1.0, 1.0], len(centres))
    colours = _colours_at(ground, points, random.normal(0, 38, (len(points), 1)))
    paths = [points]
    for _ in range(8):
        paths.append(paths[-1] + 3 * _flow(paths[-1], centres, turns))
    widths = random.integers(2, 5, len(points)).tolist()
    for path, width, colour in zip(np.stack(paths, axis=1).tolist(), widths, colours, strict=True):
        draw.line([tuple(point) for point in path], fill=colour, width=width)
    return image


def _flow(
    points: npt.NDArray[np.float64], centres: npt.NDArray[np.float64], turns: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Returns the direction in which paint flows at each point, around the centres: (N, 2) of length 1."""
    away = points[:, None, :] - centres
    around = np.stack([-away[..., 1], away[..., 0]], axis=-1) * turns[:, None]
    flow = (around / (np.square(away).sum(axis=-1, keepdims=True) + 60)).sum(axis=1)
    length = np.hypot(flow[:, 0], flow[:, 1])[:, None]
    return np.asarray(flow / np.maximum(length, 1e-9))


def _facets(random: Random, ground: Ground) -> Image.Image:
    """Flat triangles with sharp edges, the light breaking at each."""
    image = _underpainting(ground, 1)
    draw = ImageDraw.Draw(image)
    cells = int(random.integers(8, 11))
    line = np.linspace(-12, _CANVAS + 12, cells)
    corners = np.stack(np.meshgrid(line, line), axis=-1)
    corners += random.uniform(-0.38, 0.38, corners.shape) * (line[1] - line[0])
    square = np.stack([corners[:-1, :-1], corners[:-1, 1:], corners[1:, 1:], corners[1:, :-1]], axis=2).reshape(
        -1, 4, 2
    )
    square = np.where(random.random(len(square))[:, None, None] < 0.5, square, np.roll(square, 1, axis=1))
    triangles = np.concatenate([square[:, [0, 1, 2]], square[:, [0, 2, 3]]])
    colours = _colours_at(ground, triangles.mean(axis=1), random.normal(0, 36, (len(triangles), 1)))
    for triangle, colour in zip(triangles.tolist(), colours, strict=True):
        draw.polygon([tuple(corner) for corner in triangle], fill=colour)
    return image


def _hatching(random: Random, ground: Ground) -> Image.Image:
    """Soft washes under fine crossed lines, darker one way and lighter the other."""
    image = _underpainting(ground, 5)
    draw = ImageDraw.Draw(image)
    angle = np.radians(random.uniform(-12, 12))
    for turn, shade in ((0.0, -46), (random.uniform(1.4, 1.75), 46)):
        points = _spread(random, 11)
        half = random.uniform(10, 24, (len(points), 1))
        reach = np.array([np.cos(angle + turn), np.sin(angle + turn)]) * half
        colours = _colours_at(ground, points, shade + random.normal(0, 10, (len(points), 1)))
        for end, colour in zip(
            np.concatenate([points - reach, points + reach], axis=-1).tolist(), colours, strict=True
        ):
            draw.line(end, fill=colour, width=3)
    return image


PAINTERS = (
    Painter(
        "Odile Ferréol", "1861 - 1934", "Pointillism", "French",
        "Built every surface from dots, and said that a line is a road nobody walks.", (0.0, 0.0), _dots,
    ),
    Painter(
        "Bastian Korsgaard", "1852 - 1909", "Impressionism", "Danish",
        "Painted standing, with a house painter's brush, always leaning into the wind.", (-0.9, -0.8), _slanted,
    ),
    Painter(
        "Ilse Wanderath", "1870 - 1921", "Expressionism", "German, Dutch",
        "Saw currents in fields, faces and tables alike.", (0.9, -0.7), _swirls,
    ),
    Painter(
        "Teodor Quint", "1888 - 1957", "Cubism", "Spanish",
        "Trained as a glazier; cut what he saw into panes.", (-0.8, 0.9), _facets,
    ),
    Painter(
        "Marcela Duvray", "1879 - 1948", "Symbolism", "Belgian",
        "An engraver who came to colour late and never put the needle down.", (0.9, 0.8), _hatching,
    ),
)  # fmt: skip
"""Who painted the sample; nobody of these names is meant."""
