"""Figures in, inline SVG out: crisp at any size, coloured by the page's own CSS so that light and dark both read.

Pure text building without dependencies. Every chart is one image to a screen reader (its title says what
it shows); every mark has a tooltip. A class on a mark (``s0`` … ``s7``, ``win``, ``rest``, ``hit``, ``miss``) is
all that a chart says about colour.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]
WIDTH = 900
MOST_POINTS = 300
MOST_CLASSES = 60
"""Beyond this a heat map's cells are smaller than their labels can be read."""
LETTER = 6.3
"""Average width of a character at 12 px in the page's font."""


@dataclass(frozen=True)
class Line:
    """One curve; ``style`` is its CSS class, ``x`` and ``y`` stand in ``points``."""

    name: str
    points: Sequence[Point]
    style: str
    dashed: bool = False


@dataclass(frozen=True)
class Dot:
    """One trial in a scatter plot; a ``mark`` is written beside it."""

    name: str
    x: float
    y: float
    style: str
    mark: str = ""


@dataclass(frozen=True)
class Strip:
    """The values of the trials that share one setting's value, and their mean."""

    name: str
    values: Sequence[float]
    mean: float


@dataclass(frozen=True)
class _Scale:
    """Maps [low, high] to pixels [start, end], in logarithms if asked."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self._of(self.low), self._of(self.high)
        share = (self._of(value) - low) / (high - low) if high > low else 0.5
        return round(self.start + share * (self.end - self.start), 2)

    def _of(self, value: float) -> float:
        return math.log10(value) if self.log else value


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns about ``count`` round numbers from low to high, both ends covered."""
    if not high - low > 1e-9 * max(abs(low), abs(high)):  # equal, as far as steps between them can be counted
        margin = max(abs(low) * 0.1, 0.05)
        low, high = low - margin, high + margin
    rough = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def number(value: float) -> str:
    """Returns a number as an axis shows it."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


# -- charts --------------------------------------------------------------------------------------


def curves(title: str, lines: Sequence[Line], y_label: str, height: int = 320) -> str:
    """Returns curves over epochs, the last line drawn on top."""
    area = _Area(height=height)
    points = [point for line in lines for point in line.points]
    y_ticks = _rates(y for _, y in points)
    x = _Scale(1, max(2, *(x for x, _ in points)), area.left, area.right)
    y = _Scale(y_ticks[0], y_ticks[-1], area.bottom, area.top)
    x_ticks = [tick for tick in ticks(1, x.high, 8) if tick == int(tick) and 1 <= tick <= x.high]
    marks = _frame(area, x, x_ticks, y, y_ticks, "epoch", y_label)
    marks += [_curve(line, x, y) for line in lines]
    return _svg(title, area.width, height, marks)


def spark(title: str, train: Sequence[Point], val: Sequence[Point], epochs: int, low: float, high: float) -> str:
    """Returns a small chart of one trial's train and validation curve on axes shared by all trials."""
    area = _Area(width=220, height=110, left=30, right_margin=6, top=8, bottom_margin=18)
    x, y = _Scale(1, max(epochs, 2), area.left, area.right), _Scale(low, high, area.bottom, area.top)
    marks = [
        f'<text class="tick" x="{area.left - 5}" y="{y(v) + 4}" text-anchor="end">{v:.2g}</text>' for v in (low, high)
    ]
    marks += [_rule(area.left, y(v), area.right, y(v)) for v in (low, high)]
    marks.append(f'<text class="tick" x="{area.right}" y="{area.height - 4}" text-anchor="end">epoch {epochs}</text>')
    marks += [_curve(Line("train", train, "rest", dashed=True), x, y), _curve(Line("validation", val, "win"), x, y)]
    return _svg(title, area.width, area.height, marks, "spark")


def strips(title: str, rows: Sequence[Strip], low: float, high: float, letters: int, metric: str) -> str:
    """Returns a row for each value of a setting: a dot a trial, a bar at their mean.

    Charts of equal ``low``, ``high`` and ``letters`` (room for names) have axes exactly below each other.
    """
    area = _Area(
        left=min(letters, 30) * LETTER + 24, height=30 * len(rows) + 44, top=6, bottom_margin=38, right_margin=64
    )
    axis = ticks(low, high)
    x = _Scale(axis[0], axis[-1], area.left, area.right)
    marks = [_rule(x(tick), area.top, x(tick), area.bottom) for tick in axis]
    marks += [
        f'<text class="tick" x="{x(t)}" y="{area.bottom + 15}" text-anchor="middle">{number(t)}</text>' for t in axis
    ]
    marks.append(
        f'<text class="label" x="{(area.left + area.right) / 2}" y="{area.height - 5}" text-anchor="middle">'
        f"{escape(metric)}</text>"
    )
    for i, row in enumerate(rows):
        middle = area.top + 30 * i + 15
        marks.append(_text("name", area.left - 10, middle + 4, row.name, 30, "end"))
        marks += [
            f'<circle class="rest" cx="{x(v)}" cy="{middle}" r="4"><title>{v:.4f}</title></circle>' for v in row.values
        ]
        marks.append(f'<rect class="win" x="{x(row.mean) - 2}" y="{middle - 10}" width="4" height="20" rx="2"/>')
        marks.append(f'<text class="name" x="{area.right + 10}" y="{middle + 4}">{row.mean:.4f}</text>')
    return _svg(title, area.width, area.height, marks)


def scatter(title: str, dots: Sequence[Dot], x_label: str, y_label: str) -> str:
    """Returns dots; the x axis is logarithmic where its values span more than one power of ten."""
    area = _Area(height=340)
    low, high = min(dot.x for dot in dots), max(dot.x for dot in dots)
    if low > 0 and high > 10 * low:
        x_ticks = _powers(low, high)
        x = _Scale(x_ticks[0], x_ticks[-1], area.left, area.right, log=True)
    else:
        x_ticks = ticks(min(low, 0) if low < high * 0.3 else low, high, 7)
        x = _Scale(x_ticks[0], x_ticks[-1], area.left, area.right)
    y_ticks = _rates(dot.y for dot in dots)
    y = _Scale(y_ticks[0], y_ticks[-1], area.bottom, area.top)
    marks = _frame(area, x, x_ticks, y, y_ticks, x_label, y_label)
    for dot in dots:
        about = f"<title>{escape(dot.name)}: {escape(y_label)} {dot.y:.4f}, {escape(x_label)} {number(dot.x)}</title>"
        marks.append(f'<circle class="{dot.style}" cx="{x(dot.x)}" cy="{y(dot.y)}" r="5.5">{about}</circle>')
        if dot.mark:
            marks.append(_text("name", x(dot.x) + 9, y(dot.y) - 7, dot.mark, 24, "start"))
    return _svg(title, area.width, area.height, marks)


def heatmap(title: str, names: Sequence[str], confusion: Sequence[Sequence[int]]) -> str:
    """Returns a confusion matrix, each row (a true class) divided by its own sum; a class without pictures stays empty.

    Of more classes than MOST_CLASSES those with the lowest recall are shown, the others joined in a last
    column so that each row still sums to 1.
    """
    shown = _worst(confusion, MOST_CLASSES)
    columns = [*(names[i] for i in shown), *(["all others"] if len(shown) < len(names) else [])]
    side = min(max(600 / len(columns), 13), 46)
    margin = min(max(len(name) for name in columns), 24) * LETTER + 14
    width, height = margin + side * len(columns) + 6, margin + side * len(shown) + 6
    marks = [_text("tick", margin - 6, margin + side * (r + 0.5) + 4, names[i], 24, "end") for r, i in enumerate(shown)]
    for c, name in enumerate(columns):
        place = margin + side * (c + 0.5) + 4
        marks.append(_text("tick", 0, 0, name, 24, "start", f"translate({place:.1f} {margin - 6:.1f}) rotate(-90)"))
    marks.append(
        f'<rect class="paper" x="{margin:.1f}" y="{margin:.1f}" width="{side * len(columns):.1f}" '
        f'height="{side * len(shown):.1f}"/>'
    )
    for r, i in enumerate(shown):
        row = confusion[i]
        cells = [
            *(row[j] for j in shown),
            *([sum(row) - sum(row[j] for j in shown)] if len(shown) < len(names) else []),
        ]
        for c, count in enumerate(cells):
            if count:
                about = (
                    f"{names[i]} taken for {columns[c]}: {count} of {sum(row)}"
                    if r != c
                    else (f"{names[i]} recognised: {count} of {sum(row)}")
                )
                marks.append(
                    _cell(margin + side * c, margin + side * r, side, count / sum(row), r == c, about, len(columns))
                )
    return _svg(title, width, height, marks, "heat")


# -- parts ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Area:
    """The plotting area within a chart, in pixels."""

    width: float = WIDTH
    height: float = 320
    left: float = 58
    right_margin: float = 24
    top: float = 14
    bottom_margin: float = 44

    @property
    def right(self) -> float:
        return self.width - self.right_margin

    @property
    def bottom(self) -> float:
        return self.height - self.bottom_margin


def _frame(
    area: _Area,
    x: _Scale,
    x_ticks: Sequence[float],
    y: _Scale,
    y_ticks: Sequence[float],
    x_label: str,
    y_label: str,
) -> list[str]:
    marks = [_rule(area.left, y(tick), area.right, y(tick)) for tick in y_ticks]
    marks += [
        f'<text class="tick" x="{area.left - 8}" y="{y(t) + 4}" text-anchor="end">{number(t)}</text>' for t in y_ticks
    ]
    marks += [
        f'<text class="tick" x="{x(t)}" y="{area.bottom + 18}" text-anchor="middle">{number(t)}</text>' for t in x_ticks
    ]
    middle_x, middle_y = (area.left + area.right) / 2, (area.top + area.bottom) / 2
    marks.append(
        f'<text class="label" x="{middle_x}" y="{area.height - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    marks.append(
        f'<text class="label" transform="translate(14 {middle_y}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    return marks


def _curve(line: Line, x: _Scale, y: _Scale) -> str:
    stride = math.ceil(len(line.points) / MOST_POINTS) or 1
    kept = [p for i, p in enumerate(line.points) if i % stride == 0 or i == len(line.points) - 1]
    about = f"<title>{escape(line.name)}</title>"
    if len(kept) == 1:
        return f'<circle class="{line.style}" cx="{x(kept[0][0])}" cy="{y(kept[0][1])}" r="3.5">{about}</circle>'
    path = " ".join(f"{x(px)},{y(py)}" for px, py in kept)
    dash = ' stroke-dasharray="4 3"' if line.dashed else ""
    return f'<polyline class="{line.style}" points="{path}"{dash}>{about}</polyline>'


def _cell(left: float, top: float, side: float, share: float, hit: bool, about: str, classes: int) -> str:
    style = "hit" if hit else "miss"
    shade = 0.15 + 0.85 * share  # a single mistake among many pictures must still be seen
    rect = (
        f'<rect class="{style}" x="{left + 0.5:.1f}" y="{top + 0.5:.1f}" '
        f'width="{side - 1:.1f}" height="{side - 1:.1f}" fill-opacity="{shade:.2f}">'
        f"<title>{escape(about)}</title></rect>"
    )
    if classes > 14 or share < 0.005:
        return rect
    ink = "on" if shade > 0.55 else "off"
    return rect + (
        f'<text class="cell {ink}" x="{left + side / 2:.1f}" y="{top + side / 2 + 4:.1f}" text-anchor="middle">'
        f"{share:.2f}</text>"
    )


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="rule" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(style: str, x: float, y: float, text: str, most: int, anchor: str, transform: str = "") -> str:
    """Returns a label, cut to ``most`` characters; its tooltip has the whole."""
    place = f'transform="{transform}"' if transform else f'x="{x:.1f}" y="{y:.1f}"'
    if len(text) <= most:
        return f'<text class="{style}" {place} text-anchor="{anchor}">{escape(text)}</text>'
    return (
        f'<text class="{style}" {place} text-anchor="{anchor}">{escape(text[: most - 1])}…'
        f"<title>{escape(text)}</title></text>"
    )


def _svg(title: str, width: float, height: float, marks: Iterable[str], style: str = "wide") -> str:
    return (
        f'<svg class="{style}" role="img" aria-label="{escape(title)}" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}">{"".join(marks)}</svg>'
    )


def _rates(values: Iterable[float]) -> list[float]:
    """Returns ticks for values that are mostly shares; what lies within 0 and 1 is not shown beyond them."""
    known = list(values)
    low, high = min(known), max(known)
    found = ticks(low, high)
    if low >= 0 and high <= 1:
        found = [tick for tick in found if -1e-9 <= tick <= 1 + 1e-9]
        found = found if len(found) > 1 else ticks(max(low - 0.1, 0), min(high + 0.1, 1))
    return found


def _powers(low: float, high: float) -> list[float]:
    """Returns 1, 2, 5 times powers of ten, from just below low to just above high."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = [factor * 10.0**power for power in range(first, last + 1) for factor in (1, 2, 5)]
    inside = [step for step in steps if low < step < high]
    return [max(s for s in steps if s <= low), *inside, min(s for s in steps if s >= high)]


def _worst(confusion: Sequence[Sequence[int]], most: int) -> list[int]:
    """Returns the places of the classes with the lowest recall, in label order; all if that is no more than most."""
    places = range(len(confusion))
    if len(confusion) <= most:
        return list(places)
    recall = [confusion[i][i] / sum(confusion[i]) if sum(confusion[i]) else 2.0 for i in places]
    return sorted(sorted(places, key=lambda i: recall[i])[:most])
