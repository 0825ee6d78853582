"""Charts as SVG, drawn once: readable without a script, in light and in dark, and by a screen reader.

Colours are Okabe and Ito's eight, which people with any colour vision can tell apart; each curve has a marker of its
own as well. The page's style gives the colours, and its script reads the values from ``data-points``.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from scalarfl.experiment.report import thinned

WIDTH, HEIGHT = 420, 270
TOP, RIGHT, BOTTOM = 28, 12, 44
"""Space around the plot; on the left it depends on the labels."""
LETTER = 6.6
"""Width of a letter of the labels, about."""
COLOURS = 8
MARKERS_APART = 45
"""Between two markers of a curve, at least; also where the curve has more points."""
MOST = 200
"""Points of a curve, at most: more cannot be told apart."""
METHOD, OTHER = "m", "o"
"""Kinds of curves: those that the page's boxes hide, and others."""

Format = Callable[[float], str]
Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """A method's curve; number: its place among the page's methods, which decides on colour and marker."""

    name: str
    number: int
    points: Sequence[Point]
    band: Sequence[tuple[float, float]] = ()
    """The lowest and highest value at each point."""
    crosses: Sequence[float] = ()
    """Where on the x axis to draw a cross at the bottom, for a run without a value."""
    ring: float | None = None
    """Where on the x axis to draw a ring around the value."""


@dataclass(frozen=True)
class Axis:
    """What an axis shows. shown: a value as text; tick: the same beside the axis, where shorter."""

    label: str
    shown: Format
    log: bool = False
    tick: Format | None = None

    def ticked(self, value: float) -> str:
        """A tick's label."""
        return (self.tick or self.shown)(value)


def chart(title: str, curves: Sequence[Curve], x: Axis, y: Axis, kind: str = METHOD) -> str:
    """Curves as an SVG. Points that an axis cannot show, not finite or not above 0 on a log axis, are left out.

    kind: whether the curves are methods', which the page's head names, or others, which get a legend.
    """
    drawn = [_Drawn(curve, x, y) for curve in curves]
    across = [point[0] for one in drawn for point in one.points] + [at for one in drawn for at in one.crosses]
    up = [value for one in drawn for value in (*(p[1] for p in one.points), *(v for pair in one.band for v in pair))]
    if not across or not up:
        return ""
    horizontal, vertical = _Scale(across, x.log, tight=True), _Scale(up, y.log)
    labels = [y.ticked(tick) for tick in vertical.ticks]
    left = 12 + LETTER * max(map(len, labels))
    horizontal.place(left, WIDTH - RIGHT)
    vertical.place(HEIGHT - BOTTOM, TOP)
    parts = [*_grid(horizontal, vertical, left, x, y, labels)]
    for one in drawn:
        parts.append(one.svg(horizontal, vertical, kind))
    ends = "; ".join(f"{one.curve.name} ends at {y.shown(one.points[-1][1])}" for one in drawn if one.points)
    plot = (left, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM)
    legend = [one.name for one in curves] if kind == OTHER else []
    return svg(title, f"{y.label} against {x.label}. {ends}.", parts, plot, legend)


def bars(title: str, values: Sequence[tuple[str, float]], y: Axis, x_label: str) -> str:
    """One bar for each value, which are counts, in the order given; its name shows where the pointer rests."""
    scale = _Scale([0, *(value for _, value in values)], log=False)
    labels = [y.ticked(tick) for tick in scale.ticks]
    left = 12 + LETTER * max(map(len, labels))
    scale.place(HEIGHT - BOTTOM, TOP)
    parts = [*_rules(scale, left, labels, y), _text(WIDTH / 2, HEIGHT - 6, x_label, "middle")]
    step = (WIDTH - RIGHT - left) / max(1, len(values))
    for index, (name, value) in enumerate(values):
        at, top = left + index * step + step * 0.1, scale(value)
        box = f'x="{at:.1f}" y="{top:.1f}" width="{step * 0.8:.2f}" height="{HEIGHT - BOTTOM - top:.1f}"'
        parts.append(f'<rect class="bar" {box}><title>{escape(name)}: {escape(y.shown(value))}</title></rect>')
    lowest, highest = (pick(value for _, value in values) for pick in (min, max))
    told = f"{y.label}: {len(values)} bars from {y.shown(lowest)} to {y.shown(highest)}."
    return svg(title, told, parts)


def swatch(number: int) -> str:
    """A short piece of a curve with its marker, for a legend."""
    body = f'<path class="line" d="M1 8H29"/>{_marker(number, 15, 8)}'
    return f'<svg class="swatch {_class(number, METHOD)}" viewBox="0 0 30 16" aria-hidden="true">{body}</svg>'


def standing_alone(picture: str, names: Sequence[str]) -> str:
    """A chart as a file of its own, with its colours, a background and a legend of the curves' names below."""
    head, _, body = picture.partition(">")
    entries, height = _legend(names, METHOD)
    if names:
        head = head.replace(f"0 0 {WIDTH} {HEIGHT}", f"0 0 {WIDTH} {height}")
    head = head.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    ground = f'<rect class="ground" width="{WIDTH}" height="100%"/>'
    body = body.removesuffix("</svg>")
    return f"{head}><style>{style('chart.css')}</style>{ground}{body}{entries}</svg>\n"


def _legend(names: Sequence[str], kind: str) -> tuple[str, int]:
    """Names of curves below a chart, each with a piece of its curve; and the height of the whole image."""
    row, across, entries = HEIGHT + 6, 10.0, []
    for number, name in enumerate(names):
        width = 50 + LETTER * len(name)
        if across + width > WIDTH and across > 10:
            row, across = row + 20, 10.0
        line = f'<path class="line" d="M0 8H28"/>{_marker(number, 14, 8)}<text x="34" y="12">{escape(name)}</text>'
        entries.append(f'<g class="{_class(number, kind)}" transform="translate({across:.0f} {row})">{line}</g>')
        across += width
    return "".join(entries), row + 24 if names else HEIGHT


def style(name: str) -> str:
    """A file beside this one."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def svg(title: str, told: str, parts: Sequence[str], plot: Sequence[float] = (), legend: Sequence[str] = ()) -> str:
    """An image with an accessible name and description. plot: left, right, top and bottom of what a pointer reads."""
    area = f' data-plot="{" ".join(f"{edge:.1f}" for edge in plot)}"' if plot else ""
    label = escape(f"{title}: {told}", quote=True)
    entries, height = _legend(legend, OTHER)
    opened = f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}"{area}>'
    return f"{opened}{''.join(parts)}{entries}</svg>"


class _Drawn:
    """A curve, thinned, without what its axes cannot show."""

    def __init__(self, curve: Curve, x: Axis, y: Axis) -> None:
        self.curve, self.x, self.y = curve, x, y
        kept = [i for i, (at, value) in enumerate(curve.points) if _fits(at, x.log) and _fits(value, y.log)]
        kept = thinned(kept, MOST)
        self.points = [curve.points[i] for i in kept]
        self.band = [curve.band[i] for i in kept] if curve.band else []
        self.crosses = [at for at in curve.crosses if _fits(at, x.log)]

    def svg(self, across: "_Scale", up: "_Scale", kind: str) -> str:
        """The group of all that belongs to the curve."""
        number = self.curve.number
        placed = [(across(at), up(value)) for at, value in self.points]
        parts = []
        if self.band:
            low = [f"{px:.1f} {up(pair[0]):.1f}" for (px, _), pair in zip(placed, self.band, strict=True)]
            high = [f"{px:.1f} {up(pair[1]):.1f}" for (px, _), pair in zip(placed, self.band, strict=True)]
            parts.append(f'<path class="band" d="M{"L".join([*low, *reversed(high)])}Z"/>')
        if placed:
            parts.append(f'<path class="line" d="M{"L".join(f"{px:.1f} {py:.1f}" for px, py in placed)}"/>')
        last = -math.inf
        for (px, py), (at, value) in zip(placed, self.points, strict=True):
            if px - last >= MARKERS_APART:
                last = px
                told = escape(f"{self.curve.name}: {self.y.shown(value)} at {self.x.shown(at)}")
                parts.append(_marker(number, px, py, f"<title>{told}</title>"))
            if at == self.curve.ring:
                parts.append(f'<circle class="ring" cx="{px:.1f}" cy="{py:.1f}" r="9"/>')
        for at in self.crosses:
            px, py = across(at), up.pixels[0]
            told = escape(f"{self.curve.name}: diverged at {self.x.shown(at)}")
            cross = f"M{px - 5:.1f} {py - 5:.1f}l10 10m0 -10l-10 10"
            parts.append(f'<path class="line" d="{cross}"><title>{told}</title></path>')
        values = [
            [round(px, 1), round(py, 1), self.x.shown(at), self.y.shown(value)]
            for (px, py), (at, value) in zip(placed, self.points, strict=True)
        ]
        data = escape(json.dumps(values, separators=(",", ":")), quote=True)
        name = escape(self.curve.name, quote=True)
        return f'<g class="curve {_class(number, kind)}" data-name="{name}" data-points="{data}">{"".join(parts)}</g>'


class _Scale:
    """Values to pixels. tight: the axis ends where the values do."""

    def __init__(self, values: Sequence[float], log: bool, tight: bool = False) -> None:
        low, high = min(values), max(values)
        self.log = log
        if log:
            low, high = math.log10(low), math.log10(high)
            spare = 0.04 * (high - low) if high > low else 0.5
            self.low, self.high = low - spare, high + spare
            self.ticks = [10**exponent for exponent in _log_ticks(self.low, self.high)]
        else:
            if high == low:
                low, high = (low - 1, high + 1) if low < 0 else (low * 0.9, high * 1.1 or 1.0)
            step = _step(high - low)
            self.low = low if tight else math.floor(low / step + 1e-9) * step
            self.high = high if tight else math.ceil(high / step - 1e-9) * step
            first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
            self.ticks = [index * step for index in range(first, last + 1)]
        self.pixels = (0.0, 1.0)

    def place(self, start: float, end: float) -> None:
        """Where the lowest and the highest value lie."""
        self.pixels = start, end

    def __call__(self, value: float) -> float:
        """The pixel."""
        at = math.log10(value) if self.log else value
        start, end = self.pixels
        return start + (at - self.low) / (self.high - self.low) * (end - start)


def _step(length: float) -> float:
    """A round step that gives four to eight ticks."""
    size: float = 10 ** math.floor(math.log10(length))
    return next(factor * size for factor in (0.1, 0.2, 0.25, 0.5, 1.0, 2.0) if length / (factor * size) <= 6)


def _log_ticks(low: float, high: float) -> Iterator[float]:
    """Exponents: whole decades, not too many; 2 and 5 between them where there are few."""
    decades = high - low
    each = max(1, math.ceil(decades / 6))
    between = (0.0,) if decades > 2.5 else (0.0, math.log10(2), math.log10(5))
    for exponent in range(math.floor(low), math.ceil(high) + 1):
        for part in between:
            if exponent % each == 0 and low <= exponent + part <= high:
                yield exponent + part


def _fits(value: float | None, log: bool) -> bool:
    return value is not None and math.isfinite(value) and (value > 0 or not log)


def _grid(across: _Scale, up: _Scale, left: float, x: Axis, y: Axis, labels: Sequence[str]) -> Iterator[str]:
    yield from _rules(up, left, labels, y)
    end = -math.inf
    for tick in across.ticks:
        text, at = x.ticked(tick), across(tick)
        half = LETTER * len(text) / 2
        yield f'<path class="grid" d="M{at:.1f} {TOP}V{HEIGHT - BOTTOM}"/>'
        if at - half > end and at + half < WIDTH + 4:  # two labels never meet
            end = at + half + 8
            yield _text(at, HEIGHT - BOTTOM + 16, text, "middle")
    yield _text((left + WIDTH - RIGHT) / 2, HEIGHT - 6, x.label, "middle")


def _rules(up: _Scale, left: float, labels: Sequence[str], y: Axis) -> Iterator[str]:
    """Horizontal lines with their labels, and the axis's name above them."""
    yield _text(2, 13, y.label, "start")
    for tick, label in zip(up.ticks, labels, strict=True):
        at = up(tick)
        yield f'<path class="grid" d="M{left:.1f} {at:.1f}H{WIDTH - RIGHT}"/>'
        yield _text(left - 6, at + 4, label, "end")


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _class(number: int, kind: str) -> str:
    again = " again" if number >= COLOURS else ""
    return f"{kind}{number} c{number % COLOURS}{again}"


_SHAPES = (
    "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0",
    "m-4 -4h8v8h-8z",
    "m0 -5l5 9h-10z",
    "m0 -5.5l5.5 5.5l-5.5 5.5l-5.5 -5.5z",
    "m0 5l5 -9h-10z",
    "m-5 -1.6h3.4v-3.4h3.2v3.4h3.4v3.2h-3.4v3.4h-3.2v-3.4h-3.4z",
    "m-5 0l2.5 -4.3h5l2.5 4.3l-2.5 4.3h-5z",
    "m0 -5.5l1.4 4.1h4.1l-3.3 2.5l1.3 4.2l-3.5 -2.6l-3.5 2.6l1.3 -4.2l-3.3 -2.5h4.1z",
)


def _marker(number: int, x: float, y: float, inside: str = "") -> str:
    return f'<path class="marker" d="M{x:.1f} {y:.1f}{_SHAPES[number % COLOURS]}">{inside}</path>'
