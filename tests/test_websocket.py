"""WebSockets through a proxy: the same identities and rights as over TLS, and connections that come back."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from federation import BROKER, CLIENTS, Federation
from scalarfl import InputError
from scalarfl.transports.nats import kit
from scalarfl.transports.nats.broker import close, connect, connect_once
from scalarfl.transports.nats.names import Names, check_address

nats = pytest.importorskip("nats")
NAMES = Names("trial")


@contextlib.asynccontextmanager
async def proxy(asked: list[str]) -> AsyncIterator[int]:
    """A company's: it lets nothing out but CONNECT."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, target, _ = request.split(" ", 2)
        asked.append(f"{method} {target}")
        host, _, port = target.rpartition(":")
        try:
            far, out = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
            writer.close()
            return
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(pump(reader, out), pump(far, writer))

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        yield listening.sockets[0].getsockname()[1]


@pytest.mark.skipif(BROKER is None, reason="needs nats-server (the extra network)")
def test_a_party_behind_a_proxy(federation: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch) -> None:
    made = federation(secure=True)
    assert made.kits is not None
    address, asked, violations = f"wss://127.0.0.1:{made.websocket}", list[str](), list[str]()
    ours, theirs = CLIENTS[:2]
    for name in ("HTTPS_PROXY", "WSS_PROXY", "ALL_PROXY", "SOCKS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    certificate: Any = kit.read(made.kits / ours, "client").connection(made.kits / ours)
    bare = ssl.create_default_context(cafile=str(made.kits / ours / "authority.pem"))

    async def refused() -> None:
        with pytest.raises((nats.errors.Error, OSError)):
            await connect_once(address, {"tls": bare}, NAMES.inbox(ours))

    async def answer(message: Any) -> None:
        await message.respond(message.data[::-1])

    async def told(error: Exception) -> None:
        violations.append(str(error))

    async def talk() -> None:
        async with asyncio.timeout(60), proxy(asked) as port:
            monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
            link = await connect(address, certificate, NAMES.inbox(ours))
            link._error_cb = told
            own = made.kits / "server"  # type: ignore[operator]
            server = await connect(
                kit.read(own, "server").address, kit.read(own, "server").connection(own), NAMES.inbox("server")
            )
            await server.subscribe(NAMES.records("*"), cb=answer)
            await server.flush()
            assert (await link.request(NAMES.records(ours), b"1" * 300_000 + b"2", timeout=5)).data[:2] == b"21"
            await link.publish(NAMES.reply(theirs), b"forged")
            await link.flush()
            assert len(violations) == 1
            assert "permissions violation" in violations[0].lower()
            await refused()
            made.kill("broker")
            await asyncio.to_thread(made.broker)
            async with asyncio.timeout(20):
                while True:
                    with contextlib.suppress(nats.errors.Error, TimeoutError):
                        assert (await link.request(NAMES.records(ours), b"12", timeout=1)).data == b"21"
                        break
                    await asyncio.sleep(0.1)
            await close(link)
            await close(server)

    asyncio.run(talk())
    assert set(asked) == {f"CONNECT 127.0.0.1:{made.websocket}"}
    assert len(asked) >= 3


def test_addresses_and_ports(tmp_path: Any) -> None:
    assert check_address("wss://broker.example.org")
    with pytest.raises(InputError, match="accepted: nats://HOST:PORT on this machine, tls://HOST:PORT, wss://HOST"):
        check_address("ws://127.0.0.1:1")
    with pytest.raises(InputError, match="--websocket 4222: --port has the same"):
        kit.make(tmp_path / "kits", "trial", ["alpha"], websocket=4222)
    kit.make(tmp_path / "kits", "trial", ["alpha"], "broker.example.org", websocket=443)
    start = (tmp_path / "kits" / "alpha" / "START.txt").read_text()
    assert "HTTPS_PROXY and add: --nats wss://broker.example.org\n" in start
    assert "websocket" not in kit.configuration(NAMES, kit.Members("trial", "h", "h", 1, {}, {}))
