"""What `scalarfl show` prints of a run."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from scalarfl.experiment.report import thinned
from scalarfl.experiment.tables import Stacked
from scalarfl.units import percent, size

SHOWN_CLIENTS = 50


def write(output: Console, view: dict[str, Any]) -> None:
    """``experiment.report.overview`` as tables: the curve, bytes by purpose, participants; then rejections."""
    output.print(f"{view['method']}: {view['rounds']} rounds, d = {view['dimension']:,}", markup=False)
    if "privacy" in view:
        promise = "private: epsilon at most {epsilon:g} at delta {delta:g} for each {unit}, clip {clip:g}"
        output.print(promise.format(**view["privacy"]), markup=False)
    curve = [(f"{round_:,}", percent(accuracy), f"{loss:.4f}") for round_, accuracy, loss in thinned(view["curve"])]
    output.print(Stacked("evaluations", ("round", "accuracy", "loss"), curve))
    traffic = [
        (row["direction"], row["purpose"], f"{row['payload']:,}", f"{row['serialized']:,}") for row in view["traffic"]
    ]
    output.print(Stacked("bytes of all clients together", ("direction", "purpose", "payload", "serialized"), traffic))
    clients = [
        (name, f"{row['rounds']:,}", f"{row['rejected']:,}", size(row["up"]), size(row["down"]))
        for name, row in list(view["clients"].items())[:SHOWN_CLIENTS]
    ]
    title = "participants, with each client's bytes as serialized"
    output.print(Stacked(title, ("client", "rounds", "rejected", "bytes up", "down"), clients))
    if len(view["clients"]) > SHOWN_CLIENTS:
        output.print(f"... and {len(view['clients']) - SHOWN_CLIENTS} more clients; --json gives all")
    for reason, count in view["rejections"].items():
        output.print(f"rejected {count} times: {reason}", markup=False)


def pairs(facts: Iterable[tuple[str, str]]) -> Table:
    """Names and what they are, in two columns; long sentences are continued in the second."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in facts:
        grid.add_row(Text(name), Text(text))
    return grid
