"""A direction for every example against shared directions, by forward passes: `python -m benchmarks.per_example`.

Fashion-MNIST, the study's CNN (d = 9,098), 8 clients of which 2 take part in a round, batches of 64, Dirichlet 1,
DeComFL. Shared directions have 400 rounds of 11 forward passes (P = 10). Directions of examples have a third of these
passes: 488 rounds of 3 (P = 2), 366 of 4 (P = 3) or 244 of 6 (P = 5). P and learning rates are swept with a seed of
their own and judged by the mean validation accuracy over the last quarter of a run; five other seeds are reported, of
shared directions and of the best P. Test examples are used once, at the end. What has been run is not run again.

    python -m benchmarks.per_example                          # everything
    python -m benchmarks.per_example "per-example, P = 5"     # five seeds of this case too
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from scalarfl.experiment import recipe as recipes
from scalarfl.experiment.prepare import prepare
from scalarfl.experiment.run import start

OUT = Path(__file__).parent / "results" / "per_example.json"
SEEDS, TUNING_SEED = (0, 1, 2, 3, 4), 1000
STUDENT = 2.776  # of the t distribution with four degrees of freedom, 95 % two-sided
COMMON = [
    'model.name="cnn"', 'task.name="fashion-mnist"', "federation.clients=8", "federation.sampled=2",
    'federation.partition="dirichlet"', "federation.batch_size=64", "evaluation.every=20", "task.validation=0.04",
    "method.name=decomfl",
]  # fmt: skip
OWN = "method.directions=per-example"
CASES: dict[str, tuple[int, int, list[str], tuple[float, ...]]] = {
    "shared": (400, 11, ["method.perturbations=10"], (2e-3, 4e-3, 8e-3)),
    "per-example, P = 2": (488, 3, ["method.perturbations=2", OWN], (2.5e-3, 3.5e-3, 5e-3)),
    "per-example, P = 3": (366, 4, ["method.perturbations=3", OWN], (3.5e-3, 5e-3, 7e-3)),
    "per-example, P = 5": (244, 6, ["method.perturbations=5", OWN], (5e-3, 7e-3, 1e-2)),
}
"""Rounds, forward passes a client and round, settings, learning rates."""


def measure(settings: list[str], rounds: int, lr: float, seed: int, *, test: bool) -> dict[str, Any]:
    """One run: its validation accuracies [round, accuracy], and the test accuracy at its end."""
    keys = [f"federation.rounds={rounds}", f"method.lr={lr}", f"federation.seed={seed}"]
    prepared = prepare(recipes.load(None, [*COMMON, *settings, *keys]))
    finished = start(prepared)
    curve = [[score.round, score.accuracy] for score in finished.evaluations]
    found = {"seed": seed, "lr": lr, "validation": curve, "forward_passes": finished.forward_passes}
    moved = {f"payload_{way}": payload for (way, what), (payload, _) in finished.traffic.items() if what == "round"}
    return found | moved | {"digest": finished.digest} | ({"test": prepared.measure_test().accuracy} if test else {})


def main() -> None:
    """Run what is missing from the results, and print the table."""
    torch.set_num_threads(1)
    found: dict[str, dict[str, list[dict[str, Any]]]] = json.loads(OUT.read_text()) if OUT.exists() else {}

    def keep(runs: list[dict[str, Any]], run: dict[str, Any]) -> None:
        runs.append(run)
        OUT.write_text(json.dumps(found) + "\n")
        print(f"lr {run['lr']:g}, seed {run['seed']}: {run['validation'][-1]}", file=sys.stderr, flush=True)

    for name, (rounds, _, settings, lrs) in CASES.items():
        runs = found.setdefault(name, {"tuning": [], "final": []})
        for lr in lrs:
            if lr not in [run["lr"] for run in runs["tuning"]]:
                keep(runs["tuning"], measure(settings, rounds, lr, TUNING_SEED, test=False))
    shared, *others = CASES
    for name in (shared, max(others, key=lambda name: judged(best(found[name]))), *sys.argv[1:]):
        rounds, _, settings, _ = CASES[name]
        runs, lr = found[name], best(found[name])["lr"]
        for seed in SEEDS:
            if seed not in [run["seed"] for run in runs["final"]]:
                keep(runs["final"], measure(settings, rounds, lr, seed, test=True))
    report(found)


def best(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The best of a case's tuning runs."""
    return max(runs["tuning"], key=judged)


def judged(run: dict[str, Any]) -> float:
    """Mean validation accuracy over the last quarter."""
    last: int = run["validation"][-1][0]
    found: list[float] = [accuracy for round_, accuracy in run["validation"] if round_ > 0.75 * last]
    return statistics.mean(found)


def interval(values: list[float]) -> str:
    """Mean and half the width of its 95 % interval."""
    half = STUDENT * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.1f} ± {half:.1f}"


def report(found: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    """Print accuracies, and the passes after which the mean validation accuracy is the shared directions' last."""
    level = None
    for name, runs in found.items():
        print(f"{name}: " + ", ".join(f"lr {run['lr']:g} {100 * judged(run):.1f} %" for run in runs["tuning"]))
    found = {name: runs for name, runs in found.items() if runs["final"]}
    print("| directions | lr | rounds | passes a client | test accuracy, % | bytes up a client and round |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, runs in found.items():
        rounds, passes, _, _ = CASES[name]
        final = runs["final"]
        up = statistics.mean(run["payload_up"] for run in final) / (2 * rounds)
        scores = interval([100 * run["test"] for run in final])
        print(f"| {name} | {final[0]['lr']:g} | {rounds} | {rounds * passes:,} | {scores} | {up:,.0f} |")
    for name, runs in found.items():
        passes = CASES[name][1]
        curves = zip(*(run["validation"] for run in runs["final"]), strict=True)
        mean = [(points[0][0], statistics.mean(accuracy for _, accuracy in points)) for points in curves]
        level = mean[-1][1] if level is None else level
        at = next((round_ for round_, accuracy in mean if accuracy >= level), None)
        reached = "never" if at is None else f"after {at} rounds, {at * passes:,} passes"
        print(f"{name}: {100 * level:.1f} % on validation {reached}")


if __name__ == "__main__":
    main()
