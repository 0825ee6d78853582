"""A run in Weights & Biases, offline: pip install wandb, then python examples/tracking_wandb.py RECIPE OUT.

Nothing leaves the machine: the run lies in OUT-wandb, and `wandb sync` sends it later if you want.
"""

import sys
from pathlib import Path

import wandb

from scalarfl.experiment import recipe as recipes, run, trackers


class Wandb:
    """Sends values to the run that ``wandb.init`` began."""

    def log(self, values: dict[str, float], step: int) -> None:
        """All at once."""
        wandb.log(values, step=step)


def main(path: Path, out: Path) -> None:
    """Run the recipe; its keys become the run's configuration."""
    recipe = recipes.load(path)
    beside = out.with_name(f"{out.name}-wandb")
    beside.mkdir(parents=True, exist_ok=True)
    wandb.init(project="scalarfl", name=out.name, config=recipe.keys, mode="offline", dir=str(beside))
    run.run(recipe, out, callbacks=trackers.watch(Wandb(), every=25))
    wandb.finish()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
