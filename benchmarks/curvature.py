"""Does H follow curvature, and where would that help?

    python -m benchmarks.curvature [correlations] [quadratics]

1. Digits, logistic regression (650 parameters): the rank correlation of HiSo's and of HiZOO's H with the true diagonal
   of the Hessian and with the squared gradient, on all training examples, both exact.
2. A quadratic whose curvatures span four decades: rounds to a ten-thousandth of the first loss, for which all but the
   flattest direction must be settled; each method at its best learning rate of a wide grid, median of three seeds.

Results go to docs/study/curvature.json and curvature.md.
"""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from scalarfl import HiSo, Method, make_method, simulate
from scalarfl.experiment.compare.inside import rank_correlation
from scalarfl.methods import HiSoFrozen, HiZOO
from scalarfl.model.zoo import build
from scalarfl.protocol.config import Slopes
from scalarfl.tasks import Shard, iid, load_task
from scalarfl.tasks.objective import Score

MEASURED = HiZOO(alpha=1e-2)
CASES: list[tuple[Method, Slopes, int, float]] = [
    (HiSo(), "difference", 5, 1e-2), (HiSo(), "difference", 50, 3e-2), (HiSo(), "difference", 500, 1e-1),
    (HiSo(), "exact", 5, 1e-2), (HiSo(), "exact", 50, 3e-2), (HiSo(), "exact", 500, 1e-1),
    (HiSo(), "exact", 1000, 1e-1), (HiSo(), "exact", 4096, 1e-1),
    (MEASURED, "difference", 5, 3e-2), (MEASURED, "difference", 50, 1e-1), (MEASURED, "difference", 500, 3e-1),
]  # fmt: skip
"""Method, how it measures, directions a step, a learning rate at which it trains. Exact slopes: along Hadamard's."""

OUT = Path(__file__).parent.parent / "docs" / "study"


def correlations() -> Iterator[dict[str, Any]]:
    """H against the truth after so many rounds, for few and for many directions a round."""
    task = load_task("digits")
    clients = [Shard(task.train, part) for part in iid(len(task.train), 6, seed=0)]
    everything = task.train.batch(np.arange(len(task.train)))
    for method, slopes, perturbations, lr in CASES:
        for rounds in (100, 1000, 4000) if perturbations == 5 else (100, 1000):
            run = simulate(
                build("logistic", task.inputs, task.classes, seed=0), clients, task.loss, method=method, lr=lr,
                rounds=rounds, sampled=2, perturbations=perturbations, batch_size=32, slopes=slopes,
                noise="hadamard" if slopes == "exact" else "normal",
                evaluate=lambda model: task.score(model, task.test), evaluate_every=rounds,
            )  # fmt: skip
            hessian = torch.cat([state["hessian"].view(-1) for state in run.replica.state]).numpy()
            diagonal, gradient = truth(run.model, everything)
            yield {
                "method": method.name,
                "slopes": slopes,
                "perturbations": perturbations,
                "rounds": rounds,
                "accuracy": run.accuracy,
                "with_diagonal": rank_correlation(hessian, diagonal),
                "with_squared_gradient": rank_correlation(hessian, gradient**2),
                "spread": float(np.quantile(hessian, 0.9) / np.quantile(hessian, 0.1)),
                "true_spread": float(np.quantile(diagonal, 0.9) / np.quantile(np.abs(diagonal), 0.1)),
            }


def truth(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(diagonal of the Hessian, gradient) of the mean cross-entropy over the batch, in the parameters' order."""
    named = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    sizes = [value.numel() for value in named.values()]
    flat = torch.cat([value.view(-1) for value in named.values()]).requires_grad_(True)

    def loss(x: Tensor) -> Tensor:
        pieces = {name: piece.view_as(named[name]) for name, piece in zip(named, torch.split(x, sizes), strict=True)}
        inputs, labels = batch
        return nn.functional.cross_entropy(torch.func.functional_call(model, pieces, (inputs.double(),)), labels)

    (gradient,) = torch.autograd.grad(loss(flat), flat)
    hessian = torch.func.hessian(loss)(flat.detach())
    return torch.diagonal(hessian).numpy(), gradient.numpy()


class Quadratic(nn.Module):
    """f(x) = sum_i a_i x_i^2 / 2 with a from 0.0001 to 1, begun at one."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.ones(dimension))
        self.register_buffer("curvature", torch.logspace(-4, 0, dimension, dtype=torch.float64))

    def forward(self) -> Tensor:
        """The value, in float64."""
        curvature = self.get_buffer("curvature")
        return (curvature * self.x.detach().double() ** 2).sum() / 2


def quadratics() -> Iterator[dict[str, Any]]:
    """Rounds to a ten-thousandth of the first loss."""
    methods: list[Method] = [
        make_method("decomfl"),
        make_method("hiso-scalar"),
        HiSo(),
        HiSoFrozen(warmup=300),
        MEASURED,
    ]
    for dimension, rounds in ((10, 4000), (100, 4000)):
        for method in methods:
            best: tuple[float, float] = (np.inf, np.nan)
            for lr in np.logspace(-3, 3, 13):
                taken = [_rounds_to(dimension, method, float(lr), rounds, seed) for seed in (0, 1, 2)]
                best = min(best, (float(np.median(taken)), float(lr)))
            yield {"dimension": dimension, "method": method.name, "rounds": best[0], "lr": best[1], "most": rounds}


def _rounds_to(dimension: int, method: Method, lr: float, rounds: int, seed: int) -> float:
    first, found, seen = float(Quadratic(dimension)()), np.inf, 0.0

    class Enough(Exception):
        """There, or lost."""

    def evaluate(model: nn.Module) -> Score:
        nonlocal found, seen
        value = float(model())
        if value <= first / 10_000:
            found = seen
            raise Enough
        if not value < 1e6 * first:
            raise Enough
        seen += 20
        return Score(value)

    with contextlib.suppress(Enough):
        simulate(
            Quadratic(dimension), [TensorDataset(torch.zeros(1))], lambda model, _: model(), method=method, lr=lr,
            mu=1e-4, rounds=rounds, seed=seed, evaluate=evaluate, evaluate_every=20,
        )  # fmt: skip
    return found


def main() -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    parts = {"correlations": correlations, "quadratics": quadratics}
    kept = OUT / "curvature.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    found |= {name: list(parts[name]()) for name in sys.argv[1:] or parts}
    (OUT / "curvature.json").write_text(json.dumps(found, indent=1) + "\n")
    lines = [
        "| method | slopes | P | rounds | accuracy | "
        "H and Hessian's diagonal | H and squared gradient | H's 90 % / 10 % |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for one in found["correlations"]:
        lines.append(
            f"| {one['method']} | {one['slopes']} | {one['perturbations']:,} | {one['rounds']:,} | "
            f"{100 * one['accuracy']:.1f} % | "
            f"{one['with_diagonal']:.2f} | {one['with_squared_gradient']:.2f} | {one['spread']:.2f} |"
        )
    lines += ["", "| method | d = 10 | d = 100 |", "|---|---:|---:|"]
    by = {(one["method"], one["dimension"]): one for one in found["quadratics"]}
    for name in dict.fromkeys(one["method"] for one in found["quadratics"]):
        cells = [by[name, dimension] for dimension in (10, 100)]
        shown = [f"{c['rounds']:,.0f}" if np.isfinite(c["rounds"]) else f"> {c['most']:,}" for c in cells]
        lines.append(f"| {name} | {shown[0]} | {shown[1]} |")
    (OUT / "curvature.md").write_text("\n".join(lines) + "\n")
    print((OUT / "curvature.md").read_text())


if __name__ == "__main__":
    main()
