"""Entries beside updates: participants, rejections, bytes, evaluations."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

Purpose = Literal["round", "catch-up", "handshake", "evaluation"]
Direction = Literal["up", "down"]


class Admission(msgspec.Struct, array_like=True, frozen=True):
    """A client that completed a handshake since the previous round, and the rounds it had applied."""

    client: str
    position: int


class Participant(msgspec.Struct, array_like=True, frozen=True):
    """A client whose reply counted."""

    client: str
    slot: int
    examples: int


class Rejection(msgspec.Struct, array_like=True, frozen=True):
    """A reply that did not count, and why; ``tally`` limits how many are kept. ``*`` stands for the others."""

    client: str
    reason: str
    count: int = 1
    """How often."""


class Traffic(msgspec.Struct, array_like=True, frozen=True):
    """Bytes between the server and one client for one purpose; ``up`` is from the client."""

    client: str
    direction: Direction
    purpose: Purpose
    messages: int
    payload: int
    serialized: int


class Audit(msgspec.Struct, array_like=True, frozen=True):
    """The facts of a round that replay does not need."""

    admitted: list[Admission]
    cohort: list[str]
    participants: list[Participant]
    rejected: list[Rejection]
    traffic: list[Traffic]
    sizes: list[float] = []
    """``trust.usual`` of a round's replies; empty if none counted, and in ledgers of version 0.1."""
    aggregator: Any = None
    """What the aggregator remembers after the round. Left out of the record where None."""
    oracles: dict[str, str] | None = None
    """How clients find their scalars that do it otherwise than the header says (``header.FoundBy``): of the cohort, and
    of the admitted. Left out of the record where None."""
    pace: Any = None
    """With lr = "auto": the controller's state after the round (``protocol.pace``). Left out where None."""

    def encoded(self) -> bytes:
        """MessagePack."""
        return _encoded(self)


class Evaluation(msgspec.Struct, array_like=True, frozen=True):
    """An evaluation of the model after ``round`` rounds, with the replica's digest."""

    round: int
    accuracy: float | None
    loss: float
    examples: int
    digest: bytes
    measured: int | None = None
    """Examples of the clients that gave an accuracy, where not all of them did. Left out of the record where None."""

    def encoded(self) -> bytes:
        """MessagePack."""
        return _encoded(self)


def best(scores: Sequence[Evaluation]) -> Evaluation:
    """The earliest measurement with the highest accuracy; with the lowest loss where accuracy was never measured.

    At round 0 it is the untrained model's.
    """
    rated = [score for score in scores if score.accuracy is not None and not math.isnan(score.accuracy)]
    if rated:
        return max(rated, key=lambda score: (score.accuracy, -score.round))
    return min(scores, key=lambda score: (math.isnan(score.loss), score.loss, score.round))


def _encoded(entry: msgspec.Struct) -> bytes:
    """MessagePack, without the last fields where they are None."""
    fields = msgspec.structs.astuple(entry)
    while fields[-1] is None:
        fields = fields[:-1]
    return msgspec.msgpack.encode(fields)
