"""How one client's part goes: lines in its log while rounds go by, and what it has done in the end."""

import logging
import time
from dataclasses import dataclass, field
from typing import Any

from scalarfl.units import duration, size

log = logging.getLogger("scalarfl.network")

EVERY = 10.0
"""Seconds between two lines."""


@dataclass
class Progress:
    """What one client has done since its process began.

    planned: rounds of the whole federation, as far as the client's recipe says.
    """

    planned: int | None = None
    took_part: int = 0
    """Rounds that this client answered."""
    up: int = 0
    down: int = 0
    """Bytes of messages sent and received, without the transport's share."""
    _began: float = field(default_factory=time.monotonic)
    _said: tuple[float, int] | None = None  # when the last line was written, and the position then

    def follow(self, position: int, link: Any) -> None:
        """Write a line where the last one is a while ago. position: rounds applied; link: the connection to NATS."""
        self.up, self.down = link.stats["out_bytes"], link.stats["in_bytes"]
        now = time.monotonic()
        if self._said is None:
            self._said = now, position
        then, before = self._said
        if now - then < EVERY:
            return
        self._said = now, position
        fields: dict[str, object] = {"round": position, "took_part": self.took_part, "up": self.up, "down": self.down}
        text = (
            f"round %(round)d: took part in %(took_part)d, this client sent {size(self.up)}, received {size(self.down)}"
        )
        if self.planned is not None and position > before:
            left = max(0, self.planned - position) * (now - then) / (position - before)
            fields |= {"rounds": self.planned, "seconds_left": left}
            text = text.replace("%(round)d", "%(round)d of %(rounds)d", 1) + f", about {duration(left)} left"
        log.info(text, fields)

    def result(self, rounds: int, digest: str) -> dict[str, Any]:
        """What this client did, in figures; also as a line in the log."""
        seconds = time.monotonic() - self._began
        log.info(
            f"done: %(rounds)d rounds, took part in %(took_part)d, sent {size(self.up)}, received {size(self.down)}, "
            f"{duration(seconds)}; digest of the model %(digest)s",
            {"rounds": rounds, "took_part": self.took_part, "up": self.up, "down": self.down, "digest": digest},
        )
        log.info(
            "next, on the server's folder or a copy of it: scalarfl report FOLDER, or "
            "scalarfl export FOLDER DIR for the model"
        )
        return {
            "rounds": rounds,
            "digest": digest,
            "took_part": self.took_part,
            "bytes_up": self.up,
            "bytes_down": self.down,
            "seconds": seconds,
        }
