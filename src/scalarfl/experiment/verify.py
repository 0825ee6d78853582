"""Verification of a run: every key of its recipe and every number of its result."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from scalarfl.errors import InputError, VerificationError, shown
from scalarfl.experiment import recipe as recipes
from scalarfl.experiment.prepare import Prepared, prepare, trainable
from scalarfl.experiment.recipe import Recipe
from scalarfl.experiment.result import COSTS, UNCONFIRMED, Recorded, summary
from scalarfl.experiment.run_folder import CHECKSUM, RECIPE, RESULT, load_result, open_ledger
from scalarfl.ledger import settings
from scalarfl.ledger.entries import Evaluation
from scalarfl.ledger.header import Header
from scalarfl.ledger.store import Ledger
from scalarfl.model.replica import Replica
from scalarfl.noise.seeds import derive
from scalarfl.protocol.pace import follows
from scalarfl.simulation import replay
from scalarfl.tasks.objective import Score

PART_OF_0_1 = frozenset(
    {"method", "task", "model", "seed", "dimension", "clients", "sampled", "perturbations", "local_steps", "lr"}
    | {"rounds", "forward_passes", "metric", "accuracy", "best_accuracy", "loss", "curve", "digest", "ledger_head"}
    | {"diverged", *(f"{what}_bytes_{way}" for what in ("payload", "serialized") for way in ("up", "down"))}
)
"""The keys that a result of version 0.1 has."""


@dataclass(frozen=True)
class Verified:
    """A successful verification's findings."""

    rounds: int
    evaluations: int
    digest: str
    head: str
    measured: Score
    finished: bool
    """Whether there was a result.json to compare with."""
    unconfirmed: list[str]
    """In words, what could not be checked."""


def load_recipe(folder: Path) -> Recipe:
    """The recipe of the run in ``folder``."""
    if not (folder / RECIPE).is_file():
        raise InputError(f"{folder}: not a run folder: it has no {RECIPE}.")
    return recipes.load(folder / RECIPE)


def verify(folder: Path, progress: Callable[[int, int], None] | None = None) -> Verified:
    """Rebuild a run's model from base model and ledger only, and compare everything recorded.

    progress: called with (rounds replayed, rounds in all). Raises VerificationError that names the first thing that
    does not hold, and InputError if the folder holds no run.
    """
    recipe = load_recipe(folder)
    with open_ledger(folder) as ledger:
        check_settings(recipe, ledger)
        result = load_result(folder)
        prepared = prepare(recipe)
        replica = rebuild(recipe, prepared.model, ledger, progress)
        check_rounds(recipe, ledger)
        _, audit = next(reversed([*ledger.audits("evaluation")]), (0, None))
        measured = prepared.measure([] if audit is None else [one.client for one in audit.participants])
        evaluations = ledger.evaluations()
        if evaluations and evaluations[-1].round == ledger.rounds:
            _check_measured(measured, evaluations[-1])
        recorded = Recorded.of(ledger, replica.layout.dimension, replica.digest())
        if result is not None:
            _check_result(result, recorded, prepared, ledger)
        return Verified(
            ledger.rounds,
            len(evaluations),
            recorded.digest,
            recorded.head,
            measured,
            result is not None,
            list(_unconfirmed(recipe, ledger, result)),
        )


def check_settings(recipe: Recipe, ledger: Ledger) -> None:
    """Raise VerificationError, naming the key and both values, where the recipe is not the one on record."""
    if ledger.settings is None:
        return
    for key, recorded, found in settings.differences(ledger.settings, recipes.settings(recipe)):
        raise VerificationError(f"{RECIPE} has {key} = {shown(found)}, the ledger has {shown(recorded)} on record.")


def rebuild(
    recipe: Recipe,
    model: nn.Module,
    ledger: Ledger,
    progress: Callable[[int, int], None] | None = None,
    until: int | None = None,
) -> Replica:
    """Bring the recipe's base model to where the ledger ends, comparing the digest at every evaluated round.

    until: stop after so many rounds. Raises VerificationError if recipe and ledger differ, the base model is not the
    one that the ledger began with, or a digest differs.
    """
    check_settings(recipe, ledger)
    own = recipe.method.scalar_only
    replica = Replica(model, own, trainable(recipe.model), noise=recipe.config.generator)
    wanted = recipe.config.header(replica.base, replica.layout.digest(), replica.layout.dimension, recipe.method.lr)
    for key in Header.__struct_fields__:
        found, recorded = getattr(wanted, key), getattr(ledger.header, key)
        if key != "format" and found != recorded and not (key == "batch_size" and recorded is None):
            raise VerificationError(
                f"the recipe gives another {key} ({shown(found)}) than the ledger ({shown(recorded)})."
            )
    end = ledger.rounds if until is None else until
    stops = {evaluation.round for evaluation in ledger.evaluations() if evaluation.round <= end} | {end}
    for stop in sorted(stops):
        replay(replica, ledger, stop)
        if progress is not None:
            progress(stop, end)
    return replica


def check_rounds(recipe: Recipe, ledger: Ledger) -> None:
    """Raise VerificationError for a round that this recipe's server would not have recorded."""
    h = ledger.header
    latest, before = None, None
    for update, (_, audit) in zip(ledger.updates(), ledger.audits("round"), strict=True):
        where = f"round {update.round} of the ledger"
        if h.lr == "given" and update.lr != recipe.method.lr:
            raise VerificationError(f"{where} has lr {update.lr!r}, {RECIPE} has {recipe.method.lr!r}.")
        if h.lr == "auto" and not follows(update, latest, before):
            raise VerificationError(f"{where} has lr {update.lr!r}, which does not follow from the round before.")
        drawn = derive(h.seed, "directions", update.round - 1 if update.lr < 0 else update.round)
        latest, before = update, audit
        if (update.seed, update.local_steps) != (drawn, h.rows):
            raise VerificationError(f"{where} has directions that do not match the federation's seed.")
        if update.slots and len(update.perturbations) != len(update.slots) * h.shape[-1]:
            raise VerificationError(f"{where} has {len(update.perturbations)} directions, not {h.shape[-1]} a slot.")
    for number, audit in ledger.audits("round"):
        if len(audit.cohort) > recipe.federation.sampled:
            raise VerificationError(
                f"round {number} of the ledger has a cohort of {len(audit.cohort)}, {RECIPE} has "
                f"federation.sampled = {recipe.federation.sampled}."
            )
        if not {participant.client for participant in audit.participants} <= set(audit.cohort):
            raise VerificationError(f"round {number} of the ledger has a participant outside its cohort.")


def _check_measured(measured: Score, last: Evaluation) -> None:
    if not close(measured.loss, last.loss, 1e-3 * abs(last.loss)):
        raise VerificationError(f"the loss is {measured.loss:.6g} on evaluation, {last.loss:.6g} in the ledger.")
    if measured.examples != last.examples:
        raise VerificationError(f"{measured.examples} examples evaluated, {last.examples} in the ledger.")


def _check_result(result: dict[str, Any], recorded: Recorded, prepared: Prepared, ledger: Ledger) -> None:
    """Compare every key of a result with what recipe and ledger give."""
    if not recorded.evaluations:
        raise VerificationError(f"{RESULT} has scores, but the ledger has no evaluation.")
    older = ledger.settings is None and CHECKSUM not in result
    if not older and CHECKSUM not in result:
        raise VerificationError(f"{RESULT} has no {CHECKSUM}.")
    validated = prepared.validation is not None
    test = prepared.measure_test() if validated else None
    costs = {key: result.get(key) for key in COSTS}
    for key, cost in costs.items():
        if cost is not None and not (isinstance(cost, int | float) and 0 <= cost < math.inf):
            raise VerificationError(f"{RESULT} claims {key} = {shown(cost)}; expected a number, 0 or more.")
    derived = summary(prepared.recipe.keys, recorded, prepared.task.metric, test, **costs)
    for key in sorted(result.keys() - derived.keys() - {CHECKSUM, "warnings"}):
        raise VerificationError(f"{RESULT} has an unknown key, {key}.")
    slack = {} if test is None else {"test_accuracy": 1.5 / test.examples, "test_loss": 1e-3 * abs(test.loss)}
    for key, value in derived.items():
        if key in UNCONFIRMED or (older and key not in PART_OF_0_1 and key not in result):
            continue
        claimed = result.get(key)
        if key in slack and isinstance(claimed, float) and close(claimed, value, slack[key]):
            continue  # measured again on another device, an example may fall the other way
        if key == "model" and recipes.settings(prepared.recipe)["model.name"] == settings.FOLDER:
            continue
        if key not in result or json.dumps(claimed) != json.dumps(value):
            raise VerificationError(f"{RESULT} claims {key} = {shown(claimed)}, the ledger gives {shown(value)}.")


def close(claimed: float, value: float, slack: float) -> bool:
    """Whether two numbers agree; NaN agrees with NaN."""
    return abs(claimed - value) <= slack or (math.isnan(claimed) and math.isnan(value)) or claimed == value


def _unconfirmed(recipe: Recipe, ledger: Ledger, result: dict[str, Any] | None) -> Iterator[str]:
    if result is not None:
        alone = [key for key in UNCONFIRMED if result.get(key) is not None]
        yield f"{', '.join(alone)} stand in {RESULT} alone; no ledger can confirm them"
    if ledger.settings is None:
        on_record = {*Header.__struct_fields__, *type(recipe.method.own).model_fields, "name", "lr"}
        rest = [
            key
            for key in recipes.settings(recipe)
            if key.partition(".")[2] not in on_record or key in ("model.name", "task.name")
        ]
        yield f"version 0.1 wrote this ledger, without these keys of {RECIPE}: {', '.join(rest)}"
