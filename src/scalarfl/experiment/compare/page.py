"""A comparison's page: one self-contained HTML file, and its pictures as SVG files beside it."""

import math
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from scalarfl.errors import InputError
from scalarfl.experiment.compare.inside import BINS
from scalarfl.experiment.compare.intervals import paired, t_quantile
from scalarfl.experiment.compare.table import FORMAT, Summary, described, on_edge, tables, verdicts
from scalarfl.experiment.pages import document as page
from scalarfl.experiment.pages.chart import OTHER, Axis, Curve, bars, chart, standing_alone
from scalarfl.experiment.pages.costs import Spent, count, figures, loss_axis, score_axis
from scalarfl.experiment.run_folder import keep
from scalarfl.files import read_json
from scalarfl.units import percent, ratio, size

PAGE, SUMMARY, TABLES = "report.html", "compare.json", "compare.md"
PICTURES = ("bytes", "rounds", "forward-passes", "seconds", "learning-rates", "participation", "hessian")

Figure = tuple[str, str, str]
"""Title, SVG, caption."""


def write(folder: Path) -> Path:
    """Write the page of the comparison in a folder; returns its path. Raises InputError if there is none."""
    if not (folder / SUMMARY).is_file():
        raise InputError(f"{folder}: not a comparison: it has no {SUMMARY}. `scalarfl compare` writes one.")
    summary: Summary = read_json(folder / SUMMARY)
    if not isinstance(summary, dict) or summary.get("format") != FORMAT:
        raise InputError(
            f"{folder}: {SUMMARY} is not of this version's format; run `scalarfl compare` with --out {folder} again."
        )
    try:
        drawn = dict(zip(PICTURES, _figures(summary), strict=True))
        text = _page(summary, drawn)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder / SUMMARY}: damaged ({type(error).__name__}: {error}); `scalarfl compare` with --out {folder} "
            "writes it again."
        ) from None
    names = [one["method"] for one in summary["methods"]]
    for name, (_, picture, _) in drawn.items():
        if picture:
            legend = [] if name in ("participation", "hessian") else names
            keep(folder / f"{name}.svg", standing_alone(picture, legend).encode())
    keep(folder / PAGE, text.encode())
    return folder / PAGE


def check_free(folder: Path) -> None:
    """Raises InputError where a comparison would overwrite a file that none has written."""
    try:
        summary = read_json(folder / SUMMARY) if (folder / SUMMARY).is_file() else None
    except InputError:
        summary = None
    if isinstance(summary, dict) and "task" in summary and "methods" in summary:
        return
    for name in (SUMMARY, TABLES, PAGE, *(f"{name}.svg" for name in PICTURES)):
        if (folder / name).exists():
            raise InputError(f"{folder / name}: not of a comparison, which would overwrite it; choose another --out.")


def _page(summary: Summary, drawn: dict[str, Figure]) -> str:
    made = summary.get("made", {})
    when = f"{made['date']} · " if made else ""
    sections = [
        page.section(
            title, page.table(found.caption.replace("\n", " "), found.heads, found.rows), page.notes(found.notes)
        )
        for title, found in zip(("Scores", "Cost", "Rounds to each other's best"), tables(summary), strict=False)
    ]
    sections.append(page.section("Bytes by purpose", _traffic(summary)))
    sections.append(page.section("How it was compared", page.notes([*verdicts(summary), *described(summary)])))
    again = page.text(made["command"]) if made else ""
    sections.append(page.section("Repeat", again, page.folded("Recipe, with every key", made.get("recipe", ""))))
    return page.document(
        f"{len(summary['methods'])} methods on {summary['task']}, {summary['model']}",
        f"{when}scalarfl {summary['version']}",
        list(_verdict(summary)),
        [one["method"] for one in summary["methods"]],
        page.charts(drawn.values()),
        page.side_by_side(*sections),
    )


def _verdict(summary: Summary) -> Iterator[str]:
    """Two sentences: the best score, and what the fewest bytes give up against it."""
    scored = [one for one in summary["methods"] if one["test"] is not None]
    if not scored:
        yield "No method has a score."
        return
    best = max(scored, key=lambda one: one["test"]["mean"])
    frugal = min(scored, key=lambda one: (float(f"{_moved(one):.2g}"), -one["test"]["mean"]))
    mean, sure = best["test"]["mean"], _spread(best["test"]["values"])
    lead = f"{best['method']} has the highest test {summary['metric']}, {percent(mean)}{sure}"
    against = summary["reference"]
    reference = next(one for one in summary["methods"] if one["method"] == against)
    if best is not reference and reference["test"] is not None:
        lead += f": {_apart(best, reference)} against {against}, the reference"
    yield f"{lead}."
    if best is frugal:
        yield f"It also moved the fewest bytes, {size(_moved(best))} per client and run."
        return
    yield (
        f"{frugal['method']} moved the fewest bytes, {size(_moved(frugal))} per client and run, at "
        f"{_apart(frugal, best)}; {best['method']} moved {size(_moved(best))}, "
        f"{ratio(_moved(best) / max(1, _moved(frugal)))} times as much."
    )


def _moved(one: Summary) -> float:
    return float(one["bytes_up"] + one["bytes_down"])


def _spread(values: list[float]) -> str:
    """Student's interval of a mean over seeds, in words."""
    if len(values) < 2:
        return " (one seed, so no interval)"
    half = t_quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    low, high = (100 * (fmean(values) + side * half) for side in (-1, 1))
    return f" (95 % interval {low:.1f} to {high:.1f}, {len(values)} seeds)"


def _apart(ours: Summary, theirs: Summary) -> str:
    """The difference of two methods' scores with its interval, paired by seed, and whether it is shown."""
    a, b = ours["test"]["values"], theirs["test"]["values"]
    found = paired(a, b) if len(a) == len(b) else None
    if found is None:
        return f"{100 * (fmean(a) - fmean(b)):+.1f} points (no interval)"
    shown = "" if found.excludes_zero else ", no difference shown"
    mean, low, high = (f"{100 * value:+.1f}" for value in found[:3])
    return f"{mean} points (95 % interval {low} to {high}{shown})"


def _figures(summary: Summary) -> Iterator[Figure]:
    """One for each of ``PICTURES``."""
    metric = summary["metric"]
    yield from figures([_spent(number, one) for number, one in enumerate(summary["methods"])], _axis(summary))
    yield from (_sensitivity(summary, metric), _participation(summary), _hessian(summary))


def _axis(summary: Summary) -> Axis:
    rated = any(point[1] is not None for one in summary["methods"] for curve in one["curves"] for point in curve)
    return score_axis(summary["metric"], "validation") if rated else loss_axis("validation")


def _spent(number: int, one: Summary) -> Spent:
    """The mean over the reported seeds, and their range; of the loss where there is no score."""
    curves: list[Any] = one["curves"]
    shortest = min(map(len, curves))
    rated = all(point[1] is not None for curve in curves for point in curve)
    columns = [[curve[at][1 if rated else 2] for curve in curves] for at in range(shortest)]
    return Spent(
        one["method"],
        number,
        [(curves[0][at][0], fmean(column)) for at, column in enumerate(columns)],
        one["rounds"],
        _moved(one),
        one.get("forward_equivalents") or one["forward_passes"],
        one["seconds"],
        [(min(column), max(column)) for column in columns] if len(curves) > 1 else [],
    )


def _sensitivity(summary: Summary, metric: str) -> Figure:
    """What each learning rate of the sweep gave."""
    curves, said = [], []
    for number, one in enumerate(summary["methods"]):
        if one["lr"] == "auto":
            continue
        known = [(entry["lr"], entry["score"]) for entry in one["lrs"] if entry["score"] is not None]
        crosses = [entry["lr"] for entry in one["lrs"] if entry["score"] is None]
        curves.append(Curve(one["method"], number, known, crosses=crosses, ring=one["lr"]))
        said += [on_edge(one)] if one["edge"] else []
    title, rate = "Learning rates", Axis("learning rate", lambda value: f"{value:.3g}", log=True)
    axis = score_axis(metric, "validation")
    if any(value < 0 for curve in curves for _, value in curve.points):  # minus the loss, without a metric
        axis = Axis("minus the validation loss", lambda value: f"{value:.3g}")
    caption = (
        "The sweep: mean over the last quarter of the tuning runs. A ring marks the chosen rate, a cross one that "
    )
    inside = "Every chosen rate lies inside its grid." if not summary["same_lr"] else ""
    return title, chart(title, curves, rate, axis), f"{caption}diverged. {' '.join(said) or inside}"


def _participation(summary: Summary) -> Figure:
    """How often each client took part, in the first seed's run of the first scalar-only method."""
    inside: dict[str, int] = next((one["inside"]["participation"] for one in summary["methods"] if one["inside"]), {})
    title, axis = "Participation", Axis("rounds", lambda value: f"{value:,.0f}")
    picture = bars(title, list(inside.items()), axis, "clients") if inside else ""
    return title, picture, "Rounds that a client took part in: the first seed's cohorts, the same for all methods."


def _hessian(summary: Summary) -> Figure:
    """H over time; for the first method that has one."""
    found = next((one for one in summary["methods"] if (one["inside"] or {}).get("hessian")), None)
    if found is None:
        return "H", "", ""
    hessian = found["inside"]["hessian"]
    edges = np.linspace(BINS[0], BINS[-1], len(hessian["moments"][0]["counts"]) + 1).tolist()
    used = [i for moment in hessian["moments"] for i, number in enumerate(moment["counts"]) if number]
    low, high = max(0, min(used) - 2), min(len(edges) - 1, max(used) + 3)
    curves = []
    for number, moment in enumerate(hessian["moments"]):
        counts = moment["counts"][low:high]
        steps = [(edge, value) for i, value in enumerate(counts) for edge in edges[low + i : low + i + 2]]
        curves.append(Curve(f"after {moment['round']:,} rounds", number, steps))
    correlation = hessian["with_squared_gradient"]
    known = "" if correlation is None else f" Rank correlation with the squared gradient: {correlation:.2f}."
    moments = ", ".join(f"{moment['round']:,}" for moment in hessian["moments"])
    title = f"H of {found['method']}"
    picture = chart(title, curves, Axis("log10 H", lambda value: f"{value:.3g}"), Axis("parameters", count), OTHER)
    return title, picture, f"Histogram over all parameters after {moments} rounds of the first seed's run.{known}"


def _traffic(summary: Summary) -> str:
    """Bytes by purpose of the first seed's runs; a dense baseline has no ledger to read them from."""
    inside = {one["method"]: one["inside"]["traffic"] for one in summary["methods"] if one["inside"]}
    purposes = sorted({(row["purpose"], row["direction"]) for rows in inside.values() for row in rows})
    rows = []
    for method, found in inside.items():
        moved = {(row["purpose"], row["direction"]): row["serialized"] for row in found}
        rows.append((method, *(size(moved.get(purpose, 0)) for purpose in purposes)))
    heads = ("method", *(f"{purpose}, {direction}" for purpose, direction in purposes))
    caption = "All clients together, as serialized, from the ledgers of the first seed; a dense baseline has none"
    return page.table(caption, heads, rows) if rows else ""
