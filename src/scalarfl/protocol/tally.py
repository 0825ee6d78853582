"""What a server notes between two entries of its ledger: hellos, rejected replies, bytes. Bounded, whatever arrives."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from scalarfl.ledger.entries import Admission, Audit, Direction, Participant, Purpose, Rejection, Traffic

REASONS = 3
"""Distinct reasons kept for each client between two entries; its other rejections are counted together."""
STRANGERS = 16
"""Clients that were not asked and are named all the same between two entries; the others are counted together."""
LONGEST = 300
"""Characters of a reason."""
OTHERS = "*"
"""Stands for the clients or the reasons beyond these limits."""


class Tally:
    """Notes for the next audit.

    Their size depends on the number of clients that were asked, never on what anyone sends: a client has one hello,
    at most ``REASONS`` + 1 reasons, and one row of traffic for each direction and purpose.
    """

    def __init__(self) -> None:
        self.bytes: Counter[Direction] = Counter()
        """Serialized bytes to and from all clients since this was made, handshakes and evaluations included."""
        self._admitted: dict[str, int] = {}
        self._rejected: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._strangers: set[str] = set()
        self._oracles: dict[str, str] = {}
        self._traffic: Counter[tuple[str, Direction, Purpose, str]] = Counter()

    def admit(self, client: str, position: int, found_by: str | None = None) -> None:
        """Note a hello; each client's latest one is kept.

        found_by: how the client finds its scalars, where not as the header says.
        """
        self._admitted[client] = position
        self._oracles.pop(client, None)
        if found_by is not None:
            self._oracles[client] = found_by

    def recall(self, audit: Audit) -> None:
        """Restore how clients find their scalars from an audit."""
        for admission in audit.admitted:
            self._oracles.pop(admission.client, None)
        self._oracles |= audit.oracles or {}

    def reject(self, client: str, reason: str, *, asked: bool) -> None:
        """Note a reply that does not count. asked: whether the client was asked for one."""
        if not asked:
            client = self._named(client)
        reasons = self._rejected[client]
        reason = reason if len(reason) <= LONGEST else reason[: LONGEST - 1] + "…"
        reasons[reason if reason in reasons or len(reasons) < REASONS else OTHERS] += 1

    def count(
        self, client: str, direction: Direction, purpose: Purpose, payload: int, serialized: int, messages: int = 1
    ) -> None:
        """Note the bytes of a message."""
        self.bytes[direction] += serialized
        for what, amount in (("messages", messages), ("payload", payload), ("serialized", serialized)):
            self._traffic[client, direction, purpose, what] += amount

    def stranger(self, client: str, serialized: int) -> None:
        """Count the bytes of an unsolicited message."""
        self.count(self._named(client), "up", "round", 0, serialized)

    def take(
        self,
        cohort: Sequence[str],
        participants: Sequence[Participant],
        sizes: Sequence[float] = (),
        aggregator: Any = None,
        pace: Any = None,
    ) -> Audit:
        """The audit of a round or an evaluation; from here on the notes are for the next one."""
        traffic, self._traffic = self._traffic, Counter()
        admitted, self._admitted = self._admitted, {}
        rejected, self._rejected = self._rejected, defaultdict(Counter)
        self._strangers = set()
        named = {*cohort, *admitted}
        return Audit(
            admitted=[Admission(*entry) for entry in sorted(admitted.items())],
            cohort=list(cohort),
            participants=list(participants),
            rejected=[
                Rejection(client, reason, times)
                for client, reasons in sorted(rejected.items())
                for reason, times in reasons.items()
            ],
            traffic=[
                Traffic(*key, *(traffic[*key, what] for what in ("messages", "payload", "serialized")))
                for key in sorted({(client, direction, purpose) for client, direction, purpose, _ in traffic})
            ],
            sizes=list(sizes),
            aggregator=aggregator,
            oracles={client: way for client, way in sorted(self._oracles.items()) if client in named} or None,
            pace=pace,
        )

    def _named(self, stranger: str) -> str:
        """The name under which a client that was not asked is noted."""
        if stranger in self._strangers or len(self._strangers) < STRANGERS:
            self._strangers.add(stranger)
            return stranger
        return OTHERS
