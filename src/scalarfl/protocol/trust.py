"""What a server believes of a client: how large its scalars may be, and how many examples it may have.

Both rules look only at what is on the ledger, so that a server that was restarted judges alike.
"""

import statistics
from bisect import insort
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

from scalarfl.errors import ProtocolError
from scalarfl.protocol.aggregation import WEIGHT, Scalars

LARGEST = 1e15
"""No scalar may be larger in magnitude: its square would overflow a method's float32 state."""
FACTOR = 1e3
"""A scalar may be so many times larger than those that clients usually send."""
EARLY = 1e6
"""The same before ``FEWEST`` rounds are on record: slopes may grow fast in the first rounds."""
MAJORITY = 3
"""Replies of which one round's median can be believed: of two, either may be the false one."""
WINDOW, FEWEST = 25, 5
"""Rounds over which "usually" is taken, and rounds without which nothing is usual yet."""


def sizes(scalars: Scalars) -> list[float]:
    """The largest magnitude of each kind of scalar (slope, second difference) in [local_steps, kinds, P] scalars."""
    largest: list[float] = np.abs(scalars).max(axis=(0, 2)).tolist()
    return largest


def usual(replies: Sequence[Scalars]) -> list[float]:
    """The median of the clients' ``sizes`` in one round; of an even number the lower."""
    return [statistics.median_low(kind) for kind in zip(*map(sizes, replies), strict=True)]


class Magnitudes:
    """Bounds scalars by those of the rounds so far.

    A round's size is ``usual``: a minority of its cohort cannot move it. What clients usually send is the median over
    ``WINDOW`` rounds; the bound is ``FACTOR`` times the highest such median so far, as slopes shrink while a model
    learns, and a hard batch then has an honest slope as large as in the beginning. Before there are ``FEWEST`` rounds
    it is ``EARLY`` times the highest round's size, the round at hand included (``outliers``).
    """

    def __init__(self, kinds: int) -> None:
        self._recent: list[deque[float]] = [deque(maxlen=WINDOW) for _ in range(kinds)]
        self._highest = [0.0] * kinds
        self._first = [0.0] * kinds  # the highest size of a round, until there are enough of them

    def note(self, found: Sequence[float]) -> None:
        """Take in the sizes of a round that is on record."""
        for kind, size in enumerate(found):
            if size > 0:
                recent = self._recent[kind]
                recent.append(size)
                self._first[kind] = max(self._first[kind], size)
                if len(recent) >= FEWEST:
                    self._highest[kind] = max(self._highest[kind], statistics.median_low(recent))

    def check(self, scalars: Scalars) -> None:
        """Raise ProtocolError where a scalar is not finite or too large."""
        finite = np.isfinite(scalars)
        if not finite.all():
            raise ProtocolError(f"{int((~finite).sum())} of {scalars.size} scalars are not finite.")
        for size, highest, first in zip(sizes(scalars), self._highest, self._first, strict=True):
            bound = min(LARGEST, FACTOR * highest or EARLY * first or LARGEST)
            if size > bound:
                raise ProtocolError(beyond(size, bound))

    def outliers(self, replies: Mapping[str, Scalars]) -> dict[str, str]:
        """Clients whose scalars are too large beside the others' of the same round, each with the reason.

        Until there are enough rounds on record, and of ``MAJORITY`` replies or more: then the round's own median is
        what is known of how large scalars are.
        """
        found: dict[str, str] = {}
        if len(replies) < MAJORITY:
            return found
        for kind, own in enumerate(usual(list(replies.values()))):
            bound = EARLY * max(own, self._first[kind])
            if own == 0 or self._highest[kind]:
                continue
            for client, scalars in replies.items():
                size = sizes(scalars)[kind]
                if size > bound:
                    found[client] = beyond(size, bound)
        return found


def beyond(size: float, bound: float) -> str:
    """Why a reply is refused."""
    return f"a scalar of {size:.3g} is beyond {bound:.3g} in magnitude."


class Examples:
    """Bounds the numbers of examples that clients declare, where they serve as weights.

    A client's number cannot grow after its first reply that counted, and no client weighs more than ``WEIGHT`` times
    the median of all first numbers (of an even number the higher: of two clients, neither is the usual one).
    """

    def __init__(self) -> None:
        self._first: dict[str, int] = {}
        self._sorted: list[int] = []

    def note(self, declared: Mapping[str, int]) -> None:
        """Take in what the participants of a round declared."""
        for client, examples in declared.items():
            if client not in self._first:
                self._first[client] = examples
                insort(self._sorted, examples)

    def counted(self, declared: Mapping[str, int]) -> list[int]:
        """What counts of the numbers that participants, noted already, declare."""
        bound = WEIGHT * self._sorted[len(self._sorted) // 2] if self._sorted else 0
        return [min(examples, self._first[client], bound) for client, examples in declared.items()]
