"""The server's process: handshakes, rounds with a deadline, catch-up from the ledger. No torch here."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from scalarfl.ledger.codec import claims
from scalarfl.ledger.store import Ledger
from scalarfl.ledger.update import Update
from scalarfl.protocol.callbacks import DIVERGED
from scalarfl.protocol.limits import REMEMBERED, Rate
from scalarfl.protocol.messages import REFUSED, Hello
from scalarfl.protocol.rounds import Policy, RoundLoop
from scalarfl.protocol.secure import longest_reply
from scalarfl.protocol.server import Server
from scalarfl.transports.nats.broker import RETRY, TROUBLE, close, connect
from scalarfl.transports.nats.limits import PENDING, RECORDS_A_SECOND, RECORDS_AT_ONCE, Replies
from scalarfl.transports.nats.metrics import expose
from scalarfl.transports.nats.names import (
    ABSENT_AFTER,
    OBSERVER,
    SERVER,
    Names,
    party_of,
)
from scalarfl.transports.nats.status import Monitor, Status

log = logging.getLogger("scalarfl.network")


@dataclass
class NatsServer:
    """A federation's server on a broker: the round loop's transport, and the answers to other requests."""

    server: Server
    names: Names
    policy: Policy
    watch: Callable[[Status], None] | None = None
    """Called with the status every few seconds during rounds, and after the last."""
    metrics: int | None = None
    """Port for Prometheus, on localhost."""
    metric: str = "accuracy"
    """Name of the task's metric."""
    loop: RoundLoop = field(init=False)
    monitor: Monitor = field(init=False)
    _heard: dict[str, float] = field(default_factory=dict)  # when a client was last heard of
    _complete: set[str] = field(default_factory=set)  # clients known to have every record
    _fetching: dict[str, float] = field(default_factory=dict)  # when a client last asked for records
    _link: Any = None
    _watched: float = 0.0
    _replies: Replies = field(init=False)
    _hellos: Rate = field(default_factory=lambda: Rate(1, 10))
    _asks: Rate = field(default_factory=lambda: Rate(RECORDS_A_SECOND, RECORDS_AT_ONCE))

    def __post_init__(self) -> None:
        self.loop = RoundLoop(self.server, self, self.policy)
        self.monitor = Monitor(self.loop, self.names, self.metric)
        longest = longest_reply(self.ledger.header, self.server.sampled)
        self._replies = Replies(longest, self.loop.refusals)

    @property
    def ledger(self) -> Ledger:
        """The record."""
        return self.server.ledger

    def present(self) -> list[str]:
        """Clients with a recent heartbeat."""
        now = time.monotonic()
        return sorted(name for name, heard in self._heard.items() if now - heard < ABSENT_AFTER)

    async def send(self, messages: Mapping[str, bytes]) -> None:
        """Publish each client's message; it is lost if the client is not connected."""
        for name, message in messages.items():
            await self._send(self.names.task(name), message)

    async def receive(self, seconds: float) -> list[tuple[str, bytes]]:
        """The arrived replies."""
        return await self._replies.get(seconds)

    def publish(self, _update: Update) -> None:
        """Note the time of the latest round, for the status."""
        self.monitor.closed()
        self._watch()

    async def run(self, address: str, **connection: Any) -> None:
        """Connect, run the rounds, wait until every present client has caught up."""
        self._link = link = await connect(address, connection, self.names.inbox(SERVER))
        try:
            for subject, take in (
                (self.names.hello("*"), self._greet),
                (self.names.here("*"), self._note),
                (self.names.reply("*"), self._receive),
                (self.names.records("*"), self._hand_out),
                (self.names.status("*"), self._tell),
            ):
                await link.subscribe(subject, cb=take, **PENDING)
            if self.metrics is not None:
                expose(self.metrics, _from_a_thread(self.status))
            late = self.loop.over  # this process is here for clients that came late
            await self.loop.run_async()
            self._watch(last=True)
            await self._dismiss(at_least=LINGER / 2 if late else 3 * RETRY)
        finally:
            await close(link)

    async def _dismiss(self, at_least: float) -> None:
        """Announce the end until every present client has fetched the last record."""
        began = time.monotonic()
        told = f"{self.ledger.rounds} {DIVERGED}" if self.loop.diverged else str(self.ledger.rounds)
        while True:
            await self._send(self.names.done, told.encode())
            await asyncio.sleep(RETRY)
            now = time.monotonic()
            here = {name for name, asked in self._fetching.items() if now - asked < ABSENT_AFTER} | set(self._here())
            if now - began > (at_least if here <= self._complete else max(LINGER, self.policy.deadline)):
                return

    async def _send(self, subject: str, message: bytes) -> None:
        """Publish; an undeliverable message is lost and will be requested again."""
        try:
            await self._link.publish(subject, message)
        except TROUBLE as error:
            reason = str(error) or type(error).__name__
            log.warning("%(bytes)d bytes could not be sent: %(reason)s", {"bytes": len(message), "reason": reason})

    def status(self) -> Status:
        """The current status."""
        return self.monitor.status(self._here())

    def _here(self) -> list[str]:
        """The present and admitted clients."""
        return [name for name in self.present() if name in self.loop.here]

    def _watch(self, last: bool = False) -> None:
        now = time.monotonic()
        if self.watch is not None and (last or now - self._watched > WATCH_EVERY):
            self._watched = now
            self.watch(self.status())

    def _asker(self, message: Any, rate: Rate) -> str | None:
        """The party to answer; None if another party could read the answer, or if it asks too often.

        The broker authenticates the party that published to a subject, but does not check its reply subject: this
        server may publish where the party may not.
        """
        party = party_of(message.subject)
        if not self.names.is_inbox(party, message.reply):
            self.loop.refusals.dropped(party, "a reply subject outside its inbox")
        elif not rate.allows(party):
            self.loop.refusals.dropped(party, "too many requests")
        else:
            return party
        return None

    async def _tell(self, message: Any) -> None:
        """Send the status."""
        if self._asker(message, self._asks) is not None:
            await self._send(message.reply, msgspec.json.encode(self.status()))

    async def _hand_out(self, message: Any) -> None:
        """Send the records from a round on, up to one message's limit."""
        asker = self._asker(message, self._asks)
        if asker is None:
            return
        if len(message.data) > 20 or not message.data.isdigit():
            self.loop.refusals.dropped(asker, "not the number of a round")
            return
        since = int(message.data)
        await self._send(message.reply, self.server.records(None if asker == OBSERVER else asker, since))
        if asker in self._fetching or len(self._fetching) < REMEMBERED:
            self._fetching[asker] = time.monotonic()
        if self.loop.over and since == self.ledger.rounds:
            self._complete.add(asker)

    async def _greet(self, message: Any) -> None:
        """Admit a new or returning client, or refuse it with the reason."""
        client = self._asker(message, self._hellos)
        if client is None:
            return
        answer = self.loop.greet(client, message.data)
        if not answer.startswith(REFUSED):
            self._heard[client] = time.monotonic()
        await self._send(message.reply, answer)

    async def _note(self, message: Any) -> None:
        """A heartbeat."""
        client = party_of(message.subject)
        if client in self._heard or len(self._heard) < REMEMBERED:
            self._heard[client] = time.monotonic()

    async def _receive(self, message: Any) -> None:
        """Queue a reply for validation."""
        client = party_of(message.subject)
        if client not in self.loop.here:
            self.loop.refusals.dropped(client, "a reply before its handshake")
        elif claims(message.data, Hello):  # these have a subject of their own, and a limit
            self.loop.refusals.dropped(client, "a handshake where a reply should be")
        else:
            self._replies.put(client, message.data)


def _from_a_thread(status: Callable[[], Status]) -> Callable[[], Status]:
    """The status, for another thread: it is computed on the running event loop, which owns the ledger."""
    loop = asyncio.get_running_loop()

    async def take() -> Status:
        return status()

    return lambda: asyncio.run_coroutine_threadsafe(take(), loop).result(5)


WATCH_EVERY = 5.0  # seconds
LINGER = 60.0
"""Seconds for which clients that are present may still fetch the last records, or the deadline where that is longer."""
