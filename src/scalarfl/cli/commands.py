"""The commands. Thin: they read arguments, show progress and turn errors into sentences and exit codes."""

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress as Bar

from scalarfl import __version__
from scalarfl.cli import (
    compare as cli_compare,
    demo as cli_demo,
    flower as cli_flower,
    network as cli_network,
    overview,
    recipe as cli_recipe,
    report as cli_report,
)
from scalarfl.errors import InputError, explained, install_hint, sentence, show_warnings, shown
from scalarfl.files import located
from scalarfl.progress import watching
from scalarfl.units import percent

EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="scalarfl",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Federated fine-tuning that sends only a few scalars over the network. Start with `scalarfl demo`.",
    epilog="Exit codes: 0 success, 2 invalid input, 3 verification failed, 130 interrupted (resumable).",
)
errors = Console(stderr=True, highlight=False)
output = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 140)

Folder = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object, the last line of output.")]


cli_demo.register(app)


def say(text: str) -> None:
    """A line for the person at the terminal, on standard error."""
    errors.print(text, markup=False, soft_wrap=True)


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file; `scalarfl recipe` prints one.")],
    setting: Annotated[
        list[str] | None,
        typer.Option("-s", "--set", metavar="SECTION.KEY=VALUE", help="Override a key of the recipe; repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the run; default: runs/NAME, from the recipe's file name.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the folder's run at the end of its ledger.")
    ] = False,
    data_dir: Annotated[Path | None, typer.Option(help="Folder with the data files; overrides task.data_dir.")] = None,
    tensorboard: Annotated[Path | None, typer.Option(help="Folder for TensorBoard's event files.")] = None,
    attack: cli_compare.Attack = None,
    attackers: cli_compare.Attackers = None,
    as_json: AsJson = False,
) -> None:
    """Run a recipe: simulate the whole federation on this machine."""
    from scalarfl.experiment import recipe as recipes, report, run as runs

    setting = cli_compare.attacked(setting, attack, attackers)
    loaded = recipes.load(recipe, _with_data_dir(setting, data_dir))
    folder = out or Path("runs") / recipe.stem
    try:
        with watching(loaded.method.own.name, errors) as watch, ExitStack() as stack:
            if tensorboard is not None:
                from scalarfl.experiment import trackers

                watch = trackers.watch(stack.enter_context(trackers.TensorBoard(tensorboard)), then=watch)
            result = runs.run(loaded, folder, resume=resume, callbacks=watch)
    except runs.Interrupted as stop:
        again = " ".join(f"-s {text}" for text in setting)
        say(
            f"interrupted after {stop.rounds} rounds; nothing is lost. Continue with\n"
            f"    scalarfl run {recipe}{' ' + again if again else ''} --out {folder} --resume"
        )
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if not report.can_plot():
        say(f"note: no curve was drawn; for curves, {install_hint('plot')}.")
    if as_json:
        print(json.dumps(result))
    else:
        output.print(report.comparison([result]))
        output.print(f"Folder: {folder}", soft_wrap=True)
        output.print(f"Next: scalarfl report {folder}, scalarfl verify {folder}", soft_wrap=True)


@app.command()
def verify(folder: Folder, as_json: AsJson = False) -> None:
    """Rebuild a run's model from base model and ledger; compare digests, scores and bytes with the record."""
    from scalarfl.experiment import run as runs

    with _replaying() as progress:
        verified = runs.verify(folder, progress)
    if as_json:
        print(json.dumps(verified.__dict__ | {"measured": verified.measured._asdict()}))
        return
    output.print(f"verified: {verified.rounds:,} rounds, {verified.evaluations} evaluations")
    output.print(f"digest {verified.digest}", soft_wrap=True)
    output.print(f"ledger head {verified.head}", soft_wrap=True)
    if not verified.finished:
        output.print("The run is unfinished: no result.json to compare with.")
    for claim in verified.unconfirmed:
        output.print(f"Not verified: {claim}.", markup=False, soft_wrap=True)


@app.command()
def export(
    folder: Folder,
    out: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder for the model.")],
    at: Annotated[
        str | None,
        typer.Option(
            "--round", metavar="best|last|N", help="Which model; default: best with task.validation, else last."
        ),
    ] = None,
) -> None:
    """Export a run's model to a folder for `from_pretrained`; LoRA gives an adapter folder."""
    from scalarfl.experiment.export import export as write

    with _replaying() as progress:
        taken = write(folder, out, progress, at)
    output.print(f"{out}: the model {taken.place}, with digest {taken.digest}", soft_wrap=True)


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="RUN|DIR", help="A run's folder, or any model folder.")],
    task: Annotated[str | None, typer.Option(help="Task to evaluate on; default: the recipe's.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder with the task's data files.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("-s", "--set", metavar="SECTION.KEY=VALUE", help="Override a recipe's key.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a run or a model folder on a task's test examples."""
    from scalarfl.experiment.export import evaluate as measure

    with _replaying() as progress:
        score = measure(folder, task, _with_data_dir(setting, data_dir), progress)
    metrics = dict(score.metrics or {})
    if as_json:
        print(json.dumps({"loss": score.loss, "examples": score.examples, **metrics}))
        return
    found = ", ".join(f"{name} {percent(value)}" for name, value in metrics.items())
    output.print(f"{found}, loss {score.loss:.4f} on {score.examples} examples")


@contextmanager
def _replaying() -> "Iterator[Callable[[int, int], None]]":
    """A bar for rounds being replayed."""
    with Bar(console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("replaying", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _with_data_dir(setting: list[str] | None, data_dir: Path | None) -> list[str]:
    """The overrides, with the option --data-dir as one of them; it starts where the user is."""
    given = [] if data_dir is None else [f"task.data_dir={json.dumps(str(located(data_dir)))}"]
    return [*(setting or []), *given]


@app.command()
def plan(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file.")],
    setting: Annotated[
        list[str] | None, typer.Option("-s", "--set", metavar="SECTION.KEY=VALUE", help="Override a recipe's key.")
    ] = None,
    forward: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="Measured seconds per forward pass of one batch.")
    ] = None,
    noise: Annotated[
        float,
        typer.Option(min=1, metavar="PER_SECOND", help="Measured speed of the generator, in coordinates per second."),
    ] = 1e9,
    as_json: AsJson = False,
) -> None:
    """Estimate parameters, memory, forward passes, bytes and time of a recipe without loading the model."""
    from scalarfl.experiment import recipe as recipes, report
    from scalarfl.experiment.private_plan import planned

    found = planned(recipes.load(recipe, setting or []), forward, noise)
    if as_json:
        print(json.dumps(found))
    else:
        output.print(overview.pairs(report.planned(found)))


@app.command()
def show(folder: Folder, as_json: AsJson = False) -> None:
    """Show a run: its curve, bytes by purpose, participants and rejections."""
    from scalarfl.experiment import report, run as runs

    with runs.open_ledger(folder) as ledger:
        view = report.overview(ledger)
    if as_json:
        print(json.dumps(view))
        return
    overview.write(output, view)


@app.command()
def methods() -> None:
    """List the methods and their settings."""
    from scalarfl.baselines import BASELINES, Baseline
    from scalarfl.methods import METHODS, Method

    kinds: dict[str, type[Method] | type[Baseline]] = {**METHODS, **BASELINES}
    for name, method in kinds.items():
        sent = method.costs if issubclass(method, Baseline) else f"memory: {method.vectors} float32 per parameter"
        output.print(f"{name}: {method.summary} ({method.source}); {sent}", markup=False)
        for key, info in method.model_fields.items():
            output.print(f"    {key} = {info.get_default()!r}  {info.description}", markup=False)


cli_network.register(app)
cli_flower.register(app)
cli_compare.register(app)
cli_report.register(app)
cli_recipe.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"scalarfl {__version__}")
        raise typer.Exit


@app.callback()
def options(
    _debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,  # read in _exit_code
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads; default: torch's choice.")] = None,
    _show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of every command."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


# The base of all usage errors; typer carries its own copy of click in newer versions, so it is looked up by name.
_UsageError: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def main(arguments: list[str] | None = None) -> None:
    """The entry point of the command ``scalarfl``; ends the process with one of the exit codes."""
    sys.exit(_exit_code(sys.argv[1:] if arguments is None else arguments))


def _check_words(arguments: list[str]) -> None:
    """Refuse NUL, which no file name contains. A shell cannot pass it, but a program that calls us can."""
    for word in arguments:
        if "\0" in word:
            raise InputError(f"{shown(word)}: an argument must not contain NUL.")


def _exit_code(arguments: list[str]) -> int:
    """Run a command; what the user can mend becomes ``error:`` and a sentence."""
    show_warnings(say)
    for stream in (sys.stdout, sys.stderr):  # a file's name need not be text, nor the terminal's encoding have it
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        _check_words(arguments)
        code = app(arguments, standalone_mode=False)
    except _UsageError as error:
        say(f"error: {getattr(error, 'format_message', error.__str__)()} See `scalarfl --help`.")
        return InputError.exit_code
    except (KeyboardInterrupt, typer.Abort):
        say("interrupted; the ledger is safe")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output, `head` say, has seen enough
        sys.stderr.close()
        return 0
    except Exception as error:
        if "--debug" in arguments:
            raise
        told = explained(error)
        say(f"error: {sentence(told)}")
        return told.exit_code
    return code if isinstance(code, int) else 0
