"""What differential privacy costs in accuracy: Fashion-MNIST, logistic regression. `python -m benchmarks.privacy`.

Twenty runs. Continues where it was interrupted; delete results/privacy.json to begin anew.
"""

import json
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scalarfl.experiment import recipe as recipes
from scalarfl.experiment.prepare import prepare
from scalarfl.experiment.private_plan import private_plan
from scalarfl.experiment.result import summary
from scalarfl.experiment.run import start

OUT = Path(__file__).parent / "results" / "privacy.json"
SEEDS = (0, 1, 2, 3, 4)
EPSILONS = (None, 8.0, 2.0, 1.0)
COMMON = [
    "model.name=logistic", "task.name=fashion-mnist", "federation.clients=4", "federation.sampled=4",
    "federation.rounds=150", "federation.batch_size=300", "method.name=decomfl", "method.perturbations=20",
    "method.lr=0.004", "evaluation.every=150",
]  # fmt: skip


def measure(epsilon: float | None, seed: int) -> dict[str, Any]:
    """One run's accuracy, and the noise multiplier of its clients."""
    private = [] if epsilon is None else [f"privacy.epsilon={epsilon}", "privacy.delta=1e-5", "privacy.clip=40.0"]
    recipe = recipes.load(None, [*COMMON, *private, f"federation.seed={seed}"])
    prepared, plan = prepare(recipe), private_plan(recipe)
    found = summary(recipe.keys, start(prepared), prepared.task.metric, None)
    kept = {key: found[key] for key in ("accuracy", "loss", "rounds", "curve")} | {"spent": found.get("epsilon")}
    return {"epsilon": epsilon, "seed": seed, "sigma": None if plan is None else plan.sigma, **kept}


def main() -> None:
    """Measure what is missing, then print a row for each epsilon."""
    done: list[dict[str, Any]] = json.loads(OUT.read_text()) if OUT.exists() else []
    for seed, epsilon in product(SEEDS, EPSILONS):
        if not any((one["epsilon"], one["seed"]) == (epsilon, seed) for one in done):
            done.append(measure(epsilon, seed))
            OUT.write_text(json.dumps(done, indent=1) + "\n")
            print(f"epsilon {epsilon}, seed {seed}: {done[-1]['accuracy']:.4f}", flush=True)
    for epsilon in EPSILONS:
        found = [one for one in done if one["epsilon"] == epsilon]
        values = [100 * one["accuracy"] for one in found]
        spent = max((one["spent"] or 0.0) for one in found)
        sigma = found[0]["sigma"]
        print(f"epsilon {epsilon}: {mean(values):.1f} ± {stdev(values):.1f} %, spent {spent:.2f}, sigma {sigma}")


if __name__ == "__main__":
    main()
