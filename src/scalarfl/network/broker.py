"""What both processes do while the broker cannot be reached: try again."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import nats
from nats.js.errors import APIError, NotFoundError

log = logging.getLogger("scalarfl.network")

RETRY = 0.5  # seconds
TROUBLE = (nats.errors.Error, APIError, OSError, asyncio.TimeoutError)
"""What a broker that is gone, or coming back, makes the library raise."""


async def persistently(attempt: Callable[[], Any]) -> Any:
    """The result of the attempt, repeated for as long as the broker cannot be reached."""
    while True:
        try:
            return await attempt()
        except NotFoundError:
            raise
        except TROUBLE as error:
            log.warning("the broker: %s; trying again", error or type(error).__name__)
            await asyncio.sleep(RETRY)
