"""The command that demonstrates scalarfl, on digits or with a language model."""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from scalarfl.progress import watching

errors = Console(stderr=True, highlight=False)
output = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 140)


def demo(
    out: Annotated[
        Path | None, typer.Option(help="Folder; replaces a finished demonstration. Default: runs/demo, runs/demo-llm.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds of each run, at most.")] = None,
    llm: Annotated[bool, typer.Option("--llm", help="Fine-tune a real language model, SmolLM2, instead.")] = False,
) -> None:
    """Measure how many bytes it takes to learn to read real digits, by FedAvg and three scalar-only methods.

    Takes a minute and downloads nothing. After Ctrl-C the same command continues.
    """
    if llm:
        from scalarfl.cli import demo_llm

        demo_llm.demo(out, rounds, errors, output)
        return
    from scalarfl.experiment import demo as demonstration, run as runs

    out, rounds = out or Path("runs/demo"), rounds or demonstration.ROUNDS

    def say(text: str) -> None:
        errors.print(text, markup=False, soft_wrap=True)

    try:
        results = demonstration.demo(out, rounds, say, partial(watching, console=errors))
    except (runs.Interrupted, KeyboardInterrupt):
        say(f"interrupted; what is done stays. Continue with\n    scalarfl demo --out {out} --rounds {rounds}")
        raise typer.Exit(130) from None
    output.print(demonstration.table(results))
    output.print(f"Picture: {out / demonstration.CURVES} (open it in a browser)", soft_wrap=True)
    output.print(f"To rebuild a run's model from its ledger: scalarfl verify {out / 'hiso'}", soft_wrap=True)
    output.print(demonstration.conclusion(results))


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(demo)
