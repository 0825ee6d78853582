"""Rules that withstand clients who send false scalars: coordinate-wise, on shared directions."""

from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from scalarfl.protocol.aggregation.base import Aggregator, Reply, Scalars, State

Vectors = npt.NDArray[np.float64]
"""float64[m, n]: of m clients, all scalars of one kind."""


class Median(Aggregator):
    """The median of every scalar over the clients; of an even number the mean of the middle two.

    Fewer than half of the cohort cannot move it beyond the others' values. It also drops what honest clients disagree
    about, so it is the slowest of the robust rules where their data differ.
    """

    name: ClassVar[str] = "median"
    summary: ClassVar[str] = "the median of every scalar over the clients"
    source: ClassVar[str] = "arXiv 1803.01498, definition 1"

    def aggregate(self, state: State, replies: Sequence[Reply]) -> tuple[Scalars, State]:
        """Nothing is remembered."""
        return _each_kind(replies, lambda vectors: np.median(vectors, axis=0)), state


class TrimmedMean(Aggregator):
    """The mean of every scalar over the clients, without its F largest and its F smallest values.

    F is ``attackers``, or as many as leave one value of a round with fewer than 2 F + 1 replies.
    """

    name: ClassVar[str] = "trimmed-mean"
    summary: ClassVar[str] = "the mean of every scalar without its F largest and smallest values"
    source: ClassVar[str] = "arXiv 1803.01498, definition 2"
    needs_attackers: ClassVar[bool] = True

    def aggregate(self, state: State, replies: Sequence[Reply]) -> tuple[Scalars, State]:
        """Nothing is remembered."""
        return _each_kind(replies, lambda vectors: trimmed(vectors, self.attackers)), state


class NnmTrim(Aggregator):
    """Nearest-neighbour mixing, then the trimmed mean.

        y_i  = the mean of the m - F replies that are nearest to g_i, g_i itself included   (Euclidean distance)
        gbar = the mean of every scalar of y_1 ... y_m without its F largest and F smallest values

    Mixing shrinks how much honest clients differ before the trimming, so that a false reply cannot hide among them: the
    composition's error is of the optimal order, F / m times the variance between honest clients (theorem 1 of the
    paper). F is ``attackers``, or less in a round with fewer than 2 F + 1 replies. Slopes and second differences are
    mixed apart, each over all local steps.
    """

    name: ClassVar[str] = "nnm-trim"
    summary: ClassVar[str] = "nearest-neighbour mixing, then the trimmed mean"
    source: ClassVar[str] = "arXiv 2302.01772, algorithm 2"
    needs_attackers: ClassVar[bool] = True

    def aggregate(self, state: State, replies: Sequence[Reply]) -> tuple[Scalars, State]:
        """Nothing is remembered."""
        return _each_kind(replies, lambda v: trimmed(mixed(v, self.attackers), self.attackers)), state


def trimmed(vectors: Vectors, attackers: int) -> Vectors:
    """float64[n]: the mean over the clients without the extremes of every coordinate."""
    cut = _at_most(attackers, len(vectors))
    inner: Vectors = np.sort(vectors, axis=0)[cut : len(vectors) - cut].mean(axis=0)
    return inner


def mixed(vectors: Vectors, attackers: int) -> Vectors:
    """float64[m, n]: in place of each vector the mean of the nearest, as many as are honest at least."""
    near = len(vectors) - _at_most(attackers, len(vectors))
    found = np.empty_like(vectors)
    for index, one in enumerate(vectors):  # never m x m x n numbers at once
        distances = np.square(vectors - one).sum(axis=1)
        found[index] = vectors[np.argsort(distances, kind="stable")[:near]].mean(axis=0)
    return found


def _at_most(attackers: int, clients: int) -> int:
    """F, or fewer where so few replies came that nothing would be left."""
    return min(attackers, (clients - 1) // 2)


def _each_kind(replies: Sequence[Reply], rule: Callable[[Vectors], Vectors]) -> Scalars:
    """The rule on slopes and on second differences apart; float32[local_steps, kinds, P]."""
    stacked = np.stack([reply.scalars for reply in replies]).astype(np.float64)
    clients, rows, kinds, directions = stacked.shape
    found = [rule(stacked[:, :, kind].reshape(clients, -1)).reshape(rows, directions) for kind in range(kinds)]
    return np.stack(found, axis=1).astype(np.float32)
