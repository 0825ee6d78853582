"""The server's half of the paper's Algorithm 1, as pure protocol.

It holds seeds, scalars and the ledger, but no model. This module does not import torch.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from scalarfl.errors import ProtocolError
from scalarfl.ledger.accounting import unused
from scalarfl.ledger.codec import decode, encode, pack, prefix, unpack
from scalarfl.ledger.entries import Direction, Evaluation, Participant, Purpose
from scalarfl.ledger.store import Ledger
from scalarfl.ledger.update import CurvedUpdate, Update
from scalarfl.noise.seeds import derive
from scalarfl.protocol.admission import check, check_size
from scalarfl.protocol.aggregation import Aggregator, pooled
from scalarfl.protocol.combining import Combiner
from scalarfl.protocol.contribution import Contribution, contribution
from scalarfl.protocol.messages import PROTOCOL, Hello, Measure, Measured, Records, RoundReply, RoundTask, Welcome
from scalarfl.protocol.pace import Pace
from scalarfl.protocol.private import is_spent
from scalarfl.protocol.replies import Replies, measurement
from scalarfl.protocol.sampling import SecretCohorts, cohort
from scalarfl.protocol.tally import Tally
from scalarfl.protocol.trust import Magnitudes, sizes, usual


class Server:
    """Runs rounds on a ledger. After a crash, a new server on the same ledger resumes at its end.

    lr: learning rate of future rounds, or with lr = "auto" of the first one, None to find that too. sampled: size of
    the cohort. shared: all clients share one replica, which has every record: tasks carry none, but their bytes are
    counted. aggregator: the rule that the header names, unless it is built in or from an installed package.

    Raises InputError if a round's record could exceed a message.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        lr: float | None,
        sampled: int,
        shared: bool = False,
        aggregator: Aggregator | None = None,
    ) -> None:
        self.ledger = ledger
        self._pace = Pace(ledger.header, lr)
        self.sampled = sampled
        self.shared = shared
        self._contract = ledger.header.contract()
        check_size(ledger.header, sampled)
        self._combiner = Combiner(ledger.header, aggregator)
        self._present: tuple[str, ...] = ()  # of the round opened last, as given
        self._candidates: list[str] = []  # the same by name
        self._positions: dict[str, int] = {}  # rounds each client's replica is known to have applied
        self._secret = SecretCohorts()
        self._seed = 0  # of the directions, in the round that is open
        self._slots: dict[str, int] = {}  # everybody's who was asked in the round that is not on record yet
        self._round: Replies[RoundReply, Contribution] | None = None  # at most one of the two is open
        self._evaluation: Replies[Measured, Measured] | None = None
        self._tally = Tally()
        self._magnitudes = Magnitudes(ledger.header.kinds)
        for round_, audit in ledger.audits():
            self._tally.recall(audit)
            for admission in audit.admitted:
                self._positions[admission.client] = admission.position
            for participant in audit.participants:
                self._positions[participant.client] = round_
        for round_, audit in ledger.audits("round"):
            self._combiner.recall(audit)
            self._pace.recall(audit)
            self._magnitudes.note(audit.sizes or self._sizes_of(round_))
        self.spent: set[str] = set()
        """Clients that answered that their privacy budget is spent; they are asked no more."""
        self.unused = unused(ledger)
        """Consecutive rounds without a usable reply, up to the latest."""

    def admit(self, message: bytes) -> bytes:
        """Answer a client's handshake. Raises ProtocolError that names the difference to refuse it."""
        hello = decode(message, Hello)
        check(hello, self._contract, self.ledger)
        self._positions[hello.client] = hello.position
        answer = encode(Welcome(PROTOCOL, self.ledger.rounds))
        self._tally.admit(hello.client, hello.position, getattr(hello, "found_by", None))
        self._tally.count(hello.client, "up", "handshake", 0, len(message))
        self._tally.count(hello.client, "down", "handshake", 0, len(answer))
        return answer

    @property
    def lr(self) -> float:
        """The learning rate of the next round; 0 in the first round of lr = "auto" without a value to start from."""
        return self._pace.lr

    @property
    def moved(self) -> Mapping[Direction, int]:
        """Serialized bytes to and from all clients since this process began."""
        return self._tally.bytes

    @property
    def admitted(self) -> frozenset[str]:
        """All clients that completed a handshake, in this process or before a restart."""
        return frozenset(self._positions)

    @property
    def known(self) -> int:
        """Number of the admitted clients."""
        return len(self._positions)

    def lag(self, client: str) -> int:
        """Recorded rounds that an admitted client may lack; it receives them with its next task."""
        return self.ledger.rounds - self._positions[client]

    def records(self, client: str | None, since: int) -> bytes:
        """The encoded Records from round ``since`` on, counted as catch-up: one batch, of which the last is empty.

        client: the requester; None for a reader that does not take part.
        """
        rounds = self.ledger.rounds
        since = min(since, rounds)
        updates = self.ledger.batch(since)
        message = encode(Records(rounds, [msgspec.Raw(update) for update in updates]))
        if client is not None:
            payload = self.ledger.payload(since, since + len(updates))
            self._tally.count(client, "down", "catch-up", payload, len(message))
        return message

    def open_round(self, present: Sequence[str]) -> dict[str, bytes]:
        """Sample the cohort from the admitted clients that are present; returns the encoded RoundTask of each.

        An open round may be retried, without its replies so far. With directions of its own a client keeps its first
        ones, which no other client gets: its late reply answers the retry too.
        """
        given = tuple(present)
        if given != self._present:  # most often they are the same: sorting 100,000 names takes longer than a round
            strangers = [client for client in present if client not in self._positions]
            if strangers:
                raise ProtocolError(f"client '{strangers[0]}' has not completed the handshake.")
            self._present, self._candidates = given, sorted(given)
        header, round_ = self.ledger.header, self.ledger.rounds
        drawn = cohort(self._candidates, self.sampled, header.seed, round_)
        if header.privacy is not None:
            drawn = self._secret.drawn([c for c in self._candidates if c not in self.spent], self.sampled, round_)
        if header.directions != "shared":
            slots = {client: self._slots.setdefault(client, len(self._slots)) for client in drawn}
        else:
            slots = dict.fromkeys(drawn, 0)
        self._round, self._evaluation = Replies(RoundReply, round_, slots, self._judged), None
        self._seed = derive(header.seed, "directions", round_)
        return {client: self._task(client, slot) for client, slot in slots.items()}

    def open_evaluation(self, present: Sequence[str]) -> dict[str, bytes]:
        """Ask the admitted clients that are present to evaluate the model; returns the encoded Measure of each."""
        asked = dict.fromkeys(sorted(present), 0)
        self._round, self._evaluation = None, Replies(Measured, self.ledger.rounds, asked, measurement)
        return {client: self._measure(client) for client in asked}

    def again(self, client: str) -> bytes:
        """The client's task in the open round or evaluation, with the records it lacks now."""
        if self._round is not None and client in self._round.asked:
            return self._task(client, self._round.asked[client])
        if self._evaluation is not None and client in self._evaluation.asked:
            return self._measure(client)
        raise ProtocolError(f"client '{client}' has no open task.")

    def receive(self, client: str, message: bytes) -> str | None:
        """Validate a reply on arrival. Returns None if it counts, else the reason, which is recorded.

        The transport authenticates the client's name. A reply that does not count never replaces one that does, earlier
        or later in the same round or evaluation.
        """
        opened, reason = self._round or self._evaluation, None
        try:
            if opened is None:
                raise ProtocolError("no round or evaluation is open.")
            opened.receive(client, message)
        except ProtocolError as error:
            reason = str(error)
        asked = opened is not None and client in opened.asked
        self.spent |= {client} if reason and asked and self.ledger.header.privacy and is_spent(message) else set()
        if reason is not None:
            self._tally.reject(client, reason, asked=asked)
        if not asked:
            self._tally.stranger(client, len(message))
        elif self._round is not None:
            payload = 0 if reason else self._round.sound[client].payload
            self._tally.count(client, "up", "round", payload, len(message))
        else:
            self._tally.count(client, "up", "evaluation", 16, len(message))
        return reason

    @property
    def awaited(self) -> frozenset[str]:
        """Clients that have not answered the open round or evaluation.

        A client has answered once its reply counts, once it reports a failure, or once it sends unusable values such
        as NaN: a loss is a function of model and data, so waiting does not help.
        """
        opened = self._round or self._evaluation
        return frozenset() if opened is None else frozenset(opened.awaited)

    @property
    def sound(self) -> frozenset[str]:
        """Clients whose reply to the open round or evaluation counts."""
        opened = self._round or self._evaluation
        return frozenset() if opened is None else frozenset(opened.sound)

    def proceed(self, quorum: int = 1) -> dict[str, bytes]:  # noqa: ARG002
        """What to ask next in the open round, by client; nothing if one question was all."""
        return {}

    def sift(self) -> dict[str, str]:
        """Withdraw the open round's replies that are too large beside the others; returns the reasons, by client."""
        if (opened := self._round) is None:
            return {}
        found = self._magnitudes.outliers({client: reply.scalars for client, reply in opened.sound.items()})
        for client, reason in found.items():
            opened.withdraw(client)
            self._tally.reject(client, reason, asked=True)
        return found

    def settled(self, quorum: int = 1) -> bool:
        """Whether the open round can be closed; otherwise it is retried.

        It can if at least ``quorum`` replies count, or all of the cohort's; and if all clients answered, none with
        usable values: such a round is recorded without moving a replica, as a sign of divergence. A round in which a
        client is missing, or in which all failed, is not such a sign.
        """
        opened = self._round
        if opened is None:
            return False
        if opened.sound:
            return len(opened.sound) >= min(quorum, len(opened.asked))
        return bool(opened.unusable) and not opened.awaited

    def close_round(self, replies: Iterable[tuple[str, bytes]] = ()) -> Update:
        """Aggregate the replies that count, record the round and return its update.

        replies: further (client, encoded RoundReply) pairs, in any order. The record is durable when this returns. A
        round without a sound reply is recorded too and changes no weight.
        """
        for client, message in sorted(replies):
            self.receive(client, message)
        opened, header, round_ = self._round, self.ledger.header, self.ledger.rounds
        if opened is None:
            raise ProtocolError("no round is open.")
        self.sift()
        order = [client for client in opened.asked if client in opened.sound]
        participants = [Participant(client, opened.asked[client], opened.sound[client].examples) for client in order]
        slots, packed, found, after = [], b"", list[float](), None
        if order:
            vectors = [opened.sound[client].scalars for client in order]
            found = usual(vectors)
            slots = [p.slot for p in participants] if header.directions != "shared" else [0]
            combined, after = self._combiner.combine(participants, vectors)
            packed = pack(combined)
        kind = Update if header.kinds == 1 else CurvedUpdate
        update = kind(round_, self._seed, self.lr, header.rows, slots, packed)
        pace = None
        if header.extra:
            latest = next(self.ledger.updates(max(0, round_ - 1), round_), None)
            update, pace = self._pace.decided(update, latest, [opened.sound[client].along for client in order])
        self.ledger.append(update, self._tally.take(list(opened.asked), participants, found, after, pace))
        self._combiner.recorded(after)
        self._magnitudes.note(found)
        for client in order:
            self._positions[client] = round_
        self.unused = 0 if order else self.unused + 1
        self._round, self._slots = None, {}
        return update

    def close_evaluation(self, replies: Iterable[tuple[str, bytes]] = ()) -> Evaluation:
        """Pool the clients' evaluations by their numbers of examples, record and return the result.

        replies: as for ``close_round``. A reply counts if its digest is the majority's. The loss is NaN if no
        reply counts.
        """
        for client, message in sorted(replies):
            self.receive(client, message)
        opened = self._evaluation
        if opened is None:
            raise ProtocolError("no evaluation is open.")
        digests = Counter(reply.digest for reply in opened.sound.values())
        digest = max(sorted(digests), key=lambda found: digests[found], default=b"")
        kept = {client: opened.sound[client] for client in opened.asked if client in opened.sound}
        for client in [client for client, reply in kept.items() if reply.digest != digest]:
            self._tally.reject(client, "its replica has another digest.", asked=True)
            del kept[client]
        loss, accuracy, examples, measured = float("nan"), None, 0, 0
        if kept:
            counts = [reply.examples for reply in kept.values()]
            examples = sum(counts)
            loss, accuracy, measured = pooled(
                counts, [reply.loss for reply in kept.values()], [reply.accuracy for reply in kept.values()]
            )
        partly = measured if 0 < measured < examples else None
        evaluation = Evaluation(self.ledger.rounds, accuracy, loss, examples, digest, partly)
        participants = [Participant(client, 0, reply.examples) for client, reply in kept.items()]
        self.ledger.append_evaluation(evaluation, self._tally.take(list(opened.asked), participants))
        for client in kept:
            self._positions[client] = self.ledger.rounds
        self._evaluation = None
        return evaluation

    def _judged(self, reply: RoundReply) -> Contribution:
        """The validated reply. Raises ProtocolError with the reason why it does not count."""
        found = contribution(reply, self.ledger.header)
        self._magnitudes.check(found.scalars)
        return found

    def _sizes_of(self, round_: int) -> list[float]:
        """The sizes of a round's scalars, if its audit lacks them."""
        for update in self.ledger.updates(round_, round_ + 1):
            if update.slots:
                return sizes(unpack(update.scalars).reshape(update.local_steps, update.kinds, -1))
        return []

    def _measure(self, client: str) -> bytes:
        """The encoded Measure, with the records that the client lacks."""
        return self._with_updates(client, "evaluation", lambda missed: Measure(self.ledger.rounds, missed), payload=0)

    def _task(self, client: str, slot: int) -> bytes:
        """The encoded task of one client, with the records that it lacks."""
        round_, seed, lr = self.ledger.rounds, self._seed, self.lr
        return self._with_updates(client, "round", lambda missed: RoundTask(round_, seed, lr, slot, missed), payload=8)

    def _with_updates(
        self, client: str, purpose: Purpose, make: Callable[[list[msgspec.Raw]], msgspec.Struct], payload: int
    ) -> bytes:
        """An encoded message with the records that the client lacks, or as many as fit; they count as catch-up.

        A client that lacks more applies these, repeats the handshake and is asked ``again``.
        """
        since, ledger = self._positions[client], self.ledger
        if ledger.header.extra and purpose == "round":  # it measures the slope along the latest move
            since = min(since, max(0, ledger.rounds - 1))
        until = ledger.rounds if self.shared else ledger.reach(since)
        message = bare = encode(make([]))
        self._tally.count(client, "down", purpose, payload, len(bare))
        if until > since:
            if not self.shared:
                message = encode(make([msgspec.Raw(update) for update in ledger.encoded_updates(since, until)]))
            size = ledger.serialized(since, until) + prefix(until - since) - prefix(0)
            self._tally.count(client, "down", "catch-up", ledger.payload(since, until), size, messages=0)
        return message
