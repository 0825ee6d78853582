"""Tables that fit the terminal: where one is too wide it is continued below, with its first column again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

BORDER, BETWEEN = 1, 3
"""Columns of the terminal that a table takes beside its cells: once, and for each column."""


@dataclass(frozen=True)
class Stacked:
    """A table for any width: the most important columns come first, so they stay together."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The title, and as many tables below each other as the width needs."""
        if self.title:
            yield Text(self.title, style="italic")
        for columns in self.split(options.max_width):
            table = Table()
            for index in columns:
                table.add_column(self.heads[index], justify="right" if index else "left", overflow="fold")
            for row in self.rows:
                table.add_row(*(Text(row[index]) for index in columns))
            yield table

    def split(self, width: int) -> Iterator[list[int]]:
        """The columns of each table: as many as fit, and at least one beside the first."""
        widths = [max(map(cell_len, (head, *(row[i] for row in self.rows)))) for i, head in enumerate(self.heads)]
        taken, used = [0], BORDER + BETWEEN + widths[0]
        for index in range(1, len(widths)):
            needs = BETWEEN + widths[index]
            if used + needs > width and len(taken) > 1:
                yield taken
                taken, used = [0], BORDER + BETWEEN + widths[0]
            taken.append(index)
            used += needs
        yield taken
