"""Accuracy against bytes: projected training and exact slopes beside FedAvg: `python -m benchmarks.oracles [CASE ...]`.

`--pages` runs nothing, and writes the table in docs/slopes.md and the picture from what is in benchmarks/results.

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

from benchmarks.study import between
from scalarfl.experiment import recipe as recipes
from scalarfl.experiment.compare.intervals import paired
from scalarfl.experiment.pages.chart import Axis, Curve, chart, standing_alone
from scalarfl.experiment.prepare import prepare
from scalarfl.experiment.run import start, start_dense, summary
from scalarfl.units import size

OUT = Path(__file__).parent / "results" / "oracles.json"
RIVALS = OUT.with_name("rivals.json")
DOCS = Path(__file__).parent.parent / "docs"
PICTURE = DOCS / "study" / "accuracy-against-bytes.svg"
BEGIN, END = "<!-- written by benchmarks/oracles.py -->\n", "<!-- end -->\n"
Results = dict[str, list[dict[str, Any]]]
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
    """Run what is missing from the results, case by case, and write the table and the picture."""
    torch.set_num_threads(1)
    found = results()
    for name in [name for name in sys.argv[1:] if name != "--pages"] or ([] if "--pages" in sys.argv else CASES):
        settings = CASES[name]
        runs = found.setdefault(name, [])
        for seed in SEEDS[len(runs) :]:
            result = measure(settings, seed)
            keys = ("seed", "rounds", "accuracy", "forward_passes", "payload_bytes_up", "payload_bytes_down", "digest")
            runs.append({key: result[key] for key in keys})
            OUT.write_text(json.dumps(found, indent=1) + "\n")
            print(f"{name}, seed {seed}: {result['accuracy']:.4f}", file=sys.stderr, flush=True)
    between(DOCS / "slopes.md", BEGIN, table(found), END)
    PICTURE.write_text(picture(found, json.loads(RIVALS.read_text())))


def results() -> Results:
    """What has been run: case -> runs, of one seed each."""
    return json.loads(OUT.read_text()) if OUT.exists() else {}


def table(found: Results) -> str:
    """Markdown. Cases of fewer than five seeds are left out."""
    lines = [
        "| scalars by | rounds | test accuracy, % (95 % interval) | bytes up a client and round | forward passes |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in CASES:
        if len(runs := found.get(name, [])) == len(SEEDS):
            rounds, passes = runs[0].get("rounds", 200), runs[0]["forward_passes"]
            mean, low, _ = accuracy(runs)
            lines.append(f"| {name} | {rounds} | {mean:.1f} ± {mean - low:.1f} | {bytes_up(runs):,.0f} | {passes:,} |")
    return "\n".join([*lines, ""])


def picture(found: Results, rivals: dict[str, Any]) -> str:
    """Accuracy after 200 rounds against bytes up, as SVG: the mean, with its 95 % interval as a band."""
    cases = {
        name: runs for name, runs in found.items() if len(runs) == len(SEEDS) and runs[0].get("rounds", 200) == 200
    }
    groups = {
        "scalars, tau = 5": [runs for name, runs in cases.items() if name.startswith("training") and "tau" not in name],
        "scalars, tau = 10": [runs for name, runs in cases.items() if name.startswith("training") and "tau" in name],
        "FedAvg, tau = 5": [cases["fedavg"]],
        "FedAvg, tau = 10": [cases["fedavg, tau = 10"]],
        "top-k, tau = 5": [rivals[f"top-k, {most} bytes"]["runs"] for most in ("40", "400", "4,000")],
        "signs, tau = 5": [rivals["signs"]["runs"]],
        "int8, tau = 5": [rivals["int8"]["runs"]],
    }
    curves = []
    for number, group in enumerate(groups.values()):
        ordered = sorted((bytes_up(runs), *accuracy(runs)) for runs in group)
        curves.append(
            Curve(
                list(groups)[number],
                number,
                [(sent, mean) for sent, mean, _, _ in ordered],
                [(low, high) for _, _, low, high in ordered],
            )
        )
    across = Axis("bytes a client sends in a round", size, log=True)
    up = Axis("test accuracy, %", lambda value: f"{value:.4g}")
    return standing_alone(chart("Accuracy after 200 rounds against bytes", curves, across, up), list(groups))


def accuracy(runs: list[dict[str, Any]]) -> tuple[float, float, float]:
    """Mean, and both ends of its 95 % interval, in percent."""
    mean, low, high, _ = paired([100 * run["accuracy"] for run in runs], [0.0] * len(runs)) or (0, 0, 0, 0)
    return mean, low, high


def bytes_up(runs: list[dict[str, Any]]) -> float:
    """Of a client in a round of its own; two of eight take part."""
    return 8 / 2 * statistics.fmean(float(run["payload_bytes_up"]) / run.get("rounds", 200) for run in runs)


if __name__ == "__main__":
    main()
