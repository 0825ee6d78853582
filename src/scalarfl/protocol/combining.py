"""Applying a federation's aggregator: a round's combined scalars, and the aggregator's state."""

from collections.abc import Sequence
from functools import cached_property

import msgspec
import numpy as np

from scalarfl.errors import InputError, shown
from scalarfl.ledger.entries import Audit, Participant
from scalarfl.ledger.header import Header
from scalarfl.protocol.aggregation import (
    Aggregator,
    Linear,
    Reply,
    Scalars,
    State,
    Weights,
    make_aggregator,
    per_client,
)
from scalarfl.protocol.trust import Examples


class Combiner:
    """Applies the header's aggregator; a restarted server replays the ledger's audits to it.

    rule: the aggregator, unless it is built in or from an installed package. It is loaded on use: reading a ledger does
    not need it.
    """

    def __init__(self, header: Header, rule: Aggregator | None = None) -> None:
        self._header = header
        self._given = rule
        self._examples = Examples()
        self._recorded: State = None

    @cached_property
    def _rule(self) -> Aggregator:
        """Raises InputError for one that there is not, or that does not go with the directions."""
        header = self._header
        given = self._given or header.aggregation
        return make_aggregator(given, directions=header.directions, attackers=header.attackers)

    @property
    def state(self) -> State:
        """What the rule remembers of the rounds on record."""
        return self._rule.init() if self._recorded is None else self._recorded

    def recorded(self, state: State) -> None:
        """Take in the state that a round's record holds; None where it holds none."""
        self._recorded = self._recorded if state is None else state

    def recall(self, audit: Audit) -> None:
        """Restore the state from a round's audit."""
        self._examples.note({participant.client: participant.examples for participant in audit.participants})
        self.recorded(audit.aggregator)

    def combine(self, participants: Sequence[Participant], scalars: Sequence[Scalars]) -> tuple[Scalars, State]:
        """The round's scalars as they go on the ledger, and the state afterwards, as the ledger gives it back.

        Raises InputError if the rule gives what is no reply.
        """
        declared = {participant.client: participant.examples for participant in participants}
        self._examples.note(declared)
        counted = self._examples.counted(declared)
        if self._header.directions != "shared":
            return per_client(self._weights(counted), scalars), self.state
        replies = [Reply(p.client, n, own) for p, n, own in zip(participants, counted, scalars, strict=True)]
        found, after = self._rule.aggregate(self.state, replies)
        combined = np.asarray(found, dtype=np.float32)
        if combined.shape != self._header.shape or not np.isfinite(combined).all():
            raise InputError(
                f"aggregation = '{self._rule.name}': it gave scalars of shape {combined.shape}, "
                f"{int(np.isfinite(combined).sum())} of them finite; accepted are {self._header.shape}, all finite."
            )
        try:
            return combined, msgspec.msgpack.decode(msgspec.msgpack.encode(after))
        except (TypeError, OverflowError, ValueError) as error:
            raise InputError(
                f"aggregation = '{self._rule.name}': its state is {shown(after)} ({error}); accepted are "
                "numbers, texts, lists and dicts of such."
            ) from None

    def _weights(self, examples: Sequence[int]) -> Weights:
        assert isinstance(self._rule, Linear)  # no other goes with own directions
        return self._rule.weights(examples)
