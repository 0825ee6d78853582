"""A transport without a wire: the clients of a simulation, in this process, on one replica that all of them share."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from scalarfl.ledger.update import Update
from scalarfl.model.probe import Probe, Question
from scalarfl.protocol.attacks import Attackers
from scalarfl.protocol.party import Party


class Cohort:
    """The clients of a simulation, who share one probe: their questions are answered together.

    parties: by name. order: in which order those who are asked are worked through; cannot change the result.
    attackers: those of them who send other replies than they found, if any.
    """

    def __init__(
        self,
        parties: Mapping[str, Party],
        probe: Probe,
        order: Callable[[list[str]], list[str]] = list,
        attackers: Attackers | None = None,
    ) -> None:
        self.parties = parties
        self.probe = probe
        self.order = order
        self.attackers = attackers
        self.loss = math.nan
        """Mean of the clients' losses at x in the latest round, as far as they are finite."""
        self._names = tuple(parties)
        self._sent: dict[str, bytes] = {}

    def present(self) -> tuple[str, ...]:
        """All of them, always."""
        return self._names

    def send(self, messages: Mapping[str, bytes]) -> None:
        """Keep the messages until the answers are asked for."""
        self._sent.update(messages)

    def receive(self, _seconds: float) -> list[tuple[str, bytes]]:
        """Answer what was sent."""
        sent, self._sent = self._sent, {}
        replies = self.answers(sent)
        if self.attackers is not None:
            replies = self.attackers.falsified(replies)
        return sorted((name, reply) for name, reply in replies.items() if reply)

    def publish(self, update: Update) -> None:
        """Apply the update to the replica."""
        self.probe.replica.apply([update])

    def answers(self, messages: Mapping[str, bytes]) -> dict[str, bytes]:
        """Let those who have a message answer it in step; raises what the user's data or model raise."""
        working: dict[str, Any] = {
            name: self.parties[name].steps(messages[name]) for name in self.order(list(messages))
        }
        measured: dict[str, Any] = dict.fromkeys(working)
        replies: dict[str, bytes] = {}
        at_x: dict[str, float] = {}
        while measured:
            questions: dict[str, Question] = {}
            for name, losses in measured.items():
                try:
                    questions[name] = working[name].send(losses)
                except StopIteration as done:
                    replies[name] = done.value
            measured = (
                dict(zip(questions, self.probe.measure(list(questions.values())), strict=True)) if questions else {}
            )
            for name in [name for name in measured if not self.parties[name].client.private]:
                losses = measured[name]
                at_x.setdefault(name, losses[0])
        if at_x:
            finite = [loss for loss in at_x.values() if math.isfinite(loss)]
            self.loss = math.fsum(finite) / len(finite) if finite else math.nan
        return replies
