"""The round loop of a federation, over any transport: cohorts, deadlines and retries.

``RoundLoop`` does no input or output: its steps yield what a transport's methods return, and a driver sends the result
back. So a transport may consist of plain functions (``RoundLoop.run``) or of coroutines (``RoundLoop.run_async``);
see docs/transports.md.
"""

import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from scalarfl.errors import ProtocolError, shown
from scalarfl.ledger.codec import claims, decode
from scalarfl.ledger.entries import Evaluation
from scalarfl.ledger.update import Update
from scalarfl.protocol.callbacks import Callbacks, Rate
from scalarfl.protocol.limits import CappedLog
from scalarfl.protocol.messages import REFUSED, SAY_HELLO, Hello
from scalarfl.protocol.schedule import Policy, Rounds, Work
from scalarfl.protocol.server import Server

__all__ = ["Policy", "RoundLoop", "Transport"]

log = logging.getLogger("scalarfl")

LOOK_EVERY = 1.0
"""Seconds between two looks at who is there, while replies are waited for."""
REMIND_EVERY = 2.0
"""Seconds between two requests to one client for its handshake."""
PAUSE = 0.05
"""The same while waiting for clients."""
SAY_AFTER, SAY_EVERY = 5.0, 30.0
"""Seconds of waiting for clients until the first log line, and between two such lines."""


class Transport(Protocol):
    """Carries encoded messages between the server and its clients; it may lose, delay and duplicate them.

    Each method may be a plain function or a coroutine.
    """

    def present(self) -> Sequence[str] | Awaitable[Sequence[str]]:
        """The names of the clients that can be reached now."""

    def send(self, messages: Mapping[str, bytes]) -> object:
        """Send each client its message. An undeliverable one is lost, without an exception."""

    def receive(self, seconds: float) -> Iterable[tuple[str, bytes]] | Awaitable[Iterable[tuple[str, bytes]]]:
        """Messages that arrived, each with its sender's authenticated name.

        Waits at most ``seconds`` for the first one; omits empty ones.
        """

    def publish(self, update: Update) -> object:
        """A round's record is durable. Clients receive it with their next task, so most transports do nothing."""


class RoundLoop(Rounds):
    """Runs a server's rounds over a transport.

    evaluate: evaluates the model in this process and records the result; by default the clients evaluate. measuring:
    the clients that can; by default all. loss: the cohort's mean loss at x in the latest round, if the transport knows.
    """

    def __init__(
        self,
        server: Server,
        transport: Transport,
        policy: Policy,
        callbacks: Callbacks = None,
        *,
        evaluate: Callable[[], Evaluation] | None = None,
        measuring: Collection[str] | None = None,
        loss: Callable[[], float] = lambda: math.nan,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        needed = server.ledger.header.secure_sum  # a smaller cohort has no sum
        super().__init__(replace(policy, minimum=max(policy.minimum, needed)), callbacks)
        self.server = server
        self.transport = transport
        self.evaluate = evaluate
        self.measuring = measuring
        self.loss = loss
        self.clock = clock
        self.evaluations = server.ledger.evaluations()
        self.here = dict.fromkeys(server.admitted if server.shared else (), 0)
        """Clients that this process has admitted, with their last reported position."""
        self.retried = 0
        """Number of retried rounds."""
        self.refusals = CappedLog()
        """Logs rejected messages, with a limit per client."""
        self._greeted: Sequence[str] = ()  # of those present, where it is known that all of them are here
        self._reminded: dict[str, float] = {}  # when a client was last asked for its handshake
        self._asking = False
        self._due: dict[str, float] = {}  # when to ask a client once more
        self._early: dict[str, bytes] = {}  # replies that came while nothing was asked: each client's latest
        self._expected = policy.expected

    @property
    def rounds(self) -> int:
        """Recorded rounds."""
        return self.server.ledger.rounds

    @property
    def known(self) -> int:
        """Clients ever admitted."""
        return self.server.known

    @property
    def over(self) -> bool:
        """Whether no more rounds will be recorded; also if no client has a privacy budget left."""
        return super().over or self.out_of_budget

    @property
    def out_of_budget(self) -> bool:
        """Whether all clients have spent their privacy budget."""
        return bool(self.server.spent) and self.server.spent >= self.server.admitted

    @property
    def early(self) -> str:
        """Why the run ended early, if a privacy budget is why."""
        if not self.out_of_budget:
            return ""
        return f"the run ended after {self.rounds} rounds: the privacy budget of every client is spent."

    @property
    def unused(self) -> int:
        """Consecutive rounds without a usable reply, up to the latest."""
        return self.server.unused

    @property
    def lr(self) -> Rate:
        """The learning rate of future rounds; "auto" if the server finds it."""
        return "auto" if self.server.ledger.header.lr == "auto" else self.server.lr

    def greet(self, client: str, message: bytes) -> bytes:
        """Answer a client's handshake with a Welcome or a refusal; resend an open task.

        The loop calls this for every Hello it receives; a transport with another channel for handshakes calls it
        directly. client: the authenticated name.
        """
        try:
            hello = decode(message, Hello)
            if hello.client != client:
                raise ProtocolError(f"sent by '{client}' in the name of {shown(hello.client)}.")
            answer = self.server.admit(message)
        except ProtocolError as error:
            self.refusals.warn(client, "refused", "refused: %(reason)s", {"reason": str(error)})
            return REFUSED + str(error).encode()
        if client not in self.here and not self.server.shared:
            fields = {"client": client, "rounds": hello.position}
            log.info("client '%(client)s' is here, with %(rounds)d rounds applied", fields)
        if client in self._due:  # one that has come no further since it was last asked is not asked at once
            stuck = self.here.get(client) == hello.position
            self._due[client] = min(self._due[client], self.clock() + (LOOK_EVERY if stuck else 0))
        self.here[client] = hello.position
        return answer

    def _round(self) -> Work[float | None]:
        """Ask a cohort and record the round, or retry it if too few replies count."""
        present = yield from self._gather()
        server, up, down = self.server, *(self.server.moved.get(way, 0) for way in ("up", "down"))
        tasks = server.open_round(present)
        yield from self._ask(tasks)
        while further := server.proceed(self.policy.quorum):
            yield from self._ask(further)
        self.bytes_up += server.moved.get("up", 0) - up
        self.bytes_down += server.moved.get("down", 0) - down
        for client, reason in server.sift().items():
            self._refuse(client, reason)
        missing = tasks.keys() - server.sound
        if not server.settled(self.policy.quorum):
            fields = {"round": self.rounds, "replies": len(tasks) - len(missing), "asked": len(tasks)}
            log.warning("round %(round)d: %(replies)d of %(asked)d replied; it is retried", fields)
            self.retried += 1
            for client in missing:  # until their next handshake
                self.here.pop(client, None)
            self._greeted = ()
            return None
        update = server.close_round()  # durable in the ledger from here on
        yield self.transport.publish(update)
        return self.loss() if update.slots else math.nan

    def _evaluation(self) -> Work[Evaluation]:
        """Evaluate the model here or at the clients."""
        if self.evaluate is not None:
            return self.evaluate()
        present = yield from self._gather()
        asked = present if self.measuring is None else [client for client in present if client in self.measuring]
        yield from self._ask(self.server.open_evaluation(asked))
        return self.server.close_evaluation()

    def _gather(self) -> Work[Sequence[str]]:
        """Wait until enough clients are present, logging now and then; returns them."""
        began, server = self.clock(), self.server
        say = began + SAY_AFTER
        while True:
            present = yield from self._look()
            now, policy = self.clock(), self.policy
            if policy.expected:
                self._expected = max(self._expected, len(present))
                if now - began > policy.deadline and len(present) >= policy.minimum:
                    self._expected = len(present)
            if server.spent:
                present = [client for client in present if client not in server.spent]
            needed = max(1, max(policy.minimum, self._expected) - len(server.spent))
            if len(present) >= needed:
                return present
            if now > say:
                say = now + SAY_EVERY
                fields = {"present": len(present), "needed": needed}
                log.info("waiting for clients: %(present)d of %(needed)d are here", fields)
            yield from self._receive(PAUSE)

    def _look(self) -> Work[Sequence[str]]:
        """Those present that are admitted; the others are asked for their handshake now and then."""
        present: Sequence[str] = yield self.transport.present()
        if present is self._greeted:  # of 100,000 clients, asking this of each takes longer than a round
            return present
        strangers = [client for client in present if client not in self.here]
        if not strangers:
            self._greeted = present if isinstance(present, tuple) else ()
            return present
        now = self.clock()
        asked = [client for client in strangers if now - self._reminded.get(client, -math.inf) >= REMIND_EVERY]
        self._reminded |= dict.fromkeys(asked, now)
        if asked:
            yield self.transport.send(dict.fromkeys(asked, SAY_HELLO))
        return [client for client in present if client in self.here]

    def _ask(self, tasks: Mapping[str, bytes]) -> Work[None]:
        """Send the tasks and pass replies to the server, until every present client has answered, or the deadline."""
        server, policy = self.server, self.policy
        ends_at = self.clock() + policy.deadline
        self._asking, self._due = True, dict.fromkeys(tasks, self.clock() + policy.again)
        yield self.transport.send(tasks)
        early, self._early = self._early, {}
        for client, message in early.items():
            self._judge(client, message)
        here, now = server.awaited, self.clock()
        while here and now < ends_at:
            next_due = min(self._due[client] for client in here)
            yield from self._receive(max(0.0, min(ends_at - now, next_due - now, LOOK_EVERY)))
            if not server.awaited:
                break
            here, now = server.awaited.intersection((yield from self._look())), self.clock()
            due = [client for client in tasks if client in here and now >= self._due[client]]
            if due:
                self._due |= dict.fromkeys(due, now + policy.again)
                yield self.transport.send({client: server.again(client) for client in due})
        self._asking, self._due = False, {}

    def _receive(self, seconds: float) -> Work[None]:
        """Process arrived handshakes and replies."""
        answers = {}
        for client, message in (yield self.transport.receive(seconds)):
            if claims(message, Hello):
                answers[client] = self.greet(client, message)
            elif self._asking:
                self._judge(client, message)
            elif client in self.here:
                self._early[client] = message
        if answers:
            yield self.transport.send(answers)

    def _judge(self, client: str, message: bytes) -> None:
        """Let the server validate a reply."""
        reason = self.server.receive(client, message)
        if reason is not None:
            self._refuse(client, reason)

    def _refuse(self, client: str, reason: str) -> None:
        """Log why a reply does not count."""
        if not self.server.shared:
            text = "the reply of '%(client)s' does not count: %(reason)s"
            self.refusals.warn(client, "reply", text, {"reason": reason})
