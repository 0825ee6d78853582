"""Clients with valid kits attack real processes, one attack after another: the federation goes on and names them.

Two honest clients train, one of them through a WebSocket; two more parties have kits and do as they please.
"""

import asyncio
import math
import ssl
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from federation import BROKER, CLIENTS, RECIPE, Federation
from scalarfl import Ledger
from scalarfl.experiment.verify import verify
from scalarfl.ledger.codec import MOST, claims, decode, encode, pack
from scalarfl.protocol.messages import (
    PROTOCOL,
    Failed,
    Hello,
    HelloOtherwise,
    Measure,
    Records,
    RoundTask,
    Welcome,
)
from scalarfl.transports.nats import kit
from scalarfl.transports.nats.authority import Authority
from scalarfl.transports.nats.broker import close, connect, connect_once
from scalarfl.transports.nats.names import OBSERVER, SERVER, Names

nats = pytest.importorskip("nats")
pytestmark = pytest.mark.skipif(BROKER is None, reason="needs nats-server (the extra network)")
NAMES, HONEST, FALSE, OTHER = Names("trial"), CLIENTS[:2], CLIENTS[2], CLIENTS[3]
ONES = pack(np.ones(3, dtype=np.float32))


def raw(*fields: object) -> bytes:
    """A message that no honest party can encode."""
    return msgspec.msgpack.encode(fields)


def scalars(*values: float) -> bytes:
    return pack(np.array(values, dtype=np.float32))


def reply(round_: int, sent: bytes = ONES, examples: int = 10, client: str = FALSE) -> bytes:
    return raw(5, client, round_, examples, sent)


def measured(round_: int, loss: float = 1.0, accuracy: float | None = 0.5, examples: int = 10) -> bytes:
    return raw(7, FALSE, round_, examples, loss, accuracy, bytes(32))


REPLIES: dict[str, tuple[Callable[[int], bytes], str]] = {
    "empty scalars": (lambda r: reply(r, b""), "0 bytes of scalars, expected 12"),
    "too few scalars": (lambda r: reply(r, ONES[:8]), "8 bytes of scalars, expected 12"),
    "a part of a scalar": (lambda r: reply(r, ONES + b"\0"), "13 bytes of scalars, expected 12"),
    "not a number": (lambda r: reply(r, scalars(1, math.nan, 1)), "1 of 3 scalars are not finite"),
    "infinite": (lambda r: reply(r, scalars(math.inf, -math.inf, 1)), "2 of 3 scalars are not finite"),
    "the largest float": (lambda r: reply(r, scalars(3e38, 0, 0)), "a scalar of 3e+38 is beyond"),
    "a square that overflows": (lambda r: reply(r, scalars(0, -1e15, 0)), "a scalar of 1e+15 is beyond"),
    "far beyond the usual": (lambda r: reply(r, scalars(0, 0, 1e6)), "a scalar of 1e+06 is beyond"),
    "no examples beyond belief": (lambda r: reply(r, examples=2**64 - 1), "Expected `int` <= 1099511627776"),
    "fewer than no examples": (lambda r: reply(r, examples=-1), "Expected `int` >= 0"),
    "a future round": (lambda r: reply(r + 1000), "a reply for round"),
    "the last round of all": (lambda r: reply(MOST), f"a reply for round {MOST} while"),
    "a past round": (lambda r: reply(0), "a reply for round 0 while"),
    "another's name": (lambda r: reply(r, client=HONEST[0]), f"in the name of '{HONEST[0]}'"),
    "no name": (lambda r: reply(r, client=""), "Expected `str` of length >= 1"),
    "an endless name": (lambda r: reply(r, client="x" * 800), "Expected `str` of length <= 200"),
    "lines in a name": (lambda r: reply(r, client="a\n2026-01-01 done: 9 rounds\x1b[2J"), "in the name of"),
    "a field too many": (lambda r: raw(5, FALSE, r, 10, ONES, 0), "not a valid RoundReply"),
    "a field too few": (lambda r: raw(5, FALSE, r, 10), "not a valid RoundReply"),
    "text for scalars": (lambda r: raw(5, FALSE, r, 10, "\0" * 12), "not a valid RoundReply"),
    "a map": (lambda r: msgspec.msgpack.encode({"client": FALSE, "round": r}), "not a valid RoundReply"),
    "more after the end": (lambda r: reply(r) + b"\0", "not a valid RoundReply"),
    "cut": (lambda r: reply(r)[:-5], "not a valid RoundReply"),
    "nested": (lambda r: b"\x95\x05" + b"\x91" * 1000, "not a valid RoundReply"),
    "an extension": (lambda r: raw(5, FALSE, r, 10, msgspec.msgpack.Ext(7, ONES)), "not a valid RoundReply"),
    "a task": (lambda r: encode(RoundTask(r, 1, 9.0, 0, [])), "not a valid RoundReply"),
    "a welcome": (lambda r: encode(Welcome(PROTOCOL, MOST)), "not a valid RoundReply"),
    "records": (lambda r: encode(Records(r + 9, [])), "not a valid RoundReply"),
    "an evaluation": (lambda r: measured(r), "not a valid RoundReply"),
    "a failure of markup": (lambda r: raw(8, FALSE, r, "<script>alert(1)</script>\n\x1b[31m"), "it failed: <script>"),
    "a failure without end": (lambda r: raw(8, FALSE, r, "x" * 700), "Expected `str` of length <= 200"),
    "another's failure": (lambda r: raw(8, HONEST[0], r, "tired"), f"in the name of '{HONEST[0]}'"),
}
"""What is sent instead of a round's reply, and what the ledger says of it."""
EVALUATIONS: dict[str, tuple[Callable[[int], bytes], str]] = {
    "a loss of nan": (lambda r: measured(r, math.nan), "its loss is nan"),
    "a loss without bound": (lambda r: measured(r, math.inf), "its loss is inf"),
    "an accuracy below zero": (lambda r: measured(r, 1.0, -7.5), "its metric is -7.5"),
    "an accuracy of nan": (lambda r: measured(r, 1.0, math.nan), "its metric is nan"),
    "no examples": (lambda r: measured(r, examples=0), "it measured on no example"),
    "all examples": (lambda r: measured(r, examples=2**63), "Expected `int` <= 1099511627776"),
    "another model's": (lambda r: measured(r, 1.0, 1.0), "its replica has another digest"),
    "scalars": (lambda r: reply(r), "not a valid Measured"),
}
"""The same instead of an evaluation's."""


class Intruder:
    """A party with a kit, and what the broker says of it."""

    def __init__(self, made: Federation, name: str) -> None:
        assert made.kits is not None
        self.folder, self.name = made.kits / name, name
        self.role = name if name in (SERVER, OBSERVER) else "client"
        self.denied = 0
        self.link: Any = None

    async def begin(self, folder: Path | None = None) -> "Intruder":
        async def told(error: Exception) -> None:
            self.denied += "permissions violation" in str(error).lower()

        own = kit.read(self.folder, self.role)
        self.link = await connect(own.address, own.connection(folder or self.folder), NAMES.inbox(self.name))
        self.link._error_cb = told
        return self

    async def refused(self, *subjects: str) -> None:
        """Publishing to each of these is denied by the broker."""
        self.denied = 0
        for subject in subjects:
            await self.link.publish(subject, b"forged", reply=NAMES.reply(HONEST[0]))
        await self.counted(subjects)

    async def deaf(self, *subjects: str) -> None:
        """Subscribing to each of these is denied by the broker."""
        self.denied = 0
        for subject in subjects:
            await self.link.subscribe(subject)
        await self.counted(subjects)

    async def counted(self, subjects: tuple[str, ...]) -> None:
        await self.link.flush()
        for _ in range(200):  # what the broker says is noted in a task of its own
            if self.denied >= len(subjects):
                break
            await asyncio.sleep(0.05)
        assert self.denied == len(subjects), (self.denied, subjects)

    async def asks(self, subject: str, message: bytes) -> bytes:
        return bytes((await self.link.request(subject, message, timeout=10)).data)


async def answers(
    link: Any, kinds: Mapping[str, tuple[Callable[[int], bytes], str]], of: type[RoundTask] | type[Measure], tasks: Any
) -> None:
    """Be asked for each, and send it; then a failure, so that nobody is waited for."""
    while tasks.pending_msgs:  # of rounds that are closed
        await tasks.next_msg(timeout=1)
    for make, _ in kinds.values():
        while True:
            await link.publish(NAMES.here(FALSE), b"")
            message = (await tasks.next_msg(timeout=30)).data
            round_ = 0
            if claims(message, RoundTask):
                round_ = decode(message, RoundTask).round
            elif claims(message, Measure):
                round_ = decode(message, Measure).round
            wanted = claims(message, of)
            if wanted:
                await link.publish(NAMES.reply(FALSE), make(round_))
            await link.publish(NAMES.reply(FALSE), encode(Failed(FALSE, round_, "Intruder")))
            if wanted:
                break


def test_intruders_stop_nobody(
    federation: Callable[..., Federation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    made = federation(RECIPE.replace("every = 20", "every = 3").replace("sampled = 2", "sampled = 4"), secure=True)
    options = ("--minimum", "2", "--deadline", "2")
    made.server(*options, "-s", "federation.rounds=1000000")
    made.client(HONEST[0])
    made.client(HONEST[1], "--nats", f"wss://127.0.0.1:{made.websocket}")
    made.until(lambda: made.rounds() >= 3)

    async def goes_on() -> None:
        reached = await asyncio.to_thread(made.rounds)
        await asyncio.to_thread(made.until, lambda: made.rounds() > reached + 2)

    def ledger() -> tuple[dict[str, bytes], bytes, int]:
        with Ledger.open(made.folder / "server" / "ledger.sqlite") as opened:
            return opened.header.contract(), opened.header.digest()[:8], opened.rounds

    async def at_the_broker(false: Intruder, observer: Intruder) -> None:
        """In others' names, on the broker's own subjects, and with what a certificate does not say."""
        others = [make(HONEST[0]) for make in (NAMES.hello, NAMES.here, NAMES.reply, NAMES.records, NAMES.task)]
        apis = ["STREAM.CREATE.x", "STREAM.PURGE.x", "CONSUMER.CREATE.x", "DIRECT.GET.x", "INFO"]
        for party in (false, observer):
            await party.refused(
                *others, NAMES.done, NAMES.status(FALSE), NAMES.inbox(SERVER) + ".x", "$SYS.REQ.SERVER.PING",
                *(f"$JS.API.{api}" for api in apis), "$KV.x.y", "_INBOX.x", "scalarfl.other.reply." + FALSE,
            )  # fmt: skip
            await party.deaf(
                ">", "scalarfl.>", "scalarfl.*.reply.*", NAMES.inbox("*") + ".>", NAMES.task(HONEST[0]), "$SYS.>",
                "_INBOX.>", NAMES.inbox(SERVER) + ".>", NAMES.status("*"),
            )  # fmt: skip
        await observer.refused(NAMES.reply(OBSERVER), NAMES.hello(OBSERVER), NAMES.here(OBSERVER))
        own = kit.read(false.folder, "client")
        as_server = {**own.connection(false.folder), "user": f"server@{NAMES.run}", "password": ""}
        link = await connect_once(own.address, as_server, NAMES.inbox(FALSE))  # what counts is the certificate
        denied: list[str] = []

        async def told(error: Exception) -> None:
            denied.append(str(error))

        link._error_cb = told
        await link.publish(NAMES.done, b"3 because I say so")
        await link.flush()
        for _ in range(200):
            if denied:
                break
            await asyncio.sleep(0.05)
        assert len(denied) == 1
        await close(link)
        made_up = tmp_path / "made-up"
        made_up.mkdir()
        certificate, key = Authority.made("trial").issue(f"server@{NAMES.run}", None)
        (made_up / "certificate.pem").write_bytes(certificate)
        (made_up / "key.pem").write_bytes(key)
        (made_up / "authority.pem").write_bytes((false.folder / "authority.pem").read_bytes())
        with pytest.raises((nats.errors.Error, OSError, ssl.SSLError)):
            await connect_once(own.address, own.connection(made_up), NAMES.inbox(SERVER))

    async def raw_bytes(false: Intruder) -> None:
        """Nonsense in NATS's own language, each on a connection of its own, which the broker closes."""
        own = kit.read(false.folder, "client")
        port = int(own.address.rpartition(":")[2])
        for line in (
            b"PUB x -1\r\n", b"PUB scalarfl.trial.reply.%s 99999999\r\n" % FALSE.encode(), b"\0" * 4096,
            b"HPUB %s 99 3\r\n" % NAMES.reply(FALSE).encode(), b"CONNECT {" + b"[" * 5000 + b"\r\n",
        ):  # fmt: skip
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await reader.readline()
            await writer.start_tls(own.connection(false.folder)["tls"], server_hostname="127.0.0.1")
            writer.write(b'CONNECT {"verbose":false}\r\n' + line)
            async with asyncio.timeout(10):
                while await reader.read(4096):
                    pass
            writer.close()

    async def requests(false: Intruder, observer: Intruder) -> None:
        """Handshakes that do not agree, and answers sent elsewhere."""
        contract, trail, rounds = await asyncio.to_thread(ledger)
        sound = {"protocol": PROTOCOL, "client": FALSE, **contract, "position": 0, "trail": trail}
        for changed, says in (
            ({"protocol": 3}, "speaks protocol 3"),
            ({"client": HONEST[0]}, f"in the name of '{HONEST[0]}'"),
            ({"seed": bytes(8)}, "has another seed"),
            ({"method": b""}, "has another method"),
            ({"base": bytes(32)}, "has another base model"),
            ({"position": rounds + 10_000}, "the ledger holds"),
            ({"position": MOST + 1}, "not a valid Hello"),
            ({"trail": bytes(8)}, "has applied other updates"),
        ):
            said = await false.asks(NAMES.hello(FALSE), raw(2, *(sound | changed).values()))
            assert said.startswith(b"!"), changed
            assert says in said.decode(), said
        said = await false.asks(NAMES.hello(FALSE), raw(12, *sound.values(), "guesswork"))
        assert said.startswith(b"!not a valid Hello")
        assert issubclass(HelloOtherwise, Hello)
        elsewhere = [
            "", NAMES.task(FALSE), NAMES.done, NAMES.inbox(FALSE), NAMES.inbox(FALSE) + ".a.b.c.d.e",
            NAMES.inbox(HONEST[0]) + ".x", "$SYS.REQ.SERVER.PING",
        ]  # fmt: skip
        for subject in elsewhere:
            for party, message in ((false, b"0"), (observer, b"0")):
                await party.link.publish(NAMES.records(party.name), message, reply=subject)
        for junk in (b"", b"-1", b"+1", b"1e3", "²".encode(), "٣".encode(), b"0" * 21, b"0\n", bytes(9)):
            await false.link.publish(NAMES.records(FALSE), junk, reply=false.link.new_inbox())
        for _ in range(500):
            await false.link.publish(NAMES.hello(FALSE), b"x", reply=false.link.new_inbox())
        await false.link.flush()

    async def attack() -> None:
        false, other, observer = [await Intruder(made, name).begin() for name in (FALSE, OTHER, OBSERVER)]
        steps: list[Callable[[], Awaitable[None]]] = [
            lambda: at_the_broker(false, observer), lambda: raw_bytes(false), lambda: requests(false, observer),
        ]  # fmt: skip
        for step in steps:
            await step()
            await goes_on()
        for number in range(50):  # heartbeats without a handshake, and replies before it
            await other.link.publish(NAMES.here(OTHER), b"")
            await other.link.publish(NAMES.reply(OTHER), reply(number, client=OTHER))
        await other.link.flush()
        contract, trail, _ = await asyncio.to_thread(ledger)
        hello = raw(2, PROTOCOL, FALSE, *contract.values(), 0, trail)
        await asyncio.sleep(1.1)  # its rate comes back
        assert not (await false.asks(NAMES.hello(FALSE), hello)).startswith(b"!")
        tasks = await false.link.subscribe(NAMES.task(FALSE))
        await answers(false.link, REPLIES, RoundTask, tasks)
        await answers(false.link, EVALUATIONS, Measure, tasks)
        clone = await Intruder(made, FALSE).begin()  # one kit, two processes: the second reply does not count
        twice = {"twice": (lambda r: reply(r), "a second reply")}
        for _ in range(2):
            await answers(clone.link, twice, RoundTask, tasks)
        await false.link.publish(NAMES.reply(FALSE), bytes(900_000))
        for party in (false, other, observer, clone):
            await close(party.link)
        await goes_on()

    async def all_of_it() -> None:
        async with asyncio.timeout(150):
            await attack()

    asyncio.run(all_of_it())
    made.kill("server")
    last = made.rounds() + 5
    made.server(*options, "-s", f"federation.rounds={last}")
    made.result("server")
    assert len({str(made.result(name)["digest"]) for name in HONEST}) == 1
    assert verify(made.folder / "server").finished
    with Ledger.open(made.folder / "server" / "ledger.sqlite") as opened:
        assert opened.rounds == last
        audits = [audit for _, audit in opened.audits("round")]
        rejected = [rejection for _, audit in opened.audits() for rejection in audit.rejected]
        scores = opened.evaluations()
    honest = sum(set(HONEST) <= {p.client for p in audit.participants} for audit in audits)
    assert honest >= 0.9 * len(audits), (honest, len(audits))
    assert {rejection.client for rejection in rejected} == {FALSE}
    reasons = {rejection.reason for rejection in rejected}
    missing = [
        f"{name}: {says}"
        for name, (_, says) in {**REPLIES, **EVALUATIONS, "twice": (None, "a second reply")}.items()
        if not any(says in reason for reason in reasons)
    ]
    assert not missing, (missing, sorted(reasons))
    assert all(math.isfinite(score.loss) and score.accuracy is not None for score in scores)
    log = made.log("server")
    for party, why in (
        (FALSE, "a reply subject outside its inbox"), (OBSERVER, "a reply subject outside its inbox"),
        (FALSE, "not the number of a round"), (FALSE, "too many requests"), (FALSE, "longer than"),
        (OTHER, "a reply before its handshake"),
    ):  # fmt: skip
        assert f"dropped from '{party}', {why}" in log, (party, why)
    assert "\x1b" not in log
    assert "\n2026-01-01 done" not in log
