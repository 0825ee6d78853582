"""A federation's result.json, from recipe and ledger in its server's folder. No model and no torch."""

from pathlib import Path
from typing import Any

from scalarfl.experiment.result import Recorded, summary
from scalarfl.experiment.run_folder import RECIPE, keep_result, keys_of, open_ledger


def conclude(folder: Path, metric: str, seconds: float) -> dict[str, Any] | None:
    """Write result.json and return its content; None if the final model was not measured on the test examples.

    metric: name of the task's. seconds: how long the server ran. Raises InputError if it cannot be written.
    """
    keys = keys_of((folder / RECIPE).read_text(encoding="utf-8"))
    with open_ledger(folder) as ledger:
        scores = ledger.evaluations()
        if not scores or scores[-1].round != ledger.rounds or not scores[-1].digest or keys["task.validation"]:
            return None
        recorded = Recorded.of(ledger, ledger.header.dimension, scores[-1].digest.hex(), seconds)
    return keep_result(folder, summary(keys, recorded, metric, None))
