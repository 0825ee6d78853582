"""The examples that people copy run, and do what they say."""

import runpy
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def main_of(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An example's main, with its neighbours importable as for a script."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


def test_phones_learn_by_their_heads(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = main_of("phones_head", monkeypatch)(rounds=100)
    assert before < 0.6
    assert after > before + 0.02
    assert "650 parameters trained" in capsys.readouterr().out


def test_a_reward_without_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = main_of("any_reward", monkeypatch)(rounds=8)
    assert 0 < before < 1
    assert after > before


def test_three_hospitals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    result = main_of("medical_notes", monkeypatch)(tmp_path, rounds=2)
    assert (result["clients"], result["rounds"]) == (3, 2)
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == ["east.jsonl", "north.jsonl", "south.jsonl"]


def test_mezo_on_one_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    main_of("tiny_language_model", monkeypatch)(tmp_path / "model", tmp_path / "reviews.jsonl")
    main = main_of("mezo_one_machine", monkeypatch)
    result = main(str(tmp_path / "model"), tmp_path / "reviews.jsonl", tmp_path / "run", steps=5)
    assert (result["method"], result["clients"], result["perturbations"]) == ("mezo", 1, 1)


def test_the_list_has_every_example() -> None:
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in sorted(EXAMPLES.glob("*.py")) if f"({path.name})" not in page] == []
