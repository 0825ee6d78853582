"""The demonstration: how many bytes until a network reads 90 % of real digits? Four methods answer, in a minute."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.table import Table

from scalarfl import picture
from scalarfl.errors import InputError
from scalarfl.experiment import recipe as recipes, run
from scalarfl.experiment.recipe import Recipe, parse
from scalarfl.experiment.run_folder import load_result
from scalarfl.ledger import database
from scalarfl.protocol.callbacks import Callback, Progress
from scalarfl.units import percent, size

Result = dict[str, Any]
Watching = Callable[[str], AbstractContextManager[Callback]]
"""Shows the progress of a run under a label."""


class Entry(NamedTuple):
    """One method of the demonstration: its label, its keys of [method], its local steps, and what a client computes."""

    label: str
    method: dict[str, Any]
    local_steps: int
    computes: str


# FedAvg has no "auto": 0.2 needed fewer rounds to the goal than 0.1, seed 0. The others find their learning rates.
ENTRIES = {
    "fedavg": Entry("FedAvg", {"name": "fedavg", "lr": 0.2}, 5, "gradients"),
    "projected": Entry(
        "Projected training",
        {"name": "decomfl", "slopes": "training", "noise": "hadamard", "perturbations": 128, "lr": "auto"},
        5,
        "gradients",
    ),
    "hiso": Entry("HiSo", {"name": "hiso", "lr": "auto", "perturbations": 5}, 1, "losses only"),
    "decomfl": Entry("DeComFL", {"name": "decomfl", "lr": "auto", "perturbations": 5}, 1, "losses only"),
}
GOAL = 0.9
"""The accuracy at which a run ends."""
ROUNDS = 1200
"""At most, where no other number is asked for."""
_GOAL = f"{100 * GOAL:.0f} %"

MARK, CURVES, LOCKS = "demo.txt", "curves.svg", ("ledger.lock", "checkpoint.lock")
_OLDER = ("hiso-scalar", "curves.png")
"""What a demonstration of version 0.1 wrote besides."""
_MARKED = "scalarfl demo made this folder and will replace it.\n"
_WRITTEN = frozenset(
    {MARK, run.RECIPE, run.RESULT, run.CURVE, run.LEDGER, f"{run.LEDGER}-wal", f"{run.LEDGER}-shm", run.CHECKPOINT}
    | {"checkpoint.new", *LOCKS}
)


def clear(out: Path) -> None:
    """Remove an earlier demonstration from ``out``, and nothing else.

    Raises InputError, and removes nothing, if the folder contains anything not written by a demonstration.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out}: not a folder; choose another --out.")
    files, folders = [], []
    for child in sorted(out.iterdir()):
        if child.name in (*ENTRIES, *_OLDER) and child.is_dir() and not child.is_symlink() and _marked(child):
            folders.append(child)
            files += sorted(child.iterdir())
        else:
            files.append(child)
    known = {out / name for name in (MARK, CURVES, *_OLDER)} | {
        *(folder / name for folder in folders for name in _WRITTEN)
    }
    strangers = [path for path in files if path not in known or path.is_dir()]
    if strangers or (files and not _marked(out)):
        what = strangers[0].relative_to(out) if strangers else "a run"
        raise InputError(f"{out}: contains {what}, not written by a demonstration. Choose another --out.")
    with ExitStack() as locks:  # no demonstration is at work there
        for folder in folders:
            for name in (run.LEDGER, run.CHECKPOINT):
                locks.enter_context(database.lock(folder / name))
        for path in files:
            if path.name not in LOCKS:
                path.unlink()
    for folder in folders:
        for lock in LOCKS:
            (folder / lock).unlink(missing_ok=True)
        folder.rmdir()


def _marked(folder: Path) -> bool:
    try:
        return (folder / MARK).read_text() == _MARKED
    except (OSError, ValueError):
        return False


def recipe(name: str, rounds: int, seed: int = 0) -> Recipe:
    """The recipe of an entry: an MLP with 85,002 parameters on digits, 6 clients of which 2 take part in a round."""
    entry = ENTRIES[name]
    return parse(
        {
            "model": {"name": "mlp", "hidden": [256, 256]},
            "task": {"name": "digits"},
            "federation": {
                "clients": 6,
                "sampled": 2,
                "rounds": rounds,
                "batch_size": 32,
                "local_steps": entry.local_steps,
                "partition": "dirichlet",
                "alpha": 1.0,
                "seed": seed,
            },
            "method": entry.method,
            "evaluation": {"every": 5},
        }
    )


def demo(out: Path, rounds: int, say: Callable[[str], None], watch: Watching) -> list[Result]:
    """Run each method in its own folder until it reaches the goal, verify the runs that have a ledger, draw curves.

    A demonstration that was interrupted in ``out`` is continued; a finished one is replaced, see ``clear``.
    """
    chosen = {name: recipe(name, rounds) for name in ENTRIES}
    if not _unfinished(out, chosen):
        clear(out)
    for folder in (out, *(out / name for name in ENTRIES)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARK).write_text(_MARKED)
    torch.set_num_threads(1)  # with so small a network more threads only wait for each other
    results = []
    for name, made in chosen.items():
        folder = out / name
        if (done := load_result(folder)) is not None:
            results.append(done)
            continue
        begun = any((folder / file).exists() for file in (run.LEDGER, run.CHECKPOINT))
        with watch(ENTRIES[name].label) as progress:
            results.append(run.run(made, folder, resume=begun, callbacks=[progress, _reached]))
    ledgers = [name for name in ENTRIES if (out / name / run.LEDGER).exists()]
    for name in ledgers:
        run.verify(out / name)
    say(f"verified: from base model and ledger, {len(ledgers)} of {len(ENTRIES)} models were rebuilt bit for bit")
    (out / CURVES).write_text(drawing(results), encoding="utf-8")
    return results


def _reached(progress: Progress) -> bool:
    newest = progress.evaluation
    return newest is not None and (newest.accuracy or 0.0) >= GOAL


def _unfinished(out: Path, chosen: dict[str, Recipe]) -> bool:
    """Whether there is a demonstration with these recipes in ``out`` that has not come to its end."""
    if not out.is_dir() or not _marked(out) or (out / CURVES).exists():
        return False
    begun = {name: out / name / run.RECIPE for name in chosen if (out / name / run.RECIPE).is_file()}
    return all(path.read_bytes() == recipes.to_toml(chosen[name]).encode() for name, path in begun.items())


def moved(result: Result) -> float:
    """Bytes that a client sent and received, the mean over clients."""
    return float(result["serialized_bytes_up"] + result["serialized_bytes_down"])


def drawing(results: list[Result]) -> str:
    """The picture: accuracy against bytes, and against rounds."""
    by_bytes, by_rounds = [], []
    for place, (entry, result) in enumerate(zip(ENTRIES.values(), results, strict=True)):
        curve = result["curve"]
        each = moved(result) / max(1, result["rounds"])
        points = [(each * round_, accuracy) for round_, accuracy, _ in curve if round_]
        by_bytes.append(picture.Curve(f"{entry.label}: {size(moved(result))}", points, place))
        label = f"{entry.label}: {result['rounds']:,}"
        by_rounds.append(picture.Curve(label, [(point[0], point[1]) for point in curve if point[0]], place))
    sites, until = f"{results[0]['clients']} sites train {results[0]['dimension']:,} parameters", f"until {_GOAL}"
    dense, projected = (dict(zip(ENTRIES, results, strict=True))[name] for name in ("fedavg", "projected"))
    if min(dense["accuracy"], projected["accuracy"]) >= GOAL:
        sites += f": {size(moved(projected))} each do the work of FedAvg's {size(moved(dense))}"
    return picture.svg(
        sites,
        [
            picture.Panel(
                f"Accuracy by bytes, {until}", "bytes sent and received by a site", by_bytes, _bytes, True, GOAL
            ),
            picture.Panel(f"Accuracy by rounds, {until}", "rounds", by_rounds, lambda at: f"{at:,.0f}", True, GOAL),
        ],
    )


def _bytes(value: float) -> str:
    return size(value).replace(".0", "")


def table(results: list[Result]) -> Table:
    """One row a method; it fits 80 columns."""
    made = Table(title=f"Until the network reads {_GOAL} of the test digits; bytes per client", title_justify="left")
    for column in ("method", "computes", "rounds", "sent", "received", "accuracy"):
        made.add_column(column, justify="left" if column in ("method", "computes") else "right", no_wrap=True)
    for entry, result in zip(ENTRIES.values(), results, strict=True):
        made.add_row(
            entry.label,
            entry.computes,
            f"{result['rounds']:,}",
            size(result["serialized_bytes_up"]),
            size(result["serialized_bytes_down"]),
            percent(result["accuracy"]),
        )
    return made


def conclusion(results: list[Result]) -> str:
    """The answer in words, with the measured figures."""
    found = dict(zip(ENTRIES, results, strict=True))
    return "\n".join(_sentences(found))


def _sentences(found: dict[str, Result]) -> Iterator[str]:
    dense, projected, hiso, decomfl = (found[name] for name in ("fedavg", "projected", "hiso", "decomfl"))
    times = moved(dense) / moved(projected)
    yield f"Projected training {_got(projected)} a client, sent and received."
    yield f"FedAvg {_got(dense)}, {times:,.0f} times as much."
    yield f"Clients that compute losses only: DeComFL {_got(decomfl)},\nHiSo {_got(hiso)}."


def _got(result: Result) -> str:
    return f"reached {percent(result['accuracy'])} with {size(moved(result))}"
