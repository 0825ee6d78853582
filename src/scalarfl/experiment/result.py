"""The content of ``result.json``, derived from recipe and ledger. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scalarfl.ledger.accounting import (
    backward_passes,
    displaced_passes,
    final_lr,
    forward_passes,
    peak_rss_bytes,
    traffic,
)
from scalarfl.ledger.entries import Evaluation, best
from scalarfl.ledger.header import BACKWARD
from scalarfl.ledger.store import Ledger
from scalarfl.protocol.schedule import diverged
from scalarfl.registry import portable

if TYPE_CHECKING:
    from scalarfl.baselines.dense import DenseRun
    from scalarfl.simulation import Run
    from scalarfl.tasks.objective import Score

COSTS = ("backward_cost", "displaced_cost")
"""What passes cost in plain forward passes, measured where a run has such passes."""
UNCONFIRMED = ("seconds", "peak_rss_bytes", "epsilon", *COSTS)
"""What no ledger can confirm. It does not say how many examples a client has, on which epsilon depends."""


@dataclass(frozen=True)
class Recorded:
    """A recorded run; the fields are those of ``simulation.Run``."""

    dimension: int
    evaluations: list[Evaluation]
    rounds: int
    forward_passes: int
    backward_passes: int
    traffic: dict[tuple[str, str], tuple[int, int]]
    digest: str
    head: str
    diverged: bool
    seconds: float
    lr_final: float | None = None
    displaced_passes: int = 0
    epsilon: float | None = None
    """What the clients have promised not to exceed."""

    @classmethod
    def of(cls, ledger: Ledger, dimension: int, digest: str, seconds: float = 0.0) -> "Recorded":
        """The run on a ledger. dimension, digest: the final replica's."""
        return cls(
            dimension=dimension,
            evaluations=ledger.evaluations(),
            rounds=ledger.rounds,
            forward_passes=forward_passes(ledger),
            backward_passes=backward_passes(ledger),
            traffic=traffic(ledger),
            digest=digest,
            head=ledger.head.hex(),
            diverged=diverged(ledger),
            seconds=seconds,
            lr_final=final_lr(ledger),
            displaced_passes=displaced_passes(ledger),
            epsilon=None if ledger.header.privacy is None else ledger.header.privacy["epsilon"],
        )


def summary(
    keys: Mapping[str, Any],
    finished: "Run | DenseRun | Recorded",
    metric: str,
    test: "Score | None",
    backward_cost: float | None = None,
    displaced_cost: float | None = None,
) -> dict[str, Any]:
    """The content of ``result.json`` but its checksum; bytes are means per client over the run.

    keys: the recipe's, named like ``method.lr``. test: the final model's score on the test examples, where the curve
    was measured on others; None if the curve's last point is that score. backward_cost, displaced_cost: of a backward
    pass, and of one that displaces examples, in forward passes, where they were measured (``model.cost``).
    """
    clients = keys["federation.clients"]
    private = {}
    if "privacy.epsilon" in keys:
        private = {"epsilon": getattr(finished, "epsilon", None), "delta": keys["privacy.delta"]}
    scores = finished.evaluations
    last, top = scores[-1], best(scores)
    return {
        "method": portable(keys["method.name"]),
        "task": portable(keys["task.name"]),
        "model": portable(keys["model.name"]),
        "seed": keys["federation.seed"],
        "dimension": finished.dimension,
        "clients": clients,
        "sampled": keys["federation.sampled"],
        "perturbations": keys["method.perturbations"],
        "local_steps": keys["federation.local_steps"],
        "lr": keys["method.lr"],
        **({} if finished.lr_final is None else {"lr_final": finished.lr_final}),
        "rounds": finished.rounds,
        "forward_passes": finished.forward_passes,
        "forward_equivalents": equivalents(
            finished.forward_passes,
            (finished.backward_passes, BACKWARD, backward_cost),
            (finished.displaced_passes, 1, displaced_cost),
        ),
        "backward_cost": backward_cost,
        **({} if displaced_cost is None else {"displaced_cost": displaced_cost}),
        "metric": metric,
        "accuracy": last.accuracy,
        "best_accuracy": top.accuracy,
        "best_round": top.round,
        "loss": last.loss,
        "curve": [[score.round, score.accuracy, score.loss] for score in scores],
        "validation_accuracy": None if test is None else last.accuracy,
        "test_accuracy": (test or last).accuracy,
        "test_loss": (test or last).loss,
        "test_examples": (test or last).examples,
        **bytes_per_client(finished.traffic, clients),
        "seconds": finished.seconds,
        "peak_rss_bytes": peak_rss_bytes(),
        "digest": finished.digest,
        "ledger_head": finished.head,
        "diverged": finished.diverged,
        **private,
    }


def equivalents(forward: int, *others: tuple[int, int, float | None]) -> float | None:
    """``forward_passes`` in which other passes count as what they cost; None if that was not measured.

    others: how many of a kind there are, what ``forward_passes`` counts for one, and what one costs.
    """
    found = float(forward)
    for count, counted, cost in others:
        if count and cost is None:
            return None
        found += count * ((cost or 0.0) - counted) if count else 0.0
    return found


def bytes_per_client(moved: Mapping[tuple[str, str], tuple[int, int]], clients: int) -> dict[str, float]:
    """The four byte figures of a result, from ``accounting.traffic``."""
    return {
        f"{kind}_bytes_{direction}": sum(sizes[index] for (way, _), sizes in moved.items() if way == direction)
        / clients
        for index, kind in enumerate(("payload", "serialized"))
        for direction in ("up", "down")
    }
