"""Accuracy against bytes: projected training and exact slopes beside FedAvg: `python -m benchmarks.oracles [CASE ...]`.

Fashion-MNIST, the study's CNN (d = 9,098), 8 clients of which 2 take part in a round, batches of 64, Dirichlet 1, 200
rounds, five seeds. Nothing is tuned here: the learning rates were fixed beforehand, from runs with another generator,
and between its P by interpolation. The test examples are looked at before the first round and after the last.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from scalarfl.experiment import recipe as recipes
from scalarfl.experiment.compare.intervals import paired
from scalarfl.experiment.prepare import prepare
from scalarfl.experiment.run import start, start_dense, summary

OUT = Path(__file__).parent / "results" / "oracles.json"
SEEDS = (0, 1, 2, 3, 4)
COMMON = [
    'model.name="cnn"', 'task.name="fashion-mnist"', "federation.clients=8", "federation.sampled=2",
    "federation.rounds=200", 'federation.partition="dirichlet"', "federation.batch_size=64", "evaluation.every=200",
    "evaluation.examples=4000",
]  # fmt: skip
HADAMARD = ["method.name=decomfl", "method.noise=hadamard"]
EXACT = [*HADAMARD, "method.slopes=exact", "method.lr=0.06"]


def training(perturbations: int, step: float, tau: int = 5) -> list[str]:
    """Projected local training. step: the server's, on the reconstructed move: lr / local_lr, where local_lr is 0.1."""
    found = [*HADAMARD, "method.slopes=training", f"federation.local_steps={tau}"]
    return [*found, f"method.perturbations={perturbations}", f"method.lr={step / 10:g}"]


CASES = {
    "training, P = 10": training(10, 0.05),
    "training, P = 30": training(30, 0.1),
    "training, P = 100": training(100, 0.2),
    "training, P = 300": training(300, 0.35),
    "training, P = 1,000": training(1000, 0.6),
    "training, P = 4,096": training(4096, 0.9),
    "training, P = 100, tau = 10": training(100, 0.2, tau=10),
    "training, P = 1,000, tau = 10": training(1000, 0.6, tau=10),
    "exact, P = 1,000": [*EXACT, "method.perturbations=1000"],
    "exact, P = 1,000, 600 rounds": [*EXACT, "method.perturbations=1000", "federation.rounds=600"],
    "exact, P = 2,000, 600 rounds": [*EXACT, "method.perturbations=2000", "federation.rounds=600"],
    "fedavg": ["method.name=fedavg", "method.lr=0.1", "federation.local_steps=5"],
    "fedavg, tau = 10": ["method.name=fedavg", "method.lr=0.1", "federation.local_steps=10"],
}


def measure(settings: list[str], seed: int) -> dict[str, Any]:
    """One run's result."""
    recipe = recipes.load(None, [*COMMON, *settings, f"federation.seed={seed}"])
    prepared = prepare(recipe)
    finished = start_dense(prepared) if recipe.method.name == "fedavg" else start(prepared)
    return summary(recipe.keys, finished, prepared.task.metric, None)


def main() -> None:
    """Run what is missing from the results, case by case, and print the table."""
    torch.set_num_threads(1)
    found: dict[str, list[dict[str, Any]]] = json.loads(OUT.read_text()) if OUT.exists() else {}
    for name in sys.argv[1:] or CASES:
        settings = CASES[name]
        runs = found.setdefault(name, [])
        for seed in SEEDS[len(runs) :]:
            result = measure(settings, seed)
            keys = ("seed", "rounds", "accuracy", "forward_passes", "payload_bytes_up", "payload_bytes_down", "digest")
            runs.append({key: result[key] for key in keys})
            OUT.write_text(json.dumps(found, indent=1) + "\n")
            print(f"{name}, seed {seed}: {result['accuracy']:.4f}", file=sys.stderr, flush=True)
    print(
        "| scalars by | rounds | test accuracy, % (95 % interval) | bytes up a client and round | forward passes |\n"
        "|---|---:|---:|---:|---:|"
    )
    for name in CASES:
        if runs := found.get(name, []):
            rounds, passes = runs[0].get("rounds", 200), runs[0]["forward_passes"]
            mean, low, _, _ = paired([100 * run["accuracy"] for run in runs], [0.0] * len(runs)) or (0, 0, 0, 0)
            print(f"| {name} | {rounds} | {mean:.1f} ± {mean - low:.1f} | {bytes_up(runs):,.0f} | {passes:,} |")


def bytes_up(runs: list[dict[str, Any]]) -> float:
    """Of a client in a round of its own; two of eight take part."""
    return 8 / 2 * statistics.fmean(float(run["payload_bytes_up"]) / run.get("rounds", 200) for run in runs)


if __name__ == "__main__":
    main()
