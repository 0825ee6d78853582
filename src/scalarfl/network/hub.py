"""The server's process: hellos, rounds with a deadline, records in the ledger and in the stream. No torch here."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
from nats.js.api import StreamConfig
from nats.js.errors import APIError

from scalarfl.errors import LedgerError, ProtocolError
from scalarfl.ledger import Audit, Ledger, link
from scalarfl.messages import MAX_BYTES, Failed, Hello, Update, claims, decode, encode
from scalarfl.network.broker import RETRY, TROUBLE, connect, persistently
from scalarfl.network.metrics import expose
from scalarfl.network.names import ABSENT_AFTER, HERE_EVERY, REFUSED, SAY_HELLO, Names, client_of
from scalarfl.network.status import Monitor, Status
from scalarfl.server import Server

log = logging.getLogger("scalarfl.network")


@dataclass
class Hub:
    """Runs a federation's rounds until ``rounds`` are on record.

    minimum: clients that must be present before a round begins. quorum: sound replies that a round needs; one that has
    fewer at its deadline is opened again. deadline: seconds. evaluate_every: see ``Announcement``.
    """

    server: Server
    names: Names
    rounds: int
    minimum: int = 1
    quorum: int = 1
    deadline: float = 60.0
    evaluate_every: int = 0
    watch: Callable[[Status], None] | None = None
    """Called with the status every few seconds while rounds go by, and after the last."""
    metrics: int | None = None
    """Port on the loopback interface for Prometheus."""
    monitor: Monitor = field(init=False)
    _present: dict[str, float] = field(default_factory=dict)
    _client: Any = None
    _awaited: dict[str, bytes] = field(default_factory=dict)
    _watched: float = 0.0
    _inbox: "asyncio.Queue[tuple[str, bytes]]" = field(default_factory=asyncio.Queue)

    def __post_init__(self) -> None:
        self.monitor = Monitor(self.server, self.names, self.rounds)

    @property
    def ledger(self) -> Ledger:
        """The record."""
        return self.server.ledger

    @property
    def present(self) -> list[str]:
        """The admitted clients that were heard of lately."""
        now = time.monotonic()
        return sorted(name for name, heard in self._present.items() if now - heard < ABSENT_AFTER)

    async def run(self, address: str, **connection: Any) -> None:
        """Connect, bring ledger and stream to the same point, run the rounds, say that it is done."""
        client = await connect(address, connection)
        try:
            stream = client.jetstream()
            await self._reconcile(stream)
            self._client = client
            await client.subscribe(self.names.hello("*"), cb=self._greet)
            await client.subscribe(self.names.here("*"), cb=self._note)
            await client.subscribe(self.names.reply("*"), cb=self._receive)
            await client.subscribe(self.names.status, cb=self._tell)
            if self.metrics is not None:
                expose(self.metrics, _from_a_thread(self.status))
            while self.ledger.rounds < self.rounds:
                await self._measure(client)
                await self._round(client, stream)
                self._watch()
            await self._measure(client, last=True)
            self._watch(last=True)
            for _ in range(3):  # said again for those who reconnect just then; hellos are answered likewise
                await client.publish(self.names.done, str(self.rounds).encode())
                await asyncio.sleep(RETRY)
        finally:
            with contextlib.suppress(*TROUBLE):
                await asyncio.wait_for(client.close(), 5)

    def status(self) -> Status:
        """How it goes now."""
        return self.monitor.status(self.present)

    def _watch(self, last: bool = False) -> None:
        now = time.monotonic()
        if self.watch is not None and (last or now - self._watched > WATCH_EVERY):
            self._watched = now
            self.watch(self.status())

    async def _tell(self, message: Any) -> None:
        """Answer somebody who asks how it goes."""
        await message.respond(msgspec.json.encode(self.status()))

    async def _reconcile(self, stream: Any) -> None:
        """Let ledger and stream hold the same records: either rebuilds the other."""
        await persistently(
            lambda: stream.add_stream(
                StreamConfig(
                    name=self.names.stream, subjects=[self.names.records], max_msg_size=MAX_BYTES, deny_delete=True
                )
            )
        )
        info = await persistently(lambda: stream.stream_info(self.names.stream))
        held: int = info.state.messages
        trail = self.ledger.header.digest()
        for number in range(held):
            message = await persistently(partial(stream.get_msg, self.names.stream, number + 1))
            if number >= self.ledger.rounds:
                self.ledger.append(decode(message.data, Update), Audit([], [], [], [], []))
                log.warning("round %(round)d was in the stream alone; it is on the ledger again", {"round": number})
            trail = link(trail, message.data)
        if trail != self.ledger.trail_at(held):
            raise LedgerError(
                f"{self.ledger.path}: the stream '{self.names.stream}' holds another run's records; give another --run."
            )
        for update in self.ledger.encoded_updates(held, self.ledger.rounds):
            await self._publish(stream, decode(update, Update).round, update)

    async def _publish(self, stream: Any, round_: int, record: bytes) -> None:
        """Put a round's record in the stream, once: it is at the place that its number gives it, or refused."""

        async def once() -> None:
            try:
                await stream.publish(
                    self.names.records, record, headers={"Nats-Expected-Last-Sequence": str(round_)}, timeout=5
                )
            except APIError as error:
                if error.err_code != _WRONG_LAST_SEQUENCE:
                    raise
                there = await stream.get_msg(self.names.stream, round_ + 1)  # an earlier try of ours came through
                if there.data != record:
                    raise LedgerError(
                        f"the stream '{self.names.stream}' has another record of round {round_}."
                    ) from None

        await persistently(once)

    async def _greet(self, message: Any) -> None:
        """Admit a client that is new or has come back, or refuse it with a sentence."""
        client = client_of(message.subject)
        try:
            hello = decode(message.data, Hello)
            if hello.client != client:
                raise ProtocolError(f"sent by '{client}' in the name of '{hello.client}'.")
            answer = self.server.admit(message.data)
            if client not in self._present:
                log.info(
                    "client '%(client)s' is here, with %(rounds)d rounds applied",
                    {"client": client, "rounds": hello.position},
                )
            self._present[client] = time.monotonic()
        except ProtocolError as error:
            log.warning("refused: %(reason)s", {"reason": str(error), "client": client})
            answer = REFUSED + str(error).encode()
        await message.respond(answer)
        if client in self._awaited and client in self._present:  # it was started again meanwhile, and knows of no task
            await self._client.publish(self.names.task(client), self._awaited[client])

    async def _note(self, message: Any) -> None:
        """A client says that it is there; one that this process has not admitted is asked for its hello."""
        client = client_of(message.subject)
        if client in self._present:
            self._present[client] = time.monotonic()
        else:
            await self._client.publish(self.names.task(client), SAY_HELLO)

    async def _receive(self, message: Any) -> None:
        if len(message.data) <= MAX_REPLY:
            await self._inbox.put((client_of(message.subject), message.data))
        else:
            dropped = {"bytes": len(message.data), "client": client_of(message.subject)}
            log.warning("dropped %(bytes)d bytes from '%(client)s'", dropped)

    async def _enough(self) -> None:
        """Wait until the clients that a round needs are present; say so now and then."""
        needed, said = max(1, self.minimum), time.monotonic()
        while len(self.present) < needed:
            if time.monotonic() - said > WATCH_EVERY:
                said += 6 * WATCH_EVERY
                log.info(
                    "waiting for clients: %(present)d of %(needed)d are here",
                    {"present": len(self.present), "needed": needed},
                )
            await asyncio.sleep(0.05)

    async def _round(self, client: Any, stream: Any) -> None:
        """One round: ask, wait for the replies or the deadline, record, publish."""
        await self._enough()
        tasks = self.server.open_round(self.present)
        replies = await self._replies(client, tasks)
        sound = {name for name, reply in replies if not claims(reply, Failed)}
        if len(sound) < min(self.quorum, len(tasks)):
            log.warning(
                "round %(round)d: %(replies)d of %(asked)d replied; it is opened again",
                {"round": self.ledger.rounds, "replies": len(sound), "asked": len(tasks)},
            )
            self.monitor.reopened += 1
            for name in tasks.keys() - sound:
                self._present.pop(name, None)
            return
        update = self.server.close_round(replies)  # durable in the ledger from here on
        await self._publish(stream, update.round, encode(update))
        self.monitor.closed()

    async def _measure(self, client: Any, last: bool = False) -> None:
        """Let the clients measure, if they do and it is time."""
        done, every = self.ledger.rounds, self.evaluate_every
        if not every or self.ledger.evaluations(done) or (done % every and not last):
            return
        await self._enough()
        tasks = self.server.open_evaluation(self.present)
        self.server.close_evaluation(await self._replies(client, tasks))

    async def _replies(self, client: Any, tasks: dict[str, bytes]) -> list[tuple[str, bytes]]:
        """Send the tasks; whatever comes back until nobody is awaited any more: all answered, left, or are too late."""
        self._awaited = dict(tasks)
        for name, task in tasks.items():
            await client.publish(self.names.task(name), task)
        found: list[tuple[str, bytes]] = []
        ends = time.monotonic() + self.deadline
        while self._awaited and (left := ends - time.monotonic()) > 0:
            with contextlib.suppress(asyncio.TimeoutError):
                found.append(await asyncio.wait_for(self._inbox.get(), min(left, HERE_EVERY)))
                self._awaited.pop(found[-1][0], None)
            if not self._awaited.keys() & set(self.present):
                break
        self._awaited = {}
        return found


def _from_a_thread(status: Callable[[], Status]) -> Callable[[], Status]:
    """The status for somebody in another thread: it is taken on the loop that runs now, which owns the ledger."""
    loop = asyncio.get_running_loop()

    async def take() -> Status:
        return status()

    return lambda: asyncio.run_coroutine_threadsafe(take(), loop).result(5)


WATCH_EVERY = 5.0  # seconds
_WRONG_LAST_SEQUENCE = 10071
MAX_REPLY = 1 << 20
