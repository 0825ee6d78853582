"""The validation split: which rows clients train on, which rows the curve sees, and when the test rows are used."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scalarfl import InputError, Ledger, VerificationError
from scalarfl.experiment import export, prepare, recipe as recipes, report, run, run_folder as folder
from scalarfl.experiment.recipe import Recipe
from scalarfl.ledger.entries import Evaluation
from scalarfl.tasks import ArrayTask, Examples, Shard
from support import RECIPE


def loaded(tmp_path: Path, *overrides: str) -> Recipe:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return recipes.load(path, overrides)


def rows(examples: Examples) -> set[bytes]:
    return {image.numpy().tobytes() for image in examples.inputs}


def trained_on(prepared: prepare.Prepared) -> list[int]:
    found: list[int] = []
    for shard in prepared.clients.values():
        assert isinstance(shard, Shard)
        found += shard.indices.tolist()
    return found


@pytest.mark.parametrize("partition", ["iid", "dirichlet"])
def test_no_client_trains_on_a_validation_row(tmp_path: Path, partition: str) -> None:
    prepared = prepare.prepare(
        loaded(tmp_path, "task.validation=0.2", "task.train_examples=500", f"federation.partition={partition}")
    )
    assert prepared.validation is not None
    train, validation = prepared.task.train, prepared.validation.examples
    assert isinstance(train, Examples)
    assert isinstance(validation, Examples)
    used = trained_on(prepared)
    assert (len(used), len(set(used)), len(validation)) == (400, 400, 100)
    kept, held_out = rows(train.take(used)), rows(validation)
    assert not kept & held_out
    assert kept | held_out == rows(train.take(range(500)))


def test_the_validation_rows_are_the_same_for_every_seed(tmp_path: Path) -> None:
    found = []
    for seed in (0, 7):
        prepared = prepare.prepare(loaded(tmp_path, "task.validation=0.1", f"federation.seed={seed}"))
        assert prepared.validation is not None
        found.append(prepared.validation.examples)
    one, other = found
    assert isinstance(one, Examples)
    assert isinstance(other, Examples)
    assert torch.equal(one.inputs, other.inputs)


def test_without_a_split_all_rows_are_trained_on_as_ever(tmp_path: Path) -> None:
    prepared = prepare.prepare(loaded(tmp_path))
    assert prepared.validation is None
    assert sorted(trained_on(prepared)) == list(range(1400))
    assert prepared.judged is prepared.test


@pytest.mark.parametrize("method", ["hiso", "fedavg"])
@pytest.mark.parametrize("by", ["server", "clients"])
def test_the_curve_is_the_validation_rows_and_the_test_rows_are_looked_at_once(
    tmp_path: Path, method: str, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    score = ArrayTask.score

    def spying(task: ArrayTask, model: torch.nn.Module, examples: Examples) -> Any:
        looked.append(len(examples))
        return score(task, model, examples)

    monkeypatch.setattr(ArrayTask, "score", spying)
    recipe = loaded(tmp_path, "task.validation=0.1", f"method.name={method}", f"evaluation.by={by}")
    result = run.run(recipe, tmp_path / "run")
    points = len(result["curve"])  # at rounds 0, 5, 10 and 12
    assert points == 4
    per_point = [140] if by == "server" else [35] * 4
    at_the_end = [397] if by == "server" else [100, 99, 99, 99]
    assert looked == per_point * points + at_the_end
    assert result["validation_accuracy"] == result["accuracy"] == result["curve"][-1][1]
    assert result["test_loss"] != result["loss"]
    if method == "hiso":  # a baseline leaves no ledger to rebuild its model from
        assert result["test_accuracy"] == export.evaluate(tmp_path / "run").accuracy


def test_tables_and_cards_say_which_rows_a_score_is_of(tmp_path: Path) -> None:
    recipe = loaded(tmp_path, "task.validation=0.1")
    result = run.run(recipe, tmp_path / "run") | {"validation_accuracy": 0.25, "accuracy": 0.25, "test_accuracy": 0.125}
    table = report.comparison([result])
    assert "best of the validation examples" in table.title
    assert table.rows[0][table.heads.index("accuracy")] == "12.5 %"
    reached = export.Reached(12, 12, None, "digest", "head")
    card = export.card(recipe, result, reached)
    assert "| test accuracy | 0.1250 |" in card
    assert "| validation accuracy | 0.2500 (best" in card
    plain = run.run(loaded(tmp_path), tmp_path / "plain")
    assert "validation" not in report.comparison([plain]).title
    assert f"| accuracy | {plain['accuracy']:.4f} (best" in export.card(recipe, plain, reached)
    earlier = export.card(recipe, result, export.Reached(5, 12, Evaluation(5, 0.5, 1.5, 9, b""), "digest", "head"))
    assert "| validation accuracy | 0.5000 |\n| loss | 1.5000 |\n| rounds | 5 of 12 |" in earlier


def test_without_a_split_the_test_score_is_the_curves_last(tmp_path: Path) -> None:
    result = run.run(loaded(tmp_path), tmp_path / "run")
    assert result["validation_accuracy"] is None
    assert (result["test_accuracy"], result["test_loss"]) == (result["accuracy"], result["loss"])
    with Ledger.open(tmp_path / "run" / run.LEDGER) as ledger:
        assert {evaluation.examples for evaluation in ledger.evaluations()} == {397}


@pytest.mark.parametrize(
    ("key", "change"), [("test_accuracy", 0.02), ("test_loss", 0.05), ("validation_accuracy", 1e-6)]
)
@pytest.mark.parametrize("validation", [0.0, 0.1])
def test_verify_measures_the_test_rows_again(tmp_path: Path, key: str, change: float, validation: float) -> None:
    result = run.run(loaded(tmp_path, f"task.validation={validation}"), tmp_path / "run")
    run.verify(tmp_path / "run")
    result[key] = (result[key] or 0.5) + change
    folder.keep_result(tmp_path / "run", result)
    with pytest.raises(VerificationError, match=key):
        run.verify(tmp_path / "run")


def test_a_resumed_run_cannot_change_its_split(tmp_path: Path) -> None:
    run.run(loaded(tmp_path, "task.validation=0.1"), tmp_path / "run")
    with pytest.raises(InputError, match=r"task\.validation"):
        run.run(loaded(tmp_path, "task.validation=0.2", "federation.rounds=20"), tmp_path / "run", resume=True)


def test_the_split_of_files_is_each_clients_own() -> None:
    sites = {"alpha": np.arange(20), "beta": np.arange(20, 50)}
    recipe = recipes.parse(
        {"model": {"name": "m"}, "task": {"name": "own", "validation": 0.1}, "federation": {"clients": 2}}
    )
    kept, held_out = prepare.split(recipe, 50, sites)
    assert {name: len(own) for name, own in held_out.items()} == {"alpha": 2, "beta": 3}
    for name, own in sites.items():
        assert sorted([*kept[name], *held_out[name]]) == own.tolist()
    with pytest.raises(InputError, match=r"task\.validation = 0\.1: 1 training example .*'beta'"):
        prepare.split(recipe, 21, {"alpha": np.arange(20), "beta": np.arange(20, 21)})


def test_what_is_exported_is_the_best_on_the_validation_rows(tmp_path: Path) -> None:
    """Unless another round is named; without validation rows the last, which no score has chosen."""
    run.run(loaded(tmp_path, "task.validation=0.1"), tmp_path / "run")
    result = run.load_result(tmp_path / "run")
    assert result is not None
    taken = export.export(tmp_path / "run", tmp_path / "best")
    assert (taken.rounds, taken.of) == (result["best_round"], result["rounds"])
    assert export.export(tmp_path / "run", tmp_path / "last", at="last").digest == result["digest"]
    run.run(loaded(tmp_path), tmp_path / "plain")
    assert export.export(tmp_path / "plain", tmp_path / "out").rounds == result["rounds"]
