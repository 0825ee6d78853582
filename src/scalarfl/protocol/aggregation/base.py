"""How the server makes one vector of scalars out of the cohort's: it sees nothing else."""

import statistics
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

WEIGHT = 10
"""A client may weigh as much as so many clients of the median's number of examples."""

Scalars = npt.NDArray[np.float32]
Weights = npt.NDArray[np.float64]

State = Any
"""What an aggregator remembers from round to round: None, or numbers, texts, lists and dicts of such (MessagePack).
Every round's state is on the ledger, from which a server that was restarted takes it."""


class Reply(NamedTuple):
    """What counts of a client's reply."""

    client: str
    examples: int
    """Training examples, as far as the server believes the client (``trust.Examples``)."""
    scalars: Scalars
    """float32[local_steps, kinds, P], finite."""


class Aggregator(ABC):
    """A rule that makes one reply out of the cohort's, and may remember something from round to round.

    It must be a pure function of its arguments: no draws, no clock, nothing kept in the object. It is made without
    arguments, so that its name says all. Clients must share
    their directions, and no baseline that sends tensors can use it; a rule that gives every client a weight has neither
    limit: derive it from ``Linear``.
    """

    name: ClassVar[str]
    """The name in recipes and in the ledger's header."""
    summary: ClassVar[str]
    """One line for lists."""
    source: ClassVar[str]
    """Where the rule was published."""
    needs_attackers: ClassVar[bool] = False
    """Whether the rule does nothing before it knows how many clients may lie."""

    attackers: int = 0
    """F, clients of a cohort that may send false scalars: ``federation.attackers``, set before the first round."""

    def init(self) -> State:
        """The state before the first round. By default None: nothing is remembered, and nothing recorded."""
        return None

    @abstractmethod
    def aggregate(self, state: State, replies: Sequence[Reply]) -> tuple[Scalars, State]:
        """The scalars that go on the ledger, float32 and finite, shaped like one reply's; and the state afterwards.

        replies: those that count, one or more, in the order of the cohort, which means nothing. Not called in a round
        without any.
        """


class Linear(Aggregator):
    """A rule that gives every client a weight, from its number of examples alone."""

    @abstractmethod
    def weights(self, examples: Sequence[int]) -> Weights:
        """float64[m] that sum to 1, from the clients' numbers of examples."""

    def aggregate(self, state: State, replies: Sequence[Reply]) -> tuple[Scalars, State]:
        """The weighted mean."""
        weights = self.weights([reply.examples for reply in replies])
        return shared(weights, [reply.scalars for reply in replies]), state


def shared(weights: Weights, replies: Sequence[npt.NDArray[np.floating]]) -> Scalars:
    """[steps, kinds, P]: the weighted mean over clients that share directions; summed in float64, then float32."""
    total = np.zeros(replies[0].shape, dtype=np.float64)
    for weight, scalars in zip(weights, replies, strict=True):
        total += weight * scalars.astype(np.float64)
    return total.astype(np.float32)


def per_client(weights: Weights, replies: Sequence[Scalars]) -> Scalars:
    """[steps, kinds, m P]: each client's scalars on its own directions, such that their plain mean is weighted."""
    count = len(replies)
    scaled = [weight * count * scalars.astype(np.float64) for weight, scalars in zip(weights, replies, strict=True)]
    return np.concatenate(scaled, axis=-1).astype(np.float32)


def pooled(
    examples: Sequence[int], losses: Sequence[float], accuracies: Sequence[float | None]
) -> tuple[float, float | None, int]:
    """Loss and accuracy on all examples together, from those on each part, and how many examples the accuracy is of.

    A part weighs by its number of examples, and no more than ``WEIGHT`` times the (higher) median of these. Parts
    without an accuracy are left out of it; it is None where no part has one.
    """
    bound = WEIGHT * statistics.median_high(examples)
    weights = [min(count, bound) for count in examples]
    loss = sum(weight * loss for weight, loss in zip(weights, losses, strict=True)) / sum(weights)
    known = [(weight, value) for weight, value in zip(weights, accuracies, strict=True) if value is not None]
    measured = sum(count for count, value in zip(examples, accuracies, strict=True) if value is not None)
    if not known:
        return loss, None, 0
    return loss, sum(weight * value for weight, value in known) / sum(weight for weight, _ in known), measured
