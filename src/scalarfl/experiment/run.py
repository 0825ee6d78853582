"""From a recipe to a run folder and back."""

import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from torch import nn

from scalarfl.baselines import Baseline
from scalarfl.baselines.dense import DenseConfig, DenseRun, train
from scalarfl.errors import InputError, warn
from scalarfl.experiment import recipe as recipes, run_folder as folder
from scalarfl.experiment.prepare import Prepared, prepare
from scalarfl.experiment.recipe import Recipe
from scalarfl.experiment.result import COSTS, summary
from scalarfl.experiment.run_folder import CHECKPOINT, CURVE, LEDGER, RECIPE, RESULT, load_result, open_ledger
from scalarfl.experiment.verify import Verified, load_recipe, rebuild, verify
from scalarfl.ledger import database, settings
from scalarfl.model.cost import backward_cost, displaced_cost
from scalarfl.model.selection import select
from scalarfl.protocol.callbacks import Callback, Callbacks, Progress, ends, together
from scalarfl.protocol.client import drawn
from scalarfl.simulation import Opener, Run, simulate
from scalarfl.tasks import ExampleSet, Task
from scalarfl.tasks.objective import Score

__all__ = [
    "CHECKPOINT",
    "CURVE",
    "LEDGER",
    "RECIPE",
    "RESULT",
    "Interrupted",
    "Verified",
    "load_recipe",
    "load_result",
    "open_ledger",
    "rebuild",
    "run",
    "start",
    "start_dense",
    "summary",
    "verify",
]


class Interrupted(Exception):
    """The user stopped a run; the ledger has its first ``rounds`` rounds."""

    def __init__(self, rounds: int) -> None:
        super().__init__(f"interrupted after {rounds} rounds")
        self.rounds = rounds


def start(
    prepared: Prepared, ledger: Path | Opener | None = None, *, resume: bool = False, callbacks: Callbacks = None
) -> Run:
    """Simulate a prepared recipe. The arguments are those of ``simulate``."""
    recipe, task, judged = prepared.recipe, prepared.task, prepared.judged
    at_clients = {name: partial(_score, task, share) for name, share in judged.shares.items()}
    return simulate(
        prepared.model,
        prepared.clients,
        prepared.loss,
        recipe.config,
        recipe.run,
        trainable=prepared.trainable,
        evaluate=at_clients or partial(_score, task, judged.examples),
        ledger=ledger,
        resume=resume,
        callbacks=callbacks,
        progress=False,
    )


def start_dense(prepared: Prepared, checkpoint: Path | None = None, callbacks: Callbacks = None) -> DenseRun:
    """Run a baseline on a prepared recipe, from its checkpoint if there is one."""
    recipe, model, task = prepared.recipe, prepared.model, prepared.task
    config = DenseConfig.of(recipe.method.own, recipe.keys)

    def evaluate(_: nn.Module) -> Score:
        return prepared.measure()

    clients, trainable = prepared.clients, prepared.trainable
    return train(model, clients, task.loss, config, recipe.run, trainable, evaluate, checkpoint, callbacks)


def _score(task: Task, examples: ExampleSet, model: nn.Module) -> Score:
    return task.score(model, examples)


def run(recipe: Recipe, out: Path, *, resume: bool = False, callbacks: Callbacks = None) -> dict[str, Any]:
    """Run a recipe in the folder ``out`` and return the content of ``result.json``.

    Relative paths in the recipe start in the working directory. Raises InputError if the folder holds another run or
    cannot be written, and Interrupted after Ctrl-C or SIGTERM.
    """
    recipe = recipes.absolute(recipe)
    with folder.sentences_for_disks(out):
        _check_folder(recipe, out, resume)  # before anything is loaded
        prepared = prepare(recipe)
        warnings = [warn(text) for text in prepared.check()]
        with _stoppable(together(callbacks)) as stoppable:
            finished: Run | DenseRun
            if isinstance(recipe.method.own, Baseline):
                out.mkdir(parents=True, exist_ok=True)
                with database.lock(out / CHECKPOINT):
                    _check_folder(recipe, out, resume)
                    content = recipes.to_toml(recipe).encode()
                    if not (out / CHECKPOINT).exists():
                        folder.keep(out / RECIPE, content)
                    finished = start_dense(prepared, out / CHECKPOINT, stoppable)
                    folder.keep(out / RECIPE, content)  # of a resumed run only now: its checkpoint was sound
            else:
                texts = recipes.settings(recipe), recipes.to_toml(recipe)
                finished = start(prepared, lambda header: folder.begin(out, header, *texts), callbacks=stoppable)
        validated = recipe.task.validation > 0
        test = prepared.measure_test() if validated else None
        warnings += finished.warnings
        costs = _costs(prepared, finished, out)
        result = summary(recipe.keys, finished, prepared.task.metric, test, **costs)
        if isinstance(finished, Run) and finished.warnings and result["best_round"] > 0:
            command = f"scalarfl export {shlex.quote(str(out))} DIR --round best"
            warnings.append(warn(f"the best model is that of round {result['best_round']}: `{command}` writes it."))
        result |= {"warnings": warnings}
        result = folder.keep_result(out, result)
        _draw(result, out)
    return result


def _costs(prepared: Prepared, finished: Run | DenseRun, out: Path) -> dict[str, float]:
    """What passes other than plain ones cost on a client's first batch, in these; measured once for a result."""
    if not (finished.backward_passes or finished.displaced_passes):
        return {}
    federation, model, earlier = prepared.recipe.federation, prepared.model, load_result(out) or {}
    name, data = next(iter(prepared.clients.items()))
    found = {key: float(earlier[key]) for key in COSTS if earlier.get(key) is not None}
    batch = drawn(data, federation.batch_size, federation.seed, name, 0, 0)
    if finished.backward_passes and "backward_cost" not in found:
        trained = [part.parameter for part in select(model, prepared.trainable)]
        found["backward_cost"] = backward_cost(model, trained, prepared.task.loss, batch)
    if finished.displaced_passes and isinstance(finished, Run) and "displaced_cost" not in found:
        count = min(federation.batch_size, len(data))
        found["displaced_cost"] = displaced_cost(finished.replica, prepared.loss, batch, count)
    return found


def _check_folder(recipe: Recipe, out: Path, resume: bool) -> None:
    """Refuse a folder in which this run can neither start nor resume."""
    if (out / LEDGER).exists() or (out / CHECKPOINT).exists():
        if not resume:
            raise InputError(
                f"{out}: there is a run in this folder; continue it with --resume, or choose another --out."
            )
        if (out / CHECKPOINT).exists():  # a ledger says itself what it was begun with
            settings.check_same(out, recipes.settings(load_recipe(out)), recipes.settings(recipe), 0)
        return
    folder.check_complete(out, recipes.to_toml(recipe))
    left = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if resume and left - {RECIPE, "ledger.lock", "checkpoint.lock", f"{LEDGER}.new", f"{LEDGER}.new-journal"}:
        raise InputError(f"{out}: no run to resume in this folder.")


@contextmanager
def _stoppable(callback: Callback | None) -> Iterator[Callback]:
    """A callback that raises Interrupted after Ctrl-C or SIGTERM, between rounds, when nothing is lost."""
    asked = False

    def ask(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:  # a second time: at once; the ledger can take it
            raise KeyboardInterrupt
        asked = True

    def careful(progress: Progress) -> bool:
        ended = ends(callback, progress)
        if asked:
            raise Interrupted(progress.round)
        return ended

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread, which owns the signals
        before = {}
    try:
        yield careful
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _draw(result: dict[str, Any], out: Path) -> None:
    """Draw the curve if matplotlib is installed; it is not part of the result."""
    from scalarfl.experiment import report

    if report.can_plot():
        report.plot([result], out / CURVE)
