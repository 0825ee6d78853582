"""Which learning rates and seeds are run: every method's own sweep, widened while the best lies on its edge."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from scalarfl.baselines import Baseline
from scalarfl.compare.cells import Bench, Cell, Contender, Watcher

FACTOR = math.sqrt(10)
"""Between neighbours on a grid."""
BASELINE_LR = 0.1
"""Where the grid of a method that takes gradients begins; those of the others begin at the recipe's."""
WIDEST = 9
"""Points of a grid that was widened as far as it goes."""

Grid = Literal["auto", "fine"]
Result = dict[str, Any]


@dataclass
class Comparison:
    """All that was run, and what was chosen."""

    contenders: list[Contender]
    seeds: list[int]
    same: bool
    """Whether one learning rate was given for all, instead of sweeping each method's own."""
    results: dict[Cell, Result] = field(default_factory=dict)
    best: dict[Contender, float] = field(default_factory=dict)
    """The learning rate of each, chosen on the first seed."""

    def runs(self, contender: Contender) -> list[Result]:
        """Its runs at its learning rate, one a seed."""
        return [self.results[Cell(contender, self.best[contender], seed)] for seed in self.seeds]

    def tried(self, contender: Contender) -> dict[float, Result]:
        """Its runs with the first seed, by learning rate."""
        first = self.seeds[0]
        found = {c.lr: r for c, r in self.results.items() if c.contender == contender and c.seed == first}
        return dict(sorted(found.items()))


def score(result: Result) -> float:
    """What a learning rate is chosen by: the mean metric over the last quarter of a run's evaluations.

    Not the best one, which rewards an unstable run; where the task has no metric, minus the loss. Diverged: minus
    infinity.
    """
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
    lrs: Sequence[float] | Grid,
    out: Path,
    workers: int,
    watcher: Watcher,
) -> Comparison:
    """Run a comparison, or what of it has not been run yet.

    lrs: learning rates for all; "auto": each method's own grid, three points around the recipe's learning rate (for
    baselines 0.1), widened while the best is on the edge; "fine": then two more, halfway to the best's neighbours.
    Raises InputError for a recipe or run that cannot be.
    """
    bench = Bench(recipe, common, out, workers)
    found = Comparison(list(contenders), list(seeds), same=lrs not in ("auto", "fine") and len(lrs) == 1)
    grids = {contender: _first_grid(bench, contender, seeds[0], lrs) for contender in contenders}
    while True:
        wanted = [Cell(c, lr, seeds[0]) for c, grid in grids.items() for lr in grid]
        missing = [cell for cell in wanted if cell not in found.results]
        if not missing:
            break
        found.results |= bench.run(missing, watcher)
        if lrs in ("auto", "fine"):
            grids = {c: _widened(found, c, grid) for c, grid in grids.items()}
    if lrs == "fine":
        between = [Cell(c, lr, seeds[0]) for c, grid in grids.items() for lr in _between(found, c, grid)]
        found.results |= bench.run(between, watcher)
    for contender in contenders:
        tried = found.tried(contender)
        found.best[contender] = max(tried, key=lambda lr: (score(tried[lr]), -lr))
    rest = [Cell(c, found.best[c], seed) for c in contenders for seed in seeds[1:]]
    found.results |= bench.run(rest, watcher)
    return found


def _first_grid(bench: Bench, contender: Contender, seed: int, lrs: Sequence[float] | Grid) -> list[float]:
    if not isinstance(lrs, str):
        return list(lrs)
    method = bench.base(contender, seed).method
    centre = BASELINE_LR if isinstance(method.own, Baseline) else method.lr
    return [_rounded(centre * FACTOR**step) for step in (-1, 0, 1)]


def _widened(found: Comparison, contender: Contender, grid: list[float]) -> list[float]:
    """The grid, and one more point beyond the edge that the best lies on."""
    tried = found.tried(contender)
    best = max(grid, key=lambda lr: (score(tried[lr]), -lr))
    if len(grid) >= WIDEST:
        return grid
    if best == min(grid):
        return sorted([*grid, _rounded(best / FACTOR)])
    if best == max(grid):
        return sorted([*grid, _rounded(best * FACTOR)])
    return grid


def _between(found: Comparison, contender: Contender, grid: list[float]) -> list[float]:
    """The points halfway, in the logarithm, from the best of the grid to its neighbours."""
    tried = found.tried(contender)
    best = max(grid, key=lambda lr: (score(tried[lr]), -lr))
    return [_rounded(best / math.sqrt(FACTOR)), _rounded(best * math.sqrt(FACTOR))]


def _rounded(lr: float) -> float:
    """Two digits: 0.0032, so that grids of different methods meet."""
    return float(f"{lr:.1e}")
