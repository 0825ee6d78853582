"""The commands that compare methods and measure speed."""

import json
import math
import os
import shlex
import signal
import time
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group
from rich.text import Text

from scalarfl.errors import InputError, VerificationError, nearest
from scalarfl.units import rate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.status import Status

    from scalarfl.experiment.compare.cells import Cell

errors = Console(stderr=True, highlight=False)

Attack = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Let some clients send false scalars: sign-flip, ipm, boost, alie, alie-against, gaussian, mimic, "
        "label-flip. Same as -s federation.attack=NAME.",
    ),
]
Attackers = Annotated[
    int | None,
    typer.Option(min=1, help="How many of a cohort are false. Same as -s federation.attackers=NUMBER."),
]


def attacked(setting: list[str] | None, attack: str | None, attackers: int | None) -> list[str]:
    """The overrides of a recipe with these two among them."""
    given = {"attack": attack, "attackers": attackers}
    return [*(setting or []), *(f"federation.{key}={value}" for key, value in given.items() if value is not None)]


def compare(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file, the basis of all runs.")],
    methods: Annotated[
        str,
        typer.Option(
            help="Separated by commas, settings after colons: hiso,decomfl:directions=per-client:perturbations=1. "
            "The first is the reference."
        ),
    ] = "decomfl,hiso,hiso-scalar",
    seeds: Annotated[str, typer.Option(help="Seeds to report, separated by commas.")] = "0,1,2,3,4",
    tune_seeds: Annotated[str, typer.Option(help="Seeds to choose learning rates with; never reported.")] = "1000,1001",
    lrs: Annotated[
        str,
        typer.Option(
            help="auto: a sweep per method; fine: two more points around its best; or values for all methods: several "
            "to choose from, or one without tuning."
        ),
    ] = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder; default: runs/compare-RECIPE.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Parallel runs; default: one per core.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("-s", "--set", metavar="SECTION.KEY=VALUE", help="Override a recipe's key.")
    ] = None,
    attack: Attack = None,
    attackers: Attackers = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
) -> None:
    """Compare methods: tune learning rates on a validation split, report the test scores of other seeds.

    An interrupted comparison continues when repeated.
    """
    from scalarfl.experiment import recipe as recipes
    from scalarfl.experiment.compare import compare as run, markdown, summarise
    from scalarfl.experiment.compare.cells import Contender
    from scalarfl.experiment.compare.page import SUMMARY, TABLES, check_free, write
    from scalarfl.experiment.compare.table import described, tables, verdicts
    from scalarfl.experiment.tables import Stacked

    folder = Path("runs") / f"compare-{recipe.stem}" if out is None else out
    check_free(folder)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the runs at work are stopped as well
    contenders = [Contender(text.strip()) for text in methods.split(",")]
    if len({contender.folder for contender in contenders}) < len(contenders):
        raise InputError(f"--methods {methods}: contains the same method twice.")
    grid: Any = lrs if lrs in ("auto", "fine") else _numbers("--lrs", lrs, float)
    reported, tuning = _numbers("--seeds", seeds, int), _numbers("--tune-seeds", tune_seeds, int)
    with errors.status("") if errors.is_terminal else nullcontext() as status:
        side_by_side = workers or os.cpu_count() or 1
        shown = _Shown(status, side_by_side)
        common = attacked(setting, attack, attackers)
        found = run(recipe, common, contenders, reported, tuning, grid, folder, side_by_side, shown)
    made = {
        "command": _repeated(context),
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "recipe": recipes.to_toml(recipes.load(recipe, common)),
    }
    summary = summarise(found, folder) | {"made": made}
    (folder / SUMMARY).write_text(json.dumps(summary) + "\n")
    (folder / TABLES).write_text(markdown(summary))
    page = write(folder)
    if as_json:
        print(json.dumps(summary))
    else:
        console = Console(highlight=False, markup=False)
        if console.is_terminal:
            for text in (*verdicts(summary), "", *described(summary)):
                console.print(text)
            for table in tables(summary):
                console.print("", Stacked(table.caption, table.heads, table.rows), *table.notes, sep="\n")
        else:
            print(markdown(summary))
        print(f"Page: {page}")


def bench(
    only: Annotated[list[str] | None, typer.Option(help="Run only this benchmark; repeatable.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes; only misses by a factor of 2 fail.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the findings to this JSON file.")] = None,
) -> None:
    """Measure speed and memory as ratios against stated opponents; exit code 3 if a promise is missed."""
    from scalarfl import bench as benchmarks

    for name in only or []:
        if name not in benchmarks.BENCHMARKS:
            raise InputError(f"--only {name}: no such benchmark; {nearest(name, list(benchmarks.BENCHMARKS))}")
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise InputError(f"--out {out}: expected a file in an existing folder.")
    findings = []
    for finding in benchmarks.run(only or list(benchmarks.BENCHMARKS), quick):
        findings.append(finding)
        errors.print(str(finding), markup=False, soft_wrap=True)
    if out is not None:
        out.write_text(json.dumps(benchmarks.as_json(findings), indent=1) + "\n")
    missed = [finding for finding in findings if (finding.missed_grossly() if quick else not finding.kept)]
    if missed:
        raise VerificationError(f"{len(missed)} of {len(findings)} promises missed: {missed[0].name}.")


def _repeated(context: typer.Context) -> str:
    """The command that was given, without what was left at its default."""
    words = ["scalarfl", str(context.info_name)]
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if parameter.param_type_name == "argument":
            words.append(str(value))
        elif value and value != parameter.default and parameter.name != "as_json":
            for one in value if isinstance(value, list) else [value]:
                words += [parameter.opts[0]] if one is True else [parameter.opts[0], str(one)]
    return shlex.join(words)


def _numbers(option: str, text: str, kind: type[Any]) -> list[Any]:
    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} {text}: expected numbers separated by commas.") from None
    if len(set(found)) < len(found) or any(not 0 <= value < (math.inf if kind is float else 2**63) for value in found):
        raise InputError(f"{option} {text}: expected distinct, finite numbers that are not negative.")
    return found


class _Shown:
    """A line for each finished run; what is at work as a live line on a terminal, else as a plain one now and then."""

    def __init__(self, status: "Status | None", workers: int) -> None:
        self._status = status
        self._workers = workers
        self._seconds: list[float] = []
        self._spoke = time.monotonic()

    def done(self, cell: "Cell", result: dict[str, Any]) -> None:
        from scalarfl.experiment.report import best
        from scalarfl.units import duration, percent

        self._seconds.append(result["seconds"])
        state = f"validation {percent(result['validation_accuracy'])}, best {best(result)}"
        if result["diverged"]:
            state = "diverged"
        errors.print(f"{_named(cell)}: {state} ({duration(result['seconds'])})", markup=False, soft_wrap=True)

    def working(self, at_work: "Mapping[Cell, str]", left: int) -> None:
        from scalarfl.units import duration

        text = f"{left} run{'s' * (left != 1)} left in this step"
        if self._seconds and left:  # of runs whose parallel ones have been counted
            text += f", about {duration(left * fmean(self._seconds) / min(self._workers, left))}"
        lines = [f"{_named(cell)}: {line}" for cell, line in at_work.items()]
        if self._status is not None:
            self._status.update(Group(text, *(Text(line, no_wrap=True, overflow="ellipsis") for line in lines)))
        elif at_work and time.monotonic() - self._spoke > QUIET:
            self._spoke = time.monotonic()
            errors.print("; ".join([text, *lines]), markup=False, soft_wrap=True)


QUIET = 20  # seconds between plain lines


def _named(cell: "Cell") -> str:
    return f"{cell.contender.text}, lr {rate(cell.lr)}, seed {cell.seed}"


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command()(compare)
    app.command()(bench)
