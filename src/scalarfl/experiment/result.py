"""The content of ``result.json``, derived from recipe and ledger. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scalarfl.ledger.accounting import backward_passes, final_lr, forward_passes, peak_rss_bytes, traffic
from scalarfl.ledger.entries import Evaluation, best
from scalarfl.ledger.header import BACKWARD
from scalarfl.ledger.store import Ledger
from scalarfl.protocol.schedule import diverged
from scalarfl.registry import portable

if TYPE_CHECKING:
    from scalarfl.baselines.dense import DenseRun
    from scalarfl.simulation import Run
    from scalarfl.tasks.objective import Score

UNCONFIRMED = ("seconds", "peak_rss_bytes", "backward_cost")
"""What no ledger can confirm."""


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
        )


def summary(
    keys: Mapping[str, Any],
    finished: "Run | DenseRun | Recorded",
    metric: str,
    test: "Score | None",
    backward_cost: float | None = None,
) -> dict[str, Any]:
    """The content of ``result.json`` but its checksum; bytes are means per client over the run.

    keys: the recipe's, named like ``method.lr``. test: the final model's score on the test examples, where the curve
    was measured on others; None if the curve's last point is that score. backward_cost: of a backward pass, in forward
    passes, where it was measured (``model.cost``).
    """
    clients = keys["federation.clients"]
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
        "forward_equivalents": equivalents(finished.forward_passes, finished.backward_passes, backward_cost),
        "backward_cost": backward_cost,
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
    }


def equivalents(forward: int, backward: int, cost: float | None) -> float | None:
    """``forward_passes`` in which a backward pass counts as ``cost`` and not as two; None if that was not measured."""
    if not backward:
        return float(forward)
    return None if cost is None else forward + (cost - BACKWARD) * backward


def bytes_per_client(moved: Mapping[tuple[str, str], tuple[int, int]], clients: int) -> dict[str, float]:
    """The four byte figures of a result, from ``accounting.traffic``."""
    return {
        f"{kind}_bytes_{direction}": sum(sizes[index] for (way, _), sizes in moved.items() if way == direction)
        / clients
        for index, kind in enumerate(("payload", "serialized"))
        for direction in ("up", "down")
    }
