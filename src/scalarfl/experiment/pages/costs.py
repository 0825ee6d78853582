"""What a score cost: the same charts for one run and for several methods."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from scalarfl.experiment.pages.chart import Axis, Curve, chart
from scalarfl.units import duration, percent, size

ROUNDS = Axis("rounds", lambda value: f"{value:,.0f}")
BYTES = Axis("bytes per client, up and down", size, log=True, tick=lambda value: size(value).replace(".0 ", " "))
FORWARDS = "forward passes, all clients"


def count(value: float) -> str:
    """Counts, of which there may be many: 1,200 or 3.4 million."""
    return f"{value / 1e6:,.3g} million" if value >= 1e6 else f"{value:,.0f}"


def score_axis(metric: str, examples: str) -> Axis:
    """The axis of a score between 0 and 1."""
    return Axis(f"{examples} {metric}", percent, tick=lambda value: f"{100 * value:.4g} %")


def loss_axis(examples: str) -> Axis:
    """The axis of a loss."""
    return Axis(f"{examples} loss", lambda value: f"{value:.4f}", tick=lambda value: f"{value:.3g}")


@dataclass(frozen=True)
class Spent:
    """A method's curve of (round, value), and what all its rounds cost; None: not known."""

    name: str
    number: int
    curve: Sequence[tuple[float, float]]
    rounds: int
    bytes: float
    forwards: float
    seconds: float | None
    band: Sequence[tuple[float, float]] = ()

    def against(self, total: float | None) -> Curve:
        """The curve against something that grows evenly with the rounds up to a total."""
        each = math.nan if total is None else total / max(1, self.rounds)
        return Curve(self.name, self.number, [(at * each, value) for at, value in self.curve], self.band)


def forwards(result: dict[str, Any]) -> float:
    """A run's forward equivalents, in which a backward pass counts as what it costs; else its forward passes."""
    return float(result.get("forward_equivalents") or result["forward_passes"])


def _unit(seconds: float) -> tuple[str, float]:
    """What to count a time in, and its seconds."""
    return ("hours", 3600) if seconds > 7200 else ("minutes", 60) if seconds > 120 else ("seconds", 1)


def figures(methods: Sequence[Spent], y: Axis, equivalents: bool = False) -> Iterator[tuple[str, str, str]]:
    """(title, SVG, caption): a score against bytes, rounds, forward passes and seconds.

    equivalents: whether backward passes were measured in forward passes.
    """
    what = "forward equivalents, all clients" if equivalents else FORWARDS
    backward = "as what it costs, measured" if equivalents else "as two"
    passes = Axis(what, count, log=True)
    spread = "Spread evenly over the rounds."
    unit, length = _unit(max((one.seconds or 0 for one in methods), default=0))
    times = Axis(f"{unit} of a run", lambda value: duration(value * length), tick=lambda value: f"{value:.3g}")
    hours = [one.against(None if one.seconds is None else one.seconds / length) for one in methods]
    for title, x, curves, caption in (
        ("bytes", BYTES, [one.against(one.bytes) for one in methods], f"Mean of all clients, as serialized. {spread}"),
        ("rounds", ROUNDS, [one.against(one.rounds) for one in methods], ""),
        (
            "forward passes",
            passes,
            [one.against(one.forwards) for one in methods],
            f"A backward pass counts {backward}.",
        ),
        ("time", times, hours, f"On the machine that ran it. {spread}"),
    ):
        name = f"{y.label.split()[-1].capitalize()} against {title}"
        yield name, chart(name, curves, x, y), caption
