"""Which learning rates and seeds are run: every method's own sweep, widened while the best lies on its edge.

Tuning seeds choose a learning rate on validation examples; other seeds are reported, on test examples, once per run.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from scalarfl import picture
from scalarfl.baselines import Baseline
from scalarfl.errors import InputError
from scalarfl.experiment import recipe as recipes
from scalarfl.experiment.compare.cells import Bench, Cell, Contender, Watcher
from scalarfl.protocol.callbacks import Rate
from scalarfl.units import percent, rate

FACTOR = math.sqrt(10)
"""Between neighbours on a grid."""
BASELINE_LR = 0.1
"""Where the grid of a method that takes gradients begins; those of the others begin at the recipe's."""
WIDEST = 9
"""Points of a grid that was widened as far as it goes."""

VALIDATION = 0.1
"""Share of the training examples that is held out to choose by, where the recipe holds out none."""

Grid = Literal["auto", "fine"]
Result = dict[str, Any]


@dataclass(repr=False)
class Comparison:
    """All runs of a comparison, and the chosen learning rates."""

    contenders: list[Contender]
    seeds: list[int]
    """Those that are reported."""
    tune_seeds: list[int]
    """Those that the learning rates are chosen with."""
    same: bool
    """Whether one learning rate was given for all, instead of sweeping each method's own."""
    results: dict[Cell, Result] = field(default_factory=dict)
    best: dict[Contender, Rate] = field(default_factory=dict)
    """The learning rate of each, chosen with the tuning seeds."""

    def __repr__(self) -> str:
        return f"Comparison({', '.join(f'{name}={value}' for name, value in self._facts().items())})"

    def _repr_html_(self) -> str:
        """The first reported seed's curves and a small table, for notebooks."""
        curves = {contender.text: self.runs(contender)[0]["curve"] for contender in self.best}
        return picture.html(self._facts(), picture.course(curves))

    def _facts(self) -> dict[str, str]:
        """Each method's score on the test examples at its learning rate, as text."""
        return {
            contender.text: f"{percent(mean)} (lr {rate(lr)}, {len(self.seeds)} seeds)"
            for contender, lr in self.best.items()
            for mean in [_mean([run["test_accuracy"] for run in self.runs(contender)])]
        }

    def runs(self, contender: Contender) -> list[Result]:
        """Its runs at its learning rate, one for each reported seed."""
        return [self.results[Cell(contender, self.best[contender], seed)] for seed in self.seeds]

    def tried(self, contender: Contender) -> dict[Rate, list[Result]]:
        """Its runs with the tuning seeds, by learning rate, in ascending order."""
        found: dict[Rate, list[Result]] = {}
        for cell, result in self.results.items():
            if cell.contender == contender and cell.seed in self.tune_seeds:
                found.setdefault(cell.lr, []).append(result)
        return dict(sorted(found.items()))

    def edge(self, contender: Contender) -> Literal["lowest", "highest"] | None:
        """The edge of its grid that its learning rate lies on, if any: a better one may lie beyond."""
        tried = list(self.tried(contender))
        if len(tried) < 2:
            return None
        return {tried[0]: "lowest", tried[-1]: "highest"}.get(self.best[contender])  # type: ignore[return-value]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def score(results: Sequence[Result]) -> float:
    """A learning rate's score: the mean over its runs of the metric in the last quarter of the evaluations.

    Not the best one, which rewards an unstable run; where the task has no metric, minus the loss. If one of the runs
    diverged: minus infinity.
    """
    return fmean(_score(result) for result in results)


def _score(result: Result) -> float:
    if result["diverged"]:
        return -math.inf
    curve = result["curve"]
    last = curve[-max(1, len(curve) // 4) :]
    values = [-loss if accuracy is None else accuracy for _, accuracy, loss in last]
    return fmean(values) if all(math.isfinite(value) for value in values) else -math.inf


def compare(
    recipe: Path,
    common: Sequence[str],
    contenders: Sequence[Contender],
    seeds: Sequence[int],
    tune_seeds: Sequence[int],
    lrs: Sequence[float] | Grid,
    out: Path,
    workers: int,
    watcher: Watcher,
    runner: type[Bench] = Bench,
) -> Comparison:
    """Run a comparison, skipping finished runs.

    seeds: those that are reported. tune_seeds: others, with which each learning rate is tried and judged; where all
        methods are given one and the same learning rate there is nothing to choose, and none of them is run.
    lrs: learning rates for all; "auto": each method's own grid, three points around the recipe's learning rate (for
    baselines 0.1), widened while the best is on the edge; "fine": then two more, halfway to the best's neighbours.
    runner: how cells are run; by default each in a process of its own.
    A recipe without a validation split gets one of a tenth of the training examples. Raises InputError for a recipe or
    run that cannot be, and for a seed that would both choose and report.
    """
    both = sorted(set(seeds) & set(tune_seeds))
    if both:
        raise InputError(f"--tune-seeds: {both[0]} is also in --seeds; tuning seeds are never reported.")
    if recipes.load(recipe, common).task.validation == 0:
        common = [*common, f"task.validation={VALIDATION}"]
    bench = runner(recipe, common, out, workers)
    same = not isinstance(lrs, str) and len(lrs) == 1
    found = Comparison(list(contenders), list(seeds), list(tune_seeds), same)
    if same:
        found.best = {contender: _first_grid(bench, contender, lrs)[0] for contender in contenders}
    else:
        _tune(bench, found, lrs, watcher)
    reported = [Cell(c, found.best[c], seed) for c in contenders for seed in seeds]
    found.results |= bench.run(reported, watcher)
    return found


def _tune(bench: Bench, found: Comparison, lrs: Sequence[float] | Grid, watcher: Watcher) -> None:
    """Choose every contender's learning rate."""

    def cells(grids: Mapping[Contender, Sequence[Rate]]) -> list[Cell]:
        wanted = [Cell(c, lr, seed) for c, grid in grids.items() for lr in grid for seed in found.tune_seeds]
        return [cell for cell in wanted if cell not in found.results]

    first = {contender: _first_grid(bench, contender, lrs) for contender in found.contenders}
    found.best = {contender: "auto" for contender, grid in first.items() if grid == ["auto"]}
    grids = {c: [float(lr) for lr in grid] for c, grid in first.items() if c not in found.best}
    while missing := cells(grids):
        found.results |= bench.run(missing, watcher)
        if isinstance(lrs, str):
            grids = {c: _widened(found, c, grid) for c, grid in grids.items()}
    if lrs == "fine":
        found.results |= bench.run(cells({c: _between(found, c) for c in grids}), watcher)
    found.best |= {contender: _best(found, contender) for contender in grids}


def _best(found: Comparison, contender: Contender) -> float:
    """The learning rate with the highest score so far; the smallest among equals."""
    tried = {float(lr): runs for lr, runs in found.tried(contender).items()}
    return max(tried, key=lambda lr: (score(tried[lr]), -lr))


def _first_grid(bench: Bench, contender: Contender, lrs: Sequence[float] | Grid) -> list[Rate]:
    """Where a contender's sweep begins; "auto" alone for one that finds its own learning rate."""
    method = bench.base(contender).method
    if method.lr == "auto":
        return ["auto"]
    if not isinstance(lrs, str):
        return [float(lr) for lr in lrs]
    centre = BASELINE_LR if isinstance(method.own, Baseline) else method.lr
    return [_rounded(centre * FACTOR**step) for step in (-1, 0, 1)]


def _widened(found: Comparison, contender: Contender, grid: list[float]) -> list[float]:
    """The grid, and one more point beyond the edge that the best lies on."""
    best = _best(found, contender)
    if len(grid) >= WIDEST:
        return grid
    if best == min(grid):
        return sorted([*grid, _rounded(best / FACTOR)])
    if best == max(grid):
        return sorted([*grid, _rounded(best * FACTOR)])
    return grid


def _between(found: Comparison, contender: Contender) -> list[float]:
    """The points halfway, in the logarithm, from the best of the grid to its neighbours."""
    best = _best(found, contender)
    return [_rounded(best / math.sqrt(FACTOR)), _rounded(best * math.sqrt(FACTOR))]


def _rounded(lr: float) -> float:
    """Two digits: 0.0032, so that grids of different methods meet."""
    return float(f"{lr:.1e}")
