"""A client's process: the model stays resident, the replica catches up from the ledger, rounds are answered."""

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import msgspec

from scalarfl.errors import InputError
from scalarfl.ledger.codec import claims, decode
from scalarfl.ledger.update import Update
from scalarfl.protocol.limits import Rate
from scalarfl.protocol.messages import Hello, Masked, Records, RoundReply
from scalarfl.protocol.party import Party, Refused
from scalarfl.transports.nats.broker import RETRY, TROUBLE, close, connect
from scalarfl.transports.nats.limits import RECORDS_A_SECOND, RECORDS_AT_ONCE
from scalarfl.transports.nats.names import HERE_EVERY, Names
from scalarfl.transports.nats.progress import Progress

log = logging.getLogger("scalarfl.network")

OFTEN = 10  # attempts between two lines that say so
AHEAD = 16
"""Batches of records in memory while catching up."""
ANSWERED_IN = 20.0
"""Seconds that a batch of records may take: half a megabyte at the site's slow end of a line."""
PATIENCE = 30.0
"""Seconds in which a server that has said it is done must answer, or it is gone."""


@dataclass
class NatsClient:
    """One client, until the server says that the last round is on record."""

    party: Party
    names: Names
    progress: Progress = field(default_factory=Progress)
    ended: str = ""
    """Why the federation ended before its last round; empty if it did not."""
    _link: Any = None
    _latest: bytes = b""
    _some: asyncio.Event = field(default_factory=asyncio.Event)  # a message of the server's, or the end
    _finished: int | None = None
    _pace: Rate = field(default_factory=lambda: Rate(RECORDS_A_SECOND / 2, RECORDS_AT_ONCE / 2))

    async def run(self, address: str, **connection: Any) -> None:
        """Connect, say hello, answer. Raises Refused, with the server's sentence, where the server refuses."""
        alive: asyncio.Task[None] | None = None
        self._link = link = await connect(address, connection, self.names.inbox(self.party.name))
        try:
            await link.subscribe(self.names.task(self.party.name), cb=self._take)
            await link.subscribe(self.names.done, cb=self._finish)
            await self._hello()
            alive = asyncio.create_task(self._live())
            while self._finished is None:
                await self._work(await self._newest())
            await self._catch_up(self._finished)
            self._follow()
        finally:
            if alive is not None:
                alive.cancel()
            await close(link)

    async def _live(self) -> None:
        """Heartbeats, also while a round is being answered."""
        while True:
            with contextlib.suppress(*TROUBLE):
                await self._link.publish(self.names.here(self.party.name), b"")
            await asyncio.sleep(HERE_EVERY)

    def _follow(self) -> None:
        self.progress.follow(self.party.client.probe.replica.position, self._link)

    async def _take(self, message: Any) -> None:
        self._latest = message.data
        self._some.set()

    async def _finish(self, message: Any) -> None:
        """The end: the number of rounds, and where there is one a space and the reason for an early end."""
        rounds, _, reason = message.data[:1000].partition(b" ")
        if rounds.isdigit():
            self._finished, self.ended = int(rounds), reason.decode(errors="replace")
            self._some.set()

    async def _newest(self) -> bytes:
        """The latest message of the server; a task that came before it is for a round that is closed by now."""
        await self._some.wait()
        self._some.clear()
        latest, self._latest = self._latest, b""
        return latest

    async def _hello(self) -> None:
        """Catch up, then let the server compare what must agree; again until it answers."""
        for attempt in count():
            if self._finished is not None:
                return
            try:
                await self._catch_up()
                hello = await asyncio.to_thread(self.party.client.hello)
                answer = await self._link.request(self.names.hello(self.party.name), hello, timeout=5)
            except TROUBLE as error:
                if attempt % OFTEN == OFTEN - 1:
                    reason = str(error) or type(error).__name__
                    log.info("no server answers yet (%(reason)s); trying again", {"reason": reason})
                await asyncio.sleep(RETRY)
                continue
            try:
                self.party.respond(answer.data)
            except Refused as error:
                keeper = self.party.keeper
                if keeper is None or not keeper.restored:
                    raise
                words = f"{error} If the server started a new ledger, remove {keeper.path} and restart."
                raise Refused(words) from None
            log.info("welcome: %(rounds)d rounds are on record", {"rounds": self.party.rounds})
            return

    async def _work(self, message: bytes) -> None:
        """Answer one message in a separate thread, so that the connection stays alive."""
        if message == b"":
            return
        reply = await asyncio.to_thread(self.party.respond, message)
        if claims(reply, Hello):  # it is to catch up first
            await self._hello()
            return
        if reply:
            with contextlib.suppress(*TROUBLE):
                await self._link.publish(self.names.reply(self.party.name), reply)
        self.progress.took_part += claims(reply, RoundReply) or claims(reply, Masked)
        self._follow()

    async def _catch_up(self, goal: int | None = None) -> None:
        """Fetch and apply the records that this replica lacks.

        goal: rounds after which the server ends. Raises the broker's errors where the server does not answer, and
        InputError where it should still be there.
        """
        replica, keeper = self.party.client.probe.replica, self.party.keeper
        since = replica.position or (0 if keeper is None else keeper.position)
        found = await self._records(since, goal)
        if keeper is not None and not replica.position:
            await asyncio.to_thread(keeper.begin, found.rounds)
        if replica.position != since:  # the snapshot was not good
            found = await self._records(replica.position, goal)
        if keeper is not None and found.rounds - replica.position > 1:
            h = self.party.client.header
            coordinates = h.shape[-1] * h.rows * replica.layout.dimension
            keeper.announce(found.rounds - replica.position, coordinates)
        position = replica.position
        while found.updates:
            batches: list[list[msgspec.Raw]] = []
            while found.updates and len(batches) < AHEAD:
                batches.append(found.updates)
                position += len(found.updates)
                found = await self._records(position, goal)  # an empty answer: the server knows that it sent them all
            for batch in batches:
                await asyncio.to_thread(replica.apply, [decode(update, Update) for update in batch])
                self._follow()
                if keeper is not None:
                    await asyncio.to_thread(keeper.consider)

    async def _records(self, since: int, goal: int | None) -> Records:
        """The server's records from round ``since`` on."""
        gives_up = time.monotonic() + PATIENCE
        while not self._pace.allows("records"):
            await asyncio.sleep(0.02)
        while True:
            try:
                subject = self.names.records(self.party.name)
                answer = await self._link.request(subject, str(since).encode(), timeout=ANSWERED_IN)
                return decode(answer.data, Records)
            except TROUBLE:
                if goal is None:
                    raise
                if time.monotonic() > gives_up:
                    raise InputError(
                        f"the server ended while this client lacked {goal - since} of {goal} rounds; start both again."
                    ) from None
            await asyncio.sleep(RETRY)
