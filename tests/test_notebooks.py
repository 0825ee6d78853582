"""The notebooks' cells run from top to bottom, as in a fresh kernel; what they show is stored nowhere."""

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
NEEDS = {"own_module": "torch", "language_model": "transformers", "federation_with_a_kill": "nats"}


def test_each_notebook_is_tested_and_cleared() -> None:
    assert sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")) == sorted(NEEDS)
    for path in NOTEBOOKS.glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []


@pytest.mark.parametrize("name", NEEDS)
def test_a_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cell by cell in one namespace; the last line's value is shown, as a kernel would."""
    pytest.importorskip(NEEDS[name])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(NOTEBOOKS.parent / "examples"))
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{name}.ipynb", "exec"), names)  # noqa: S102 - our own
    if name == "own_module":
        assert names["run"].accuracy > 0.8
        assert "<img" in names["run"]._repr_html_()
    elif name == "language_model":
        assert names["result"]["accuracy"] > 0.8
    else:
        assert names["rounds"]() == 300
