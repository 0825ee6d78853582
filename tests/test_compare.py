"""Comparisons: which learning rates are run and chosen, what is counted, and the command from recipe to page."""

import io
import json
import math
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from federation import recorded
from program import Program
from scalarfl import InputError, Ledger
from scalarfl.cli import commands as cli
from scalarfl.experiment import run
from scalarfl.experiment.compare import markdown, summarise, sweep
from scalarfl.experiment.compare.cells import Bench, Cell, Contender
from scalarfl.experiment.compare.intervals import middle, paired, t_quantile
from scalarfl.experiment.compare.page import check_free, write
from scalarfl.experiment.compare.table import verdicts
from support import RECIPE, command, last_json

FACTOR = sweep.FACTOR


def result(curve: list[list[Any]], diverged: bool = False, **more: Any) -> dict[str, Any]:
    known = [a for _, a, _ in curve if a is not None]
    return {
        "task": "t", "model": "m", "metric": "accuracy", "dimension": 10, "rounds": curve[-1][0], "clients": 4,
        "sampled": 2, "perturbations": 5, "local_steps": 1, "accuracy": curve[-1][1],
        "best_accuracy": max(known, default=None), "loss": curve[-1][2], "curve": curve, "forward_passes": 1200,
        "test_accuracy": curve[-1][1], "test_loss": curve[-1][2],
        "serialized_bytes_up": 100.0, "serialized_bytes_down": 300.0, "seconds": 1.0, "peak_rss_bytes": 5,
        "diverged": diverged, **more,
    }  # fmt: skip


def flat(accuracy: float, diverged: bool = False) -> dict[str, Any]:
    return result([[0, 0.1, 2.0], [50, accuracy, 1.0], [100, accuracy, 1.0]], diverged)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Runs are not run: a method's accuracy falls with the distance from its own best learning rate."""
    peaks: dict[str, float] = {}

    def run(self: object, cells: list[Cell], watcher: object) -> dict[Cell, dict[str, Any]]:
        found = {}
        for cell in cells:
            away = 0.0 if cell.lr == "auto" else math.log10(cell.lr / peaks[cell.contender.text])
            found[cell] = flat(0.9 - 0.1 * abs(away) - 0.001 * (cell.seed % 1000), diverged=away > 1.2)
        return found

    monkeypatch.setattr("scalarfl.experiment.compare.cells.Bench.run", run)
    return peaks


class Silent:
    def done(self, cell: Cell, result: dict[str, Any]) -> None: ...
    def working(self, at_work: Mapping[Cell, str], left: int) -> None: ...


def compared(tmp_path: Path, methods: list[str], lrs: "list[float] | sweep.Grid" = "auto") -> sweep.Comparison:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    contenders = [Contender(text) for text in methods]
    return sweep.compare(path, [], contenders, [0, 1, 2], [1000, 1001], lrs, tmp_path / "out", 1, Silent())


def test_a_grid_is_widened_until_the_best_is_inside(pretended: dict[str, float], tmp_path: Path) -> None:
    pretended |= {"decomfl": 1e-2, "hiso": 1.0, "fedavg": 1e-3, "fzoo": 1e-9}
    found = compared(tmp_path, ["decomfl", "hiso", "fedavg", "fzoo"])
    best = {contender.text: lr for contender, lr in found.best.items()}
    assert best["decomfl"] == 1e-2  # the recipe's own
    assert best["hiso"] == pytest.approx(1.0, rel=0.05)
    assert best["fedavg"] == pytest.approx(1e-3, rel=0.05)
    assert len(found.tried(Contender("decomfl"))) == 3
    for text in ("hiso", "fedavg"):
        tried = [float(lr) for lr in found.tried(Contender(text))]
        assert tried[0] < float(best[text]) < tried[-1]
    assert len(found.tried(Contender("fzoo"))) == sweep.WIDEST  # as far as it goes
    for cell in found.results:  # tuning seeds run every learning rate, reported seeds the best alone
        assert cell.seed in (1000, 1001) or cell.lr == found.best[cell.contender]
    assert [run["accuracy"] for run in found.runs(Contender("decomfl"))] == pytest.approx([0.9, 0.899, 0.898])
    assert not found.same
    assert found.edge(Contender("hiso")) is None
    assert found.edge(Contender("fzoo")) == "lowest"


def test_a_learning_rate_that_finds_itself_is_not_swept(pretended: dict[str, float], tmp_path: Path) -> None:
    pretended |= {"decomfl": 1e-2, "decomfl:lr=auto": 1.0}
    found = compared(tmp_path, list(pretended))
    own = Contender("decomfl:lr=auto")
    assert found.best[own] == "auto"
    assert found.edge(own) is None
    assert not found.tried(own)
    assert [run["accuracy"] for run in found.runs(own)] == pytest.approx([0.9, 0.899, 0.898])
    assert Cell(own, "auto", 0).folder(tmp_path).parent.name == "lr-auto"
    assert "method.lr='auto'" in Cell(own, "auto", 0).overrides([])


def test_a_seed_that_tunes_does_not_report(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    with pytest.raises(InputError, match="--tune-seeds: 1 is also in --seeds"):
        sweep.compare(path, [], [Contender("hiso")], [0, 1], [1, 2], "auto", tmp_path / "out", 1, Silent())


def test_a_learning_rate_is_judged_on_all_tuning_seeds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """0.1 is best with one tuning seed and diverges with the other; what it gives the reported seeds does not count."""

    def run(self: object, cells: list[Cell], watcher: object) -> dict[Cell, dict[str, Any]]:
        return {
            cell: flat({1e-1: 0.9, 1e-2: 0.5}[float(cell.lr)], diverged=(cell.lr, cell.seed) == (1e-1, 1001))
            for cell in cells
        }

    monkeypatch.setattr("scalarfl.experiment.compare.cells.Bench.run", run)
    found = compared(tmp_path, ["decomfl"], [1e-2, 1e-1])
    assert found.best == {Contender("decomfl"): 1e-2}
    assert found.edge(Contender("decomfl")) == "lowest"


@pytest.mark.parametrize(("given", "taken"), [("", 0.1), ("validation = 0.25", 0.25)])
def test_a_recipe_without_a_validation_split_gets_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str, taken: float
) -> None:
    splits: set[float] = set()

    def run(self: Bench, cells: list[Cell], watcher: object) -> dict[Cell, dict[str, Any]]:
        splits.update(self.load(cell).task.validation for cell in cells)
        return {cell: flat(0.5) for cell in cells}

    monkeypatch.setattr("scalarfl.experiment.compare.cells.Bench.run", run)
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.replace('name = "digits"', f'name = "digits"\n{given}'))
    sweep.compare(path, [], [Contender("hiso")], [0], [1], [1e-2], tmp_path / "out", 1, Silent())
    assert splits == {taken}


def test_a_fine_sweep_tries_two_more_points_around_the_best(pretended: dict[str, float], tmp_path: Path) -> None:
    pretended |= {"decomfl": 1.7e-2, "hiso": 1e-2}
    found = compared(tmp_path, ["decomfl", "hiso"], "fine")
    assert list(found.tried(Contender("decomfl"))) == [3.2e-3, 5.6e-3, 1e-2, 1.8e-2, 3.2e-2]
    assert {contender.text: lr for contender, lr in found.best.items()} == {"decomfl": 1.8e-2, "hiso": 1e-2}
    assert not found.same
    assert len(found.runs(Contender("decomfl"))) == 3


def test_learning_rates_that_are_given_are_not_widened(pretended: dict[str, float], tmp_path: Path) -> None:
    pretended |= {"decomfl": 1.0, "hiso": 1e-2}
    found = compared(tmp_path, ["decomfl", "hiso"], [1e-2, 1e-1])
    assert {contender.text: lr for contender, lr in found.best.items()} == {"decomfl": 1e-1, "hiso": 1e-2}
    assert compared(tmp_path, ["decomfl", "hiso"], [1e-2]).same


def test_what_a_learning_rate_is_chosen_by() -> None:
    unstable = result([[0, 0.1, 2], [25, 0.9, 1], [50, 0.2, 3], [75, 0.2, 3], [100, 0.2, 3]])
    assert sweep.score([flat(0.5)]) > sweep.score([unstable])
    assert sweep.score([flat(0.5), flat(0.7)]) == pytest.approx(0.6)
    assert sweep.score([flat(0.9, diverged=True), flat(0.9)]) == -math.inf
    assert sweep.score([result([[0, None, 2.0], [10, None, 1.5]])]) == -1.5
    assert sweep.score([result([[0, None, 2.0], [10, None, math.nan]])]) == -math.inf


QUICK, SLOW = Contender("hiso"), Contender("decomfl")


def made(curves: dict[tuple[Contender, int], list[list[Any]]], first: Contender = SLOW) -> sweep.Comparison:
    """A comparison of two methods; with seed 9 that tuned, at two learning rates."""
    contenders = [first, *({QUICK, SLOW} - {first})]
    found = sweep.Comparison(contenders, sorted({seed for _, seed in curves}), [9], same=False)
    found.best = {QUICK: 0.1, SLOW: 0.1}
    found.results = {Cell(c, 0.1, seed): result(curve) for (c, seed), curve in curves.items()}
    found.results |= {Cell(c, lr, 9): flat(lr) for c in contenders for lr in (0.01, 0.1)}
    return found


def test_the_summary_by_hand() -> None:
    found = made(
        {
            (SLOW, 0): [[0, 0.1, 2.0], [50, 0.3, 1.0], [100, 0.5, 0.5]],
            (SLOW, 1): [[0, 0.1, 2.0], [50, 0.6, 1.0], [100, 0.5, 0.5]],
            (SLOW, 2): [[0, 0.1, 2.0], [50, 0.3, 1.0], [100, 0.6, 0.5]],
            (QUICK, 0): [[0, 0.1, 2.0], [50, 0.6, 1.0], [100, 0.8, 0.5]],
            (QUICK, 1): [[0, 0.1, 2.0], [50, 0.4, 1.0], [100, 0.5, 0.5]],
            (QUICK, 2): [[0, 0.1, 2.0], [50, 0.5, 1.0], [100, 0.7, 0.5]],
        }
    )
    summary = summarise(found, Path("nowhere"))
    slow, quick = summary["methods"]
    assert quick["test"]["values"] == [0.8, 0.5, 0.7]
    assert quick["test"]["mean"] == pytest.approx(2 / 3)
    assert slow["best"]["values"] == [0.5, 0.6, 0.6]
    (difference,) = summary["differences"]  # 0.3, 0.0 and 0.1: mean 0.133, deviation 0.153, t(2) = 4.303
    assert (difference["method"], difference["reference"], difference["of"]) == ("hiso", "decomfl", "test_accuracy")
    assert difference["interval"]["mean"] == pytest.approx(0.4 / 3)
    assert difference["interval"]["high"] == pytest.approx(0.4 / 3 + 4.30265 * 0.152753 / 3**0.5, abs=1e-5)
    assert not difference["interval"]["shown"]

    there = {(entry["method"], entry["of"]): entry for entry in summary["reach"]}
    ahead = there["hiso", "decomfl"]  # 0.5 at round 50, 0.6 never, 0.6 at round 100
    assert (ahead["each"], ahead["reached"], ahead["rounds"]) == ([50, None, 100], 2, 100)
    assert ahead["speed_ups"] == [2.0, 0.0, 1.0]
    assert ahead["speed_up"] == 1.0
    assert (ahead["forward_passes"], ahead["bytes"]) == (1200, 400)
    behind = there["decomfl", "hiso"]  # 0.8 never, 0.5 at round 50, 0.7 never
    assert (behind["each"], behind["reached"], behind["rounds"]) == ([None, 50, None], 1, None)
    assert (behind["speed_up"], behind["bytes"]) == (0.0, None)
    assert there["decomfl", "decomfl"]["each"] == [100, 50, 100]

    text = markdown(summary)
    assert text.startswith(
        "- hiso against decomfl: +13.3 points of test accuracy (95 % interval -24.6 to +51.3, 3 seeds): "
        "no difference shown.\n"
    )
    assert "| hiso | 0.1 (edge) | 66.7 ± 15.3 | +13.3 (-24.6 to +51.3) | 66.7 ± 15.3 | 0 of 3 |" in text
    assert "hiso: 0.1 is the highest learning rate tried; the best may lie beyond." in text
    assert "| hiso | 100 (2 of 3) | 1.00 | 400 B | never (1 of 3) |" in text
    assert "seed 9. Reported: seeds 0, 1, 2." in text


def test_a_difference_that_is_shown_and_its_sign() -> None:
    curves = {(SLOW, seed): [[0, 0.1, 2.0], [100, 0.5 + 0.01 * seed, 0.5]] for seed in range(5)}
    curves |= {(QUICK, seed): [[0, 0.1, 2.0], [100, 0.6 + 0.011 * seed, 0.5]] for seed in range(5)}
    (says,) = verdicts(summarise(made(curves), Path("nowhere")))
    assert says.endswith("5 seeds): better.")
    (says,) = verdicts(summarise(made(curves, first=QUICK), Path("nowhere")))
    assert says.startswith("decomfl against hiso: -10.2 points")
    assert says.endswith(": worse.")


def test_losses_are_compared_where_there_is_no_metric() -> None:
    curves: dict[tuple[Contender, int], list[list[Any]]] = {}
    for seed in range(3):
        curves[SLOW, seed] = [[0, None, 2.0], [100, None, 1.0 + 0.1 * seed]]
        curves[QUICK, seed] = [[0, None, 2.0], [100, None, 0.5 + 0.11 * seed]]
    summary = summarise(made(curves), Path("nowhere"))
    (says,) = verdicts(summary)
    assert says.startswith("hiso against decomfl: -0.4900 test loss")
    assert says.endswith(": better.")
    assert "never" not in markdown(summary)


def test_no_interval_without_two_finite_pairs() -> None:
    one_seed = {(SLOW, 0): [[0, 0.1, 2.0], [100, 0.5, 1.0]], (QUICK, 0): [[0, 0.1, 2.0], [100, 0.6, 1.0]]}
    (says,) = verdicts(summarise(made(one_seed), Path("nowhere")))
    assert says == "hiso against decomfl: no interval (one seed shows no interval)."
    assert paired([0.5, 0.6, math.nan], [0.4, 0.4, 0.4]) is None  # a pair is not left out in silence
    assert paired([0.5, None], [0.4, 0.4]) is None


@pytest.mark.parametrize(
    ("freedom", "known"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (9, 2.26216), (10, 2.22814), (30, 2.04227), (99, 1.98422)],
)
def test_students_quantiles_are_those_of_the_tables(freedom: int, known: float) -> None:
    assert t_quantile(freedom) == pytest.approx(known, rel=2e-6)
    assert t_quantile(freedom, 0.5) < t_quantile(freedom, 0.9) < t_quantile(freedom)


def test_never_counts_as_infinity_in_a_median() -> None:
    assert middle([375, 500, None]) == 500
    assert middle([375, None, None]) is None
    assert middle([375, None]) is None
    assert middle([100, 200, 300, None]) == 250


def test_a_finished_run_counts_only_if_its_recipe_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.replace("rounds = 12", "rounds = 2"))
    cell = Cell(Contender("decomfl"), 0.1, 3)
    split = Bench(path, ["task.validation=0.1"], tmp_path / "out", 1)
    result = run.run(split.load(cell), cell.folder(tmp_path / "out"))
    found = split.finished(cell)
    assert found is not None
    assert found["test_accuracy"] == result["test_accuracy"]
    assert Bench(path, [], tmp_path / "out", 1).finished(cell) is None
    assert Bench(path, ["task.validation=0.2"], tmp_path / "out", 1).finished(cell) is None


def test_contenders() -> None:
    one = Contender("decomfl:directions=per-client:federation.sampled=8")
    assert one.settings == ["method.name=decomfl", "method.directions=per-client", "federation.sampled=8"]
    own = Contender("rules/own.py:Rule:horizon=2.0")
    assert own.settings == ["method.name=rules/own.py:Rule", "method.horizon=2.0"]
    assert "/" not in Contender('hiso:task.file="a/b"').folder
    with pytest.raises(InputError, match="no such method"):
        Contender("adamw")
    with pytest.raises(InputError, match="expected KEY=VALUE"):
        _ = Contender("hiso:nu").settings


class Forked(Program):
    """A run of a comparison that does not have to import everything anew."""

    def __init__(self, command: list[str], **_: object) -> None:
        super().__init__(*command[command.index("scalarfl") + 1 :])
        self.stderr = io.StringIO(self.communicate()[1])


def test_from_a_recipe_to_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scalarfl.experiment.compare.cells.subprocess.Popen", Forked)
    path, out = tmp_path / "recipe.toml", tmp_path / "out"
    path.write_text(RECIPE)
    options = (
        "--methods",
        "decomfl,fedavg,hiso",
        "--seeds",
        "0",
        "--tune-seeds",
        "5",
        "--lrs",
        "1e-2,1e-1",
        "--out",
        str(out),
        "--workers",
        "2",
    )
    assert cli._exit_code(["compare", str(path), *options, "--json"]) == 0
    done = capsys.readouterr()
    summary = last_json(done.out)
    assert [one["method"] for one in summary["methods"]] == ["decomfl", "fedavg", "hiso"]
    for one in summary["methods"]:
        own = json.loads((out / one["method"] / f"lr-{one['lr']:g}" / "seed-0" / "result.json").read_text())
        assert own["curve"] == one["curves"][0]
        assert own["test_accuracy"] == one["test"]["values"][0]
    finished = out / "decomfl" / f"lr-{summary['methods'][0]['lr']:g}" / "seed-0"
    assert command("verify", str(finished)).returncode == 0
    told = [line for line in done.err.splitlines() if " left in this step" not in line]
    assert sum("seed 5" in line for line in told) == 6
    assert sum("seed 0" in line for line in told) == 3
    first, dense, shaped = (one["inside"] for one in summary["methods"])
    assert dense is None
    assert sum(first["participation"].values()) == 12 * 2
    assert {row["purpose"] for row in first["traffic"]} == {"round", "catch-up", "handshake"}
    assert first["hessian"] is None
    assert [moment["round"] for moment in shaped["hessian"]["moments"]] == [2, 5, 7, 10, 12]
    assert {sum(moment["counts"]) for moment in shaped["hessian"]["moments"]} == {summary["methods"][2]["dimension"]}
    assert -1 <= shaped["hessian"]["with_squared_gradient"] <= 1

    before = (finished / "result.json").stat().st_mtime_ns
    assert cli._exit_code(["compare", str(path), *options]) == 0
    assert (finished / "result.json").stat().st_mtime_ns == before
    assert "| decomfl |" in capsys.readouterr().out
    page = (out / "report.html").read_text()
    assert page.count('<svg class="chart"') == 7
    assert summary["made"]["command"].startswith(f"scalarfl compare {path} --methods decomfl,fedavg,hiso --seeds 0 ")
    assert "--json" not in summary["made"]["command"]
    assert "<td>fedavg</td>" in page
    (out / "rounds.svg").unlink()
    assert command("report", str(out)).stdout.strip() == str(out / "report.html")
    assert (out / "rounds.svg").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--methods", "adamw"], "no such method"),
        (["--seeds", "a"], "--seeds a: expected numbers"),
        (["--lrs", "1e-2,1e-2"], "expected distinct, finite numbers"),
        (["--seeds", "0,1", "--tune-seeds", "1"], "tuning seeds are never reported"),
        (["--methods", "hiso:nu=7"], "method.nu"),
    ],
)
def test_wrong_input(options: list[str], says: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    done = command("compare", str(path), *options, "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert says in done.stderr


@pytest.mark.parametrize("name", ["compare.json", "compare.md", "report.html", "rounds.svg"])
def test_nobody_else_s_file_is_overwritten(name: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / name).write_text('{"mine": 1}')
    with pytest.raises(InputError, match="not of a comparison, which would overwrite it; choose another --out"):
        check_free(tmp_path)
    assert cli._exit_code(["compare", str(tmp_path / "recipe.toml"), "--out", str(tmp_path)]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "recipe.toml"])
    assert (tmp_path / name).read_text() == '{"mine": 1}'
    (tmp_path / "compare.json").write_text('{"task": "digits", "methods": []}')
    check_free(tmp_path)


def test_no_comparison_to_report_on(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a comparison"):
        write(tmp_path)
    (tmp_path / "compare.json").write_text('{"task": "digits", "methods": []}')  # as version 0.1 wrote it
    with pytest.raises(InputError, match="not of this version's format"):
        write(tmp_path)


def test_a_comparison_that_was_stopped_goes_on(tmp_path: Path) -> None:
    """Stopped in the middle of its first runs, which stop too; in the end every ledger is as if nothing had been."""
    path, out = tmp_path / "recipe.toml", tmp_path / "out"
    path.write_text(RECIPE.replace("rounds = 12", "rounds = 600").replace("every = 5", "every = 500"))
    options = [str(path), "--methods", "decomfl,hiso", "--seeds", "0", "--lrs", "1e-2", "--workers", "2"]
    process = Program("compare", *options, "--out", str(out))
    ledgers = [out / name / "lr-0.01" / "seed-0" / "ledger.sqlite" for name in ("decomfl", "hiso")]
    ends = time.monotonic() + 60
    while not all(recorded(ledger) > 20 for ledger in ledgers):
        assert time.monotonic() < ends
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    reached = [recorded(ledger) for ledger in ledgers]
    time.sleep(1)
    assert [recorded(ledger) for ledger in ledgers] == reached  # nobody is at work any more
    assert min(reached) < 600

    assert command("compare", *options, "--out", str(out)).returncode == 0
    straight = Bench(path, ["task.validation=0.1"], tmp_path / "straight", 1)
    for ledger, name in zip(ledgers, ("decomfl", "hiso"), strict=True):
        cell = Cell(Contender(name), 1e-2, 0)
        run.run(straight.load(cell), cell.folder(straight.out))
        with Ledger.open(ledger) as one, Ledger.open(cell.folder(straight.out) / "ledger.sqlite") as other:
            assert one.head == other.head
            assert one.rounds == 600
