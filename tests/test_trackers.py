"""What a tracker is told, TensorBoard's files, and the examples for other trackers."""

import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from scalarfl.experiment import recipe as recipes, run, trackers
from support import RECIPE, command

EXAMPLES = Path(__file__).parent.parent / "examples"


class Listed:
    def __init__(self) -> None:
        self.told: list[tuple[int, dict[str, float]]] = []

    def log(self, values: dict[str, float], step: int) -> None:
        self.told.append((step, values))


def test_what_a_tracker_is_told(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    kept, seen = Listed(), []
    watch = trackers.watch(kept, every=4, then=lambda progress: seen.append(progress.round))
    result = run.run(recipes.load(tmp_path / "recipe.toml"), tmp_path / "run", callbacks=watch)
    assert [(step, v["loss"]) for step, v in kept.told if "loss" in v] == [(r, loss) for r, _, loss in result["curve"]]
    trained = {step: values for step, values in kept.told if "train_loss" in values}
    assert list(trained) == [4, 8, 12]
    assert trained[4]["bytes_up"] < trained[12]["bytes_up"]
    assert seen == list(range(1, 13))


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tmp_path / "recipe.toml").write_text(RECIPE)
    options = ("--out", str(tmp_path / "run"), "--tensorboard", str(tmp_path / "events"))
    done = command("run", str(tmp_path / "recipe.toml"), *options)
    assert done.returncode == 0, done.stderr
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert {event.step for event in events.Scalars("accuracy")} == {0, 5, 10, 12}
    assert len(events.Scalars("train_loss")) == 12


@pytest.mark.parametrize("name", ["mlflow", "trackio", "wandb"])
def test_the_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the tracker's module that takes just the calls that the real one documents."""
    logged: list[tuple[dict[str, float], int]] = []

    class Active:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    def log(values: dict[str, float], *, step: int) -> None:
        logged.append((values, step))

    stand_in: Any = ModuleType(name)
    calls = {
        "mlflow": {"start_run": lambda run_name: Active(), "log_params": lambda params: None, "log_metrics": log},
        "trackio": {
            "init": lambda project, name, config: SimpleNamespace(),
            "log": log,
            "finish": lambda: None,
        },
        "wandb": {"init": lambda project, name, config, mode, dir: None, "log": log, "finish": lambda: None},
    }
    stand_in.__dict__.update(calls[name])
    monkeypatch.setitem(sys.modules, name, stand_in)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    runpy.run_path(str(EXAMPLES / f"tracking_{name}.py"))["main"](tmp_path / "recipe.toml", tmp_path / "run")
    assert any("accuracy" in values and step == 12 for values, step in logged)
