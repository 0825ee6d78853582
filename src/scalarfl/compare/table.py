"""What a comparison found, as one JSON object and as one table."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from scalarfl.compare.cells import Cell, Contender
from scalarfl.compare.inside import look
from scalarfl.compare.sweep import Comparison, score
from scalarfl.report import duration, size

Summary = dict[str, Any]


def summarise(found: Comparison, out: Path) -> Summary:
    """Everything, in numbers. Bytes are a client's means over its run; a backward pass counts as two forward passes.

    out: the comparison's folder.
    """
    methods = [_method(found, contender, out) for contender in found.contenders]
    first = found.runs(found.contenders[0])[0]
    return {
        "task": first["task"],
        "model": first["model"],
        "metric": first["metric"],
        "seeds": found.seeds,
        "same_lr": found.same,
        "methods": methods,
        "reach": [_reach(found, one, other) for one in found.contenders for other in found.contenders],
    }


def _method(found: Comparison, contender: Contender, out: Path) -> Summary:
    runs = found.runs(contender)
    own = {key: runs[0][key] for key in ("dimension", "rounds", "clients", "sampled", "perturbations", "local_steps")}
    return own | {
        "method": contender.text,
        "lr": found.best[contender],
        "lrs": [
            {"lr": lr, "score": _finite(score(result)), "diverged": result["diverged"]}
            for lr, result in found.tried(contender).items()
        ],
        "final": spread([run["accuracy"] for run in runs]),
        "best": spread([run["best_accuracy"] for run in runs]),
        "loss": spread([run["loss"] for run in runs]),
        "forward_passes": fmean(run["forward_passes"] for run in runs),
        "bytes_up": fmean(run["serialized_bytes_up"] for run in runs),
        "bytes_down": fmean(run["serialized_bytes_down"] for run in runs),
        "seconds": fmean(run["seconds"] for run in runs),
        "peak_rss_bytes": max(run["peak_rss_bytes"] for run in runs),
        "diverged": sum(run["diverged"] for run in runs),
        "diverged_in_sweep": sum(result["diverged"] for result in found.tried(contender).values()),
        "curves": [run["curve"] for run in runs],
        "inside": look(Cell(contender, found.best[contender], found.seeds[0]).folder(out)),
    }


def spread(values: Sequence[float | None]) -> Summary | None:
    """Mean and standard deviation (None for a single value) of what is finite; None where nothing is."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return None
    return {"mean": fmean(known), "deviation": stdev(known) if len(known) > 1 else None, "values": known}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _reach(found: Comparison, one: Contender, other: Contender) -> Summary:
    """What it takes ``one`` to reach the mean best score of ``other``."""
    target = spread([run["best_accuracy"] for run in found.runs(other)])
    reached: list[dict[str, float]] = []
    runs = found.runs(one)
    if target is not None:
        for run in runs:
            at = next(
                (r for r, accuracy, _ in run["curve"] if accuracy is not None and accuracy >= target["mean"]), None
            )
            if at is not None:
                share = at / run["rounds"] if run["rounds"] else 0.0
                moved = run["serialized_bytes_up"] + run["serialized_bytes_down"]
                reached.append({"rounds": at, "forward_passes": share * run["forward_passes"], "bytes": share * moved})
    return {
        "method": one.text,
        "of": other.text,
        "target": None if target is None else target["mean"],
        "reached": len(reached),
        "runs": len(runs),
        **{key: median(r[key] for r in reached) if reached else None for key in ("rounds", "forward_passes", "bytes")},
        "each": reached,
    }


def markdown(summary: Summary) -> str:
    """The table, for a paper's draft or a page of documentation."""
    return "\n".join(_lines(summary)) + "\n"


def _lines(summary: Summary) -> Iterator[str]:
    seeds = len(summary["seeds"])
    how = "at the same learning rate" if summary["same_lr"] else "each at its own best learning rate (first seed)"
    yield f"{summary['task']}, {summary['model']}: {summary['metric']} in %, {how}, {seeds} seed{'s' * (seeds > 1)}."
    yield "Bytes are means per client over the run, as serialized. A backward pass counts as two forward passes."
    yield ""
    yield "| method | lr | final | best | rounds | forward passes | up | down | seconds | diverged |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    for one in summary["methods"]:
        diverged = f"{one['diverged']} of {seeds}, {one['diverged_in_sweep']} of {len(one['lrs'])} lrs"
        yield (
            f"| {one['method']} | {one['lr']:g} | {_percent(one['final'])} | {_percent(one['best'])} | "
            f"{one['rounds']:,} | {one['forward_passes']:,.0f} | {size(one['bytes_up'])} | {size(one['bytes_down'])} | "
            f"{duration(one['seconds'])} | {diverged} |"
        )
    names = [one["method"] for one in summary["methods"]]
    if len(names) < 2:
        return
    for key, title in (("rounds", "Rounds"), ("forward_passes", "Forward passes"), ("bytes", "Bytes")):
        yield ""
        yield f"{title} that a row's method takes to the mean best of a column's (median; seeds that got there):"
        yield ""
        yield f"| | {' | '.join(names)} |"
        yield f"|---|{'---:|' * len(names)}"
        for name in names:
            row = [entry for entry in summary["reach"] if entry["method"] == name]
            yield f"| {name} | {' | '.join(_reached(entry, key) for entry in row)} |"


def _percent(value: Summary | None) -> str:
    if value is None:
        return "-"
    deviation = "" if value["deviation"] is None else f" ± {100 * value['deviation']:.1f}"
    return f"{100 * value['mean']:.1f}{deviation}"


def _reached(entry: Summary, key: str) -> str:
    if not entry["reached"]:
        return "never"
    value = size(entry[key]) if key == "bytes" else f"{entry[key]:,.0f}"
    return value if entry["reached"] == entry["runs"] else f"{value} ({entry['reached']} of {entry['runs']})"
