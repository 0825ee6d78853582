"""The connection to the broker: which versions it accepts, and that it reads on whatever other parties write."""

import asyncio
import random
from typing import Any

import pytest

from scalarfl import InputError
from scalarfl.transports.nats import kit
from scalarfl.transports.nats.names import Names

nats = pytest.importorskip("nats")


@pytest.mark.parametrize(
    ("version", "accepted"),
    [("2.9.25", False), ("1.4.1", False), ("2.10.0", True), ("2.11.4-beta.1", True), ("3.0.0", True), ("odd", False)],
)
def test_an_old_broker_is_refused_by_name(version: str, accepted: bool) -> None:
    from scalarfl.transports.nats.broker import close, connect, connect_once

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        info = f'{{"server_id":"x","version":"{version}","headers":true,"max_payload":1048576}}'
        writer.write(f"INFO {info}\r\n".encode())
        while line := await reader.readline():
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")
        writer.close()

    async def tries() -> None:
        broker = await asyncio.start_server(answer, "127.0.0.1", 0)
        address = f"nats://127.0.0.1:{broker.sockets[0].getsockname()[1]}"
        for attempt in (connect, connect_once):
            if accepted:
                await close(await attempt(address, {}, "x"))
            else:
                with pytest.raises(InputError, match=rf"the broker is .*{version}.*; NATS 2\.10 or later is needed"):
                    await attempt(address, {}, "x")
        broker.close()

    asyncio.run(tries())


def test_no_header_and_no_reply_subject_ends_the_reading() -> None:
    """Cut anywhere on its way, every message arrives, and the broker's own status is understood."""
    from scalarfl.transports.nats.broker import _Client

    wild = [b"\xff\xfe", b"a\x0bb", b"a\x0cb", b"\xc2\x85", b"\x1c", b"\0", b"x" * 5000]
    headers = [b"X", b"NATS/1.0", b"NATS/1.0 \xff\r\n\r\n", b"NATS/1.0\r\n\xff:\r\n\r\n", b"NATS/1.0 503\r\n\r\n"]
    stream = b"".join(b"MSG reply.alpha 7 %s 6\r\nMSG \r\n\r\n" % one for one in wild)
    stream += b"".join(b"HMSG reply.alpha 7 %d %d\r\n%shi\r\n" % (len(one), len(one) + 2, one) for one in headers)
    stream += b"PING\r\nMSG reply.alpha 7 _inbox.x 0\r\n\r\n"

    async def read(sizes: random.Random) -> list[Any]:
        client: Any = _Client()
        found: list[Any] = []

        async def take(sid: int, subject: bytes, reply: bytes, data: bytes, own: bytes | None) -> None:
            hdr = await client._process_headers(own)
            found.append(client._build_message(sid, subject, reply, data, hdr))

        async def pong() -> None:
            found.append("ping")

        client._process_msg, client._process_ping = take, pong
        left = stream
        while left:
            size = sizes.choice([1, 2, 7, 100, 10_000])
            await client._ps.parse(left[:size])
            left = left[size:]
        return found

    for seed in range(20):
        found = asyncio.run(read(random.Random(seed)))
        assert len(found) == len(wild) + len(headers) + 2
        assert found[-2] == "ping"
        assert [message.data for message in found if message != "ping"] == [b"MSG \r\n"] * 7 + [b"hi"] * 5 + [b""]
        assert [message.headers for message in found[7:12]] == [None] * 4 + [{"Status": "503"}]
        assert all(message.reply.isascii() for message in found if message != "ping")
        assert not any(Names("trial").is_inbox("alpha", message.reply) for message in found[:12])


def test_the_broker_of_kits_stores_nothing(tmp_path: Any) -> None:
    kit.make(tmp_path / "kits", "trial", ["alpha"])
    written = (tmp_path / "kits" / "broker" / kit.CONFIGURATION).read_text()
    assert "jetstream" not in written
    assert "allow_responses" not in written
