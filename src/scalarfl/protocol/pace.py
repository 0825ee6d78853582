"""lr = "auto": the server sets the learning rate by the slope along the latest move. docs/learning-rate.md.

The state lies in every round's audit, and every record has the learning rate that replicas apply it with: replay needs
no controller, and a restarted server continues with the same bits.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from scalarfl.ledger.codec import unpack
from scalarfl.ledger.entries import Audit
from scalarfl.ledger.header import Header
from scalarfl.ledger.update import Update

START, LONGEST = 0.1, 1.0
"""Length of the first step in units of mu: where no learning rate is given to start from, and at most."""
FASTEST, SLOWEST = 1.2, 0.06
"""Bounds of the gain: the change of log lr in a round whose ratio is as large as usual."""
FASTER, SLOWER, DOWNHILL = 1.25, 0.7, 0.3
"""The gain grows where the recent ratio is above ``DOWNHILL``, and shrinks where it is negative."""
RECENT, USUAL = 0.7, 0.9
"""Weights of the past in the average of the ratio, and in those of its square and of the scalars' norm."""
LARGEST_PUSH = 1.0
"""A round's largest change of log lr, in units of the gain."""
BEYOND = 5.0
"""Standard errors beyond -1 at which a step made the loss rise and is taken back."""
AFTER_OVERFLOW = 0.1
"""Factor of lr after a round without a finite loss."""


class State(msgspec.Struct, array_like=True, frozen=True):
    """What the controller knows after a round."""

    lr: float
    """Of the next round."""
    gain: float = FASTEST
    recent: float = 0.0
    square: float = 0.0
    norm: float = 0.0
    """Averages of the ratio, of its square and of the scalars' squared norm; the last two are to be divided by
    ``weight``."""
    weight: float = 0.0


class Pace:
    """The learning rate of a run: given, or controlled.

    lr: the given one, or the one to start from; None to find that too.
    """

    def __init__(self, header: Header, lr: float | None) -> None:
        self._header = header
        self._first = lr
        self._state: State | None = None

    @property
    def lr(self) -> float:
        """Of the next round; 0 in a first round that is to find it: clients stay at x then, and the end sets it."""
        return (self._first or 0.0) if self._state is None else self._state.lr

    def recall(self, audit: Audit) -> None:
        """Restore the state from a round's audit."""
        if audit.pace is not None:
            self._state = msgspec.convert(audit.pace, State)

    def decided(self, update: Update, latest: Update | None, along: Sequence[float]) -> tuple[Update, Any]:
        """The round as it goes on record, and the state for its audit.

        update: the round as the replies give it. latest: the round before. along: the clients' slopes along it.
        """
        if self._state is None:
            update, self._state = self._begun(update)
        elif latest is not None and latest.moved:
            update, self._state = self._judged(self._state, update, latest, along)
        return update, None if self._state is None else msgspec.to_builtins(self._state)

    def _begun(self, update: Update) -> tuple[Update, State | None]:
        """The first step with usable scalars. One much longer may end where every slope is zero, and say nothing."""
        scalars = _slopes(update)
        norm = float(np.linalg.norm(scalars))
        if not norm:
            return update, None
        directions = len(update.perturbations)
        length = max(norm / directions, 1 / math.sqrt(directions))  # the latter for methods that normalise their step
        unit = self._header.mu / length
        lr = min(update.lr, LONGEST * unit) if update.lr else START * unit
        return msgspec.structs.replace(update, lr=lr), State(lr)

    def _judged(self, old: State, update: Update, latest: Update, along: Sequence[float]) -> tuple[Update, State]:
        """The state after a round that followed a step, and that round's record: its own, or the step taken back."""
        slower = max(SLOWEST, old.gain * SLOWER)
        if not update.slots:  # no finite loss
            lr = old.lr * AFTER_OVERFLOW
            return _back(update, latest, 1.0), msgspec.structs.replace(old, lr=lr, gain=slower, recent=0.0)
        scalars = _slopes(latest)
        square = float(np.square(scalars).sum())
        weight = USUAL * old.weight + 1 - USUAL
        norm = USUAL * old.norm + (1 - USUAL) * square
        expected = math.sqrt(max(square, norm / weight))
        ratio = statistics.median(along) / expected if expected else 0.0
        if ratio < -(1 + BEYOND / math.sqrt(scalars.size)):
            kept = 1 / (1 - ratio)  # where the slope along the step, a straight line, is zero
            state = msgspec.structs.replace(old, lr=old.lr * kept, gain=slower, recent=0.0)
            return _back(update, latest, 1 - kept), state
        ratio = max(-1.0, min(1.0, ratio))
        recent = RECENT * old.recent + (1 - RECENT) * ratio
        usual = USUAL * old.square + (1 - USUAL) * ratio**2
        gain = slower if recent < 0 else min(FASTEST, old.gain * FASTER) if recent > DOWNHILL else old.gain
        push = ratio / math.sqrt(usual / weight) if usual else 0.0
        lr = old.lr * math.exp(gain * max(-LARGEST_PUSH, min(LARGEST_PUSH, push)))
        return update, State(lr, gain, recent, usual, norm, weight)


def follows(update: Update, latest: Update | None, audit: Audit | None) -> bool:
    """Whether a controlled record is what the round before leads to: its lr, or a step back along it.

    latest, audit: the round before's; None before the first.
    """
    if latest is None or audit is None or audit.pace is None:
        return update.lr >= 0
    back = latest.moved and -latest.lr <= update.lr < 0
    same = msgspec.structs.replace(latest, round=update.round, lr=update.lr) == update
    return (back and same) or update.lr == msgspec.convert(audit.pace, State).lr


def _slopes(update: Update) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """float64[steps, directions], of a record."""
    return unpack(update.scalars).reshape(update.local_steps, update.kinds, -1)[:, 0].astype(np.float64)


def _back(update: Update, latest: Update, share: float) -> Update:
    """The record that takes a share of the latest step back: the same directions and scalars, with a negative lr."""
    return msgspec.structs.replace(latest, round=update.round, lr=-share * latest.lr)
