"""A client that takes part in secure sums: it sends its scalars masked, and only when enough others do."""

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np

from scalarfl.errors import ProtocolError
from scalarfl.ledger.codec import claims, decode, encode, unpack
from scalarfl.privacy.secure_sum import KeyPair, Member, Ring, to_ring
from scalarfl.protocol.client import Client, Steps
from scalarfl.protocol.messages import (
    Counted,
    Failed,
    Hello,
    Masked,
    Opened,
    Peer,
    RoundReply,
    RoundTask,
    SecureHello,
    SecureTask,
    Shared,
    Shares,
)
from scalarfl.protocol.secure import cohort_digest

REFUSED = "NoSecureSum"
"""Reason of the failure that a client reports in place of its part in a sum that it does not join."""


class Identity(Protocol):
    """Proves whose a public key is, so that a server cannot take a client's place."""

    def proof(self, key: bytes) -> bytes:
        """That ``key`` is this client's."""

    def check(self, name: str, key: bytes, proof: bytes) -> None:
        """Raise ProtocolError unless the proof says that the key is the named client's."""


def make_client(*arguments: Any, identity: Identity | None = None, **named: Any) -> Client:
    """The client with these arguments of ``Client``, for secure sums if its header has them."""
    made = Client(*arguments, **named)
    if made.header.secure_sum:
        made = SecureClient(*arguments, **named, identity=identity)
    return made


def public_keys(clients: Iterable[Client]) -> dict[str, bytes]:
    """The public keys of those that take part in secure sums, by name."""
    return {client.name: client.keys.public for client in clients if isinstance(client, SecureClient)}


class SecureClient(Client):
    """Answers rounds as ``Client`` does, in three legs (``secure_server``), of which only the second holds scalars.

    - Scalars are cut to the agreed bound, and leave the client masked, at most once a round.
    - It joins no sum of fewer clients than agreed on, and opens each other's mask in one way only.
    - What it answered it answers again, to the same question; to another question of the same leg it answers nothing.

    identity: proves its key to the others and checks theirs; None where the server is trusted to name them. The other
    arguments are those of ``Client``.
    """

    def __init__(self, *arguments: Any, identity: Identity | None = None, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.identity = identity
        self.keys = KeyPair()
        self._proven: set[tuple[str, bytes]] = set()
        self._task: tuple[int, bytes] = (-1, b"")  # round and cohort of the sum at hand
        self._member: Member | None = None
        self._numbers: Ring | None = None
        self._answers: dict[Any, tuple[bytes, bytes]] = {}  # leg -> question and answer
        self._sent = -1  # the latest round in which masked scalars were sent

    def hello(self) -> bytes:
        """The handshake's request, with this client's public key."""
        hello = decode(super().hello(), Hello)
        found_by = None if self.slopes == self.header.found_by else self.slopes
        plain = {field: getattr(hello, field) for field in Hello.__struct_fields__}
        return encode(SecureHello(**plain, found_by=found_by, key=self.keys.public, proof=self.proof))

    @property
    def proof(self) -> bytes:
        """That the public key is this client's; empty without an identity."""
        return b"" if self.identity is None else self.identity.proof(self.keys.public)

    def steps(self, message: bytes) -> Steps:
        """One leg."""
        for kind, answer in ((Shared, self._masked), (Counted, self._opened)):
            if claims(message, kind):
                return self._once(kind, message, answer)
        task = decode(message, RoundTask)
        if not isinstance(task, SecureTask):
            raise ProtocolError(f"{self.name}: asked for scalars in the clear; this federation adds them up securely.")
        return (yield from self._measured(task))

    def _measured(self, task: SecureTask) -> Steps:
        """The first leg: the scalars are found and kept."""
        context = cohort_digest(self.header, task.round, task.peers)
        if self._task == (task.round, context):
            return self._answers[SecureTask][1]
        try:
            self._check(task.peers)
        except ProtocolError:
            return encode(Failed(self.name, task.round, REFUSED))
        self._task, self._member, self._numbers = (task.round, context), None, None
        answer = Shares(self.name, task.round, context, b"", [], b"")
        if self._sent < task.round:
            plain = RoundTask(task.round, task.seed, task.lr, task.slot, task.updates)
            reply = yield from super().steps(encode(plain))
            if not claims(reply, RoundReply):
                self._task = -1, b""
                return reply
            scalars = unpack(decode(reply, RoundReply).scalars)
            if np.isfinite(scalars).all():
                names, keys = [peer.name for peer in task.peers], [peer.key for peer in task.peers]
                member = Member(self.keys, keys, names.index(self.name), self.header.secure_sum, context)
                self._member, self._numbers = member, to_ring(scalars, self.header.secure_bound)
                answer = Shares(self.name, task.round, context, member.nonce, member.sealed, member.deposit)
        self._answers = {SecureTask: (b"", encode(answer))}
        return encode(answer)

    def _check(self, peers: list[Peer]) -> None:
        """Raise ProtocolError unless this client is among the cohort, everyone once, with proven keys."""
        if Peer(self.name, self.keys.public, b"") not in [Peer(peer.name, peer.key, b"") for peer in peers]:
            raise ProtocolError("the cohort lacks this client, or has another key for it.")
        if len({peer.name for peer in peers}) < len(peers) or len({peer.key for peer in peers}) < len(peers):
            raise ProtocolError("a client is twice in the cohort.")
        for peer in peers:
            if self.identity is not None and (peer.name, peer.key) not in self._proven:
                self.identity.check(peer.name, peer.key, peer.proof)
                self._proven.add((peer.name, peer.key))

    def _once(self, kind: Any, message: bytes, answer: Any) -> bytes:
        """The answer to the one question of a leg that this client answers; a failure to any other."""
        asked: Any = decode(message, kind)
        question, known = self._answers.get(kind, (message, b""))
        try:
            if (asked.round, asked.cohort) != self._task or question != message:
                raise ProtocolError("not the sum that this client takes part in.")
            if not known:
                known = encode(answer(asked))
                self._answers[kind] = message, known
        except ProtocolError:
            return encode(Failed(self.name, asked.round, REFUSED))
        return known

    def _masked(self, asked: Shared) -> Masked:
        """The second leg. From here on this client sends no other scalars in this round."""
        if self._member is None or self._numbers is None or self._sent >= asked.round:
            raise ProtocolError("nothing to mask.")
        shared = {number: (nonce, sealed) for number, nonce, sealed in asked.shares}
        sums = self._member.masked(self._numbers, shared)
        self._sent, self._numbers = asked.round, None
        return Masked(self.name, asked.round, asked.cohort, sums.tobytes())

    def _opened(self, asked: Counted) -> Opened:
        """The last leg."""
        if self._member is None or self._sent != asked.round:
            raise ProtocolError("nothing to open.")
        return Opened(self.name, asked.round, asked.cohort, self._member.opened(asked.counted))
