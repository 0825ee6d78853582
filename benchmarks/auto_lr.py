"""lr = "auto" against swept learning rates: `python -m benchmarks.auto_lr [--seeds N] [CASE ...]`.

Each case runs a grid of given learning rates, and "auto" from three values two decades apart (a hundredth of the grid's
middle, the middle, a hundred times it). Fashion-MNIST, the study's CNN (d = 9,098), 8 clients of which 2
take part in a round, batches of 64, Dirichlet 1; the score is of 4,000 test examples after the last round, and the best
of the grid is chosen by that score, in favour of the sweep. The case "minilm" needs --model FOLDER --data FOLDER.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from scalarfl.experiment import recipe as recipes
from scalarfl.experiment.prepare import prepare
from scalarfl.experiment.run import start, summary

OUT = Path(__file__).parent / "results" / "auto_lr.json"
FASHION = [
    'model.name="cnn"', 'task.name="fashion-mnist"', "federation.clients=8", "federation.sampled=2",
    'federation.partition="dirichlet"', "federation.batch_size=64", "evaluation.examples=4000", "evaluation.every=1000",
]  # fmt: skip
MINILM = [
    'model.trainable=["encoder.*", "embeddings.LayerNorm.*", "embeddings.position*", "embeddings.token_type*"]',
    'task.name="sst2"', "federation.clients=6", "federation.sampled=2", "federation.batch_size=16",
    'federation.partition="dirichlet"', "evaluation.every=1000",
]  # fmt: skip
ROWS = ["method.noise=hadamard", "method.name=decomfl"]


class Case(NamedTuple):
    """A setting and its sweep."""

    settings: list[str]
    lrs: tuple[float, ...]
    middle: float


CASES = {
    "decomfl, P = 10": Case(
        [*FASHION, "method.name=decomfl", "method.perturbations=10", "federation.rounds=300"],
        (1e-3, 2e-3, 4e-3, 8e-3),
        3e-3,
    ),
    "hiso, P = 10": Case(
        [*FASHION, "method.name=hiso", "method.perturbations=10", "federation.rounds=300"],
        (1e-3, 2e-3, 4e-3, 8e-3),
        3e-3,
    ),
    "exact, P = 1,000": Case(
        [*FASHION, *ROWS, "method.slopes=exact", "method.perturbations=1000", "federation.rounds=150"],
        (0.03, 0.06, 0.12),
        0.06,
    ),
    "training, P = 100, tau = 5": Case(
        [*FASHION, *ROWS, "method.slopes=training", "method.perturbations=100", "federation.local_steps=5",
         "federation.rounds=100"],
        (0.01, 0.02, 0.04),
        0.02,
    ),
    "minilm": Case([*MINILM, *ROWS, "method.perturbations=5", "federation.rounds=20"], (2e-4,), 2e-4),
}  # fmt: skip


def measure(settings: list[str], seed: int) -> dict[str, Any]:
    """One run's figures."""
    recipe = recipes.load(None, [*settings, f"federation.seed={seed}"])
    prepared = prepare(recipe)
    began = time.perf_counter()
    result = summary(recipe.keys, start(prepared), prepared.task.metric, None)
    found = {key: result.get(key) for key in ("seed", "rounds", "accuracy", "forward_passes", "lr_final", "digest")}
    return found | {"first": result["curve"][0][1], "seconds": round(time.perf_counter() - began, 1)}


def variants(case: Case) -> dict[str, list[str]]:
    """The runs of a case by name: a given learning rate, or "auto" and where it begins."""
    given = {f"{lr:g}": [f"method.lr={lr:g}"] for lr in case.lrs}
    starts = {f"auto from {case.middle * f:g}": [f"method.lr_start={case.middle * f:g}"] for f in (0.01, 1, 100)}
    return given | {name: ['method.lr="auto"', *own] for name, own in starts.items()}


def main() -> None:
    """Run what is missing from the results and print the table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; none: only the table")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--model", help="MiniLM's folder")
    parser.add_argument("--data", help="SST-2's folder")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, list[dict[str, Any]]]] = json.loads(OUT.read_text()) if OUT.exists() else {}
    for name in asked.cases:
        case = CASES[name]
        common = case.settings
        if name == "minilm":
            common = [*common, f'model.name="{asked.model}"', f'task.data_dir="{asked.data}"']
        for variant, own in variants(case).items():
            runs = found.setdefault(name, {}).setdefault(variant, [])
            for seed in range(len(runs), asked.seeds):
                runs.append(measure([*common, *own], seed))
                OUT.write_text(json.dumps(found, indent=1) + "\n")
                print(f"{name}, {variant}, seed {seed}: {runs[-1]}", file=sys.stderr, flush=True)
    print(
        "| setting | seeds | before | best of the sweep | auto from a hundredth | from the middle "
        "| from a hundred times | passes more |\n|---|---:|---:|---:|---:|---:|---:|---:|"
    )
    for name, of in found.items():
        print(row(name, of))


def row(name: str, of: dict[str, list[dict[str, Any]]]) -> str:
    """A line of the table: means over the seeds, in %."""
    scores = {variant: 100 * statistics.fmean(run["accuracy"] for run in runs) for variant, runs in of.items() if runs}
    best = max((variant for variant in scores if not variant.startswith("auto")), key=lambda lr: scores[lr])
    autos = [variant for variant in of if variant.startswith("auto")]
    more = max(of[variant][0]["forward_passes"] for variant in autos) / of[best][0]["forward_passes"] - 1
    before = 100 * statistics.fmean(run["first"] for run in of[best])
    cells = [name, f"{len(of[best])}", f"{before:.1f}", f"{scores[best]:.1f} (lr {best})"]
    cells += [f"{scores[variant]:.1f} (to {of[variant][0]['lr_final']:.2g})" for variant in autos]
    return f"| {' | '.join(cells)} | {100 * more:.1f} % |"


if __name__ == "__main__":
    main()
