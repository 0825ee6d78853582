"""A plan says what a run then measures."""

import time
from pathlib import Path

import pytest

import tiny
from scalarfl import InputError
from scalarfl.experiment import recipe as recipes, run
from scalarfl.experiment.plan import plan
from support import RECIPE, command, fresh, last_json


@pytest.mark.parametrize(
    "override", ["federation.local_steps=1", "federation.local_steps=2", "method.lr=auto", "evaluation.by=clients"]
)
@pytest.mark.parametrize("directions", ["shared", "per-client", "per-example"])
def test_bytes_and_forward_passes(override: str, directions: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    method = ["method.name=decomfl"] if directions == "per-example" else []
    recipe = recipes.load(path, [override, *method, f"method.directions={directions}", "federation.rounds=150"])
    found, result = plan(recipe), run.run(recipe, tmp_path / "run")
    assert found.dimension == result["dimension"]
    taken_back = 0.01 if "auto" in override else 0  # in the round after a step back there is no move to measure along
    assert found.forward_passes == pytest.approx(result["forward_passes"], rel=taken_back)
    assert found.bytes_up == pytest.approx(result["serialized_bytes_up"], rel=0.15)
    assert found.bytes_down == pytest.approx(result["serialized_bytes_down"], rel=0.15)


def test_bytes_of_a_long_run_are_extrapolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    recipe = recipes.load(path, ["federation.rounds=400"])
    exact = plan(recipe)
    monkeypatch.setattr("scalarfl.experiment.traffic.SIMULATED", 100)
    assert plan(recipe).bytes_down == pytest.approx(exact.bytes_down, rel=0.1)


@pytest.mark.parametrize("evaluated", ["server", "clients"])
@pytest.mark.parametrize("sampled", [2, 20, 40])
@pytest.mark.parametrize("directions", ["shared", "per-client", "per-example"])
def test_bytes_of_many_clients_are_expected_values(
    evaluated: str, sampled: int, directions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    clients = ["federation.clients=40", f"federation.sampled={sampled}", f"evaluation.by={evaluated}"]
    method = ["method.name=decomfl"] if directions == "per-example" else []
    recipe = recipes.load(path, [*clients, *method, f"method.directions={directions}", "federation.rounds=200"])
    exact = plan(recipe)
    monkeypatch.setattr("scalarfl.experiment.traffic.MANY", 1)
    found = plan(recipe)
    assert found.bytes_up == pytest.approx(exact.bytes_up, rel=0.03)
    assert found.bytes_down == pytest.approx(exact.bytes_down, rel=0.1)


def test_20_million_clients_are_planned_at_once(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    recipe = recipes.load(path, ["federation.clients=20_000_000", "federation.sampled=1000"])
    began = time.process_time()
    assert plan(recipe).bytes_up_a_round > 1000 * 20
    assert time.process_time() - began < 10


def test_time_follows_from_measured_speeds(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    recipe = recipes.load(path)
    found = plan(recipe, forward_seconds=0.5, noise_per_second=1e6)
    noise = 2 * 2 * found.dimension / 1e6  # probed and replayed, two directions
    assert found.seconds_a_round == pytest.approx(2 * 3 * 0.5 + noise)
    assert found.seconds == pytest.approx(12 * (found.seconds_a_round or 0))
    assert found.catch_up_seconds == pytest.approx(noise / 2)
    assert plan(recipe).seconds is None


@pytest.mark.parametrize("slopes", ["difference", "exact", "training"])
def test_memory_is_what_a_run_takes(slopes: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE + "\n")
    wide = ["-s", "model.hidden=[8000, 2000]", "-s", "federation.rounds=3", "-s", "method.name=hiso"]
    wide += ["-s", f"method.slopes={slopes}"]
    planned = last_json(fresh("plan", str(path), *wide, "--json").stdout)
    result = last_json(fresh("run", str(path), *wide, "--out", str(tmp_path / "run"), "--json").stdout)
    assert planned["dimension"] == result["dimension"] > 16_000_000
    assert (planned["gradient_bytes"] > 0) == (slopes != "difference")
    assert planned["client_bytes"] == pytest.approx(result["peak_rss_bytes"], rel=0.15)


def test_a_language_model_is_planned_without_its_weights(
    tiny_models: dict[str, Path], sst2: Path, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.toml"
    for trainable in ("all", "lora", "norms", {"sparse": 0.1}):
        path.write_text(tiny.recipe(tiny_models["opt"], sst2, model_trainable=trainable))
        recipe = recipes.load(path)
        found = plan(recipe)
        result = run.run(recipe, tmp_path / f"run-{found.dimension}")
        assert found.dimension == result["dimension"]
        assert found.forward_passes == result["forward_passes"]
        assert found.bytes_down == pytest.approx(result["serialized_bytes_down"], rel=0.15)
    (tiny_models["opt"] / "model.safetensors").rename(tmp_path / "aside")
    try:
        assert plan(recipe).dimension == found.dimension
    finally:
        (tmp_path / "aside").rename(tiny_models["opt"] / "model.safetensors")


def test_the_command_teaches_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    done = command("plan", str(path))
    assert done.returncode == 0
    assert "give --forward" in done.stdout
    assert "of which" in done.stdout
    timed = command("plan", str(path), "--forward", "0.01")
    assert "s per round" in timed.stdout
    path.write_text(RECIPE.replace('name = "mlp"', 'name = "no/such-model"').replace("digits", "sst2"))
    with pytest.raises(InputError, match=r"model.name = 'no/such-model'"):
        plan(recipes.load(path, ["model.hidden=[8]"]))
