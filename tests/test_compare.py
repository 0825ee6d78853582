"""Comparisons: which learning rates are run and chosen, what is counted, and the command from recipe to page."""

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from federation import recorded
from scalarfl import InputError, Ledger
from scalarfl.compare import markdown, summarise, sweep
from scalarfl.compare.cells import Cell, Contender
from scalarfl.compare.page import write
from support import RECIPE, command, last_json

FACTOR = sweep.FACTOR


def result(curve: list[list[Any]], diverged: bool = False, **more: Any) -> dict[str, Any]:
    known = [a for _, a, _ in curve if a is not None]
    return {
        "task": "t", "model": "m", "metric": "accuracy", "dimension": 10, "rounds": curve[-1][0], "clients": 4,
        "sampled": 2, "perturbations": 5, "local_steps": 1, "accuracy": curve[-1][1],
        "best_accuracy": max(known, default=None), "loss": curve[-1][2], "curve": curve, "forward_passes": 1200,
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
            away = math.log10(cell.lr / peaks[cell.contender.text])
            found[cell] = flat(0.9 - 0.1 * abs(away) - 0.001 * cell.seed, diverged=away > 1.2)
        return found

    monkeypatch.setattr("scalarfl.compare.cells.Bench.run", run)
    return peaks


class Silent:
    def done(self, cell: Cell, result: dict[str, Any]) -> None: ...
    def working(self, at_work: Mapping[Cell, str], left: int) -> None: ...


def compared(tmp_path: Path, methods: list[str], lrs: "list[float] | sweep.Grid" = "auto") -> sweep.Comparison:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    contenders = [Contender(text) for text in methods]
    return sweep.compare(path, [], contenders, [0, 1, 2], lrs, tmp_path / "out", 1, Silent())


def test_a_grid_is_widened_until_the_best_is_inside(pretended: dict[str, float], tmp_path: Path) -> None:
    pretended |= {"decomfl": 1e-2, "hiso": 1.0, "fedavg": 1e-3, "fzoo": 1e-9}
    found = compared(tmp_path, ["decomfl", "hiso", "fedavg", "fzoo"])
    best = {contender.text: lr for contender, lr in found.best.items()}
    assert best["decomfl"] == 1e-2  # the recipe's own
    assert best["hiso"] == pytest.approx(1.0, rel=0.05)
    assert best["fedavg"] == pytest.approx(1e-3, rel=0.05)
    assert len(found.tried(Contender("decomfl"))) == 3
    for text in ("hiso", "fedavg"):
        tried = list(found.tried(Contender(text)))
        assert tried[0] < best[text] < tried[-1]
    assert len(found.tried(Contender("fzoo"))) == sweep.WIDEST  # as far as it goes
    assert {cell.seed for cell in found.results if cell.contender.text == "hiso" and cell.lr == best["hiso"]} == {
        0,
        1,
        2,
    }
    assert not found.same


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
    assert sweep.score(flat(0.5)) > sweep.score(unstable)
    assert sweep.score(flat(0.9, diverged=True)) == -math.inf
    assert sweep.score(result([[0, None, 2.0], [10, None, 1.5]])) == -1.5
    assert sweep.score(result([[0, None, 2.0], [10, None, math.nan]])) == -math.inf


def test_the_summary_by_hand() -> None:
    """One method gets to the other's mean best of 0.55 at rounds 50 and 100 of two seeds; the other way never."""
    quick, slow = Contender("hiso"), Contender("decomfl")
    curves = {
        (quick, 0): [[0, 0.1, 2.0], [50, 0.6, 1.0], [100, 0.8, 0.5]],
        (quick, 1): [[0, 0.1, 2.0], [50, 0.5, 1.0], [100, 0.7, 0.5]],
        (slow, 0): [[0, 0.1, 2.0], [50, 0.3, 1.0], [100, 0.5, 0.5]],
        (slow, 1): [[0, 0.1, 2.0], [50, 0.3, 1.0], [100, 0.6, 0.5]],
    }
    found = sweep.Comparison([quick, slow], [0, 1], same=False)
    found.best = {quick: 0.1, slow: 0.1}
    found.results = {Cell(c, 0.1, seed): result(curve) for (c, seed), curve in curves.items()}
    summary = summarise(found, Path("nowhere"))
    first, second = summary["methods"]
    assert first["final"]["mean"] == pytest.approx(0.75)
    assert first["final"]["deviation"] == pytest.approx(0.1 / 2**0.5)
    assert second["best"]["values"] == [0.5, 0.6]
    there = {(entry["method"], entry["of"]): entry for entry in summary["reach"]}
    ahead = there["hiso", "decomfl"]
    assert (ahead["target"], ahead["reached"], ahead["rounds"]) == (pytest.approx(0.55), 2, 75)
    assert (ahead["forward_passes"], ahead["bytes"]) == (900, 300)
    assert there["decomfl", "hiso"]["reached"] == 0
    assert there["decomfl", "hiso"]["rounds"] is None
    text = markdown(summary)
    assert "| hiso | 0.1 | 75.0 ± 7.1 |" in text
    assert "| decomfl | never | 100 (1 of 2) |" in text


def test_contenders() -> None:
    one = Contender("decomfl:directions=per-client:federation.sampled=8")
    assert one.settings == ["method.name=decomfl", "method.directions=per-client", "federation.sampled=8"]
    assert "/" not in Contender('hiso:task.file="a/b"').folder
    with pytest.raises(InputError, match="no such method"):
        Contender("adamw")
    with pytest.raises(InputError, match="should be KEY=VALUE"):
        _ = Contender("hiso:nu").settings


def test_from_a_recipe_to_a_page(tmp_path: Path) -> None:
    path, out = tmp_path / "recipe.toml", tmp_path / "out"
    path.write_text(RECIPE)
    options = (
        "--methods",
        "decomfl,fedavg,hiso",
        "--seeds",
        "0,1",
        "--lrs",
        "1e-2,1e-1",
        "--out",
        str(out),
        "--workers",
        "2",
    )
    done = command("compare", str(path), *options, "--json")
    assert done.returncode == 0, done.stderr
    summary = last_json(done.stdout)
    assert [one["method"] for one in summary["methods"]] == ["decomfl", "fedavg", "hiso"]
    for one in summary["methods"]:
        for seed in (0, 1):
            folder = out / one["method"] / f"lr-{one['lr']:g}" / f"seed-{seed}"
            own = json.loads((folder / "result.json").read_text())
            assert own["curve"] == one["curves"][seed]
            assert own["seed"] == seed
    assert command("verify", str(out / "decomfl" / "lr-0.1" / "seed-0")).returncode == 0
    finished = [line for line in done.stderr.splitlines() if "runs left" not in line]
    assert sum("seed 0" in line for line in finished) == 6
    first, dense, shaped = (one["inside"] for one in summary["methods"])
    assert dense is None
    assert sum(first["participation"].values()) == 12 * 2
    assert {row["purpose"] for row in first["traffic"]} == {"round", "catch-up", "handshake"}
    assert first["hessian"] is None
    assert [moment["round"] for moment in shaped["hessian"]["moments"]] == [2, 5, 7, 10, 12]
    assert {sum(moment["counts"]) for moment in shaped["hessian"]["moments"]} == {summary["methods"][2]["dimension"]}
    assert -1 <= shaped["hessian"]["with_squared_gradient"] <= 1

    before = (out / "decomfl" / "lr-0.1" / "seed-0" / "result.json").stat().st_mtime_ns
    again = command("compare", str(path), *options)
    assert (out / "decomfl" / "lr-0.1" / "seed-0" / "result.json").stat().st_mtime_ns == before
    assert "| decomfl |" in again.stdout
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 7
    assert "<td>fedavg</td>" in page
    assert "http" not in page.replace("http-equiv", "")
    (out / "rounds.png").unlink()
    assert command("report", str(out)).stdout.strip() == str(out / "report.html")
    assert (out / "rounds.png").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--methods", "adamw"], "no such method"),
        (["--seeds", "a"], "--seeds a: should be numbers"),
        (["--lrs", "1e-2,1e-2"], "should be different"),
        (["--methods", "hiso:nu=7"], "method.nu"),
    ],
)
def test_wrong_input(options: list[str], says: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    done = command("compare", str(path), *options, "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert says in done.stderr


def test_no_comparison_to_report_on(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no comparison can be read"):
        write(tmp_path)


def test_a_comparison_that_was_stopped_goes_on(tmp_path: Path) -> None:
    """Stopped in the middle of its first runs, which stop too; in the end every ledger is as if nothing had been."""
    path, out = tmp_path / "recipe.toml", tmp_path / "out"
    path.write_text(RECIPE.replace("rounds = 12", "rounds = 1500").replace("every = 5", "every = 500"))
    options = [str(path), "--methods", "decomfl,hiso", "--seeds", "0", "--lrs", "1e-2", "--workers", "2"]
    process = subprocess.Popen([sys.executable, "-m", "scalarfl", "compare", *options, "--out", str(out)])
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
    assert min(reached) < 1500

    assert command("compare", *options, "--out", str(out)).returncode == 0
    assert command("compare", *options, "--out", str(tmp_path / "straight")).returncode == 0
    for ledger in ledgers:
        straight = tmp_path / "straight" / ledger.relative_to(out)
        with Ledger.open(ledger) as one, Ledger.open(straight) as other:
            assert one.head == other.head
            assert one.rounds == 1500
