"""What a model is judged by: a loss to train on, a score to report."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

Loss = Callable[[nn.Module, Any], Tensor | float]
"""Of a model and a batch: the mean loss as one number, reduced in float32. No gradient is taken."""


class Score(NamedTuple):
    """What an evaluation finds."""

    loss: float
    accuracy: float | None = None
    examples: int = 0


Evaluate = Callable[[nn.Module], Score | float]
"""Of a model: a Score, or the loss alone."""
