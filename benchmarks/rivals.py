"""Compressed updates beside scalars at equal bytes: `python -m benchmarks.rivals`.

The setting is that of `benchmarks.oracles`, whose results stand beside these: Fashion-MNIST, the study's CNN (d =
9,098), 8 clients of which 2 take part in a round, batches of 64, Dirichlet 1, 200 rounds, 5 local steps at 0.1, five
seeds. The server's step of top-k at 40 and 400 bytes is the better of two on validation examples with another seed,
1 elsewhere. The test examples are looked at before the first round and after the
last.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.oracles import COMMON, SEEDS, training
from scalarfl.baselines import BASELINES
from scalarfl.experiment import recipe as recipes
from scalarfl.experiment.prepare import prepare
from scalarfl.experiment.run import start, start_dense, summary

OUT = Path(__file__).parent / "results" / "rivals.json"
TUNED_WITH = 1000
KEYS = ("seed", "accuracy", "payload_bytes_up", "payload_bytes_down", "digest")

LOCAL = ["method.lr=0.1", "federation.local_steps=5"]
SERVER = [f"method.server_lr={lr}" for lr in (0.3, 1.0)]
MEAN = ["method.server_lr=1.0"]
TEN = training(10, 0.05)


def topk(size: int) -> list[str]:
    """Settings of top-k with so many bytes up."""
    return ["method.name=fedavg-topk", f"method.bytes_up={size}", *LOCAL]


CASES: dict[str, tuple[list[str], list[str]]] = {
    "top-k, 40 bytes": (topk(40), SERVER),
    "top-k, 400 bytes": (topk(400), SERVER),
    "top-k, 4,000 bytes": (topk(4000), MEAN),
    "low rank, r = 1": (["method.name=fedavg-lowrank", *LOCAL], MEAN),
    "signs": (["method.name=fedavg-signs", *LOCAL], MEAN),
    "int8": (["method.name=fedavg-int8", *LOCAL], MEAN),
}
"""By name: the settings, and those of the server's step, of which the best is chosen."""
SPENT: dict[str, tuple[list[str], list[str]]] = {
    "scalars, 40 bytes": (TEN, ["method.lr=0.005", "method.lr=0.0035", "method.lr=0.007"]),
    "scalars, 40 bytes, momentum": ([*TEN, "method.name=momentum"], ["method.lr=0.005", "method.lr=0.01"]),
    "scalars, 40 bytes, 10 local steps": (training(10, 0.05, tau=10), ["method.lr=0.005", "method.lr=0.0035"]),
}
"""Ways to spend 40 bytes by scalars, tried with the tuning seed alone."""


def measure(settings: list[str], seed: int) -> dict[str, Any]:
    """One run's result."""
    recipe = recipes.load(None, [*COMMON, *settings, f"federation.seed={seed}"])
    prepared = prepare(recipe)
    finished = start_dense(prepared) if recipe.method.name in BASELINES else start(prepared)
    result = summary(recipe.keys, finished, prepared.task.metric, None)
    return {key: result[key] for key in KEYS}


def chosen(case: dict[str, Any]) -> str:
    """The setting with the best validation accuracy; empty where there was no choice."""
    return max(case["tuned"], key=lambda choice: float(case["tuned"][choice]), default="")


def main() -> None:
    """Run what is missing from the results, seed by seed, and print the table."""
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(OUT.read_text()) if OUT.exists() else {}

    def keep(what: str, accuracy: float) -> None:
        OUT.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{what}: {accuracy:.4f}", file=sys.stderr, flush=True)

    def tune(name: str, settings: list[str], choices: list[str]) -> None:
        case = found.setdefault(name, {"tuned": {}, "runs": []})
        for choice in choices:
            if choice not in case["tuned"]:
                case["tuned"][choice] = measure([*settings, choice, "task.validation=0.1"], TUNED_WITH)["accuracy"]
                keep(f"{name}, {choice}", case["tuned"][choice])

    for name, (settings, choices) in CASES.items():
        if len(choices) > 1:
            tune(name, settings, choices)
    for seed in SEEDS:
        for name, (settings, choices) in CASES.items():
            case = found.setdefault(name, {"tuned": {}, "runs": []})
            if seed not in [run["seed"] for run in case["runs"]]:
                case["runs"].append(measure([*settings, chosen(case) or choices[0]], seed))
                keep(f"{name}, seed {seed}", case["runs"][-1]["accuracy"])
        if seed == SEEDS[0]:
            for number in range(3):
                for name, (settings, choices) in SPENT.items():
                    tune(name, settings, choices[number : number + 1])
    print("| clients send | chosen | test accuracy, % | bytes up | bytes down |\n|---|---|---:|---:|---:|")
    for name in CASES:
        case = found[name]
        scores = [100 * run["accuracy"] for run in case["runs"]]
        up, down = (
            statistics.mean(run[f"payload_bytes_{way}"] for run in case["runs"]) * 8 / (2 * 200)
            for way in ("up", "down")
        )
        best = (chosen(case) or CASES[name][1][0]).removeprefix("method.")
        spread = f"{statistics.mean(scores):.1f} ± {statistics.stdev(scores):.1f}"
        print(f"| {name} | {best} | {spread} | {up:,.0f} | {down:,.0f} |")
    for name in SPENT:
        print(f"{name}: " + ", ".join(f"{what} {100 * score:.1f} %" for what, score in found[name]["tuned"].items()))


if __name__ == "__main__":
    main()
