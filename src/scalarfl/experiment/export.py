"""From a run to an ordinary model folder, and the score of one."""

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scalarfl.errors import InputError
from scalarfl.experiment import recipe as recipes, run
from scalarfl.experiment.prepare import Loaded, load_model, prepare
from scalarfl.experiment.recipe import Recipe
from scalarfl.experiment.verify import check_settings
from scalarfl.files import located
from scalarfl.language import ANCHORS, Sentences, class_head, quiet
from scalarfl.ledger.entries import Evaluation, best
from scalarfl.ledger.store import Ledger
from scalarfl.model.zoo import built
from scalarfl.registry import portable
from scalarfl.tasks.objective import Score
from scalarfl.units import percent

Progress = Callable[[int, int], None]
CARD = "README.md"


def export(folder: Path, out: Path, progress: Progress | None = None, at: str | None = None) -> "Reached":
    """Write the model of the run in ``folder`` to ``out``, as ``from_pretrained`` loads it; returns which it was.

    LoRA gives an adapter folder, a model from scratch its state as ``model.safetensors``. The training data are not
    needed. at: after how many rounds, "best" for the round with the best measurement, or "last"; by default "best"
    where the run held out validation rows for its measurements, else "last". Raises InputError where ``out`` is in use,
    VerificationError where base and ledger do not fit.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: already exists. Choose another folder.")
    recipe = run.load_recipe(folder)
    with run.open_ledger(folder) as ledger:
        check_settings(recipe, ledger)
        result = run.load_result(folder)
        rounds = _rounds(at or ("best" if recipe.task.validation else "last"), ledger)
        loaded = load_model(recipe)
        replica = run.rebuild(recipe, loaded.model, ledger, progress, rounds)
        measured = next(iter(ledger.evaluations(rounds)), None)
        reached = Reached(rounds, ledger.rounds, measured, replica.digest(), ledger.head.hex())
    out.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        _save(loaded, made)
        (made / run.RECIPE).write_text(recipes.to_toml(recipe))
        (made / CARD).write_text(card(recipe, result, reached))
        made.chmod(0o755)
        if out.exists():
            out.rmdir()
        made.rename(out)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return reached


def _rounds(at: str, ledger: Ledger) -> int:
    """The number of rounds that ``--round`` stands for."""
    if at == "last":
        return ledger.rounds
    if at == "best":
        evaluations = ledger.evaluations()
        if not evaluations:
            raise InputError("--round best: the run has no evaluation.")
        return best(evaluations).round
    if not (at.isascii() and at.isdecimal() and len(at) < 19 and int(at) <= ledger.rounds):
        raise InputError(f"--round {at}: accepted is 'best', 'last' or a number of rounds from 0 to {ledger.rounds}.")
    return int(at)


@dataclass(frozen=True)
class Reached:
    """An exported model's position on its ledger."""

    rounds: int
    of: int
    """Rounds on the ledger."""
    measured: Evaluation | None
    """The measurement after ``rounds``."""
    digest: str
    head: str

    @property
    def place(self) -> str:
        """The position, and its score on the curve, for people."""
        score = None if self.measured is None else self.measured.accuracy
        return f"after {self.rounds} of {self.of} rounds" + ("" if score is None else f" (score {percent(score)})")


def _save(loaded: Loaded, out: Path) -> None:
    from safetensors.torch import save_file, save_model

    model: Any = loaded.model
    if loaded.tokenizer is None:
        save_model(model, str(out / "model.safetensors"))
        return
    own = class_head.class_head(model)
    if own is not None:
        del model.class_head  # it has a file of its own
        class_head.save(own, out)
    with quiet():
        model.save_pretrained(out)
    loaded.tokenizer.save_pretrained(out)
    if isinstance(loaded.head, Sentences) and loaded.head.anchors is not None:
        sentences = {"sentences": json.dumps(loaded.head.sentences)}
        save_file({"anchors": loaded.head.anchors.contiguous()}, out / ANCHORS, sentences)


def card(recipe: Recipe, result: dict[str, Any] | None, reached: Reached) -> str:
    """The model card: origin, training, scores and cost."""
    base = recipe.model.name
    adapter = recipe.model.trainable == "lora"
    lines = [
        "---",
        *([] if built(base) else [f"base_model: {json.dumps(base)}"]),
        *([f"library_name: {'peft' if adapter else 'transformers'}"] if not built(base) else []),
        "tags: [federated-learning, zeroth-order, scalarfl]",
        "---",
        "",
        f"# {Path(base).name}, fine-tuned on {portable(recipe.task.name)} with scalarfl",
        "",
        f"Federated fine-tuning with {recipe.method.own.name}: {recipe.federation.clients} clients, "
        f"{recipe.federation.sampled} per round. Only a few scalars were sent over the network.",
        "",
    ]
    if result is not None:
        up, down = result["serialized_bytes_up"], result["serialized_bytes_down"]
        lines += [
            "| | |",
            "|---|---|",
            *_scores(result, reached),
            f"| rounds | {reached.rounds} of {reached.of} |",
            f"| forward passes, all clients, whole run | {result['forward_passes']} |",
            f"| trained parameters | {result['dimension']} |",
            f"| bytes up, mean per client, whole run | {up:.0f} |",
            f"| bytes down, mean per client, whole run | {down:.0f} |",
            "",
        ]
    if recipe.model.trainable == "head" and not built(base):
        lines += [
            "Only the layer for the classes was trained. Where the model has none of its own, it is in "
            f"`{class_head.FILE}`: `scalarfl evaluate` puts it on the model, transformers loads the model without it.",
            "",
        ]
    lines += [
        "Digest of the trained weights and the method's state, and head of their ledger:",
        "",
        f"    {reached.digest}",
        f"    {reached.head}",
        "",
        "The recipe:",
        "",
        "```toml",
        recipes.to_toml(recipe).rstrip(),
        "```",
        "",
    ]
    return "\n".join(lines)


def _scores(result: dict[str, Any], reached: Reached) -> list[str]:
    """The final scores; those of the test rows where the run held out validation rows for its curve.

    For an earlier round, the curve's scores.
    """
    if reached.rounds < reached.of:
        what = f"{'validation ' if result.get('validation_accuracy') is not None else ''}{result['metric']}"
        found = reached.measured
        if found is None:
            return [f"| {what} | {_shown(None)} |"]
        return [f"| {what} | {_shown(found.accuracy)} |", f"| loss | {_shown(found.loss)} |"]
    accuracy, best, loss = result["accuracy"], result["best_accuracy"], result["loss"]
    if result.get("validation_accuracy") is None:
        return [f"| {result['metric']} | {_shown(accuracy)} (best {_shown(best)}) |", f"| loss | {loss:.4f} |"]
    return [
        f"| test {result['metric']} | {_shown(result['test_accuracy'])} |",
        f"| test loss | {result['test_loss']:.4f} |",
        f"| validation {result['metric']} | {_shown(accuracy)} (best {_shown(best)}) |",
    ]


def _shown(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"


def evaluate(
    folder: Path,
    task: str | None = None,
    overrides: list[str] | None = None,
    progress: Progress | None = None,
) -> Score:
    """Measure a run's model, or the model in an exported or any other folder, on a task's test examples.

    task: another task than the recipe's; needed for a folder without a recipe. overrides: of the recipe, such as
    ``task.data_dir=data``. Raises InputError, and VerificationError for a run whose base and ledger do not fit.
    """
    changes = [*([f"task.name={task}"] if task else []), *(overrides or [])]
    if (folder / run.LEDGER).exists():
        own = run.load_recipe(folder)
        with run.open_ledger(folder) as ledger:
            check_settings(own, ledger)
            loaded = load_model(own)
            prepared = prepare(_changed(folder, changes), loaded)  # before the replay: it may embed label sentences
            run.rebuild(own, loaded.model, ledger, progress)
        return prepared.measure_test()
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder.")
    if not (folder / run.RECIPE).exists() and task is None:
        raise InputError(f"{folder}: no {run.RECIPE} there. Name a task with --task.")
    recipe = _changed(folder, [f"model.name={json.dumps(str(located(folder)))}", *changes])
    if recipe.model.trainable == "lora":  # the folder holds trained adapters; no new ones are wanted
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"trainable": "all"})})
    return prepare(recipe).measure_test()


def _changed(folder: Path, changes: list[str]) -> Recipe:
    """The folder's recipe, or an empty one, with overrides; relative paths among these start where the user is."""
    path = folder / run.RECIPE
    return recipes.load(path if path.exists() else None, changes)
