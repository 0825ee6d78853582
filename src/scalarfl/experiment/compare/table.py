"""A comparison's findings: one JSON object, verdicts, and tables."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scalarfl.experiment.compare.cells import Cell, Contender
from scalarfl.experiment.compare.inside import look
from scalarfl.experiment.compare.intervals import middle, paired
from scalarfl.experiment.compare.sweep import Comparison, score
from scalarfl.units import duration, rate, size

Summary = dict[str, Any]
FORMAT = 2
"""Of compare.json; 1 was version 0.1's, which chose and reported on the same examples."""


def summarise(found: Comparison, out: Path) -> Summary:
    """Everything, in numbers. Bytes are a client's means over its run; a backward pass counts as two forward passes.

    out: the comparison's folder.
    """
    first = found.runs(found.contenders[0])[0]
    return {
        "format": FORMAT,
        "version": version("scalarfl"),
        "task": first["task"],
        "model": first["model"],
        "metric": first["metric"],
        "seeds": found.seeds,
        "tune_seeds": [] if found.same else found.tune_seeds,
        "same_lr": found.same,
        "reference": found.contenders[0].text,
        "methods": [_method(found, contender, out) for contender in found.contenders],
        "differences": [_difference(found, contender) for contender in found.contenders[1:]],
        "reach": [_reach(found, one, other) for one in found.contenders for other in found.contenders],
    }


def _method(found: Comparison, contender: Contender, out: Path) -> Summary:
    runs, tried = found.runs(contender), found.tried(contender)
    own = {key: runs[0][key] for key in ("dimension", "rounds", "clients", "sampled", "perturbations", "local_steps")}
    return own | {
        "method": contender.text,
        "lr": found.best[contender],
        "edge": found.edge(contender),
        "lrs": [
            {"lr": lr, "score": _finite(score(results)), "diverged": sum(result["diverged"] for result in results)}
            for lr, results in tried.items()
        ],
        "test": spread([run["test_accuracy"] for run in runs]),
        "test_loss": spread([run["test_loss"] for run in runs]),
        "best": spread([run["best_accuracy"] for run in runs]),
        "forward_passes": fmean(run["forward_passes"] for run in runs),
        "forward_equivalents": _mean([run.get("forward_equivalents") for run in runs]),
        "bytes_up": fmean(run["serialized_bytes_up"] for run in runs),
        "bytes_down": fmean(run["serialized_bytes_down"] for run in runs),
        "seconds": fmean(run["seconds"] for run in runs),
        "peak_rss_bytes": max(run["peak_rss_bytes"] for run in runs),
        "diverged": sum(run["diverged"] for run in runs),
        "diverged_in_sweep": sum(result["diverged"] for results in tried.values() for result in results),
        "curves": [run["curve"] for run in runs],
        "inside": look(Cell(contender, found.best[contender], found.seeds[0]).folder(out)),
    }


def spread(values: Sequence[float | None]) -> Summary | None:
    """Mean and standard deviation (None for a single value) of what is finite; None if nothing is."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return None
    return {"mean": fmean(known), "deviation": stdev(known) if len(known) > 1 else None, "values": known}


def _mean(values: Sequence[float | None]) -> float | None:
    """None if one of them is missing."""
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _difference(found: Comparison, contender: Contender) -> Summary:
    """The contender's test score less the reference's, paired by seed; of the loss where the task has no metric."""
    ours, theirs = found.runs(contender), found.runs(found.contenders[0])
    key = "test_loss" if any(run["test_accuracy"] is None for run in [*ours, *theirs]) else "test_accuracy"
    interval = paired([run[key] for run in ours], [run[key] for run in theirs])
    known = None if interval is None else interval._asdict() | {"shown": interval.excludes_zero}
    return {"method": contender.text, "reference": found.contenders[0].text, "of": key, "interval": known}


def _reach(found: Comparison, one: Contender, other: Contender) -> Summary:
    """The cost for ``one`` of reaching the best score that ``other`` reached with the same seed.

    None stands for "never", which counts as infinity in a median; the speed-up is 0 then.
    """
    rounds: list[int | None] = []
    speed_ups = []
    passes, moved = [], []
    for ours, theirs in zip(found.runs(one), found.runs(other), strict=True):
        best = theirs["best_accuracy"]
        at = _first(ours["curve"], best)
        rounds.append(at)
        share = None if at is None else at / max(1, ours["rounds"])
        passes.append(None if share is None else share * ours["forward_passes"])
        moved.append(None if share is None else share * (ours["serialized_bytes_up"] + ours["serialized_bytes_down"]))
        target = _first(theirs["curve"], best)
        speed_ups.append(0.0 if at is None or target is None else max(1, target) / max(1, at))
    return {
        "method": one.text,
        "of": other.text,
        "reached": sum(at is not None for at in rounds),
        "runs": len(rounds),
        "each": rounds,
        "rounds": middle(rounds),
        "forward_passes": middle(passes),
        "bytes": middle(moved),
        "speed_up": middle(speed_ups),
        "speed_ups": speed_ups,
    }


def _first(curve: Sequence[Sequence[Any]], target: float | None) -> int | None:
    """The first round on a curve with at least the target."""
    if target is None:
        return None
    return next((round_ for round_, accuracy, _ in curve if accuracy is not None and accuracy >= target), None)


def verdicts(summary: Summary) -> list[str]:
    """One sentence per method against the reference: the difference, its interval, and the verdict."""
    return [_verdict(one, summary) for one in summary["differences"]]


def _verdict(one: Summary, summary: Summary) -> str:
    against, interval = f"{one['method']} against {one['reference']}", one["interval"]
    if interval is None:
        why = "one seed shows no interval" if len(summary["seeds"]) < 2 else "a run has no finite score"
        return f"{against}: no interval ({why})."
    percent = one["of"] == "test_accuracy"
    scale, digits = (100, 1) if percent else (1, 4)
    mean, low, high = (f"{scale * interval[key]:+.{digits}f}" for key in ("mean", "low", "high"))
    what = f"points of test {summary['metric']}" if percent else "test loss"
    better = (interval["mean"] > 0) == percent
    shows = ("better" if better else "worse") if interval["shown"] else "no difference shown"
    return f"{against}: {mean} {what} (95 % interval {low} to {high}, {interval['pairs']} seeds): {shows}."


@dataclass(frozen=True)
class Columns:
    """A table: its heads, its rows, what it means and what is to be said about single rows."""

    caption: str
    heads: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: tuple[str, ...] = ()


def markdown(summary: Summary) -> str:
    """Verdict and tables, for a paper's draft or a page of documentation."""
    return "\n".join(_lines(summary)) + "\n"


def _lines(summary: Summary) -> Iterator[str]:
    for text in verdicts(summary):
        yield f"- {text}"
    if summary["differences"]:
        yield ""
    yield from described(summary)
    for table in tables(summary):
        yield from ("", table.caption)
        yield ""
        yield f"| {' | '.join(table.heads)} |"
        yield f"|---|{'---:|' * (len(table.heads) - 1)}"
        yield from (f"| {' | '.join(row)} |" for row in table.rows)
        for note in table.notes:
            yield ""
            yield note


def tables(summary: Summary) -> Iterator[Columns]:
    """The scores, what they cost, and the rounds to each other's best where the task has a metric."""
    differences = {one["method"]: one for one in summary["differences"]}
    methods = summary["methods"]
    yield Columns(
        f"Scores on the test examples, reported seeds; less reference: the difference to {summary['reference']} "
        "with its 95 % interval.",
        ("method", "lr", "test %", "less reference", "best on validation %", "diverged"),
        [
            (
                one["method"],
                f"{rate(one['lr'])}{' (edge)' if one['edge'] else ''}",
                _percent(one["test"]),
                _interval(differences.get(one["method"])),
                _percent(one["best"]),
                f"{one['diverged']} of {len(summary['seeds'])}",
            )
            for one in methods
        ],
        tuple(on_edge(one) for one in methods if one["edge"]),
    )
    yield Columns(
        "Cost of a run: forward passes of all clients, bytes per client.",
        ("method", "rounds", "forward passes", "equivalents", "bytes up", "bytes down", "seconds"),
        [
            (
                one["method"],
                f"{one['rounds']:,}",
                f"{one['forward_passes']:,.0f}",
                "-" if one.get("forward_equivalents") is None else f"{one['forward_equivalents']:,.0f}",
                size(one["bytes_up"]),
                size(one["bytes_down"]),
                duration(one["seconds"]),
            )
            for one in methods
        ],
    )
    if len(methods) > 1 and summary["reach"][0]["reached"]:  # else the task has no metric
        yield _reached(summary)


def on_edge(one: Summary) -> str:
    """What a method's best learning rate on the edge of its grid means."""
    return f"{one['method']}: {rate(one['lr'])} is the {one['edge']} learning rate tried; the best may lie beyond."


def described(summary: Summary) -> Iterator[str]:
    """The setting, in sentences."""
    if summary["same_lr"]:
        how = "All methods have the same learning rate."
    else:
        how = (
            f"Each method has its own learning rate, chosen on validation examples with "
            f"{_seeds(summary['tune_seeds'])}."
        )
    yield f"{summary['task']}, {summary['model']}; test {summary['metric']} at the end of a run (mean ± deviation)."
    yield f"{how} Reported: {_seeds(summary['seeds'])}."
    yield (
        "Bytes are means per client over the run, as serialized. A backward pass counts as two forward passes, "
        "and in equivalents as what it cost on this machine."
    )


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _reached(summary: Summary) -> Columns:
    """Rounds to the best of the reference with the same seed, and the other way round."""
    reference = summary["reference"]
    entries = {(one["method"], one["of"]): one for one in summary["reach"]}
    rows: list[tuple[str, ...]] = []
    for one in summary["methods"]:
        there, back = entries[one["method"], reference], entries[reference, one["method"]]
        moved = "never" if there["bytes"] is None else size(there["bytes"])
        fast = "-" if there["speed_up"] is None else f"{there['speed_up']:.2f}" if there["speed_up"] else "0 (never)"
        rows.append((one["method"], _rounds(there), fast, moved, _rounds(back)))
    return Columns(
        f"Rounds to the best validation score that {reference} reached with the same seed, and the other way round.\n"
        'Medians over the seeds, in which "never" counts as infinity; in brackets how many got there.',
        ("method", f"to {reference}'s best", "times as fast", "bytes", f"{reference} to this one's best"),
        rows,
    )


def _percent(value: Summary | None) -> str:
    if value is None:
        return "-"
    deviation = "" if value["deviation"] is None else f" ± {100 * value['deviation']:.1f}"
    return f"{100 * value['mean']:.1f}{deviation}"


def _interval(one: Summary | None) -> str:
    if one is None or one["interval"] is None:
        return "-"
    scale, digits = (100, 1) if one["of"] == "test_accuracy" else (1, 4)
    mean, low, high = (f"{scale * one['interval'][key]:+.{digits}f}" for key in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def _rounds(entry: Summary) -> str:
    value = "never" if entry["rounds"] is None else f"{entry['rounds']:,.0f}"
    return value if entry["reached"] == entry["runs"] else f"{value} ({entry['reached']} of {entry['runs']})"
