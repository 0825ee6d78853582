"""The demonstration: HiSo and DeComFL on real digits, in about a minute, every claim verified."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from scalarfl import report, run
from scalarfl.prepare import prepare
from scalarfl.recipe import Recipe, parse
from scalarfl.simulation import Watch

Watching = Callable[[str], AbstractContextManager[Watch]]
"""Shows the progress of a run under a label."""

METHODS = ("decomfl", "hiso-scalar", "hiso")
SWEEP = (5e-3, 1e-2, 2e-2, 4e-2)
SWEEP_ROUNDS = 2000  # at most; never more than the runs themselves


def recipe(method: str, lr: float, rounds: int, seed: int = 0) -> Recipe:
    """The demonstration's recipe: an MLP on digits, 6 clients of which 2 take part in a round."""
    return parse(
        {
            "model": {"name": "mlp"},
            "task": {"name": "digits"},
            "federation": {
                "clients": 6,
                "sampled": 2,
                "rounds": rounds,
                "batch_size": 32,
                "partition": "dirichlet",
                "alpha": 1.0,
                "seed": seed,
            },
            "method": {"name": method, "lr": lr, "perturbations": 5},
        }
    )


def sweep(method: str, rounds: int, say: Callable[[str], None], watch: Watching) -> float:
    """The learning rate that gives the lowest loss on the training examples after a short run."""
    losses: dict[float, float] = {}
    for lr in SWEEP:
        prepared = prepare(recipe(method, lr, rounds))
        with watch(f"{method}, lr {lr:g}") as progress:
            run.start(prepared, watch=progress)
        loss = prepared.task.score(prepared.model, prepared.task.train).loss
        losses[lr] = loss if loss == loss else float("inf")
    best = min(losses, key=lambda lr: losses[lr])
    found = ", ".join(f"{lr:g}: {loss:.3f}" for lr, loss in losses.items())
    say(f"{method:<12} training loss after {rounds} rounds by lr: {found}; taken: {best:g}")
    return best


def demo(out: Path, rounds: int, say: Callable[[str], None], watch: Watching) -> list[dict[str, Any]]:
    """Sweep each method's learning rate, run it with the best in its own folder, verify the runs, draw curves."""
    best = {method: sweep(method, min(rounds, SWEEP_ROUNDS), say, watch) for method in METHODS}
    results = []
    for method, lr in best.items():
        with watch(method) as progress:
            results.append(run.run(recipe(method, lr, rounds), out / method, watch=progress))
    for method in METHODS:
        verified = run.verify(out / method)
        say(f"{method:<12} verified: base model + {verified.rounds} records give the digest {verified.digest[:16]}…")
    if report.can_plot():
        report.plot(results, out / "curves.png")
    return results
