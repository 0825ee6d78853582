"""What a terminal of 60 to 200 columns shows: nothing is cut off, nothing is lost."""

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from scalarfl.cli import overview
from scalarfl.experiment import recipe as recipes, report, run
from scalarfl.experiment.plan import plan
from scalarfl.experiment.report import comparison, planned
from scalarfl.experiment.tables import Stacked
from scalarfl.progress import fitting
from scalarfl.transports.nats.status import Present, Status, shown, sparkline
from support import RECIPE

WIDTHS = (60, 80, 120, 200)
RESULT: dict[str, Any] = {
    "method": "hiso-scalar", "diverged": False, "lr": 0.0032, "test_accuracy": 0.942, "best_accuracy": 0.951,
    "best_round": 1950, "test_loss": 0.1812, "rounds": 2000, "forward_passes": 24000, "clients": 6, "sampled": 2,
    "serialized_bytes_up": 76012.0, "serialized_bytes_down": 180000.0, "dimension": 9610,
}  # fmt: skip


def printed(width: int, *what: RenderableType) -> list[str]:
    console = Console(file=io.StringIO(), width=width, highlight=False, markup=False)
    for one in what:
        console.print(one)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)
    return lines


@pytest.mark.parametrize("width", WIDTHS)
def test_the_table_of_results_loses_nothing(width: int) -> None:
    lines = printed(width, comparison([RESULT, RESULT | {"method": "fzoo"}]))
    cells = {cell.strip() for line in lines for cell in re.split("[│┃]", line)}
    assert cells >= {
        "94.2 %",
        "76.0 kB",
        "180.0 kB",
        "51.3 MB",
        "2,000",
        "95.1 % @ 1,950",
        "0.1812",
        "0.0032",
        "24,000",
    }
    assert sum("hiso-scalar" in line for line in lines) == {60: 3, 80: 2, 120: 1, 200: 1}[width]
    assert "per client" in " ".join(lines)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_run_and_a_plan(width: int, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    recipe = recipes.load(path, [])
    facts = plan(recipe, 0.1, 1e9)
    lines = printed(width, overview.pairs(planned(vars(facts))))
    assert any(line.startswith("memory of the server  ") for line in lines)
    run.run(recipe, tmp_path / "run")
    with run.open_ledger(tmp_path / "run") as ledger:
        view = report.overview(ledger)
    console = Console(file=io.StringIO(), width=width)
    overview.write(console, view)
    assert isinstance(console.file, io.StringIO)
    assert max(map(len, console.file.getvalue().splitlines())) <= width
    assert "bytes of all clients together" in console.file.getvalue()


@pytest.mark.parametrize("width", WIDTHS)
def test_the_dashboard(width: int) -> None:
    status = Status(
        run="clinics", round=1200, rounds=100000, known=12, accuracy=0.931, loss=0.25, evaluated=1200, rejected=3,
        bytes_up=1_200_000, bytes_down=2_400_000, reopened=1, rounds_per_second=12.5, seconds_left=7904.0, uptime=96.0,
        present=[Present(client=f"clinic-{number}", lag=number, rounds=200) for number in range(10)],
        curve=[(round_, round_ / 1300) for round_ in range(0, 1201, 20)],
    )  # fmt: skip
    text = "\n".join(printed(width, shown(status)))
    assert "1,200 of 100,000" in text
    assert "12.50 rounds per second, 2 h 11 min left" in text
    assert "10 present of 12 known" in text
    assert "9 rounds behind" in text
    assert "100.0 kB per client, 1.2 MB all clients" in text
    assert "▁" in text
    assert "█  accuracy since round 820" in text


def test_a_sparkline_of_equal_values_is_flat() -> None:
    assert sparkline([0.5, 0.5]) == "▁▁"
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"


def test_a_bar_leaves_out_the_least_important_first() -> None:
    parts = [(0, "3 min 10 s left"), (3, "loss 0.5000"), (1, "accuracy 25.0 %"), (2, "1.2 kB up, 30 B down per client")]
    assert fitting(parts, 200) == "3 min 10 s left, loss 0.5000, accuracy 25.0 %, 1.2 kB up, 30 B down per client"
    assert fitting(parts, 70) == "3 min 10 s left, accuracy 25.0 %, 1.2 kB up, 30 B down per client"
    assert fitting(parts, 40) == "3 min 10 s left, accuracy 25.0 %"
    assert fitting(parts, 5) == "3 min 10 s left"


def test_one_column_too_wide_still_is_a_table() -> None:
    assert list(Stacked("", ("a", "b", "c"), [("x" * 70, "y" * 70, "z")]).split(60)) == [[0, 1], [0, 2]]
