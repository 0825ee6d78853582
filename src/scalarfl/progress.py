"""How a run goes, for the person who waits: a live bar in a terminal or a notebook, else a plain line now and then."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from typing import TYPE_CHECKING, Literal

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress as Bar, TaskProgressColumn, TextColumn
from rich.table import Column

from scalarfl.errors import InputError, shown
from scalarfl.units import duration, percent, size

if TYPE_CHECKING:
    from scalarfl.protocol.callbacks import Callback, Progress

LINES, TERMINAL, NOTEBOOK = 5.0, 0.1, 0.5
"""Seconds between two updates, at least."""


def following(progress: bool | Literal["auto"], label: str) -> "AbstractContextManager[Callback | None]":
    """What ``simulate(progress=...)`` shows on standard error; ``auto``: a bar where one can be live, else nothing.

    Raises InputError for another value.
    """
    if not (isinstance(progress, bool) or progress == "auto"):
        raise InputError(f"progress = {shown(progress)}: accepted: True, False, 'auto'.")
    console = Console(stderr=True, highlight=False)
    wanted = _live(console) if progress == "auto" else progress
    return watching(label, console) if wanted else nullcontext()


@contextmanager
def watching(label: str, console: Console) -> "Iterator[Callback]":
    """A callback that shows how a run goes: a live bar in a terminal or a notebook, else a plain line now and then."""
    with _shown(label, console) as (show, pause):
        follower = _Follower(show, pause)
        try:
            yield follower
        finally:
            follower.finish()


Show = Callable[[int, int, list[tuple[int, str]]], None]
"""Shows (rounds done, rounds planned, what else there is to say), each part with its rank where room is scarce."""

BAR, NARROW = 20, 8
"""Columns of the bar: as a rule, and where the terminal is narrower than a hundred."""


@contextmanager
def _shown(label: str, console: Console) -> Iterator[tuple[Show, float]]:
    """The way to show a run on this console, and the pause between two calls."""
    if not _live(console):

        def line(done: int, of: int, parts: list[tuple[int, str]]) -> None:
            text = ", ".join(part for _, part in parts)
            console.print(f"{label}: round {done} of {of}, {text}", markup=False, soft_wrap=True)

        yield line, LINES
        return
    one_line = Column(no_wrap=True)
    name = TextColumn("{task.description}", markup=False, table_column=one_line)
    state = TextColumn("{task.fields[state]}", markup=False, table_column=one_line)
    wide = BAR if console.is_jupyter or console.width >= 100 else NARROW
    torn = sys.stdout is not None and sys.stdout.isatty()  # by what a run prints; elsewhere it goes where it should
    bar = Bar(name, BarColumn(wide), TaskProgressColumn(), state, console=console, redirect_stdout=torn)
    task = bar.add_task(label, total=None, state="")

    def update(done: int, of: int, parts: list[tuple[int, str]]) -> None:
        room = math.inf if console.is_jupyter else console.width - cell_len(label) - wide - len(" 100%   ")
        bar.update(task, completed=done, total=of, state=fitting(parts, room))

    if not console.is_jupyter:
        with bar:
            yield update, TERMINAL
        return
    cell = import_module("IPython.display").display(bar, display_id=True)  # rich alone would need ipywidgets

    def show(done: int, of: int, parts: list[tuple[int, str]]) -> None:
        update(done, of, parts)
        cell.update(bar)

    yield show, NOTEBOOK


def fitting(parts: list[tuple[int, str]], room: float) -> str:
    """The parts that fit, in their order; the one with the highest rank is left out first.

    >>> fitting([(0, "8 s left"), (2, "loss 0.5"), (1, "accuracy 25 %")], 23)
    '8 s left, accuracy 25 %'
    """
    while len(parts) > 1 and cell_len(", ".join(text for _, text in parts)) > room:
        last = max(parts)
        parts = [part for part in parts if part is not last]
    return ", ".join(text for _, text in parts)


def _live(console: Console) -> bool:
    """Whether what is shown can be replaced. A colour that is forced on a file makes no terminal of it."""
    return console.is_jupyter or (console.is_terminal and not console.is_dumb_terminal and console.file.isatty())


class _Follower:
    """A callback that shows the newest progress, but not more often than every ``pause`` seconds."""

    def __init__(self, show: Show, pause: float) -> None:
        self._show, self._pause = show, pause
        self._began: tuple[float, int] | None = None
        """When this process's first round was over, and its number: the first round compiles kernels."""
        self._shown_at = -math.inf
        self._waiting: Progress | None = None

    def __call__(self, progress: "Progress") -> None:
        now = time.monotonic()
        self._began = self._began or (now, progress.round)
        self._waiting = progress
        if now - self._shown_at >= self._pause or progress.round == progress.rounds:
            self._shown_at = now
            self.finish()

    def finish(self) -> None:
        """Show what was held back, if anything was."""
        if self._waiting is not None:
            self._show(self._waiting.round, self._waiting.rounds, list(self._state(self._waiting)))
            self._waiting = None

    def _state(self, progress: "Progress") -> Iterator[tuple[int, str]]:
        began, first = self._began or (0.0, 0)
        if first < progress.round < progress.rounds:
            pace = (time.monotonic() - began) / (progress.round - first)
            yield 0, f"{duration(pace * (progress.rounds - progress.round))} left"
        yield 3, f"loss {progress.loss:.4f}"
        if progress.evaluation is not None and progress.evaluation.accuracy is not None:
            yield 1, f"accuracy {percent(progress.evaluation.accuracy)}"
        up, down = progress.bytes_up / progress.clients, progress.bytes_down / progress.clients
        yield 2, f"{size(up)} up, {size(down)} down per client"
