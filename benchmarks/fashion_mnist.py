"""Convergence on Fashion-MNIST at one learning rate, 4 minutes: `python -m benchmarks.fashion_mnist`."""

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from scalarfl import recipe as recipes, report, run
from scalarfl.bench.measure import environment

RESULTS = Path(__file__).parent / "results"
RECIPE = Path(__file__).parent.parent / "recipes" / "fashion-mnist.toml"
METHODS = ("decomfl", "hiso-scalar", "hiso")
SEEDS = (0, 1, 2)
REFERENCE = {"decomfl": 0.592, "hiso": 0.653}  # best accuracy of the authors' code, same rounds, clients, P and lr


def main() -> None:
    results: list[dict[str, Any]] = []
    for method in METHODS:
        for seed in SEEDS:
            recipe = recipes.load(RECIPE, [f"method.name={method}", f"federation.seed={seed}"])
            with tempfile.TemporaryDirectory() as folder:
                results.append(run.run(recipe, Path(folder)))
            print(method, seed, [round(100 * point[1], 1) for point in results[-1]["curve"]], flush=True)
    table: list[dict[str, Any]] = []
    for method in METHODS:
        best = [result["best_accuracy"] for result in results if result["method"] == method]
        last = [result["accuracy"] for result in results if result["method"] == method]
        table.append(
            {
                "method": method,
                "best_accuracy": [statistics.mean(best), statistics.stdev(best)],
                "accuracy": [statistics.mean(last), statistics.stdev(last)],
                "reference_best": REFERENCE.get(method),
            }
        )
        print(
            f"{method:<12} best {100 * table[-1]['best_accuracy'][0]:.1f} +- {100 * table[-1]['best_accuracy'][1]:.1f}"
        )
    found = {"environment": environment(), "recipe": RECIPE.read_text(), "table": table, "runs": results}
    (RESULTS / "fashion_mnist.json").write_text(json.dumps(found, indent=1) + "\n")
    report.plot([result for result in results if result["seed"] == 0], RESULTS / "fashion_mnist.png")


if __name__ == "__main__":
    main()
