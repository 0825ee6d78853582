"""Following a run: it can be ended early and resumed, and one that makes the model worse says so."""

import json
import logging
import shlex
from pathlib import Path
from typing import Any

import pytest

import scalarfl
from scalarfl import EarlyStopping, InputError, LedgerError, Progress, Run, Score, StopRun, simulate
from scalarfl.cli import commands as cli
from scalarfl.experiment import recipe as recipes, run
from scalarfl.ledger.entries import Evaluation
from scalarfl.ledger.store import Ledger
from scalarfl.protocol.callbacks import fallen, together
from scalarfl.tasks.base import ArrayTask
from support import RECIPE, cross_entropy, network, score, shards


def small(rounds: int = 12, **changes: Any) -> Run:
    arguments: dict[str, Any] = {
        "lr": 1e-2,
        "perturbations": 2,
        "batch_size": 8,
        "evaluate": score,
        "evaluate_every": 2,
    }
    arguments |= {"loss": cross_entropy, "rounds": rounds}
    return simulate(network(), shards(), **(arguments | changes))


def at(round_: int) -> Any:
    return lambda progress: progress.round == round_


def stopping(progress: Progress) -> None:
    if progress.round == 5:
        raise StopRun


@pytest.mark.parametrize("watch", [at(5), stopping, [at(9), at(5), at(7)], [lambda progress: None, stopping]])
def test_a_watch_may_end_the_run_which_can_be_resumed(watch: Any, tmp_path: Path) -> None:
    stopped = small(callbacks=watch, ledger=tmp_path / "ledger.sqlite")
    assert (stopped.stopped, stopped.rounds, stopped.evaluations[-1].round) == (True, 5, 5)
    assert stopped.digest == small(5).digest
    resumed = small(ledger=tmp_path / "ledger.sqlite", resume=True)
    whole = small()
    assert (resumed.stopped, resumed.rounds, resumed.digest) == (False, 12, whole.digest)
    assert not whole.stopped


def test_every_watch_of_a_list_is_called() -> None:
    seen: list[int] = []
    small(callbacks=[at(3), lambda progress: seen.append(progress.round)])
    assert seen == [1, 2, 3]
    with pytest.raises(InputError, match="callbacks: found 5; accepted is a function or a list"):
        together(5)  # type: ignore[arg-type]


def test_early_stopping_ends_after_so_many_evaluations_without_progress() -> None:
    scores = iter([0.1, 0.2, 0.5, 0.4, 0.5, 0.45, 0.9])
    stop = EarlyStopping(patience=3)
    found = small(20, evaluate=lambda model: Score(1.0, next(scores)), evaluate_every=1, callbacks=stop)
    assert (found.rounds, found.stopped, stop.best, stop.best_round) == (5, True, 0.5, 2)
    losses = iter([3.0, 2.0, 1.99, 1.98, 1.0])
    found = small(20, evaluate=lambda model: next(losses), evaluate_every=1, callbacks=EarlyStopping(2, "loss", 0.1))
    assert found.rounds == 3


@pytest.mark.parametrize("by_clients", [False, True])
def test_patience_ends_a_run_for_good_and_is_on_record(by_clients: bool, tmp_path: Path) -> None:
    names = list(map(str, range(len(shards()))))
    clients = dict(zip(names, shards(), strict=True))

    def judged(*values: float) -> dict[str, Any]:
        scores = {name: iter(values) for name in names}
        by_name = {name: lambda model, own=own: Score(1.0, next(own), 5) for name, own in scores.items()}
        return {"evaluate": by_name if by_clients else by_name["0"], "patience": 2, "evaluate_every": 2}

    def ran(rounds: int, *values: float, **more: Any) -> Run:
        ways = judged(*values) | {"perturbations": 2, "batch_size": 8, "ledger": tmp_path / "ledger.sqlite"} | more
        return simulate(network(), clients, cross_entropy, rounds=rounds, **ways)

    found = ran(20, 0.1, 0.5, 0.4, 0.5, 0.9)
    assert (found.rounds, found.stopped) == (6, False)
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        assert ledger.settings is not None
        assert ledger.settings["patience"] == 2
    again = ran(30, 0.9, resume=True)
    assert (again.rounds, again.digest) == (6, found.digest)
    with pytest.raises(InputError, match="patience"):
        ran(30, 0.9, resume=True, patience=3)
    with pytest.raises(InputError, match="patience = 1: it needs evaluate"):
        small(evaluate=None, patience=1)


def test_a_measurement_at_a_callback_s_stop_does_not_count(tmp_path: Path) -> None:
    """Else a run that was stopped and continued would end earlier than one that was not."""
    ways: dict[str, Any] = {"patience": 2, "evaluate": lambda model: 1.0, "ledger": tmp_path / "ledger.sqlite"}
    assert small(callbacks=at(1), **ways).rounds == 1
    assert small(resume=True, **ways).rounds == small(**ways | {"ledger": None}).rounds == 4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"patience": 0}, "patience = 0"),
        ({"patience": 1, "metric": "f1"}, "metric = 'f1': accepted: accuracy, loss"),
    ],
)  # fmt: skip
def test_early_stopping_refuses_what_cannot_be(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        EarlyStopping(**arguments)


def test_early_stopping_needs_the_metric_it_watches() -> None:
    with pytest.raises(InputError, match="no accuracy; use metric='loss'"):
        small(evaluate=lambda model: 1.0, callbacks=EarlyStopping(1))


def measured(*scores: tuple[float | None, float, int]) -> list[Evaluation]:
    return [Evaluation(10 * i, accuracy, loss, n, b"") for i, (accuracy, loss, n) in enumerate(scores)]


@pytest.mark.parametrize(
    ("scores", "warned"),
    [
        ([(0.692, 1.0, 872), (0.493, 1.0, 872)], True),
        ([(0.692, 1.0, 872), (0.65, 1.0, 872)], False),  # 4.2 points, twice the standard error is 4.5
        ([(0.692, 1.0, 872), (0.64, 1.0, 872)], True),
        ([(0.692, 1.0, 20), (0.493, 1.0, 20)], False),
        ([(0.9, 1.0, 872), (0.5, 1.0, 872), (0.9, 9.0, 872)], False),
        ([(1.0, 1.0, 872), (0.99, 1.0, 872)], True),
        ([(None, 1.0, 872), (None, 1.09, 872)], False),
        ([(None, 1.0, 872), (None, 1.2, 872)], True),
        ([(None, -1.0, 0), (None, -0.8, 0)], True),
        ([(0.9, 1.0, 0), (0.1, 1.0, 0)], False),
        ([(0.9, 1.0, 872)], False),
        ([], False),
    ],
)  # fmt: skip
def test_a_clear_fall_is_told_from_noise(scores: list[Any], warned: bool) -> None:
    assert (fallen(measured(*scores), 1e-2) is not None) == warned


def test_a_model_that_becomes_worse_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "scalarfl")
    losses = iter([1.0, 1.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    found = small(evaluate=lambda model: next(losses))
    assert found.warnings == [
        "the model became worse: the loss was 1 after 0 rounds and is 7 after 12. The learning rate is likely too "
        "large: try 0.001 (method.lr in a recipe, lr in Python)."
    ]
    first, last = (record.getMessage() for record in caplog.records)  # as soon as it is seen, and at the end
    assert "is 3 after 4." in first
    assert last == found.warnings[0]
    caplog.clear()
    assert not small().warnings
    assert not caplog.records


def test_a_run_without_a_finite_loss_is_warned_about() -> None:
    found = small(30, lr=1e-2, loss=lambda model, batch: float("nan"))
    (warning,) = found.warnings
    assert found.diverged
    assert warning.startswith(
        "the run diverged: no client had a finite loss any more. Lower method.lr. It ended after 10 "
    )
    assert "try 0.001 (method.lr in a recipe" in warning


@pytest.mark.parametrize("method", ["hiso", "fedavg"])
def test_the_command_says_so_and_keeps_it(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.toml").write_text(RECIPE)
    good = ["method.lr=1e-2"] if method == "hiso" else ["method.lr=0.05"]
    loaded = recipes.load(tmp_path / "mine.toml", [f"method.name={method}", "federation.rounds=40", *good])
    assert run.run(loaded, tmp_path / "good")["warnings"] == []
    bad = ["-s", f"method.name={method}", "-s", "method.lr=1e29", "-s", "federation.rounds=40"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", str(tmp_path / "mine.toml"), *bad, "--out", str(tmp_path / "bad")])
    assert ended.value.code == 0
    (warning,) = json.loads((tmp_path / "bad" / "result.json").read_text())["warnings"]
    assert "The learning rate is likely too large: try 1e+28" in warning or "the run diverged" in warning
    assert f"warning: {warning}" in capsys.readouterr().err


def test_the_command_names_the_way_to_the_best_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The scores are made up, the ledger is not: the command in the warning writes the model of the best round."""
    (tmp_path / "mine.toml").write_text(RECIPE)
    folder = tmp_path / "my run"
    scores = iter([0.5, 0.9, 0.1])
    monkeypatch.setattr(ArrayTask, "score", lambda *_: Score(1.0, next(scores), 1000))
    run.run(recipes.load(tmp_path / "mine.toml", ["federation.rounds=8", "evaluation.every=4"]), folder)
    worse, remedy = json.loads((folder / "result.json").read_text())["warnings"]
    assert "became worse" in worse
    assert remedy.startswith("the best model is that of round 4: `scalarfl export ")
    words = shlex.split(remedy.split("`")[1].replace("DIR", str(tmp_path / "best")))
    with pytest.raises(SystemExit) as ended:
        cli.main(words[1:])
    assert ended.value.code == 0
    with run.open_ledger(folder) as ledger:
        assert ledger.evaluations(4)[0].digest.hex() in capsys.readouterr().out.replace("\n", "")


def test_a_baselines_run_ends_early_too(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(RECIPE)
    loaded = recipes.load(tmp_path / "mine.toml", ["method.name=fedavg", "method.lr=0.05"])
    result = run.run(loaded, tmp_path / "run", callbacks=at(7))
    assert (result["rounds"], result["curve"][-1][0]) == (7, 7)


def test_a_run_can_be_read_at_a_glance() -> None:
    found = small(callbacks=at(4))
    text, page = repr(found), found._repr_html_()
    assert text.startswith("Run(method=hiso, rounds=4, dimension=66, loss=")
    assert "stopped=True" in text
    assert len(text) < 300
    assert page.count("<tr>") == len(found._facts()) == page.count("</td></tr>")
    assert {"simulate", "Run", "EarlyStopping", "StopRun"} <= set(dir(scalarfl))


def test_a_notebook_s_cell_that_is_run_again_says_what_to_do(tmp_path: Path) -> None:
    model, path = network(), tmp_path / "ledger.sqlite"

    def cell(model: Any, rounds: int, resume: bool) -> Run:
        return simulate(model, shards(), cross_entropy, rounds=rounds, ledger=path, resume=resume)

    cell(model, 3, False)
    with pytest.raises(LedgerError, match=r"Continue it with resume=True and the base model, built or loaded again"):
        cell(model, 3, False)
    with pytest.raises(InputError, match="A run changes the model in place: build or load the base model again"):
        cell(model, 5, True)
    assert cell(network(), 5, True).rounds == 5
