"""When a run is measured, followed and ended: one rule for every transport and for the dense baselines."""

import math
from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from inspect import isawaitable
from typing import Any, TypeVar

from scalarfl.errors import note, warn
from scalarfl.ledger.accounting import unused
from scalarfl.ledger.entries import Evaluation, best
from scalarfl.ledger.store import Ledger
from scalarfl.protocol.callbacks import Callbacks, Progress, Rate, ends, fallen, together, verdicts

DIVERGED_AFTER = 10
"""Rounds in a row without a usable reply after which a run has diverged and ends."""

T = TypeVar("T")
Work = Generator[Any, Any, T]
"""Work that yields what a transport's methods return, is sent what came of it, and returns T."""


@dataclass(frozen=True)
class Policy:
    """When a round begins, how long it lasts, what it needs, and when a run is measured and ends."""

    rounds: int
    """On the ledger when the run is over."""
    minimum: int = 1
    """Clients that must be present before a round begins."""
    quorum: int = 1
    """Replies that a round needs, or all of the cohort's; one that has fewer at its deadline is retried."""
    deadline: float = 60.0
    """Seconds that a round or an evaluation waits for its replies."""
    again: float = math.inf
    """Seconds after which a client that has not answered is asked once more."""
    expected: int = 0
    """Clients to wait for, for as long as the deadline, before ``minimum`` of them are enough. Those that were waited
    for in vain are expected again once they are back."""
    evaluate_every: int = 0
    """Rounds between two measurements of the model, which is also measured before the first and after the last; 0:
    it is not measured."""
    patience: int = 0
    """Measurements in a row without a better score after which the run ends; 0: it goes on."""
    diverged_after: int = DIVERGED_AFTER
    """Rounds in a row without a usable reply after which the run has diverged and ends."""


class Rounds(ABC):
    """Rounds up to the last one, and what goes on between them: measuring, callbacks, an early end.

    A subclass says what a round is. Attributes:

        evaluations: all measurements of the run, oldest first.
        stopped: whether a callback ended the run.
        warnings: what is likely wrong with the run, with the remedy; complete when it has ended.
        bytes_up, bytes_down: serialized bytes of this process's rounds, all clients together.
    """

    def __init__(self, policy: Policy, callbacks: Callbacks = None) -> None:
        self.policy = policy
        self.callbacks = together(callbacks)
        self.evaluations: list[Evaluation] = []
        self.stopped = False
        self.warnings: list[str] = []
        self.bytes_up = self.bytes_down = 0

    @property
    @abstractmethod
    def rounds(self) -> int:
        """Rounds on record."""

    @property
    @abstractmethod
    def known(self) -> int:
        """Number of clients that ever took part or could."""

    @property
    @abstractmethod
    def unused(self) -> int:
        """Rounds in a row, up to the latest, without a usable reply."""

    @property
    @abstractmethod
    def lr(self) -> Rate:
        """The learning rate, as it was given."""

    @abstractmethod
    def _round(self) -> Work[float | None]:
        """Do a round; returns the cohort's mean loss at x, NaN if unknown, or None where it is to be retried."""

    @abstractmethod
    def _evaluation(self) -> Work[Evaluation]:
        """Measure the model, and put that on record."""

    @property
    def diverged(self) -> bool:
        """Whether the run ended, or ends now, because no client had a finite loss any more."""
        return self.unused >= self.policy.diverged_after

    @property
    def exhausted(self) -> bool:
        """Whether the run ended, or ends now, because ``patience`` measurements in a row brought no better score.

        The measurements are on the ledger, so whoever continues the run decides alike.
        """
        patience, every = self.policy.patience, self.policy.evaluate_every
        due = [score for score in self.evaluations if every and score.round % every == 0]
        return bool(patience and due) and len(due) - due.index(best(due)) > patience

    @property
    def early(self) -> str:
        """Why the run ended before its last round, if not by divergence, patience or a callback."""
        return ""

    @property
    def over(self) -> bool:
        """Whether no more rounds will be recorded."""
        return self.rounds >= self.policy.rounds or self.diverged or self.exhausted

    def run(self) -> None:
        """Run to the end. For a transport of plain functions."""
        steps, answer = self.steps(), None
        while True:
            try:
                answer = steps.send(answer)
            except StopIteration:
                return

    async def run_async(self) -> None:
        """Run to the end. For a transport with coroutines."""
        steps, answer = self.steps(), None
        while True:
            try:
                answer = steps.send(answer)
            except StopIteration:
                return
            if isawaitable(answer):
                answer = await answer

    def steps(self) -> Work[None]:
        """The whole run, as work for a driver such as ``run``."""
        yield from self._measure(last=self.over)
        while not (self.over or self.stopped):
            loss = yield from self._round()
            if loss is None:
                continue
            yield from self._measure(last=self.over)
            newest = self.evaluations[-1] if self.evaluations else None
            moved = self.bytes_up, self.bytes_down
            progress = Progress(self.rounds, self.policy.rounds, newest, loss, *moved, max(1, self.known))
            self.stopped = ends(self.callbacks, progress)
        yield from self._measure(last=True)
        if self.exhausted and self.rounds < self.policy.rounds:
            top = best(self.evaluations)
            note(f"ended early after {self.rounds} rounds: no score was better than that of round {top.round}.")
        told, self.warnings = self.warnings, verdicts(self.evaluations, self.rounds, self.lr, self.diverged)
        self.warnings += [self.early] if self.early else []
        for warning in self.warnings:
            if warning not in told:
                warn(warning)

    def _measure(self, last: bool) -> Work[None]:
        """Measure the model if it is time, and warn once where it became worse."""
        done, every = self.rounds, self.policy.evaluate_every
        if not every or (done % every and not last) or (self.evaluations and self.evaluations[-1].round == done):
            return
        self.evaluations.append((yield from self._evaluation()))
        worse = fallen(self.evaluations, self.lr)
        if worse is not None and not self.warnings:
            self.warnings = [warn(worse)]


def diverged(ledger: Ledger) -> bool:
    """Whether the run on a ledger ended because no client had a finite loss any more."""
    return unused(ledger) >= DIVERGED_AFTER
