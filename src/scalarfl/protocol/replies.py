"""The replies to what a server has asked: judged one by one, as they arrive, by one rule for every transport."""

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import numpy as np

from scalarfl.errors import ProtocolError, shown
from scalarfl.ledger.codec import claims, decode
from scalarfl.protocol.messages import Failed, Masked, Measured, Opened, RoundReply, Shares

LARGEST_LOSS = float(np.finfo(np.float32).max)
T = TypeVar("T", RoundReply, Measured, Shares, Masked, Opened)
V = TypeVar("V")

_ANOTHER = "a reply for round {} while round {} is open."
_MEASURED = "measured after {} rounds while {} are on the ledger."


class Replies(Generic[T, V]):
    """What the clients of an open round or evaluation have answered so far.

    kind: the message that is expected. round: rounds on record. asked: client -> slot. judge: what counts of a reply;
    it raises ProtocolError, with a reason, for a reply that cannot be used.
    """

    def __init__(self, kind: type[T], round_: int, asked: Mapping[str, int], judge: Callable[[T], V]) -> None:
        self.kind: type[T] = kind
        self.round = round_
        self.asked = asked
        self.judge: Callable[[T], V] = judge
        self.awaited = set(asked)
        """Clients that have not answered this very question yet."""
        self.sound: dict[str, V] = {}
        """What counts, by client."""
        self.unusable: set[str] = set()
        """Clients that answered this very question with values that cannot be used."""

    def receive(self, client: str, message: bytes) -> None:
        """Take a reply in. Raises ProtocolError that says why it does not count; a reply that counts stays."""
        if client in self.sound:
            raise ProtocolError("a second reply in the same round.")
        failed = claims(message, Failed)
        reply: Failed | T = decode(message, Failed) if failed else decode(message, self.kind)
        if reply.client != client:
            raise ProtocolError(f"sent by '{client}' in the name of {shown(reply.client)}.")
        if reply.round != self.round:
            raise ProtocolError((_MEASURED if self.kind is Measured else _ANOTHER).format(reply.round, self.round))
        if client not in self.asked:
            raise ProtocolError("not in this round's cohort.")
        self.awaited.discard(client)
        if isinstance(reply, Failed):
            raise ProtocolError(f"it failed: {shown(reply.reason, 200)[1:-1]}.")
        try:
            self.sound[client] = self.judge(reply)
        except ProtocolError:
            self.unusable.add(client)
            raise

    def withdraw(self, client: str) -> None:
        """Take a reply back that counted when it came."""
        del self.sound[client]
        self.unusable.add(client)


def measurement(reply: Measured) -> Measured:
    """What counts of a measurement: all of it. Raises ProtocolError that says why it does not count."""
    if reply.examples < 1:
        raise ProtocolError("it measured on no example.")
    if not abs(reply.loss) <= LARGEST_LOSS:
        raise ProtocolError(f"its loss is {reply.loss}.")
    if reply.accuracy is not None and not 0 <= reply.accuracy <= 1:
        raise ProtocolError(f"its metric is {reply.accuracy}, accepted is 0 to 1.")
    return reply
