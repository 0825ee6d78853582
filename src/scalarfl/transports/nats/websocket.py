"""NATS in the frames of a WebSocket: for sites whose proxy lets only HTTPS out."""

import asyncio
import ssl
from collections.abc import Iterable
from typing import Any

from nats.aio.transport import Transport
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from scalarfl.ledger.codec import MAX_BYTES


class WebSocket(Transport):
    """A connection by ``wss://``, through the proxy that HTTPS_PROXY names, unless NO_PROXY exempts the broker.

    The proxy carries TLS from end to end (CONNECT), so that the broker sees the party's certificate. nats-py has a
    WebSocket too, which uses no proxy and needs aiohttp.
    """

    def __init__(self) -> None:
        self._socket: ClientConnection | None = None
        self._pending: list[bytes] = []
        self._closing: asyncio.Task[None] | None = None

    async def connect(self, uri: Any, buffer_size: int, connect_timeout: int) -> None:
        """Not without TLS: ``check_address`` accepts no ``ws://``."""
        del buffer_size, connect_timeout
        raise ConnectionError(f"{uri.geturl()}: use wss://.")

    async def connect_tls(self, uri: Any, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: int) -> None:
        """Connect; nothing where it is connected: NATS's client asks again after the broker's first line.

        Raises OSError.
        """
        del buffer_size
        if self._socket is not None:
            return
        try:
            self._socket = await connect(
                uri.geturl(), ssl=ssl_context, compression=None, max_size=MAX_BYTES, ping_interval=None,
                open_timeout=connect_timeout, close_timeout=2,
            )  # fmt: skip
        except (WebSocketException, EOFError, ImportError) as error:  # ImportError: a SOCKS proxy needs python-socks
            raise ConnectionError(str(error) or type(error).__name__) from None

    def write(self, payload: bytes) -> None:
        """Queue bytes for ``drain``."""
        self._pending.append(payload)

    def writelines(self, payload: Iterable[bytes]) -> None:
        """Queue several."""
        self._pending += payload

    async def drain(self) -> None:
        """Send what is queued. Raises ConnectionError."""
        pending, self._pending = b"".join(self._pending), []
        if pending and self._socket is not None:
            try:
                await self._socket.send(pending)
            except WebSocketException as error:
                raise ConnectionError(str(error)) from None

    async def read(self, buffer_size: int) -> bytes:
        """The next frame, which may hold a part of a message or several; empty at the end."""
        del buffer_size
        return await self.readline()

    async def readline(self) -> bytes:
        """The same: the broker sends each of its first lines as one frame."""
        if self._socket is None:
            return b""
        try:
            return await self._socket.recv(decode=False)
        except WebSocketException:
            return b""

    def at_eof(self) -> bool:
        """Whether the connection is closed."""
        return self._socket is None or self._socket.close_code is not None

    def close(self) -> None:
        """Begin to close."""
        if self._socket is not None and self._closing is None:
            self._closing = asyncio.create_task(self._socket.close())

    async def wait_closed(self) -> None:
        """Wait until it is closed."""
        if self._closing is not None:
            await self._closing
        self._socket = self._closing = None

    def __bool__(self) -> bool:
        """True: the client is to keep this one, also before it is connected and between two connections."""
        return True
