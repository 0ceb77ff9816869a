"""Drawing: small SVG pictures that take their colours from the page, for its light and dark themes."""

from __future__ import annotations

import base64
import html
import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from mtjax.report.measures import Curve

DASHES = ("", "7 3", "2 3", "9 3 2 3", "1 3")


class Style(NamedTuple):
    """How a method looks everywhere on the page.

    Attributes:
        number: number of the method on the page, by which the legend switches it on and off.
        colour: index into the page's colours.
        dash: index into ``DASHES``.
        hidden: whether it is switched off until clicked in the legend.
    """

    number: int
    colour: int
    dash: int = 0
    hidden: bool = False

    @property
    def classes(self) -> str:
        """CSS classes of everything that belongs to the method."""
        return f"m m{self.number} c{self.colour}{' off' if self.hidden else ''}"


class Line(NamedTuple):
    """A line of a chart."""

    label: str
    style: Style
    curve: Curve
    dots: bool = False


class Scale(NamedTuple):
    """A mapping from numbers to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, values: np.ndarray | float) -> np.ndarray:
        values, low, high = np.asarray(values, float), self.low, self.high
        if self.log:
            values, low, high = np.log10(values), math.log10(low), math.log10(high)
        return self.start + (values - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int = 5) -> list[float]:
        """Round numbers within the scale."""
        if self.log:
            exponents = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
            return [10.0**e for e in exponents] or [self.low, self.high]
        raw = (self.high - self.low) / most
        size = 10.0 ** math.floor(math.log10(raw))
        step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        count = math.floor(self.high / step + 1e-9) - first + 1
        return [(first + i) * step for i in range(count)]


def span(numbers: Iterable[np.ndarray], *, margin: float = 0.05) -> tuple[float, float]:
    """The range of the finite numbers, with a margin."""
    finite = np.concatenate([np.ravel(n)[np.isfinite(np.ravel(n))] for n in numbers] or [np.zeros(1)])
    if not finite.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    room = (high - low) * margin or abs(high) * margin or 1.0
    return low - room, high + room


def chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str = "environment steps",
    percent: bool = False,
    y_span: tuple[float, float] | None = None,
    x_log: bool = False,
    zero: bool = False,
    bands: bool = True,
    size: tuple[int, int] = (560, 270),
) -> str:
    """A chart of lines with their intervals over a common axis.

    Args:
        lines: one line at least.
        title: title above the chart.
        x_label: label below the horizontal axis.
        percent: whether the values are shares, shown in percent.
        y_span: range of the vertical axis; None fits the lines.
        x_log: whether the horizontal axis is logarithmic.
        zero: whether to draw a line at zero.
        bands: whether to draw the intervals.
        size: width and height in pixels; the picture shrinks with the page.
    """
    width, height = size
    small = width < 300
    left, right, top, bottom = (38 if small else 52), 10, (28 if small else 30), (20 if small else 38)
    steps = np.concatenate([line.curve.steps for line in lines])
    x_low, x_high = (
        (float(steps.min()), float(steps.max())) if x_log else (min(0.0, float(steps.min())), float(steps.max()))
    )
    if x_low >= x_high:
        x_low, x_high = (x_low / 2, x_high * 2) if x_log else (x_low - 0.5, x_high + 0.5)
    y_low, y_high = y_span or span([part for line in lines for part in line.curve[1:]])
    x = Scale(x_low, x_high, left, width - right, x_log)
    y = Scale(y_low, y_high, height - bottom, top)
    parts = [f'<text class="t" x="0" y="{13 if small else 15}">{html.escape(title)}</text>']
    for tick in y.ticks(3 if small else 5):
        at = float(y(tick))
        parts.append(f'<line class="g" x1="{left}" x2="{width - right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(
            f'<text class="a" x="{left - 6}" y="{at + 3.5:.1f}" text-anchor="end">{number(tick, percent)}</text>'
        )
    for tick in x.ticks(3 if small else 6):
        anchor = "end" if float(x(tick)) > width - right - 12 else "middle"
        parts.append(
            f'<text class="a" x="{float(x(tick)):.1f}" y="{height - bottom + 15}" text-anchor="{anchor}">'
            f"{number(tick)}</text>"
        )
    if not small:
        parts.append(
            f'<text class="a" x="{width - right}" y="{height - 4}" text-anchor="end">{html.escape(x_label)}</text>'
        )
    if zero and y_low < 0 < y_high:
        parts.append(
            f'<line class="z" x1="{left}" x2="{width - right}" y1="{float(y(0)):.1f}" y2="{float(y(0)):.1f}"/>'
        )
    for line in lines:
        parts.append(_line(line, x, y, bands))
    label = html.escape(title, quote=True)
    return f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _line(line: Line, x: Scale, y: Scale, bands: bool) -> str:
    curve, style = line.curve, line.style
    xs = x(curve.steps)
    parts = [f"<title>{html.escape(line.label)}</title>"]
    if bands and not np.array_equal(curve.low, curve.high):
        around = [*zip(xs, y(curve.high), strict=True), *reversed([*zip(xs, y(curve.low), strict=True)])]
        parts.append(f'<path class="b" d="M{_path(around)}Z"/>')
    dash = f' stroke-dasharray="{DASHES[style.dash]}"' if style.dash else ""
    points = [*zip(xs, y(curve.middle), strict=True)]
    parts.append(f'<path class="l"{dash} d="M{_path(points)}"/>')
    if line.dots or len(points) == 1:  # a line of one point cannot be seen
        parts += [f'<circle class="d" cx="{px:.1f}" cy="{py:.1f}" r="2.8"/>' for px, py in points]
    return f'<g class="{style.classes}">{"".join(parts)}</g>'


def _path(points: Iterable[tuple[float, float]]) -> str:
    return "L".join(f"{px:.1f} {py:.1f}" for px, py in points if math.isfinite(px) and math.isfinite(py))


MOST_NAMES = 16  # points of a scatter plot that have labels; with more, names appear only on hover


def scatter(
    points: np.ndarray, names: Sequence[str], title: str, style: Style, *, size: tuple[int, int] = (560, 300)
) -> str:
    """A scatter plot of named points [T, 2] of mean 0, with the same scale on both axes."""
    width, height = size
    named = len(points) <= MOST_NAMES
    room, centre = (130 if named else 16), np.array([width / 2, (height + 24) / 2])
    reach = np.maximum(np.abs(points).max(axis=0), 1e-12)
    scale = min((width / 2 - room) / reach[0], ((height - 24) / 2 - 14) / reach[1])
    places = centre + points * [scale, -scale]
    parts = [f'<text class="t" x="0" y="15">{html.escape(title)}</text>']
    parts.append(f'<line class="g" x1="0" x2="{width}" y1="{centre[1]:.1f}" y2="{centre[1]:.1f}"/>')
    parts.append(f'<line class="g" x1="{centre[0]:.1f}" x2="{centre[0]:.1f}" y1="24" y2="{height}"/>')
    for (x, y), name in zip(places, names, strict=True):
        dot = f'<circle class="d" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
        parts.append(f"<g><title>{html.escape(name)}</title>{dot}</g>")
    if named:
        parts += _names(places, names, centre[0])
    label = html.escape(title, quote=True)
    picture = f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
    return f'{picture}<g class="{style.classes}">{"".join(parts)}</g></svg>'


def _names(places: np.ndarray, names: Sequence[str], middle: float, apart: float = 12.0) -> list[str]:
    """Labels of points at ``places`` [T, 2], on their outer side, moved down where they would overlap."""
    parts, lowest = [], {"start": -math.inf, "end": -math.inf}
    for index in np.argsort(places[:, 1], kind="stable"):
        x, y = places[index]
        side, shift = ("end", -7) if x < middle else ("start", 7)
        lowest[side] = y = max(y, lowest[side] + apart)
        name = html.escape(names[index])
        parts.append(f'<text class="a" x="{x + shift:.1f}" y="{y + 4:.1f}" text-anchor="{side}">{name}</text>')
    return parts


def interval(value: float | None, low: float | None, high: float | None, scale: Scale, style: Style) -> str:
    """A dot with its interval, for a table cell. ``scale`` maps to 0 … 120 pixels."""
    if value is None:
        return '<svg class="bar" viewBox="-6 0 132 14"></svg>'
    parts = ['<line class="g" x1="0" x2="120" y1="7" y2="7"/>']
    if low is not None and high is not None:
        parts.append(f'<line class="i" x1="{float(scale(low)):.1f}" x2="{float(scale(high)):.1f}" y1="7" y2="7"/>')
    parts.append(f'<circle class="d" cx="{float(scale(value)):.1f}" cy="7" r="4"/>')
    size = 'viewBox="-6 0 132 14" preserveAspectRatio="xMinYMid"'
    return f'<svg class="bar c{style.colour}" {size}>{"".join(parts)}</svg>'


def matrix(values: np.ndarray, names: Sequence[str], title: str, *, limit: float = 1.0, square: bool = True) -> str:
    """A picture with one pixel per number: red below zero, blue above, transparent at zero.

    Args:
        values: [T, F].
        names: names of the T rows.
        title: text for the tooltip and for readers without the picture.
        limit: absolute value from which on the colour is full.
        square: whether rows and columns are the same tasks; the diagonal, which says nothing, is then left clear.
    """
    share = np.clip(np.nan_to_num(values) / limit, -1.0, 1.0)
    pixels = np.zeros((*share.shape, 4), np.uint8)
    pixels[share < 0] = (200, 45, 62, 0)
    pixels[share >= 0] = (37, 105, 190, 0)
    pixels[..., 3] = np.round(255 * np.abs(share))
    if square:
        pixels[np.arange(len(share)), np.arange(len(share)), 3] = 0
    tasks = ", ".join(names[:12]) + (" …" if len(names) > 12 else "")
    text = html.escape(f"{title}: {tasks}", quote=True)
    kind = "matrix" if square else "matrix wide"
    return f'<img class="{kind}" alt="{text}" title="{text}" src="data:image/png;base64,{_png(pixels)}">'


def _png(pixels: np.ndarray) -> str:
    """Encode pixels [H, W, 4] uint8 as a PNG in base64."""
    height, width, _ = pixels.shape

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + pixels[row].tobytes() for row in range(height))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return base64.b64encode(content).decode()


def number(value: float | None, percent: bool = False) -> str:
    """Format a number for people: 1,234 · 0.25 · 4.1M · 85%."""
    if value is None or not math.isfinite(value):
        return "–"
    if percent:
        return f"{100 * value:.0f}%"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.3g}{unit}"
    if value and abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
