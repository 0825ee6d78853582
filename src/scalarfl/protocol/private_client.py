"""A client whose replies are differentially private: secret samples, clipping, noise, one durable release a task."""

import logging
from collections.abc import Generator, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from scalarfl.errors import InputError, ProtocolError
from scalarfl.ledger.codec import decode, encode
from scalarfl.model.probe import LossQuery, Question
from scalarfl.privacy.budget import Budget, BudgetSpent
from scalarfl.privacy.mechanism import sample
from scalarfl.protocol import secure_client
from scalarfl.protocol.client import Client, Steps, fetch
from scalarfl.protocol.messages import Failed, Measure, RoundReply, RoundTask, failure
from scalarfl.protocol.private import HIDDEN, SPENT
from scalarfl.protocol.secure_client import Identity
from scalarfl.protocol.transforms import Scalars

log = logging.getLogger("scalarfl")


def make_client(
    *arguments: Any, budget: Budget | None = None, identity: Identity | None = None, **named: Any
) -> Client:
    """The client with these arguments of ``Client``: private if it has a budget, else as in ``secure_client``."""
    if budget is None:
        return secure_client.make_client(*arguments, identity=identity, **named)
    return PrivateClient(*arguments, budget=budget, **named)


class PrivateClient(Client):
    """Answers rounds as ``Client`` does, such that ``budget`` bounds what all its replies tell of its data.

    - Batches are Poisson samples from the operating system's randomness, which nobody can recompute.
    - Every local step is one release: clipped, noised once (``privacy.mechanism``), and what the next step walks on.
      Transforms come after the noise.
    - Replies state no number of examples, a failure no reason, and it evaluates nothing.
    - A reply is durable, with its cost, before it is sent. The same task gets the same bytes; a task beyond the budget
      gets a failure that says so.

    What is not finite in an example's slopes counts as zero. The arguments are those of ``Client``.
    """

    private: ClassVar[bool] = True

    def __init__(self, *arguments: Any, budget: Budget, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.budget: Budget = budget
        self.unit = budget.promise.unit
        if self.unit == "example" and self.slopes not in ("forward", "central"):
            raise InputError(f"slopes = '{self.slopes}': with privacy.unit = 'example' a client needs 'difference'.")
        self._released = 0  # rows noised for the reply in the making

    @property
    def declared(self) -> int:
        """None are stated."""
        return 0

    def steps(self, message: bytes) -> Steps:
        """One round; the release of each task happens once."""
        task = decode(message, RoundTask)
        self._catch_up(task.round, task.updates)
        question = encode(RoundTask(task.round, task.seed, task.lr, task.slot, []))
        known = self.budget.known(question)
        if known is not None:
            return known
        releases = self.header.rows
        try:
            self.budget.check(releases)
        except BudgetSpent as error:
            log.warning("%(client)s: %(reason)s", {"client": self.name, "reason": str(error)})
            return encode(Failed(self.name, task.round, SPENT))
        self._released = 0
        found = decode((yield from super().steps(message)), RoundReply)
        if self._released != releases:
            raise ProtocolError(f"{self._released} noised rows of {releases}: this reply must not be sent.")
        reply = encode(RoundReply(self.name, task.round, self.declared, found.scalars))  # and nothing else
        self.budget.keep(question, reply, releases)
        return reply

    def measure(self, message: bytes) -> bytes:
        """A refusal: what a model scores on the client's examples would be another release."""
        return encode(Failed(self.name, decode(message, Measure).round, HIDDEN))

    def failed(self, message: bytes, error: Exception) -> bytes:  # noqa: ARG002
        """A failure without its reason, which may depend on an example."""
        return failure(self.name, message, _Hidden())

    def batch(self, round_: int, step: int) -> Any:  # noqa: ARG002
        """With unit "client" the examples of a secret sample; else their indices, int64[k]."""
        size = min(self.batch_size, len(self.data))
        if self.unit == "example":
            return sample(len(self.data), self.budget.terms.rate)
        return fetch(self.data, np.random.default_rng().choice(len(self.data), size, replace=False))

    def _row(self, asked: LossQuery, batches: Sequence[Any]) -> Generator[Question, list[Any], Scalars]:
        """One row of the reply, float32[1, P], clipped and noised: a release."""
        if self.unit == "client":
            vectors, divisor = (yield from super()._row(asked, batches)).astype(np.float64), 1.0
        else:
            (indices,) = batches
            vectors, divisor = (yield from self._examples(asked, indices)), self.budget.terms.rate * len(self.data)
        self._released += 1
        return self.budget.mechanism.released(vectors, divisor)[None]

    def _examples(
        self, asked: LossQuery, indices: npt.NDArray[np.int64]
    ) -> Generator[Question, list[Any], npt.NDArray[np.float64]]:
        """float64[k, P], or with P + 1 where the slope along the latest move is asked for: of the examples sampled."""
        h = self.header
        if not len(indices):
            return np.zeros((0, len(asked.points)))
        asked = asked._replace(batch=fetch(self.data, indices), examples=len(indices))
        if self.slopes == "forward":
            at_x, *ahead = yield asked
            return _slopes(ahead, [at_x] * len(ahead), h.mu)
        ahead = yield asked._replace(bare=True)
        behind = yield asked._replace(bare=True, mu=-h.mu)
        return _slopes(ahead, behind, 2 * h.mu)


class _Hidden(Exception):
    """Any error."""


_Hidden.__name__ = HIDDEN


def _slopes(
    ahead: list[npt.NDArray[np.float64]], behind: list[npt.NDArray[np.float64]], distance: float
) -> npt.NDArray[np.float64]:
    """float64[k, P]: every example's slopes along all directions."""
    with np.errstate(all="ignore"):
        found: npt.NDArray[np.float64] = (np.stack(ahead, axis=1) - np.stack(behind, axis=1)) / distance
    return found
