"""The server of a federation with secure sums: rounds of three legs. No torch here.

1. Everyone in the cohort measures, and shares the secrets of its mask among the others.
2. Those who did send their scalars, masked.
3. They open what is left of the masks in the sum.

Clients may be lost in every leg, as long as the agreed number is left. After the first leg a round is not retried: two
sums of one round could differ by one client, whose scalars would be their difference. If too few are left then, the
round is recorded without a move.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from scalarfl.errors import ProtocolError
from scalarfl.ledger.codec import claims, decode, encode
from scalarfl.ledger.store import Ledger
from scalarfl.privacy.secure_sum import SEED, mean, threshold, unmasked
from scalarfl.protocol.admission import check
from scalarfl.protocol.contribution import Contribution
from scalarfl.protocol.messages import (
    Counted,
    Failed,
    Hello,
    Masked,
    Opened,
    Peer,
    RoundReply,
    SecureHello,
    SecureTask,
    Shared,
    Shares,
)
from scalarfl.protocol.replies import Replies
from scalarfl.protocol.secure import NONCE, SEALED, TAG, cohort_digest
from scalarfl.protocol.server import Server

log = logging.getLogger("scalarfl")

LEGS = 3


def make_server(ledger: Ledger, keys: Mapping[str, bytes] | None = None, **settings: Any) -> Server:
    """The server with these arguments of ``Server``, for secure sums if the header has them.

    keys: public keys of clients that do not say hello again to this process, by name.
    """
    if not ledger.header.secure_sum:
        return Server(ledger, **settings)
    server = SecureServer(ledger, **settings)
    for client, key in (keys or {}).items():
        server.introduce(client, key)
    return server


class _Judged(NamedTuple):
    """A reply of one leg."""

    reply: Any
    payload: int = 0
    """Bytes of masked scalars."""


class _Leg(Replies[Any, Any]):
    """The replies of one leg. enough: as many as are waited for; all where None."""

    def __init__(
        self,
        kind: type[Any],
        round_: int,
        asked: Mapping[str, int],
        cohort: bytes,
        judge: Callable[[Any], _Judged],
        enough: int | None = None,
    ) -> None:
        super().__init__(kind, round_, asked, judge)
        self.cohort = cohort
        self.enough = enough

    def receive(self, client: str, message: bytes) -> None:
        """As in ``Replies``; a reply of another cohort does not count as an answer."""
        if not claims(message, Failed) and decode(message, self.kind).cohort != self.cohort:
            raise ProtocolError("for another cohort of this round.")
        super().receive(client, message)
        if self.enough is not None and len(self.sound) >= self.enough:
            self.awaited.clear()


class _Sum:
    """A round's sum on its way."""

    def __init__(self, context: bytes, peers: Sequence[Peer], minimum: int) -> None:
        self.context = context
        self.peers = peers
        self.number = {peer.name: number for number, peer in enumerate(peers)}
        self.needed = threshold(len(peers), minimum)
        self.leg = 1
        self.messages: dict[str, bytes] = {}
        """Of the second or third leg, by client."""
        self.shares: dict[str, Shares] = {}
        self.sums: dict[str, npt.NDArray[np.uint64]] = {}

    def by_number(self, values: Mapping[str, Any]) -> dict[int, Any]:
        """The same by the clients' numbers, in order."""
        return dict(sorted((self.number[client], value) for client, value in values.items()))


class SecureServer(Server):
    """Runs rounds as ``Server`` does, but learns only sums."""

    def __init__(self, ledger: Ledger, **settings: Any) -> None:
        super().__init__(ledger, **settings)
        self._peers: dict[str, Peer] = {}
        self._introduced: dict[str, set[bytes]] = {}  # keys of others that a client was shown a proof of
        self._sum: _Sum | None = None  # while a round is open

    def admit(self, message: bytes) -> bytes:
        """As in ``Server``; notes the client's key."""
        hello = decode(message, Hello)
        check(hello, self._contract, self.ledger)
        if not isinstance(hello, SecureHello):
            raise ProtocolError(f"client '{hello.client}' has sent no key for secure sums.")
        self.introduce(hello.client, hello.key, hello.proof)
        return super().admit(message)

    def introduce(self, client: str, key: bytes, proof: bytes = b"") -> None:
        """Note a client's public key, and the proof that it is its own, for the others."""
        self._peers[client] = Peer(client, key, proof)
        self._introduced[client] = set()

    def open_round(self, present: Sequence[str]) -> dict[str, bytes]:
        """As in ``Server``; the tasks name the cohort's keys. A round is retried only before its second leg."""
        self._sum = None
        return super().open_round(present)

    def open_evaluation(self, present: Sequence[str]) -> dict[str, bytes]:
        """As in ``Server``."""
        self._sum = None
        return super().open_evaluation(present)

    def proceed(self, quorum: int = 1) -> dict[str, bytes]:
        """The messages of the next leg, by client; none after the last one, or if too few clients are left."""
        found: _Sum | None = self._sum
        opened: Any = self._round
        if found is None or opened is None or found.leg > LEGS:
            return {}
        enough = max(found.needed, min(quorum, len(found.peers)))
        replies = {client: judged.reply for client, judged in opened.sound.items()}
        if len(replies) < (found.needed if found.leg == LEGS else enough):
            if found.leg > 1:
                self._close({}, f"{len(replies)} of {len(found.peers)} clients were left, {enough} are needed")
            return {}
        if found.leg == 1:
            found.shares = replies
            self._ask(Masked, self._masked, self._shared(found), None)
        elif found.leg == 2:
            found.sums = {client: np.frombuffer(reply.sums, dtype="<u8") for client, reply in replies.items()}
            counted = encode(Counted(self.ledger.rounds, found.context, list(found.by_number(found.sums))))
            self._ask(Opened, self._opened, dict.fromkeys(found.sums, counted), found.needed)
        else:
            try:
                self._close(dict.fromkeys(found.sums, self._mean(found, replies)))
            except ProtocolError as error:
                self._close({}, str(error))
            return {}
        return {client: self._task(client, 0) for client in found.messages}

    def sift(self) -> dict[str, str]:
        """Nothing: no reply can be compared with the others."""
        return {}

    def settled(self, quorum: int = 1) -> bool:
        """Whether the open round can be closed: a second leg was begun, or so many cannot take part that none can."""
        found, opened = self._sum, self._round
        if found is None or opened is None or found.leg > 1:
            return opened is not None
        left = len(opened.asked) - len(opened.unusable)
        return bool(opened.unusable) and left < max(found.needed, min(quorum, len(opened.asked)))

    def _task(self, client: str, slot: int) -> bytes:
        """The client's message in the leg at hand."""
        found = self._sum or self._begun()
        if found.leg > 1:
            self._tally.count(client, "down", "round", 0, len(found.messages[client]))
            return found.messages[client]
        round_, seed, lr, known = self.ledger.rounds, self._seed, self.lr, self._introduced[client]
        peers = [msgspec.structs.replace(peer, proof=b"") if peer.key in known else peer for peer in found.peers]
        return self._with_updates(
            client, "round", lambda missed: SecureTask(round_, seed, lr, slot, missed, peers), payload=8
        )

    def _begun(self) -> _Sum:
        """The sum of the round that was just opened."""
        assert self._round is not None
        asked, header = self._round.asked, self.ledger.header
        if strangers := asked.keys() - self._peers.keys():
            raise ProtocolError(f"client '{min(strangers)}' has sent no key for secure sums.")
        peers = [self._peers[client] for client in asked]
        self._sum = found = _Sum(cohort_digest(header, self.ledger.rounds, peers), peers, header.secure_sum)
        self._set(_Leg(Shares, self.ledger.rounds, asked, found.context, self._measured))
        return found

    def _ask(
        self, kind: type[Any], judge: Callable[[Any], _Judged], messages: dict[str, bytes], enough: int | None
    ) -> None:
        """Begin the next leg."""
        assert self._sum is not None
        self._sum.leg += 1
        self._sum.messages = messages
        asked = dict.fromkeys(messages, 0)
        self._set(_Leg(kind, self.ledger.rounds, asked, self._sum.context, judge, enough))

    def _close(self, sound: dict[str, Contribution], reason: str = "") -> None:
        """End the round with these participants, who all count with the mean; with none it moves no replica."""
        assert self._sum is not None
        if reason:
            fields = {"round": self.ledger.rounds, "reason": reason}
            log.warning("round %(round)d: there is no sum: %(reason)s; it is recorded without a move", fields)
        self._sum.leg = LEGS + 1
        cohort = {peer.name: 0 for peer in self._sum.peers}
        closed = Replies[RoundReply, Contribution](RoundReply, self.ledger.rounds, cohort, self._judged)
        closed.awaited, closed.sound = set(), sound
        self._set(closed)

    def _set(self, replies: Replies[Any, Any]) -> None:
        self._round = replies

    def _shared(self, found: _Sum) -> dict[str, bytes]:
        """The second leg's message for everyone who has measured: what the others sealed for it."""
        shares = found.by_number(found.shares)
        for client in found.shares:  # it has had the proofs
            self._introduced[client] |= {peer.key for peer in found.peers}
        return {
            client: encode(
                Shared(
                    self.ledger.rounds,
                    found.context,
                    [(number, one.nonce, one.sealed[found.number[client]]) for number, one in shares.items()],
                )
            )
            for client in found.shares
        }

    def _mean(self, found: _Sum, opened: Mapping[str, Opened]) -> Contribution:
        """The mean of the scalars. Raises ProtocolError if they do not add up."""
        header = self.ledger.header
        total = unmasked(
            found.by_number(found.sums),
            {number: one.deposit for number, one in found.by_number(found.shares).items()},
            {number: one.shares for number, one in found.by_number(opened).items()},
            found.needed,
            found.context,
        )
        scalars = mean(total, len(found.sums), header.secure_bound).reshape(header.shape)
        self._magnitudes.check(scalars)
        return Contribution(0, scalars, 0.0, scalars.nbytes)

    def _measured(self, reply: Shares) -> _Judged:
        if not reply.sealed:
            raise ProtocolError("it has nothing usable for this round.")
        assert self._sum is not None
        count, own = len(self._sum.peers), self._sum.number[reply.client]
        lengths = [0 if number == own else SEALED for number in range(count)]
        right = [len(one) for one in reply.sealed] == lengths and len(reply.nonce) == NONCE
        if not right or len(reply.deposit) != SEED * count + TAG:
            raise ProtocolError(f"its shares do not fit a cohort of {count}.")
        return _Judged(reply)

    def _masked(self, reply: Masked) -> _Judged:
        expected = 8 * math.prod(self.ledger.header.shape)
        if len(reply.sums) != expected:
            raise ProtocolError(f"{len(reply.sums)} bytes of masked scalars, expected {expected}.")
        return _Judged(reply, expected)

    def _opened(self, reply: Opened) -> _Judged:
        assert self._sum is not None
        expected = SEED * len(self._sum.shares)
        if len(reply.shares) != expected:
            raise ProtocolError(f"{len(reply.shares)} bytes of opened shares, expected {expected}.")
        return _Judged(reply)
