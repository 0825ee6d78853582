"""Callbacks: a run's progress, early stopping, and a warning if the model becomes worse."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from scalarfl.errors import InputError, shown
from scalarfl.ledger.entries import Evaluation

DIVERGED = "the run diverged: no client had a finite loss any more. Lower method.lr."
Rate = float | Literal["auto"]
"""A learning rate as users give it."""
LOSS_RISE = 0.1
"""Relative rise of the loss above which a run without an accuracy is warned about."""


@dataclass(frozen=True)
class Progress:
    """A run's progress after a round has been written to disk."""

    round: int
    rounds: int
    evaluation: Evaluation | None
    """The latest evaluation."""
    loss: float
    """Mean of the cohort's losses at x in this round; NaN in a round without a sound reply."""
    bytes_up: int
    """Serialized bytes of this process's rounds so far, all clients together."""
    bytes_down: int
    clients: int = 1
    """Number of clients, for bytes per client."""


Callback = Callable[[Progress], object]
"""Called after every round. Return True or raise ``StopRun`` to end the run. Any other exception also ends it without
losing a round, but propagates."""
Callbacks = Callback | Sequence[Callback] | None
"""One, several (called in order; any of them ends the run), or none."""


class StopRun(Exception):
    """Raise this in a callback to end the run: ``simulate`` returns the run so far, which can be resumed."""


def ends(callback: Callback | None, progress: Progress) -> bool:
    """Call the callback; whether it ends the run."""
    try:
        return callback is not None and callback(progress) is True
    except StopRun:
        return True


def together(callbacks: Callbacks) -> Callback | None:
    """One callback that calls all in order, and ends the run if any of them does. Raises InputError."""
    if callbacks is None or callable(callbacks):
        return callbacks
    if not isinstance(callbacks, Sequence) or not all(callable(one) for one in callbacks):
        raise InputError(f"callbacks: found {shown(callbacks)}; accepted is a function or a list of functions.")

    def all_of_them(progress: Progress) -> bool:
        answers = [ends(one, progress) for one in callbacks]
        return any(answers)

    return all_of_them


class EarlyStopping:
    """A callback that ends a run after ``patience`` evaluations in a row without improvement.

    metric: ``accuracy`` (the task's metric; higher is better) or ``loss`` (lower is better). min_delta: the smallest
    change that counts as improvement. A resumed run starts counting again.

    Example: ``simulate(..., callbacks=EarlyStopping(patience=5))``. Raises InputError for invalid arguments.
    """

    def __init__(self, patience: int, metric: Literal["accuracy", "loss"] = "accuracy", min_delta: float = 0.0) -> None:
        if not isinstance(patience, int) or patience < 1:
            raise InputError(f"patience = {shown(patience)}: accepted is a whole number, 1 or more.")
        if metric not in ("accuracy", "loss"):
            raise InputError(f"metric = {shown(metric)}: accepted: accuracy, loss.")
        self.patience = patience
        self.metric = metric
        self.min_delta = min_delta
        self.best = -math.inf
        """The best value so far; for a loss, its negative."""
        self.best_round = -1
        self._seen, self._waited = -1, 0

    def __call__(self, progress: Progress) -> bool:
        """Whether the run should end."""
        newest = progress.evaluation
        if newest is None or newest.round == self._seen:
            return self._waited >= self.patience
        self._seen = newest.round
        value = newest.accuracy if self.metric == "accuracy" else -newest.loss
        if value is None:
            raise InputError("EarlyStopping: the evaluation gives no accuracy; use metric='loss'.")
        if value > self.best + self.min_delta:
            self.best, self.best_round, self._waited = value, newest.round, 0
        else:
            self._waited += 1
        return self._waited >= self.patience


def fallen(evaluations: Sequence[Evaluation], lr: Rate) -> str | None:
    """A warning with a remedy if the last score is clearly below the first, else None.

    An accuracy is clearly below if the difference is more than twice its standard error, sqrt(p (1 - p) / n) for each
    of the two. A loss alone, or the accuracy of an unknown number of examples, is judged by ``LOSS_RISE``.
    """
    evaluations = [one for one in evaluations if one.examples or not math.isnan(one.loss)]  # some client measured it
    if len(evaluations) < 2:
        return None
    first, last = evaluations[0], evaluations[-1]
    became = "the model became worse:"
    if first.accuracy is not None and last.accuracy is not None and first.examples and last.examples:
        shares = ((min(max(e.accuracy or 0.0, 0.0), 1.0), e.examples) for e in (first, last))
        error = math.sqrt(sum(p * (1 - p) / n for p, n in shares))
        if first.accuracy - last.accuracy <= 2 * error:
            return None
        return (
            f"{became} the score was {100 * first.accuracy:.1f} % after {first.round} rounds and is "
            f"{100 * last.accuracy:.1f} % after {last.round} (standard error {100 * error:.1f}). "
            f"{_remedy(lr)}"
        )
    if last.loss <= first.loss + LOSS_RISE * abs(first.loss):
        return None
    return (
        f"{became} the loss was {first.loss:.4g} after {first.round} rounds and is {last.loss:.4g} after {last.round}. "
        f"{_remedy(lr)}"
    )


def verdicts(evaluations: Sequence[Evaluation], rounds: int, lr: Rate, diverged: bool) -> list[str]:
    """The warnings about a run that ended after ``rounds`` rounds."""
    if diverged and lr == "auto":
        return [f"the run diverged: no client had a finite loss any more after {rounds} rounds. Check the data."]
    if diverged:
        return [
            f"{DIVERGED} It ended after {rounds} rounds; {_lower(lr)}, and check the data if no loss was ever finite."
        ]
    worse = fallen(evaluations, lr)
    if worse is None and lr == "auto" and _idle(evaluations):
        return [f"the model did not become better in {rounds} rounds. {_remedy(lr)}"]
    return [] if worse is None else [worse]


def _idle(evaluations: Sequence[Evaluation]) -> bool:
    """Whether neither the loss nor the accuracy is better at the end than at the beginning."""
    if len(evaluations) < 2 or evaluations[-1].round == evaluations[0].round:
        return False
    first, last = evaluations[0], evaluations[-1]
    return not last.loss < first.loss and not (last.accuracy or 0.0) > (first.accuracy or 0.0)


def _remedy(lr: Rate) -> str:
    """What to change where a model does not become better."""
    if lr == "auto":
        return (
            "lr = 'auto' found no step that helps: the slopes are mostly noise here. Use more rounds, perturbations, "
            "clients per round or a larger batch, or give a number for method.lr (lr in Python)."
        )
    return f"The learning rate is likely too large: {_lower(lr)}."


def _lower(lr: float | str) -> str:
    assert not isinstance(lr, str)
    return f"try {lr / 10:.1g} (method.lr in a recipe, lr in Python)"
