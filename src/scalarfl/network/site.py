"""A client's process: the model stays resident, the replica catches up from the stream, rounds are answered."""

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

from nats.js.errors import NotFoundError

from scalarfl.client import Client
from scalarfl.errors import ProtocolError
from scalarfl.keeper import Keeper
from scalarfl.messages import Failed, Measure, Update, claims, decode, encode
from scalarfl.network.broker import RETRY, TROUBLE, connect, persistently
from scalarfl.network.names import HERE_EVERY, REFUSED, SAY_HELLO, Names

log = logging.getLogger("scalarfl.network")

OFTEN = 10  # attempts between two lines that say so
AT_ONCE = 500  # records held in memory while catching up


@dataclass
class Site:
    """One client, until the server says that the last round is on record."""

    client: Client
    names: Names
    keeper: Keeper | None = None
    """Keeps snapshots, where the client is to have some."""
    _tasks: "asyncio.Queue[bytes]" = field(default_factory=asyncio.Queue)
    _finished: int | None = None

    async def run(self, address: str, **connection: Any) -> None:
        """Connect, say hello, answer. Raises ProtocolError, with the server's sentence, where the server refuses."""
        alive: asyncio.Task[None] | None = None
        link = await connect(address, connection)
        try:
            await link.subscribe(self.names.task(self.client.name), cb=self._take)
            await link.subscribe(self.names.done, cb=self._finish)
            stream = link.jetstream()
            await self._hello(link, stream)
            alive = asyncio.create_task(self._live(link))
            while self._finished is None:
                await self._work(link, stream, await self._tasks.get())
            await self._catch_up(stream, self._finished)
        finally:
            if alive is not None:
                alive.cancel()
            with contextlib.suppress(*TROUBLE):
                await asyncio.wait_for(link.close(), 5)

    async def _live(self, link: Any) -> None:
        """Signs of life, also while a round is being answered."""
        while True:
            with contextlib.suppress(*TROUBLE):
                await link.publish(self.names.here(self.client.name), b"")
            await asyncio.sleep(HERE_EVERY)

    async def _take(self, message: Any) -> None:
        await self._tasks.put(message.data)

    async def _finish(self, message: Any) -> None:
        with contextlib.suppress(ValueError):
            self._finished = int(message.data)
            await self._tasks.put(b"")  # wake up

    async def _hello(self, link: Any, stream: Any) -> None:
        """Catch up from the stream, then let the server compare what must agree; again until it answers."""
        for attempt in count():
            if self._finished is not None:
                return
            try:
                await self._catch_up(stream)
                hello = await asyncio.to_thread(self.client.hello)
                answer = await link.request(self.names.hello(self.client.name), hello, timeout=5)
            except TROUBLE as error:
                if attempt % OFTEN == OFTEN - 1:
                    reason = str(error) or type(error).__name__
                    log.info("no server answers yet (%(reason)s); trying again", {"reason": reason})
                await asyncio.sleep(RETRY)
                continue
            if answer.data.startswith(REFUSED):
                words = f"the server refuses: {answer.data[1:].decode(errors='replace')}"
                if self.keeper is not None and self.keeper.restored:
                    words += f" If its ledger was begun anew: remove {self.keeper.path} and start again."
                raise ProtocolError(words)
            rounds = self.client.welcomed(answer.data)
            log.info("welcome: %(rounds)d rounds are on record", {"rounds": rounds})
            return

    async def _work(self, link: Any, stream: Any, message: bytes) -> None:
        """Answer one message in a thread of its own, so that the connection stays alive meanwhile."""
        if message == b"":
            return
        if message == SAY_HELLO:
            await self._hello(link, stream)
            return
        try:
            answer = self.client.measure if claims(message, Measure) else self.client.answer
            reply = await asyncio.to_thread(answer, message)
        except ProtocolError as error:
            log.warning("%(reason)s", {"reason": str(error)})
            await self._hello(link, stream)
            return
        except Exception as error:  # the user's data or model: this round is lost, the client is not
            log.exception("the round failed here; the next one may not")
            reply = encode(Failed(self.client.name, self.client.probe.replica.position, type(error).__name__[:200]))
        with contextlib.suppress(*TROUBLE):
            await link.publish(self.names.reply(self.client.name), reply)
        if self.keeper is not None:
            await asyncio.to_thread(self.keeper.consider)

    async def _catch_up(self, stream: Any, until: int | None = None) -> None:
        """Apply the records that this replica lacks, as far as the stream holds them."""
        replica = self.client.probe.replica
        try:
            held: int = (await stream.stream_info(self.names.stream)).state.messages
        except NotFoundError:
            return
        end = held if until is None else until
        if self.keeper is not None and not replica.position:
            await asyncio.to_thread(self.keeper.begin, end)
        if self.keeper is not None and end - replica.position > 1:
            h = self.client.header
            self.keeper.announce(end - replica.position, h.perturbations * h.local_steps * replica.layout.dimension)
        while replica.position < end:
            stop = min(end, replica.position + AT_ONCE)
            updates = []
            for number in range(replica.position, stop):
                record = await persistently(partial(stream.get_msg, self.names.stream, number + 1))
                updates.append(decode(record.data, Update))
            await asyncio.to_thread(replica.apply, updates)
            if self.keeper is not None:
                await asyncio.to_thread(self.keeper.consider)
