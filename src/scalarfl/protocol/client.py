"""The client's half of the paper's Algorithm 1, as pure protocol without any transport."""

from collections.abc import Callable, Generator, Sequence
from inspect import signature
from typing import Any, ClassVar, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import default_collate

from scalarfl.errors import InputError, ProtocolError
from scalarfl.ledger.codec import coefficients, decode, encode, pack
from scalarfl.ledger.header import FOLLOWED, FoundBy, Header
from scalarfl.ledger.update import Update
from scalarfl.model.gradients import Local, Training
from scalarfl.model.probe import LossQuery, Probe, Question, Walk
from scalarfl.noise.seeds import derive, generator
from scalarfl.privacy.budget import Budget
from scalarfl.protocol.config import BY_LOSSES, LocalOptimizer, Slopes
from scalarfl.protocol.messages import (
    PROTOCOL,
    Hello,
    HelloOtherwise,
    Measure,
    Measured,
    RoundReply,
    RoundTask,
    Welcome,
    failure,
)
from scalarfl.protocol.transforms import Context, Scalars, make_transforms, transformed
from scalarfl.tasks.objective import Evaluate, as_score


class Dataset(Protocol):
    """A client's training data, a map-style dataset as in ``torch.utils.data``: a length, and one example per index.

    If it has a method ``batch(indices)``, with that argument name, this makes the batches; otherwise torch collates
    examples.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


Steps = Generator[Question, list[float], bytes]
"""A client's round: yields loss queries, receives the losses, returns the encoded reply."""


SAME_NUMBERS = {"forward", "central", "exact"}
"""Ways to find the same scalars, up to rounding and curvature; clients of one federation may differ in them."""


class Refused(ProtocolError):
    """Server and client are incompatible, or the server is faulty; the text is the server's if it refuses."""


class Client:
    """One client: a name, data that never leave it, and a replica.

    In a simulation all clients share one replica; over a network each has its own.
    """

    private: ClassVar[bool] = False
    """Whether it keeps the promise of a header with ``privacy``."""
    budget: Budget | None = None
    """What it may still release; None without differential privacy."""

    def __init__(
        self,
        name: str,
        data: Dataset,
        probe: Probe,
        header: Header,
        batch_size: int,
        evaluate: Evaluate | None = None,
        local: Local | None = None,
        slopes: Slopes | None = None,
    ) -> None:
        if (header.privacy is not None) != self.private:
            raise InputError(f"{name}: a federation with [privacy] needs a PrivateClient, another one a Client.")
        self.name = name
        self.data = data
        self.probe = probe
        self.header = header
        self.batch_size = batch_size
        self.evaluate = evaluate
        """Evaluates the model on the client's own held-out examples; None if it has none."""
        self.transforms = make_transforms(header.transforms)
        self.local = local or Local()
        """The optimizer of projected local training; clients may differ."""
        self.slopes = header.found_by if slopes is None else own_way(slopes, header.found_by, self.local.optimizer)
        """How this client finds its scalars: as in the header, or another way to the same numbers."""
        if header.directions == "per-example" and self.slopes == "exact":
            raise InputError("slopes = 'exact': a direction for every example is measured by differences of losses.")

    @property
    def declared(self) -> int:
        """The number of examples that replies state."""
        return len(self.data)

    def failed(self, message: bytes, error: Exception) -> bytes:
        """The encoded Failed in answer to a message that could not be answered."""
        return failure(self.name, message, error)

    def hello(self) -> bytes:
        """The handshake's request: the client's name, its contract, its position."""
        replica, h = self.probe.replica, self.header
        hello = Hello(PROTOCOL, self.name, **h.contract(), position=replica.position, trail=replica.trail[:8])
        if self.slopes == h.found_by:
            return encode(hello)
        return encode(HelloOtherwise(**msgspec.structs.asdict(hello), found_by=self.slopes))

    def welcomed(self, answer: bytes) -> int:
        """Read the server's answer; returns the number of rounds on its ledger."""
        welcome = decode(answer, Welcome)
        if welcome.protocol != PROTOCOL:
            raise ProtocolError(f"the server speaks protocol {welcome.protocol}, this client {PROTOCOL}.")
        return welcome.rounds

    def answer(self, message: bytes) -> bytes:
        """Do one round alone: an encoded RoundTask in, an encoded RoundReply out."""
        steps = self.steps(message)
        try:
            question = next(steps)
            while True:
                question = steps.send(self.probe.measure([question])[0])
        except StopIteration as done:
            reply: bytes = done.value
            return reply

    def steps(self, message: bytes) -> Steps:
        """One round as a generator, so that a simulation can answer the queries of a whole cohort together.

        Raises Refused for a seed that does not follow from the header: whoever may choose directions can aim them.
        """
        task = decode(message, RoundTask)
        self._catch_up(task.round, task.updates)

        h = self.header
        expected = derive(h.seed, "directions", task.round)
        if task.seed != expected:
            raise Refused(
                f"the server is faulty: it announced the seed {task.seed} for round {task.round}, the header implies "
                f"{expected}. {self.name} answers nothing; ask the server's operator."
            )
        own = range(task.slot * h.shape[-1], (task.slot + 1) * h.shape[-1])
        back = self._latest(task) if h.extra else None
        scalars = np.zeros(h.shape, dtype=np.float32)
        along = np.zeros(h.extra, dtype=np.float32)
        batches = (self.batch(task.round, step) for step in range(h.local_steps))
        rows = [tuple(batches)] if h.found_by == "training" else ((batch,) for batch in batches)
        walk: Walk = ()
        for row, together in enumerate(rows):
            asked = LossQuery(task.seed, task.lr, h.mu, walk, own, None, back=None if row else back)
            found = yield from self._row(asked, together)
            scalars[row] = self._transformed(found, along, task.round, row)
            walk += coefficients(scalars[row, :1])
        return encode(RoundReply(self.name, task.round, self.declared, pack(scalars) + pack(along)))

    def _row(self, asked: LossQuery, batches: Sequence[Any]) -> Generator[Question, list[Any], Scalars]:
        """float32[kinds, P], or with P + 1: a row of the reply, which is all that a client ever tells of its data.

        batches: one; or those of all local steps where the reply says what training does. A client that finds slopes
        instead then sums them, all at x: what training tends to as its steps become small.
        """
        if self.slopes == "training":
            _, *projections = yield Training(asked.seed, asked.perturbations, tuple(batches), *self.local, asked.back)
            return _float32(projections)[None]
        found = yield from self._slopes(asked._replace(batch=batches[0]))
        for batch in batches[1:]:
            found += yield from self._slopes(asked._replace(batch=batch))
        return found

    def _slopes(self, asked: LossQuery) -> Generator[Question, list[float], Scalars]:
        """float32[kinds, P] of one local step, by f(x_k + mu z_p) beside f(x_k) or f(x_k - mu z_p), or by backward."""
        mu = asked.mu
        if self.header.directions == "per-example":
            return (yield from self._of_examples(asked))[None]
        if self.slopes == "exact":
            _, *exact = yield asked._replace(exact=True)
            return _float32(exact)[None]
        if self.slopes == "forward":
            at_x, *ahead = yield asked
            return _float32(ahead, at_x, mu)[None]
        curved = self.header.kinds == 2
        ahead = yield asked._replace(bare=not curved)
        behind = yield asked._replace(bare=True, mu=-mu)
        if not curved:
            return _float32(ahead, behind, 2 * mu)[None]
        at_x, *ahead = ahead
        return np.stack([_float32(ahead, behind, 2 * mu), _bends(ahead, at_x, behind, mu)])

    def _of_examples(self, asked: LossQuery) -> Generator[Question, list[float], Scalars]:
        """float32[B P]: the slope of each example's own loss along each of its own directions.

        A batch of b < B examples counts as much as a whole one: its slopes are B / b times as large, and the other
        examples' are 0. The mean loss's slope along the latest move, if it is asked for, comes last.
        """
        h, count = self.header, min(self.batch_size, len(self.data))
        asked = asked._replace(examples=count, passes=h.perturbations)
        slopes = np.zeros((self.batch_size, h.perturbations), np.float32)
        if self.slopes == "forward":
            at_x, *losses = yield asked
            behind, ahead, distance = losses[:count] * h.perturbations, losses[count:], h.mu
            behind += [at_x] * (len(ahead) - len(behind))
        else:
            ahead = yield asked._replace(bare=True)
            behind, distance = (yield asked._replace(bare=True, mu=-h.mu)), 2 * h.mu
        own = count * h.perturbations
        found = _float32(ahead[:own], behind[:own], distance * count / self.batch_size)
        slopes[:count] = found.reshape(-1, count).T
        return np.append(slopes, _float32(ahead[own:], behind[own:], distance))

    @torch.no_grad()
    def measure(self, message: bytes) -> bytes:
        """Measure the model on this client's own examples: an encoded Measure in, an encoded Measured out."""
        asked = decode(message, Measure)
        if self.evaluate is None:
            raise ProtocolError(f"{self.name}: asked to evaluate, but it has no evaluation examples.")
        self._catch_up(asked.round, asked.updates)
        score = as_score(self.evaluate(self.probe.replica.model))
        digest = bytes.fromhex(self.probe.replica.digest())
        return encode(Measured(self.name, asked.round, score.examples, score.loss, score.accuracy, digest))

    def _catch_up(self, round_: int, updates: Sequence[msgspec.Raw]) -> None:
        """Apply the records this client missed, skipping those it has already applied.

        Raises ProtocolError if the replica is not at ``round_`` then: the records were only the first part, or some
        are missing. Another handshake tells the server its position.
        """
        replica = self.probe.replica
        if updates:
            known = max(0, replica.position - decode(updates[0], Update).round)
            replica.apply([decode(update, Update) for update in updates[known:]])
        if replica.position != round_:
            raise ProtocolError(
                f"{self.name}: asked for round {round_}, but its replica is at {replica.position} "
                f"after the {len(updates)} records it received."
            )

    def _latest(self, task: RoundTask) -> Update | None:
        """The latest round on record if it was a step, for the slope along it: from the task, or the replica's."""
        latest = decode(task.updates[-1], Update) if task.updates else self.probe.replica.latest
        if task.round and latest is None:
            raise ProtocolError(f"{self.name}: asked for round {task.round} without the record of the round before.")
        return latest if latest is not None and latest.moved else None

    def _transformed(self, found: Scalars, along: Scalars, round_: int, step: int) -> Scalars:
        """The scalars of a local step as they are sent; a slope along the latest move beside them goes to ``along``.

        To a transform that slope is one more direction: what a transform bounds or hides holds for all of them.
        """
        sent = transformed(self.transforms, found, Context(self.header.seed, self.name, round_, step))
        directions = self.header.shape[-1]
        if sent.shape[1] > directions:
            along[:] = sent[0, directions]
        return sent[:, :directions]

    def batch(self, round_: int, step: int) -> Any:
        """The batch of this round and step."""
        return drawn(self.data, self.batch_size, self.header.seed, self.name, round_, step)


def own_way(slopes: Slopes, agreed: FoundBy, optimizer: LocalOptimizer | str = "sgd") -> FoundBy:
    """How a client finds its scalars if it differs from its federation.

    In a federation that trains, another client sends the sum of its slopes at x over its local_steps batches: the unit
    of a move by SGD, divided by the learning rate. The reverse is impossible: tau local steps have directions of their
    own, and a whole move is not the sum of any tau vectors along them.
    optimizer: the recipe's local_optimizer. Raises InputError if the numbers would differ.
    """
    by_losses: FoundBy = "forward" if agreed in FOLLOWED else agreed
    way = by_losses if slopes == BY_LOSSES else slopes
    known = SAME_NUMBERS | ({"training"} if agreed == "training" and optimizer == "sgd" else set())
    if way != agreed and not {way, agreed} <= known:
        raise InputError(
            f"slopes = '{slopes}': other numbers than this federation's scalars, which are '{agreed}'"
            + (f" by local_optimizer = '{optimizer}'; only 'sgd' mixes." if agreed == "training" else ".")
        )
    return way


@np.errstate(all="ignore")
def _float32(ahead: list[float], behind: float | list[float] = 0.0, distance: float = 1.0) -> npt.NDArray[np.float32]:
    """float32[P], (ahead - behind) / distance; what is not finite is refused by the server, with a reason."""
    slopes: npt.NDArray[np.float32] = ((np.asarray(ahead) - behind) / distance).astype(np.float32)
    return slopes


@np.errstate(all="ignore")
def _bends(ahead: list[float], at_x: float, behind: list[float], mu: float) -> npt.NDArray[np.float32]:
    """float32[P], the second differences."""
    sums = np.asarray(ahead) + np.asarray(behind)
    bends: npt.NDArray[np.float32] = ((sums - 2 * at_x) / mu**2).astype(np.float32)
    return bends


def drawn(data: Dataset, size: int, seed: int, client: str, round_: int, step: int) -> Any:
    """A batch without replacement: a pure function of seed, client, round and step."""
    random = generator(seed, "batch", client, round_, step)
    return fetch(data, random.choice(len(data), min(size, len(data)), replace=False))


def fetch(data: Dataset, indices: npt.NDArray[np.int64], collate: Callable[[list[Any]], Any] | None = None) -> Any:
    """The batch of the examples at ``indices``.

    collate: of a list of examples the batch; torch's ``default_collate``, or the data's own ``batch``, where None.
    """
    batch = getattr(data, "batch", None)
    if collate is None and batch is not None and _takes_indices(batch):
        return batch(indices)
    several = getattr(data, "__getitems__", None)  # what torch's DataLoader asks a dataset for, where it has it
    at = [int(index) for index in indices]
    return (collate or default_collate)([data[index] for index in at] if several is None else several(at))


def _takes_indices(batch: Callable[..., Any]) -> bool:
    """Whether it is the ``batch(indices)`` that ``Dataset`` speaks of: datasets has another, ``batch(batch_size)``."""
    try:
        return next(iter(signature(batch).parameters), None) == "indices"
    except (TypeError, ValueError):
        return False
