"""The command that writes the page of a run or a comparison, and follows a run."""

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from scalarfl.errors import InputError

errors = Console(stderr=True, highlight=False)


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder, or that of a comparison.")],
    live: Annotated[
        bool, typer.Option("--live", help="Follow a run: write the page again and again until the run ends.")
    ] = False,
    every: Annotated[float, typer.Option(min=1, max=3600, help="Seconds between two pages of --live.")] = 5.0,
) -> None:
    """Write DIR/report.html: one self-contained page with verdict, charts, tables and recipe.

    With --live the page reloads itself in the browser. The run may be one of `scalarfl run` in another terminal or a
    server's; stop following with Ctrl-C.
    """
    if (folder / "compare.json").is_file():
        from scalarfl.experiment.compare.page import write as write_comparison

        if live:
            raise InputError(f"--live follows a run; {folder} is a comparison. Leave --live out.")
        print(write_comparison(folder))
        return
    from scalarfl.experiment.pages.run import look, write

    print(_followed(folder, every) if live else write(look(folder)))


def _followed(folder: Path, every: float) -> Path:
    """Write the page until the run has ended or Ctrl-C."""
    from scalarfl.experiment.pages.live import Follower

    follower = Follower(folder, every)
    opened = False
    try:
        while not follower.step():
            if follower.page is not None and not opened:
                opened = True
                say = f"following: open {follower.page.resolve().as_uri()} in a browser; Ctrl-C stops following"
                errors.print(say, markup=False, soft_wrap=True)
            with errors.status(follower.state) if errors.is_terminal else nullcontext():
                time.sleep(follower.pause)
    except KeyboardInterrupt:
        follower.stop()
        errors.print("stopped following; the run goes on", markup=False)
    if follower.page is None:
        raise InputError(f"{folder}: no run began there while it was followed.")
    return follower.page


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(report)
