"""What a person sees while a run goes on: a bar where it can be live, plain lines on request, else nothing."""

import io
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from scalarfl import InputError, Progress, Run, progress, simulate
from scalarfl.ledger.entries import Evaluation
from support import cross_entropy, network, score, shards


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """What ``simulate`` writes to a terminal of 140 columns."""
    monkeypatch.setenv("TERM", "xterm")
    found = Terminal()
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=found, force_terminal=True, width=140))
    return found


def small(**changes: Any) -> Run:
    arguments: dict[str, Any] = {"rounds": 12, "perturbations": 1, "evaluate": score, "evaluate_every": 6}
    return simulate(network(), shards(), cross_entropy, **(arguments | changes))


def at(round_: int, rounds: int = 10) -> Progress:
    return Progress(round_, rounds, Evaluation(0, 0.25, 1.0, 8, b""), 0.5, 1200, 30)


def test_a_terminal_shows_a_bar(terminal: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    plain = small(progress=False)
    assert terminal.getvalue() == ""
    found = small(callbacks=lambda now: print(now.round))
    last = terminal.getvalue().split("\r")[-1]
    assert "hiso" in last
    assert "100%" in last
    assert f"accuracy {100 * (found.accuracy or 0):.1f} %" in last
    assert found.digest == plain.digest
    assert capsys.readouterr().out.split() == [str(n) for n in range(1, 13)]  # a pipe: no business of the bar's


def test_a_run_that_ends_early_leaves_the_bar_where_it_ended(terminal: Terminal) -> None:
    small(rounds=10, callbacks=lambda now: now.round == 7)
    last = terminal.getvalue().split("\r")[-1]
    assert " 70%" in last


@pytest.mark.parametrize("colour", [None, "1"])
def test_without_a_terminal_nothing_is_shown_unless_wanted(
    colour: str | None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if colour is not None:
        monkeypatch.setenv("FORCE_COLOR", colour)  # as automatic builds do; that makes no terminal of a file
    small()
    assert capfd.readouterr() == ("", "")
    small(progress=True)
    shown = capfd.readouterr()
    assert shown.out == ""
    first, last = shown.err.splitlines()[0], shown.err.splitlines()[-1]
    assert first.startswith("hiso: round 1 of 12, loss ")
    assert last.startswith("hiso: round 12 of 12, loss ")


def test_what_cannot_be_is_refused_before_a_ledger_is_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"progress = 'yes': accepted: True, False, 'auto'\."):
        small(progress="yes", ledger=tmp_path / "ledger.sqlite")
    assert not list(tmp_path.iterdir())


def test_the_time_left_counts_no_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first round compiles kernels; a resumed run begins at another round than the first."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    file = io.StringIO()
    with progress.watching("[m]", Console(file=file, width=20)) as watch:
        for round_, now in ((3, 60.0), (4, 62.0), (6, 66.0), (7, 70.5)):
            clock.now = now
            watch(at(round_))
    rest = "loss 0.5000, accuracy 25.0 %, 1.2 kB up, 30 B down per client"
    assert file.getvalue().splitlines() == [
        f"[m]: round 3 of 10, {rest}",
        f"[m]: round 6 of 10, 8 s left, {rest}",
        f"[m]: round 7 of 10, 8 s left, {rest}",  # held back, and shown when the run ended there
    ]


def test_a_notebook_shows_a_bar_without_further_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    pages: list[dict[str, str]] = []

    class Cell:
        def update(self, shown: Any) -> None:
            pages.append(shown._repr_mimebundle_(None, None))

    def display(shown: Any, display_id: bool) -> Cell:
        assert display_id
        Cell().update(shown)
        return Cell()

    notebook = ModuleType("IPython.display")
    notebook.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", notebook)
    with progress.watching("hiso", Console(force_jupyter=True, file=io.StringIO())) as watch:
        for round_ in (1, 2, 10):
            watch(at(round_))
    assert len(pages) == 3  # the empty bar, the first round and the last one; the second came too soon
    assert "100%" in pages[-1]["text/html"]
    assert "accuracy 25.0 %" in pages[-1]["text/plain"]
