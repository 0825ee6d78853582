"""Recipes: every key settable, every mistake answered by one sentence that names it."""

import re
import tomllib
from pathlib import Path

import pytest

from scalarfl import InputError
from scalarfl.experiment import recipe as recipes
from scalarfl.experiment.recipe import Recipe, load, parse, table_of, to_toml
from scalarfl.experiment.template import RECOMMENDED, For, template
from scalarfl.methods import METHODS, HiSo, HiZOO
from support import RECIPE


def write(path: Path, text: str = RECIPE) -> Path:
    file = path / "r.toml"
    file.write_text(text)
    return file


def test_defaults_are_the_documented_ones() -> None:
    recipe = parse({"model": {"name": "mlp"}, "task": {"name": "digits"}})
    assert recipe.federation.clients == 6
    assert recipe.federation.sampled == 2
    assert recipe.federation.rounds == 1000
    assert (recipe.method.name, recipe.method.lr, recipe.method.mu, recipe.method.perturbations) == (
        "hiso",
        1e-3,
        1e-3,
        5,
    )
    assert recipe.method.own.model_dump() == {"nu": 0.05, "eps": 1e-8, "hessian_update": "first", "floor": 1e-3}
    assert recipe.evaluation.every == 25


def test_the_template_runs_and_explains_every_key() -> None:
    text = template()
    recipe = parse(tomllib.loads(text))
    assert recipe.model.name == "mlp"
    for name in Recipe.model_fields:
        for key, info in table_of(name).model_fields.items():
            if key != "own":
                assert info.description, key
                assert re.search(rf"^#? ?{key} = ", text, re.M), key


def test_the_template_tells_the_truth_about_defaults() -> None:
    shown = parse(tomllib.loads(template()))
    least = parse({"model": {"name": "mlp"}, "task": {"name": "digits"}})
    changed = shown.method.model_copy(update={"lr": least.method.lr})
    assert shown.model_copy(update={"method": changed}) == least
    assert "(--for paper):\n# method.lr.\n" in template()
    set_ = parse(tomllib.loads(template(["method.name=decomfl", "method.lr=2e-3", "federation.rounds=7"])))
    assert (set_.method.name, set_.method.lr, set_.federation.rounds) == ("decomfl", 2e-3, 7)
    with pytest.raises(InputError, match="did you mean 'rounds'"):
        template(["federation.round=7"])


def test_the_learning_rate_of_a_pretrained_model() -> None:
    def lr(**tables: dict[str, object]) -> object:
        return parse({"model": {"name": "some/model"}, "task": {"name": "sst2"}} | tables).method.lr

    assert lr() == lr(method={"name": "decomfl"}) == 1e-5
    assert lr(method={"lr": 3e-4}) == 3e-4
    assert lr(method={"name": "fedavg"}) == lr(model={"name": "cnn"}) == 1e-3


@pytest.mark.parametrize("method", list(METHODS))
def test_a_resolved_recipe_reads_back(method: str, tmp_path: Path) -> None:
    recipe = load(write(tmp_path), [f"method.name={method}"])
    assert load(write(tmp_path, to_toml(recipe))) == recipe
    assert load(write(tmp_path, to_toml(recipe, comments=True))) == recipe


def test_every_key_can_be_overridden(tmp_path: Path) -> None:
    recipe = load(
        write(tmp_path),
        [
            "model.trainable=norms", "method.lr=1", "method.nu=0.1", "federation.partition=dirichlet",
            'model.trainable=["0.*"]', "federation.balanced=true", "task.data_dir=sub",
            "model.hidden=[3, 4]", "task.name=mnist",
        ],
    )  # fmt: skip
    assert recipe.model.trainable == ["0.*"]
    assert recipe.method.lr == 1.0
    assert recipe.method.own.model_dump()["nu"] == 0.1
    assert recipe.federation.partition == "dirichlet"
    assert recipe.federation.balanced
    assert recipe.model.hidden == [3, 4]
    assert recipe.task.data_dir == str(tmp_path / "sub")  # relative to the recipe


def test_another_method_starts_from_its_own_settings(tmp_path: Path) -> None:
    """Not from those of the recipe's; those that all methods share stay."""
    path = tmp_path / "recipe.toml"
    path.write_text('[model]\nname = "mlp"\n[task]\nname = "digits"\n[method]\nlr = 0.5\nnu = 0.5\n')
    for order in (1, -1):
        found = load(path, ["method.name=hizoo", "method.alpha=0.25"][::order])
        assert (found.method.lr, found.method.scalar_only) == (0.5, HiZOO(alpha=0.25))
    kept = load(path, ["method.name=hiso"])
    assert kept.method.scalar_only == HiSo(nu=0.5)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["method.lrr=1"], "method.lrr: no such key; did you mean 'lr'?"),
        (["metod.lr=1"], "no such section; did you mean 'method'?"),
        (["federation.client=1"], "federation.client: no such key; did you mean 'clients'?"),
        (["method.name=hizo"], "method.name = 'hizo': no such method; did you mean 'hizoo'?"),
        (["method.name=7"], "method.name = 7"),
        (["method.nu=7"], "method.nu = 7"),
        (["method.nu=often"], "method.nu = 'often'"),
        (["method.lr=0"], "method.lr = 0: it should be greater than 0"),
        (["method.lr=-1e-3"], "method.lr = -0.001"),
        (["method.lr=fast"], "method.lr = 'fast': it should be a valid number"),
        (["method.lr=nan"], "method.lr = nan: it should be a finite number"),
        (
            ["method.directions=mine"],
            "method.directions = 'mine': it should be 'shared', 'per-client' or 'per-example'",
        ),
        (["method.perturbations=2.5"], "method.perturbations = 2.5: it should be a valid integer"),
        (["federation.sampled=9"], "federation.sampled = 9: accepted is at most federation.clients = 4"),
        (["federation.clients=0"], "federation.clients = 0"),
        (["federation.rounds=many"], "federation.rounds = 'many'"),
        (["federation.seed=-1"], "federation.seed = -1"),
        (["federation.partition=random"], "federation.partition = 'random': it should be 'iid' or 'dirichlet'"),
        (["federation.alpha=0"], "federation.alpha = 0"),
        (["federation.aggregation=medoid"], "federation.aggregation = 'medoid'"),
        (["federation.balanced=1"], "federation.balanced = 1: it should be a valid boolean"),
        (["evaluation.every=0"], "evaluation.every = 0"),
        (["model.dtype=float64"], "model.dtype = 'float64': it should be 'float32'"),
        (["model.trainable=adapters"], "model.trainable = 'adapters'"),
        (["model.name=3"], "model.name = 3"),
        (["lr=3"], "accepted is section.key=value"),
        (["method.lr"], "accepted is section.key=value"),
        (["method=3"], "accepted is section.key=value"),
        (["method.name=decomfl", "method.nu=0.1"], "method.nu: no such key"),
    ],
)
def test_wrong_keys_and_values_are_named(tmp_path: Path, overrides: list[str], says: str) -> None:
    with pytest.raises(InputError) as error:
        load(write(tmp_path), overrides)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "model: this key is missing"),
        ("[model]\nname='mlp'\n", "task: this key is missing"),
        ("[model]\n[task]\nname='digits'\n", "model.name: this key is missing"),
        ("[model\n", "not valid TOML"),
        ("model = 3\n[task]\nname='digits'", "model = 3"),
        ("method = 3\n" + RECIPE.replace("[method]", "[evaluation]").split("[evaluation]")[0], "method"),
        (RECIPE + "[server]\nport = 3\n", "[server]: no such section"),
        (RECIPE + "[method]\n", "not valid TOML"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InputError) as error:
        load(write(tmp_path, text))
    assert says in str(error.value)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        load(tmp_path / "none.toml")
    with pytest.raises(InputError, match="cannot read the recipe"):
        load(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not text in UTF-8"):
        load(tmp_path / "binary.toml")


def test_the_shipped_recipes_are_valid() -> None:
    shipped = sorted((Path(__file__).parent.parent / "recipes").rglob("*.toml"))
    assert shipped
    for path in shipped:
        assert isinstance(recipes.load(path), Recipe)


@pytest.mark.parametrize("clients", list(RECOMMENDED))
@pytest.mark.parametrize("kind", ["own network", "language model", "baseline"])
def test_the_recommended_method_gives_way_to_what_is_set(clients: For, kind: str) -> None:
    """The recipe is whole, says what it changed, and -s comes last."""
    more = {"own network": (), "language model": ("model.name=some/model",), "baseline": ("method.name=fedavg",)}[kind]
    text = template((*more, "federation.rounds=7"), clients, lambda _: 1e-5)
    recipe = parse(tomllib.loads(text))
    assert recipe.federation.rounds == 7
    if kind == "baseline":
        assert recipe.method.name == "fedavg"
        return
    keys = recipe.keys
    assert keys["method.name"] == ("hiso" if clients == "paper" else "decomfl")
    assert keys["method.slopes"] == ("training" if clients == "training" else "difference")
    assert (keys["method.lr"] == "auto") == (clients != "paper")
    assert f"(--for {clients})" in text
