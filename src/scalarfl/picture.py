"""Curves as a static SVG: no package needed, light and dark, every curve named at its end and no text over a curve."""

import math
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise, permutations

Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""

LIGHT = ("#0072b2", "#d55e00", "#008060", "#a8558b", "#8a6d00", "#4a5bd0")
DARK = ("#56b4e9", "#ff8c42", "#2fc99b", "#e59ac6", "#e6c229", "#a3b1ff")
"""Okabe and Ito's colours, which people with a colour vision deficiency tell apart, darker and lighter."""

HEIGHT, TOP, BOTTOM, LEFT, RIGHT = 330, 46, 46, 52, 14
LETTER, LINE = 8.0, 17
"""Widths of a letter and heights of a line of text of 13 pixels, rather too large than too small."""


@dataclass(frozen=True)
class Curve:
    """Points from left to right, and the label at their end. colour: the place among the colours."""

    label: str
    points: Sequence[Point]
    colour: int


@dataclass(frozen=True)
class Panel:
    """One pair of axes. tick: how a number on the horizontal axis is written."""

    title: str
    xlabel: str
    curves: Sequence[Curve]
    tick: Callable[[float], str]
    log: bool = False
    goal: float | None = None
    """A dotted line at this height."""
    percent: bool = True
    """Whether heights are shares, from 0 to 1, shown as percentages; else any numbers."""


def svg(title: str, panels: Sequence[Panel], width: int = 880) -> str:
    """Panels side by side under a title. Points that are not finite, or on a log axis not positive, are left out."""
    each = width / len(panels)
    head = 30 if title else 0
    body = "".join(
        f'<g transform="translate({each * number:g} {head})">{"".join(_panel(panel, each))}</g>'
        for number, panel in enumerate(panels)
    )
    name = f'<text x="{LEFT}" y="24" class="t">{escape(title)}</text>' if title else ""
    spoken = escape(title or panels[0].title, quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT + head}" role="img" '
        f'aria-label="{spoken}" width="{width}"><style>{_style()}</style>'
        f'<rect class="b" width="100%" height="100%"/>{name}{body}</svg>\n'
    )


def course(curves: Mapping[str, Sequence[tuple[float, float | None, float]]]) -> str:
    """Runs by rounds, from each one's (round, accuracy, loss): the accuracy where all have one, else the loss.

    Nothing where there is no line to draw.
    """
    if not curves or any(len(curve) < 2 for curve in curves.values()):
        return ""
    rated = all(point[1] is not None for curve in curves.values() for point in curve)
    drawn = [
        Curve(name, [(point[0], (point[1] or 0.0) if rated else point[2]) for point in curve], number)
        for number, (name, curve) in enumerate(curves.items())
    ]
    heading = "Accuracy" if rated else "Loss"
    return svg("", [Panel(heading, "rounds", drawn, lambda value: f"{value:,.0f}", percent=rated)], 480)


def image(text: str) -> str:
    """An SVG as an HTML image, so that its style and the page's do not meet."""
    return f'<img alt="" src="data:image/svg+xml;base64,{b64encode(text.encode()).decode()}">'


def html(facts: Mapping[str, str], drawn: str) -> str:
    """A picture over a small table, for notebooks. drawn: an SVG, or nothing."""
    rows = (f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts.items())
    return f"{image(drawn) if drawn else ''}<table>{''.join(rows)}</table>"


def _style() -> str:
    def colours(values: Sequence[str]) -> str:
        return "".join(f".c{n}{{stroke:{value}}}.f{n}{{fill:{value}}}" for n, value in enumerate(values))

    return (
        "text{font:13px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;fill:#333}.t{font-size:16px;"
        "font-weight:600}.h{font-weight:600}.b{fill:#fff}.g{stroke:#ddd}.o{stroke:#777;stroke-dasharray:2 4}"
        "path{fill:none;stroke-width:2.2;stroke-linejoin:round}.n{font-weight:600}"
        f"{colours(LIGHT)}@media(prefers-color-scheme:dark){{text{{fill:#ccc}}.b{{fill:#131416}}.g{{stroke:#333}}"
        f".o{{stroke:#999}}{colours(DARK)}}}"
    )


def _panel(panel: Panel, width: float) -> Iterator[str]:
    curves = [
        (curve, [(x, y) for x, y in curve.points if math.isfinite(x + y) and (x > 0 or not panel.log)])
        for curve in panel.curves
    ]
    curves = [(curve, points) for curve, points in curves if points]
    yield f'<text x="{LEFT}" y="{TOP - 18}" class="h">{escape(panel.title)}</text>'
    if not curves:
        return
    every = [point for _, points in curves for point in points]

    def shift(x: float) -> float:
        return math.log10(x) if panel.log else x

    first, last = shift(min(x for x, _ in every)), shift(max(x for x, _ in every))
    if panel.log:
        first, last = min(first, last - 1), max(last, first + 1)
    span = last - first or 1.0
    low, high = (0.0, 1.0) if panel.percent else (min(y for _, y in every), max(y for _, y in every))
    room = width - LEFT - RIGHT
    plain = min(  # of the axis: the labels at the curves' ends fit beside it
        [room]
        + [
            (room - 10 - LETTER * len(curve.label)) / ((shift(points[-1][0]) - first) / span)
            for curve, points in curves
            if panel.goal is None and shift(points[-1][0]) > first + span / 2
        ]
    )
    plain = max(plain, room / 3)

    def place(point: Point) -> Point:
        up = (point[1] - low) / ((high - low) or 1.0)
        return LEFT + plain * (shift(point[0]) - first) / span, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * up

    for height in _nice(low, high):
        y = place((every[0][0], height))[1]
        text = f"{100 * height:.0f} %" if panel.percent else f"{height:.3g}"
        yield f'<path class="g" d="M{LEFT} {y:.1f}h{room:.1f}" style="stroke-width:1"/>'
        yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
    if panel.goal is not None:
        y = place((every[0][0], panel.goal))[1]
        yield f'<path class="o" d="M{LEFT} {y:.1f}h{room:.1f}" style="stroke-width:1.2"/>'
    for value in _decades(first, last) if panel.log else _nice(first, last):
        x = place((value, low))[0]
        yield f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{escape(panel.tick(value))}</text>'
    yield f'<text x="{LEFT}" y="{HEIGHT - 8}">{escape(panel.xlabel)}</text>'
    drawn = [(curve, [place(point) for point in points]) for curve, points in curves]
    for curve, pixels in drawn:
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in pixels)
        x, y = pixels[-1]
        number = curve.colour % len(LIGHT)
        yield f'<path class="c{number}" d="M{path}"/><circle class="f{number}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    goal = None if panel.goal is None else place((every[0][0], panel.goal))[1]
    for (curve, _), (x, y) in zip(drawn, _labels(drawn, LEFT + room, goal), strict=True):
        yield f'<text class="n f{curve.colour % len(LIGHT)}" x="{x:.1f}" y="{y:.1f}">{escape(curve.label)}</text>'


def _labels(drawn: Sequence[tuple[Curve, Sequence[Point]]], right: float, goal: float | None) -> list[Point]:
    """Where each label begins: near its curve's end, and free of all curves, of the goal and of the other labels."""
    curves = [box for _, pixels in drawn for box in _boxes(pixels)]
    if goal is not None:
        curves.append((LEFT, goal, right, goal))
    free: list[list[tuple[float, Point, Box]]] = []
    """For each label its places off the curves, nearest first: distance, place, box."""
    for curve, pixels in drawn:
        (x, y), size = pixels[-1], LETTER * len(curve.label)
        places = [
            (abs(down) + 0.3 * abs(across - 9), (x + across, y + 5 + down))
            for across in (9.0, -size / 4, -size / 2, -3 * size / 4, -size - 9)
            for down in range(-200, 201, 4)
            if LEFT <= x + across <= right - size + 8 and TOP <= y + down <= HEIGHT - BOTTOM
        ]
        boxed = [(far, at, (at[0] - 3, at[1] - LINE + 4, at[0] + size, at[1] + 5)) for far, at in sorted(places)]
        off = [one for one in boxed if not any(_meet(one[2], box) for box in curves)]
        free.append(off or boxed or [(0.0, (LEFT, y), (LEFT, y - LINE, LEFT + size, y))])
    orders: Iterable[tuple[int, ...]] = [tuple(range(len(drawn)))]
    if len(drawn) <= 5:
        orders = permutations(range(len(drawn)))
    return min((_placed(free, order) for order in orders), key=lambda found: found[0])[1]


def _placed(free: Sequence[Sequence[tuple[float, Point, Box]]], order: Sequence[int]) -> tuple[float, list[Point]]:
    """Labels placed in this order, each at the nearest place that is left: the sum of distances, and the places."""
    taken: dict[int, Box] = {}
    found: dict[int, tuple[float, Point, Box]] = {}
    for number in order:
        left = (one for one in free[number] if not any(_meet(one[2], box) for box in taken.values()))
        found[number] = next(left, (1e6, *free[number][0][1:]))
        taken[number] = found[number][2]
    return sum(one[0] for one in found.values()), [found[number][1] for number in range(len(free))]


def _boxes(pixels: Sequence[Point]) -> Iterator[Box]:
    """A line as small boxes, one every few pixels."""
    for (x, y), (u, v) in pairwise(pixels):
        pieces = max(1, math.ceil(max(abs(u - x), abs(v - y)) / 4))
        for piece in range(pieces + 1):
            a, b = x + (u - x) * piece / pieces, y + (v - y) * piece / pieces
            yield a - 1, b - 1, a + 1, b + 1
    x, y = pixels[-1]
    yield x - 4, y - 4, x + 4, y + 4


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _nice(low: float, high: float) -> list[float]:
    """Round numbers between two, three to six of them."""
    span = high - low
    if not span > 0:
        return [low]
    power: float = 10 ** math.floor(math.log10(span))
    step = next(s * power for s in (0.2, 0.25, 0.5, 1.0, 2.0) if span / (s * power) <= 5)
    return [round(step * n, 12) for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _decades(first: float, last: float) -> Iterable[float]:
    """Powers of ten; of 1,000 where there are many."""
    powers = range(math.ceil(first - 1e-9), math.floor(last + 1e-9) + 1)
    return [10.0**power for power in powers if len(powers) <= 7 or power % 3 == 0]
