"""A run's ledger beyond its curve: bytes by purpose, participation, and how H evolved."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from scalarfl.errors import InputError
from scalarfl.experiment import run
from scalarfl.experiment.prepare import Prepared, prepare
from scalarfl.experiment.recipe import Recipe
from scalarfl.experiment.report import overview
from scalarfl.ledger.store import Ledger
from scalarfl.model.replica import Replica
from scalarfl.simulation import replay

POINTS = 5
"""Moments at which H is looked at, evenly spread over a run."""
LARGEST = 2_000_000
"""Parameters beyond which H is not rebuilt for a page."""
EXAMPLES = 512
"""Training examples of the gradient that H is held against."""
BINS = np.linspace(-4, 4, 161)
"""Of log10 H."""

Inside = dict[str, Any]


def look(folder: Path) -> Inside | None:
    """What a run's ledger contains; None without a ledger, as for a baseline."""
    if not (folder / run.LEDGER).exists():
        return None
    with run.open_ledger(folder) as ledger:
        found = overview(ledger)
        return {
            "traffic": found["traffic"],
            "participation": {name: row["rounds"] for name, row in found["clients"].items()},
            "hessian": _hessian(folder, ledger),
        }


def _hessian(folder: Path, ledger: Ledger) -> Inside | None:
    """H over time, and finally against the squared gradient; None for a method without one, or a large model."""
    recipe = run.load_recipe(folder)
    result = run.load_result(folder)
    if result is None or result["dimension"] > LARGEST or not recipe.method.scalar_only.vectors:
        return None
    try:
        prepared = prepare(recipe)
    except InputError:  # the data are elsewhere by now
        return None
    replica = Replica(prepared.model, recipe.method.scalar_only, prepared.trainable, noise=recipe.config.generator)
    if "hessian" not in replica.state[0]:
        return None
    moments = []
    for stop in sorted({round(ledger.rounds * point / POINTS) for point in range(1, POINTS + 1)}):
        replay(replica, ledger, stop)
        counts, _ = np.histogram(np.log10(_values(replica)), BINS)
        moments.append({"round": stop, "counts": counts.tolist()})
    squares = _squared_gradient(recipe, prepared, replica)
    correlation = None if squares is None else rank_correlation(_values(replica), squares)
    return {"moments": moments, "with_squared_gradient": correlation}


def _values(replica: Replica) -> npt.NDArray[np.float64]:
    return torch.cat([state["hessian"].view(-1) for state in replica.state]).double().cpu().numpy()


def _squared_gradient(recipe: Recipe, prepared: Prepared, replica: Replica) -> npt.NDArray[np.float64] | None:
    """The squared gradient of the mean loss over some training examples; None if none, or for a sparse mask."""
    if any(part.places is not None for part in replica.parts):
        return None
    train = prepared.task.train
    batch = train.batch(np.random.default_rng(recipe.federation.seed).permutation(len(train))[:EXAMPLES])
    parameters = [parameter.requires_grad_(True) for parameter in replica.parameters]
    with torch.enable_grad():
        loss = prepared.task.loss(prepared.model, batch)
        if not isinstance(loss, torch.Tensor) or not loss.requires_grad:
            return None
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    flat = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
    return torch.cat([g.reshape(-1) for g in flat]).double().square().cpu().numpy()


def rank_correlation(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Spearman's; ties in the order they come."""
    one, other = (np.argsort(np.argsort(values)) - (len(values) - 1) / 2 for values in (a, b))
    return float((one * other).sum() / np.sqrt((one**2).sum() * (other**2).sum()))
