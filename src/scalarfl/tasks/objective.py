"""Objectives: a loss to train on, a score to report."""

from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, NamedTuple

from torch import Tensor, nn

from scalarfl.errors import InputError, shown

Loss = Callable[[nn.Module, Any], Tensor | float]
"""(model, batch) -> the mean loss as one number, reduced in float32, without a gradient. A tensor with one loss per
example is averaged; what needs the examples' own losses takes them before that (``as_losses``)."""


class Score(NamedTuple):
    """The result of an evaluation."""

    loss: float
    accuracy: float | None = None
    """The task's metric, from 0 to 1: accuracy, or for example F1."""
    examples: int = 0
    metrics: Mapping[str, float] | None = None
    """All metrics by name, including ``accuracy``."""


Evaluate = Callable[[nn.Module], Score | float]
"""model -> Score, or just the loss."""


def as_score(measured: object) -> Score:
    """An ``Evaluate``'s result as a Score. Raises InputError unless it is a Score or a number."""
    if isinstance(measured, Score):
        return measured
    if isinstance(measured, Tensor) and measured.numel() == 1:
        measured = measured.item()
    if isinstance(measured, Real):
        return Score(float(measured))
    raise InputError(f"evaluate: it returned {shown(measured)}; accepted is a loss or scalarfl.Score(loss, accuracy).")


def as_losses(returned: object, examples: int) -> Tensor:
    """A ``Loss``'s result as one loss for each example of a batch, float64[B]. Raises InputError if it is not.

    examples: B, how many the batch holds. With the losses at x and at x + mu z, one forward pass gives the slopes of
    all examples along z, (losses(x + mu z) - losses(x)) / mu, and their mean is the batch's slope.
    """
    if isinstance(returned, Tensor) and returned.shape == (examples,) and not returned.is_complex():
        return returned.double()
    found = f"shape {tuple(returned.shape)}" if isinstance(returned, Tensor) else shown(returned)
    raise InputError(
        f"loss: the losses of {examples} examples are wanted, and it returned {found}. Return one number for each "
        "example, not their mean: cross_entropy(..., reduction='none'), or a task's `losses`."
    )


def as_loss(returned: object) -> Tensor | float:
    """A ``Loss``'s result as one number. Raises InputError if it has no mean."""
    if isinstance(returned, Tensor) and returned.numel() and not returned.is_complex():
        if returned.numel() == 1:
            return returned.reshape(())
        return (returned.float() if returned.element_size() < 4 else returned.double()).mean()
    if isinstance(returned, Real):
        return float(returned)
    if isinstance(getattr(returned, "loss", None), Tensor):
        raise InputError(f"loss: it returned a {type(returned).__name__}; return its `.loss`.")
    raise InputError(
        f"loss: it returned {shown(returned)}; accepted is a number, or a tensor with one number for each example."
    )
