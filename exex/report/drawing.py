"""Charts as SVG that a page carries inline: areas, lines, bars, a map of nodes. Colours are classes of the page's style. Pure."""

from __future__ import annotations

import base64
import html
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exex.report.words import count, duration, ticks, time_ticks

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 1040, 64, 12, 10, 26
_SMALL = (330, 130)

_HEAT = (58, 111, 216)

Array = NDArray[Any]


@dataclass
class Series:
    """One curve over equal steps of the x axis.

    Attributes:
        style: "area", "line" or "step".
        colour: number of a colour of the page, from 1.
    """

    name: str
    values: Array
    colour: int
    style: str = "line"


@dataclass
class Chart:
    """A chart over time.

    Attributes:
        edges: of the steps, one more than values.
        bands: (begin, end, name) of times to be marked.
        write: a value as text.
    """

    title: str
    edges: Array
    series: Sequence[Series]
    height: int = 200
    write: Callable[[float], str] = count
    top: float | None = None
    bands: Sequence[tuple[float, float, str]] = field(default_factory=tuple)

    def svg(self) -> str:
        """The picture; the page's script shows values where the pointer is."""
        values = [series.values for series in self.series]
        top = self.top or max((float(np.nanmax(value)) for value in values if len(value)), default=1.0) or 1.0
        top *= 1.0 if self.top else 1.06
        plot = Frame(float(self.edges[0]), float(self.edges[-1]), top, self.height)
        parts = [plot.grid(self.write)]
        for begin, end, name in self.bands:
            left, right = plot.x(begin), plot.x(end)
            parts.append(f'<rect class="band" x="{left:.1f}" y="{TOP}" width="{max(0, right - left):.1f}" height="{plot.high}"/>')
            if right - left > 40:
                parts.append(f'<text class="note" x="{(left + right) / 2:.1f}" y="{TOP + 34}">{html.escape(name)}</text>')
        parts += [self._curve(plot, series) for series in self.series]
        data = {
            "begin": plot.low_x,
            "end": plot.high_x,
            "left": LEFT,
            "right": WIDTH - RIGHT,
            "names": [series.name for series in self.series],
            "colours": [series.colour for series in self.series],
            "values": [[self.write(float(value)) for value in series.values] for series in self.series],
        }
        cursor = f'<line class="cursor" x1="0" x2="0" y1="{TOP}" y2="{TOP + plot.high}" visibility="hidden"/>'
        return svg(self.title, self.height, "".join(parts) + cursor, data=data)

    def _curve(self, plot: Frame, series: Series) -> str:
        x = [f"{plot.x(at):.1f}" for at in self.edges]
        y = [f"{plot.y(value):.1f}" for value in series.values.tolist()]
        steps = "".join(f"V{height}H{right}" for height, right in zip(y, x[1:]))
        if series.style == "area":
            ground = f"{TOP + plot.high:.1f}"
            return (
                f'<path class="area c{series.colour}" d="M{x[0]} {ground}{steps}V{ground}Z"/>'
                f'<path class="line c{series.colour}" d="M{x[0]} {y[0]}{steps}"/>'
            )
        return f'<path class="line c{series.colour}" d="M{x[0]} {y[0]}{steps}"/>'

    def legend(self) -> str:
        """Names of the curves, if there are several."""
        if len(self.series) < 2:
            return ""
        return legend([(series.name, series.colour) for series in self.series])


class Frame:
    """The axes of a chart over time."""

    def __init__(self, low_x: float, high_x: float, top: float, height: int) -> None:
        self.low_x, self.high_x, self.top = low_x, max(high_x, low_x + 1e-9), top
        self.high = height - TOP - BOTTOM

    def x(self, at: float) -> float:
        """Where a time is."""
        part = (at - self.low_x) / (self.high_x - self.low_x)
        return LEFT + min(1.0, max(0.0, part)) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Where a value is."""
        return TOP + self.high * (1 - min(1.0, max(0.0, value / self.top)))

    def grid(self, write: Callable[[float], str]) -> str:
        """Lines and labels of both axes."""
        parts = []
        for value in ticks(0, self.top, 4):
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text class="left" x="{LEFT - 8}" y="{y + 4:.1f}">{write(value)}</text>')
        return "".join(parts) + self.time_axis()

    def time_axis(self) -> str:
        """Labels of the axis of times."""
        parts = []
        for at, label in time_ticks(self.low_x, self.high_x):
            x = self.x(at)
            anchor = "end" if x > WIDTH - RIGHT - 20 else "middle"
            parts.append(f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP + self.high}" y2="{TOP + self.high + 4}"/>')
            parts.append(f'<text class="below" text-anchor="{anchor}" x="{x:.1f}" y="{TOP + self.high + 18}">{label}</text>')
        return "".join(parts)


def svg(title: str, height: int, body: str, width: int = WIDTH, data: dict[str, Any] | None = None) -> str:
    """A picture; `data` is for the page's script."""
    carried = ""
    if data is not None:
        carried = f" data-chart='{html.escape(json.dumps(data, separators=(',', ':')), quote=True)}'"
    label = html.escape(title, quote=True)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}"{carried}>{body}</svg>'


def legend(entries: Sequence[tuple[str, int]]) -> str:
    """Coloured names."""
    names = "".join(f'<span><i class="c{colour}"></i>{html.escape(name)}</span>' for name, colour in entries)
    return f'<p class="legend">{names}</p>'


def stacked_bar(parts: Sequence[tuple[str, float, int, str]], height: int = 34) -> str:
    """One bar of (name, part of 1, colour, text)."""
    x, drawn = 0.0, []
    for name, part, colour, text in parts:
        wide = part * WIDTH
        drawn.append(f'<rect class="c{colour}" x="{x:.1f}" y="0" width="{max(0.0, wide - 1.5):.1f}" height="{height}" rx="3">')
        drawn.append(f"<title>{html.escape(name)}: {text}</title></rect>")
        if wide > 54:
            drawn.append(f'<text class="on" x="{x + wide / 2:.1f}" y="{height / 2 + 4.5}">{text}</text>')
        x += wide
    return svg("shares", height, "".join(drawn))


def histogram(lengths: Array, edges: Array, colour: int, title: str) -> str:
    """Bars over an axis of powers of ten, in seconds."""
    width, height = _SMALL
    heights, _ = np.histogram(np.clip(lengths, edges[0], edges[-1]), edges)
    top = float(heights.max(initial=1)) or 1.0
    low, high = np.log10(edges[0]), np.log10(edges[-1])
    ground, left = height - 20, 4
    parts = []
    for at, value in enumerate(heights.tolist()):
        if value:
            x = left + (np.log10(edges[at]) - low) / (high - low) * (width - 2 * left)
            wide = (np.log10(edges[at + 1]) - np.log10(edges[at])) / (high - low) * (width - 2 * left)
            tall = max(1.5, value / top * (ground - 8))
            said = f"{duration(edges[at])} to {duration(edges[at + 1])}: {count(value)}"
            place = f'x="{x:.1f}" y="{ground - tall:.1f}" width="{max(1, wide - 1):.1f}" height="{tall:.1f}"'
            parts.append(f'<rect class="c{colour}" {place}><title>{said}</title></rect>')
    parts.append(f'<line class="grid" x1="{left}" x2="{width - left}" y1="{ground}" y2="{ground}"/>')
    powers = list(range(int(np.ceil(low - 1e-9)), int(np.floor(high + 1e-9)) + 1))
    every = max(1, -(-len(powers) // 5))
    for power in powers[::every]:
        x = left + (power - low) / (high - low) * (width - 2 * left)
        anchor = "start" if x < 20 else "end" if x > width - 24 else "middle"
        parts.append(f'<text class="below" text-anchor="{anchor}" x="{x:.1f}" y="{height - 5}">{_decade(power)}</text>')
    return svg(title, height, "".join(parts), width=width)


def _decade(power: int) -> str:
    """Ten to this power, in seconds."""
    unit, shift = ("s", 0) if power >= 0 else ("ms", 3) if power >= -3 else ("µs", 6) if power >= -6 else ("ns", 9)
    return f"{10 ** (power + shift):,} {unit}"


def heat_map(levels: Array, edges: Array, names: Sequence[str], row_height: float) -> str:
    """Rows of levels from 0 to 1 over time, as a picture of one colour, as opaque as they say, for light and dark pages."""
    rows = len(levels)
    picture = base64.b64encode(png_of_opacity(levels)).decode()
    high = rows * row_height
    height = int(high + TOP + BOTTOM)
    plot = Frame(float(edges[0]), float(edges[-1]), 1.0, height)
    place = f'x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{plot.high}"'
    parts = [
        f'<rect class="ground" {place}/>',
        f'<image class="heat" {place} preserveAspectRatio="none" href="data:image/png;base64,{picture}"/>',
        plot.time_axis(),
    ]
    every = max(1, -(-rows // max(1, int(high // 14))))
    for row in range(0, rows, every):
        y = TOP + (row + 0.5) * row_height + 3.5
        parts.append(f'<text class="left small" x="{LEFT - 8}" y="{y:.1f}">{html.escape(names[row][-10:])}</text>')
    return svg("slots busy, by node and time", height, "".join(parts))


def png_of_opacity(levels: Array) -> bytes:
    """A PNG of one colour, as opaque as the levels say."""
    rows, columns = levels.shape
    alpha = np.clip(np.nan_to_num(levels) * 255, 0, 255).astype("u1")
    pixels = np.empty((rows, columns, 4), "u1")
    pixels[:, :, :3] = _HEAT
    pixels[:, :, 3] = alpha
    lines = np.concatenate([np.zeros((rows, 1), "u1"), pixels.reshape(rows, -1)], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", columns, rows, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(lines, 9)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
