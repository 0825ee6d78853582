"""What both processes do while the broker cannot be reached: try again."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

import nats
from nats.js.errors import APIError, NotFoundError

log = logging.getLogger("scalarfl.network")

RETRY = 0.5  # seconds
TROUBLE = (nats.errors.Error, APIError, OSError, asyncio.TimeoutError)
"""What a broker that is gone, or coming back, makes the library raise."""


async def connect(address: str, connection: Mapping[str, Any]) -> Any:
    """A connection that tries for as long as it takes, and says so, now and whenever it is lost."""

    async def lost() -> None:
        if not link.is_closed:  # by ourselves, at the end
            log.warning("the connection to the broker is lost; trying again")

    async def back() -> None:
        log.info("the broker is back")

    async def failed(error: Exception) -> None:
        reason = str(error) or type(error).__name__
        if reason != said[-1]:  # once, not with every try
            log.warning("the broker at %(address)s: %(reason)s", {"address": address, "reason": reason})
        said.append(reason)

    said = [""]
    link = await nats.connect(
        address,
        max_reconnect_attempts=-1,
        reconnect_time_wait=RETRY,
        disconnected_cb=lost,
        reconnected_cb=back,
        error_cb=failed,
        **connection,
    )
    return link


async def persistently(attempt: Callable[[], Any]) -> Any:
    """The result of the attempt, repeated for as long as the broker cannot be reached."""
    while True:
        try:
            return await attempt()
        except NotFoundError:
            raise
        except TROUBLE as error:
            log.warning("the broker: %(reason)s; trying again", {"reason": str(error) or type(error).__name__})
            await asyncio.sleep(RETRY)
