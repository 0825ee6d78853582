"""The connection to the broker: supported versions, and retries while it cannot be reached."""

import asyncio
import contextlib
import logging
import re
import ssl
from collections.abc import Callable, Mapping
from typing import Any

import nats
from nats.aio.client import Client
from nats.aio.transport import TcpTransport
from nats.errors import SlowConsumerError
from nats.protocol.parser import AWAITING_CONTROL_LINE, CRLF_SIZE, Parser

from scalarfl.errors import InputError

log = logging.getLogger("scalarfl.network")

RETRY = 0.5  # seconds
TROUBLE = (nats.errors.Error, OSError, asyncio.TimeoutError)
"""Exceptions that the library raises while the broker is unavailable."""
OLDEST = (2, 10)
"""The oldest supported NATS version; older ones no longer get security fixes."""


async def connect(address: str, connection: Mapping[str, Any], inbox: str) -> Any:
    """A connection that retries forever, and logs failures and losses.

    connection: more arguments, such as a kit's. inbox: prefix of the subjects on which this party receives answers.
    Raises InputError if the broker is too old.
    """

    said = ""

    async def lost() -> None:
        if not link.is_closed:  # by ourselves, at the end
            log.warning("the connection to the broker is lost; trying again")

    async def back() -> None:
        log.info("the broker is back")

    async def failed(error: Exception) -> None:
        nonlocal said
        reason = "too many messages at once; some are dropped" if isinstance(error, SlowConsumerError) else str(error)
        reason = reason or type(error).__name__
        if reason != said:  # once, not with every try
            log.warning("the broker at %(address)s: %(reason)s", {"address": address, "reason": reason})
        said = reason

    link = _Client()
    await link.connect(
        address,
        max_reconnect_attempts=-1,
        reconnect_time_wait=RETRY,  # type: ignore[arg-type]  # it sleeps for any number
        disconnected_cb=lost,
        reconnected_cb=back,
        error_cb=failed,
        inbox_prefix=inbox,
        **connection,
    )
    await check_version(link, address)
    return link


async def connect_once(address: str, connection: Mapping[str, Any], inbox: str) -> Any:
    """A connection without retries."""

    async def silently(_error: Exception) -> None:
        """The caller learns of it once, as the exception."""

    link = _Client()
    made = link.connect(address, allow_reconnect=False, error_cb=silently, inbox_prefix=inbox, **connection)
    await asyncio.wait_for(made, 5)
    await check_version(link, address)
    return link


async def check_version(link: Any, address: str) -> None:
    """Raise InputError, with the connection closed, if the broker is older than supported."""
    version = link.connected_server_version
    try:
        found = version.major, version.minor
    except ValueError:  # not of the form 2.11.0
        found = 0, 0
    if found < OLDEST:
        await close(link)
        raise InputError(f"{address}: the broker is {version!r}; NATS {OLDEST[0]}.{OLDEST[1]} or later is needed.")


async def close(link: Any) -> None:
    """Close the connection, in a few seconds at most."""
    with contextlib.suppress(*TROUBLE):
        await asyncio.wait_for(link.close(), 5)


async def persistently(attempt: Callable[[], Any]) -> Any:
    """The result of the attempt, retried while the broker or the other party cannot be reached."""
    while True:
        try:
            return await attempt()
        except TROUBLE as error:
            log.warning("the broker: %(reason)s; trying again", {"reason": str(error) or type(error).__name__})
            await asyncio.sleep(RETRY)


class _Client(Client):
    """NATS's client, with TLS connections that end without a warning, and WebSockets through a proxy.

    It reads on whatever other parties send. Their headers and reply subjects reach it as they were written, and an
    exception over one of them would end its reading for good, without a word.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ps = _Parser(self)

    async def _process_headers(self, headers: bytes | None) -> dict[str, str] | None:
        """Only the broker's own status, such as that nobody answers: no party sends headers that another reads."""
        found = _STATUS.match(headers or b"")
        return {"Status": found[1].decode()} if found else None

    async def _connect_to_server(self, s: Any) -> None:
        if s.uri.scheme == "wss" and not self._transport:
            from scalarfl.transports.nats.websocket import WebSocket

            self._transport = WebSocket()
        elif not self._transport:
            self._transport = _Transport()  # type: ignore[no-untyped-call]
        await super()._connect_to_server(s)


_STATUS = re.compile(rb"NATS/1\.0 ([1-5][0-9]{2})\b")


class _Parser(Parser):
    """NATS's parser, given line after line and message after message, with lines of printable ASCII alone.

    The broker hands a reply subject on with whatever bytes its sender chose. Those that are no character, or a space
    to the parser though not to the broker, become "?", which no party's inbox has in its name.
    """

    def __init__(self, client: Client) -> None:
        self._held = bytearray()
        super().__init__(client)

    def reset(self) -> None:
        """Begin anew, for another connection."""
        super().reset()
        self._held.clear()

    async def parse(self, data: bytes = b"") -> None:
        """Take in more bytes, and hand over the messages that are whole."""
        self._held += data
        while self._held:
            if self.state == AWAITING_CONTROL_LINE:
                length = self._held.find(b"\r\n") + CRLF_SIZE
                if length < CRLF_SIZE:
                    return
                part = self._held[:length]
                if part.startswith((b"MSG ", b"HMSG ")):
                    part = part.translate(_PRINTABLE)
            else:
                part = self._held[: self.needed + CRLF_SIZE - len(self.buf)]
            del self._held[: len(part)]
            await super().parse(bytes(part))


_PRINTABLE = bytes(byte if 32 <= byte < 127 or byte in b"\t\r\n" else ord("?") for byte in range(256))


class _Transport(TcpTransport):
    def __bool__(self) -> bool:
        """True: the client is to keep this one, also before it is connected."""
        return True

    async def connect_tls(self, uri: Any, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: int) -> None:
        """As the parent does it, with a protocol that knows it runs over TLS, where no half of a stream stays open."""
        reader = asyncio.StreamReader(buffer_size)
        protocol = _OverTls(reader)
        loop = asyncio.get_running_loop()
        name = uri if isinstance(uri, str) else uri.hostname
        assert self._io_writer is not None
        upgraded = loop.start_tls(self._io_writer.transport, protocol, ssl_context, server_hostname=name)
        transport = await asyncio.wait_for(upgraded, connect_timeout)
        assert transport is not None
        self._io_reader, self._io_writer = reader, asyncio.StreamWriter(transport, protocol, reader, loop)


class _OverTls(asyncio.StreamReaderProtocol):
    def eof_received(self) -> bool:
        """False: close. The parent's True asks to stay open for writing, which asyncio's TLS answers with a warning."""
        super().eof_received()
        return False
