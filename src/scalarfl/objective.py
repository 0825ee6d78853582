"""What a model is judged by: a loss to train on, a score to report."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

Loss = Callable[[nn.Module, Any], Tensor | float]
"""Of a model and a batch: the mean loss as one number, reduced in float32. No gradient is taken."""


class Score(NamedTuple):
    """What an evaluation finds."""

    loss: float
    accuracy: float | None = None
    """The task's metric, 0 to 1: accuracy, or what the task is measured by, such as F1."""
    examples: int = 0
    metrics: Mapping[str, float] | None = None
    """Everything that was measured, by name, the metric among it."""


Evaluate = Callable[[nn.Module], Score | float]
"""Of a model: a Score, or the loss alone."""


def as_score(measured: Score | float) -> Score:
    """What an ``Evaluate`` returned, as a Score."""
    return measured if isinstance(measured, Score) else Score(float(measured))
