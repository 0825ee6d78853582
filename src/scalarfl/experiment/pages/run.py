"""One run's page, from its folder: while it goes on from the ledger, in the end from its result as well."""

import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import NormalDist
from typing import Any

from scalarfl import __version__
from scalarfl.errors import InputError
from scalarfl.experiment.pages import document as page
from scalarfl.experiment.pages.chart import Axis, Curve, bars, chart
from scalarfl.experiment.pages.costs import ROUNDS, Spent, figures, forwards, loss_axis, score_axis
from scalarfl.experiment.report import dense_bytes, overview, validated
from scalarfl.experiment.result import Recorded, summary
from scalarfl.experiment.run_folder import CHECKPOINT, RECIPE, RESULT, keep, keys_of, load_result, open_ledger
from scalarfl.units import duration, percent, rate, ratio, size

PAGE = "report.html"
CLIENTS = 60
"""Clients with a bar and a row of their own, at most."""


@dataclass(frozen=True)
class Seen:
    """What a run's folder holds."""

    folder: Path
    recipe: str
    result: dict[str, Any] | None
    """Of result.json, or what it would be now; None before the first evaluation."""
    view: dict[str, Any] | None
    """``report.overview``; None for a baseline, which has no ledger."""
    finished: bool

    @property
    def keys(self) -> dict[str, Any]:
        """The recipe's, named like ``method.lr``."""
        return keys_of(self.recipe)

    @property
    def rounds(self) -> int:
        """Rounds on record."""
        return int((self.view or self.result or {"rounds": 0})["rounds"])


def look(folder: Path) -> Seen:
    """Read a run's folder. Raises InputError if there is no run, or that of a baseline which has not ended."""
    result = load_result(folder)
    if result is None and (folder / CHECKPOINT).is_file():
        raise InputError(f"{folder}: a baseline's run has no ledger; its page can be written when it has ended.")
    try:
        recipe = (folder / RECIPE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{folder / RECIPE}: cannot be read: {error}.") from None
    if result is not None and result.get("ledger_head") is None:
        return Seen(folder, recipe, result, None, True)
    with open_ledger(folder) as ledger:
        view = overview(ledger)
        finished = result is not None and result["rounds"] == ledger.rounds
        if not finished:
            known = bool(ledger.evaluations())
            recorded = Recorded.of(ledger, ledger.header.dimension, "") if known else None
            result = None if recorded is None else summary(keys_of(recipe), recorded, "score", None)
    return Seen(folder, recipe, result, view, finished)


def write(seen: Seen, again: int = 0, state: str = "") -> Path:
    """Write the page into the run's folder, atomically; returns its path.

    again: seconds after which the page reloads itself. state: how the run goes, as a sentence.
    """
    keys, result = seen.keys, seen.result
    title = f"{keys['method.name']} on {keys['task.name']}, {keys['model.name']}"
    when = (seen.folder / RESULT).stat().st_mtime if seen.finished else None
    date = datetime.now(UTC) if when is None else datetime.fromtimestamp(when, UTC)
    when_made = f"{'Finished' if seen.finished else 'As of'} {date:%Y-%m-%d %H:%M:%S} UTC"
    made = f"{when_made} · scalarfl {__version__} · {seen.folder}"
    verdict = [state] if state else []
    parts: list[str] = []
    if result is None:
        verdict.append(f"{seen.rounds:,} of {keys['federation.rounds']:,} rounds; nothing was evaluated yet.")
    else:
        verdict += list(_verdict(seen, result))
        parts.append(page.charts(_figures(seen, result)))
    figures = "" if result is None else page.section("Figures", page.facts(_facts(result)))
    parts.append(page.side_by_side(figures, *_tables(seen)))
    text = page.document(title, made, verdict, [keys["method.name"]], *parts, again=again)
    keep(seen.folder / PAGE, text.encode())
    return seen.folder / PAGE


def interval(share: float, examples: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share of so many examples; it covers the choice of examples, not the run's seed.

    >>> [round(bound, 3) for bound in interval(0.9, 100)]
    [0.826, 0.945]
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    middle = (share + z * z / (2 * examples)) / (1 + z * z / examples)
    half = z / (1 + z * z / examples) * math.sqrt(share * (1 - share) / examples + (z / (2 * examples)) ** 2)
    return max(0.0, middle - half), min(1.0, middle + half)


def _verdict(seen: Seen, result: dict[str, Any]) -> Iterator[str]:
    """Two sentences: the score and how sure it is, and what a client paid for it."""
    planned = seen.keys["federation.rounds"]
    score, examples, rounds = result["test_accuracy"], result.get("test_examples"), seen.rounds
    what, held = result["metric"], "test" if seen.finished or not validated(result) else "validation"
    if score is None or not math.isfinite(score):
        reached = f"{result['method']} has a {held} loss of {result['test_loss']:.4f}"
    else:
        sure = ""
        if examples and (what == "accuracy" or not seen.finished):
            low, high = interval(min(max(score, 0.0), 1.0), examples)
            sure = f" (95 % interval {100 * low:.1f} to {100 * high:.1f}, of {examples:,} examples and one seed)"
        reached = f"{result['method']} reached {percent(score)} {held} {what}{sure}"
    ended = " and diverged" if result["diverged"] else ""
    yield f"{reached} after {rounds:,} {'' if seen.finished else f'of {planned:,} '}rounds{ended}."
    up, down = result["serialized_bytes_up"], result["serialized_bytes_down"]
    paid = f"For that a client sent {size(up)} and received {size(down)}"
    if seen.view is None or not up + down:
        yield f"{paid}."
        return
    dense = dense_bytes(result)
    times = ratio(dense / (up + down))
    yield f"{paid}; FedAvg would have moved {size(dense)} in as many rounds, {times} times as much."


def _figures(seen: Seen, result: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    rows = "validation" if seen.keys["task.validation"] else "test"
    name, curve = result["method"], result["curve"]
    seconds = result["seconds"] if seen.finished else None
    moved = result["serialized_bytes_up"] + result["serialized_bytes_down"]
    scored = [(at, value) for at, value, _ in curve if value is not None]
    if scored:
        spent = Spent(name, 0, scored, seen.rounds, moved, forwards(result), seconds)
        yield from figures([spent], score_axis(result["metric"], rows), "forward_equivalents" in result)
    losses = [(at, loss) for at, _, loss in curve]
    title = "Loss against rounds"
    yield title, chart(title, [Curve(name, 0, losses)], ROUNDS, loss_axis(rows)), ""
    clients = [] if seen.view is None else [(one, row["rounds"]) for one, row in seen.view["clients"].items()]
    if clients:
        more = f" The first {CLIENTS} of {len(clients):,} clients." if len(clients) > CLIENTS else ""
        picture = bars("Participation", clients[:CLIENTS], Axis("rounds", lambda value: f"{value:,.0f}"), "clients")
        yield "Participation", picture, f"Rounds in which a client's reply counted.{more}"


def _facts(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    at = result["best_round"]
    best = f"loss {min(row[2] for row in result['curve']):.4f}"
    if result["best_accuracy"] is not None:
        best = f"{percent(result['best_accuracy'])} after {at:,} rounds{'' if at else ', untrained'}"
    yield "best on the curve", best
    yield "loss at the end", f"{result['test_loss']:.4f}"
    yield (
        "learning rate",
        rate(result["lr"]) + (f", at the end {result['lr_final']:g}" if result.get("lr_final") else ""),
    )
    yield "trained parameters", f"{result['dimension']:,}"
    yield "clients", f"{result['clients']:,}, of which {result['sampled']:,} take part in a round"
    yield "directions per step", f"{result['perturbations']:,}"
    yield "forward passes, all clients", f"{result['forward_passes']:,}"
    if result.get("forward_equivalents"):
        yield "forward equivalents, all clients", f"{result['forward_equivalents']:,.0f}"
    for way, direction in (("up", "from the client"), ("down", "to the client")):
        payload, serialized = (result[f"{kind}_bytes_{way}"] for kind in ("payload", "serialized"))
        yield (
            f"bytes {way} per client",
            f"{size(serialized)} {direction}, of which {size(payload)} are scalars or tensors",
        )
    if result["seconds"]:
        yield "time", f"{duration(result['seconds'])} on the machine that ran it"
        yield "peak memory", size(result["peak_rss_bytes"])
    if result["digest"]:
        yield "digest of the model", result["digest"]
    if result["ledger_head"]:
        yield "head of the ledger", result["ledger_head"]


def _tables(seen: Seen) -> Iterator[str]:
    result, view, keys = seen.result or {}, seen.view, seen.keys
    yield page.section("Warnings", page.notes(result.get("warnings", [])))
    private = {key: value for key, value in result.items() if key.startswith(("epsilon", "delta", "privacy"))}
    private |= {key: value for key, value in keys.items() if key.startswith("privacy.")}
    spent = [(key, f"{value:.4g}" if isinstance(value, float) else str(value)) for key, value in private.items()]
    yield page.section("Privacy budget", page.facts(spent) if result.get("epsilon") is not None else "")
    if view is not None:
        moved = [
            (row["purpose"], row["direction"], f"{row['messages']:,}", size(row["payload"]), size(row["serialized"]))
            for row in view["traffic"]
        ]
        columns = ("purpose", "direction", "messages", "payload", "serialized")
        table = page.table("Bytes of all clients together, by purpose; up is from a client", columns, moved)
        yield page.section("Messages", table if moved else "")
        rows = [
            (name, f"{row['rounds']:,}", f"{row['rejected']:,}", size(row["up"]), size(row["down"]))
            for name, row in list(view["clients"].items())[:CLIENTS]
        ]
        table = page.table(
            "Rounds taken part in, and bytes of each client", ("client", "rounds", "rejected", "up", "down"), rows
        )
        refused = page.notes(f"Rejected {count} times: {reason}" for reason, count in view["rejections"].items())
        yield page.section("Participation", table if rows else "", refused)
    folder = shlex.quote(str(seen.folder))
    again = f"scalarfl run {folder}/{RECIPE} --out NEW"
    checks = "" if view is None else f"\nscalarfl verify {folder}\nscalarfl export {folder} DIR"
    commands = page.text(again + checks)
    yield page.section("Repeat, verify, export", commands, page.folded("Recipe, with every key", seen.recipe))
