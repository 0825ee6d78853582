"""``scalarfl demo --llm``: what a person sees of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import Progress as Bar
from rich.table import Table

from scalarfl.experiment import demo_llm as demonstration, run as runs
from scalarfl.progress import watching
from scalarfl.units import percent, size


def demo(out: Path | None, rounds: int | None, errors: Console, output: Console) -> None:
    """Run the demonstration and print its report. After Ctrl-C it exits with 130, and the next call continues."""
    out, rounds = out or Path("runs/demo-llm"), rounds or demonstration.ROUNDS

    def say(text: str) -> None:
        errors.print(text, markup=False, soft_wrap=True)

    try:
        done = demonstration.demo(out, rounds, say, partial(watching, console=errors), partial(_bar, errors))
    except (runs.Interrupted, KeyboardInterrupt):
        say(f"interrupted; what is done stays. Continue with\n    scalarfl demo --llm --out {out} --rounds {rounds}")
        raise typer.Exit(130) from None
    for table in tables(done):
        output.print(table)
    wrong = done.forgotten()
    output.print(f"It had {wrong} other sentence{'s' * (wrong != 1)} right before and has wrong now.", soft_wrap=True)
    output.print(f"The model is an ordinary folder; transformers loads it:\n    {loading(done.model)}", soft_wrap=True)
    output.print(f"To rebuild it from base model and ledger: scalarfl verify {out / 'run'}", soft_wrap=True)


def loading(model: Path) -> str:
    """The line of Python that loads the exported model."""
    return f'transformers.AutoModelForCausalLM.from_pretrained("{model}")'


def tables(done: demonstration.Demonstration) -> Iterator[Table]:
    """Scores and bytes; then sentences that the model has learnt."""
    result, (whole, trained) = done.result, done.fedavg
    taking_part = result["rounds"] * result["sampled"] / result["clients"]
    sent = result["serialized_bytes_up"] / max(1, taking_part)
    table = Table(title="SmolLM2-135M: which library does a sentence document?", show_header=False)
    table.add_row(f"right, of {len(done.truth)} sentences it never saw: before", percent(done.right(done.before)))
    table.add_row(f"after {result['rounds']} rounds", percent(done.right(done.after)))
    table.add_row("a client sends in a round", size(sent))
    table.add_row(f"with FedAvg, the {trained // 4:,} trained weights", f"{size(trained)}, {trained / sent:.0f} times")
    table.add_row(f"with FedAvg, all {whole // 4:,} weights", f"{size(whole)}, {whole / sent:,.0f} times")
    yield table
    learnt = done.learnt()
    table = Table(title=f"{min(len(learnt), demonstration.SHOWN)} of {len(learnt)} sentences it now gets right")
    for column in ("sentence", "before", "now"):
        table.add_column(column)
    for row in learnt[: demonstration.SHOWN]:
        table.add_row(*row)
    yield table


@contextmanager
def _bar(errors: Console, label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar in a terminal; elsewhere a line at the beginning, in the middle and at the end."""
    with Bar(console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task(label, total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)
            if not errors.is_terminal and done in (1, total // 2, total):
                errors.print(f"{label}: sentence {done} of {total}", markup=False, soft_wrap=True)

        yield show
