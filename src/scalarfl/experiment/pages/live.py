"""A page that follows a run: read from the ledger that another process writes, written again while it grows."""

import time
from pathlib import Path

from scalarfl.errors import InputError
from scalarfl.experiment.pages.run import Seen, look, write
from scalarfl.experiment.run_folder import CHECKPOINT, LEDGER
from scalarfl.units import duration

QUIET = 60.0
"""Seconds without a new round after which the page says so."""


class Follower:
    """Writes a run's page whenever ``step`` is called, until the run has ended.

    A ledger holds no times, so the time left is estimated from the rounds that are recorded while it follows.
    """

    def __init__(self, folder: Path, every: float) -> None:
        self.folder = folder
        self.every = every
        self.page: Path | None = None
        """Where the page is; None until the run has begun."""
        self.state = f"waiting for a run in {folder}"
        self.pause = every
        """Seconds to wait before the next step: longer where reading a long ledger takes its time."""
        self._first: tuple[float, int] | None = None
        self._changed = (time.monotonic(), -1)
        self._seen: Seen | None = None

    def step(self) -> bool:
        """Read the ledger and write the page; whether the run has ended. Raises InputError for a baseline's run."""
        began = time.monotonic()
        if (self.folder / CHECKPOINT).is_file():
            raise InputError(
                f"{self.folder}: a baseline's run has no ledger to follow; `scalarfl report` shows its end."
            )
        if not (self.folder / LEDGER).is_file():
            return False
        seen = self._seen = look(self.folder)
        self._first = self._first or (began, seen.rounds)
        if seen.rounds != self._changed[1]:
            self._changed = began, seen.rounds
        planned = seen.keys["federation.rounds"]
        quiet = began - self._changed[0]
        over = seen.finished or (seen.rounds >= planned and quiet > 2 * self.every)
        self.state = self._told(seen.rounds, planned, began, quiet)
        self.page = write(seen, 0 if over else max(1, round(self.every)), "" if over else f"{self.state}.")
        self.pause = max(self.every, 10 * (time.monotonic() - began))
        return over

    def stop(self) -> None:
        """Leave a page that does not reload itself."""
        if self._seen is not None:
            self.page = write(self._seen)

    def _told(self, rounds: int, planned: int, now: float, quiet: float) -> str:
        told = f"Round {rounds:,} of {planned:,}"
        assert self._first is not None
        since, first = self._first
        if quiet > QUIET:
            return f"{told}; no new round for {duration(quiet)}, so the run may have been stopped"
        if rounds > first:
            pace = (now - since) / (rounds - first)
            told += f", {1 / pace:.3g} rounds per second, about {duration(pace * (planned - rounds))} left"
        return told
