"""The commands on language models, as a user meets them."""

import json
import tomllib
from pathlib import Path

import pytest

import tiny
from scalarfl import InputError
from scalarfl.experiment import export, prepare, recipe as recipes, run
from support import RECIPE, command, last_json

pytest.importorskip("transformers")
pytest.importorskip("peft")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Three clients' files."""
    folder = tmp_path / "clients"
    folder.mkdir()
    for index, name in enumerate(("alpha", "beta", "gamma")):
        lines = [
            {"text": f"the film is {(tiny.BAD, tiny.GOOD)[n % 2][(n + index) % 5]} .", "label": ["no", "yes"][n % 2]}
            for n in range(20)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_from_own_files_to_an_exported_adapter(own: Path, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        tiny.recipe(
            tiny_models["llama"], own, task_name="own", task_data_dir=None, task_file="clients/*.jsonl",
            task_label_words=["bad", "good"], task_prompt="{text} It was", model_trainable="lora",
            evaluation_by="clients",
        )
    )  # fmt: skip
    done = command("run", str(path), "--out", str(tmp_path / "run"), "--json")
    assert done.returncode == 0, done.stderr
    result = last_json(done.stdout)
    assert (result["rounds"], result["clients"], result["metric"]) == (6, 3, "accuracy")
    assert command("verify", str(tmp_path / "run")).returncode == 0
    shown = command("show", str(tmp_path / "run")).stdout
    assert "alpha" in shown
    assert "evaluation" in shown
    done = command("export", str(tmp_path / "run"), str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert result["digest"] in done.stdout
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: peft" in card
    assert result["ledger_head"] in card
    assert 'trainable = "lora"' in card
    measured = last_json(command("evaluate", str(tmp_path / "out"), "--json").stdout)
    again = last_json(command("evaluate", str(tmp_path / "run"), "--json").stdout)
    assert measured == pytest.approx(again)
    assert measured["accuracy"] == pytest.approx(result["accuracy"])
    refused = command("export", str(tmp_path / "run"), str(tmp_path / "out"))
    assert refused.returncode == 2
    assert "already exists" in refused.stderr


def test_own_files_with_a_validation_split(own: Path, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """Of a client's 20 examples 2 are test rows, and a quarter of the other 18 is for validation."""
    path = tmp_path / "mine.toml"
    path.write_text(
        tiny.recipe(
            tiny_models["llama"], own, task_name="own", task_data_dir=None, task_file="clients/*.jsonl",
            task_label_words=["bad", "good"], task_validation=0.25, evaluation_by="clients",
        )
    )  # fmt: skip
    recipe = recipes.load(path)
    prepared = prepare.prepare(recipe)
    assert {name: len(data) for name, data in prepared.clients.items()} == dict.fromkeys(("alpha", "beta", "gamma"), 14)
    assert {name: len(share) for name, share in prepared.judged.shares.items()} == {"alpha": 4, "beta": 4, "gamma": 4}
    result = run.run(recipe, tmp_path / "run")
    with run.open_ledger(tmp_path / "run") as ledger:
        assert {evaluation.examples for evaluation in ledger.evaluations()} == {12}
    assert result["test_loss"] == export.evaluate(tmp_path / "run").loss
    assert run.verify(tmp_path / "run").measured.examples == 12


def test_examples_that_are_cut_are_reported(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    chats = [
        [{"role": "user", "content": "good ?"}, {"role": "assistant", "content": "very good"}, *tail]
        for tail in ([], [{"role": "user", "content": "bad " * 40}])
    ] * 10
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    path = tmp_path / "mine.toml"
    path.write_text(
        tiny.recipe(
            tiny_models["opt"], tmp_path, task_name="own", task_data_dir=None, task_file="chats.jsonl",
            task_max_length=24, federation_rounds=1,
        )
    )  # fmt: skip
    done = command("run", str(path), "--out", str(tmp_path / "run"), "--json")
    assert done.returncode == 0, done.stderr
    training, test = last_json(done.stdout)["warnings"]
    assert "training examples of 18 are longer than task.max_length = 24 tokens and were truncated" in training
    assert "test examples of 2 " in test
    assert f"warning: {training}\nwarning: {test}\n" in done.stderr


@pytest.mark.parametrize(("trainable", "lr"), [("all", "0.0001"), ("lora", "0.0001")])
def test_a_recipe_for_a_model_runs_as_it_stands(
    trainable: str, lr: str, tiny_models: dict[str, Path], sst2: Path, tmp_path: Path
) -> None:
    printed = command(
        "recipe", "--for", "paper", "--model", str(tiny_models["opt"]), "-s", f"model.trainable={trainable}",
        "-s", f"task.data_dir={sst2}", "-s", "federation.rounds=1",
    )  # fmt: skip
    assert printed.returncode == 0, printed.stderr
    assert f"\nlr = {lr} " in printed.stdout
    (tmp_path / "mine.toml").write_text(printed.stdout)
    assert run.run(recipes.load(tmp_path / "mine.toml"), tmp_path / "run")["warnings"] == []


def test_a_run_on_own_files_is_measured_on_a_benchmark(
    own: Path, tiny_models: dict[str, Path], sst2: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        tiny.recipe(
            tiny_models["opt"], own, task_name="own", task_data_dir=None, task_file="clients/*.jsonl",
            task_label_words=["bad", "good"], task_prompt="{text} It was", federation_rounds=1,
        )
    )  # fmt: skip
    run.run(recipes.load(path), tmp_path / "run")
    ours = export.evaluate(tmp_path / "run")
    theirs = export.evaluate(tmp_path / "run", "sst2", [f"task.data_dir={sst2}"])
    assert (ours.examples, theirs.examples) == (6, 20)
    assert ours.loss != theirs.loss


def test_a_bad_row_is_refused_before_anything_is_written(
    own: Path, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    with (own / "beta.jsonl").open("a") as file:
        file.write('{"text": "x"}\n')
    path = tmp_path / "mine.toml"
    text = tiny.recipe(tiny_models["opt"], own, task_name="own", task_data_dir=None, task_file="clients/*.jsonl")
    path.write_text(text)
    done = command("run", str(path), "--out", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "beta.jsonl, line 21: there is no 'label'" in done.stderr
    assert not (tmp_path / "run").exists()


def test_half_precision_follows_its_float32_twin(tiny_models: dict[str, Path], sst2: Path, tmp_path: Path) -> None:
    """At this lr most updates are below a half-precision rounding step."""
    path = tmp_path / "mine.toml"
    path.write_text(
        tiny.recipe(
            tiny_models["encoder"], sst2, method_name="decomfl", method_lr=1e-3, method_mu=1e-2,
            method_perturbations=10, federation_rounds=50, federation_batch_size=16, evaluation_every=50,
        )
    )  # fmt: skip
    exact = run.run(recipes.load(path), tmp_path / "float32")
    gain = exact["curve"][0][2] - exact["curve"][-1][2]
    assert gain > 0.02
    for dtype in ("bfloat16", "float16"):
        half = run.run(recipes.load(path, [f"model.dtype={dtype}"]), tmp_path / dtype)
        assert half["curve"][0][2] - half["curve"][-1][2] == pytest.approx(gain, rel=0.3)
        assert run.verify(tmp_path / dtype).digest == half["digest"]
        out = tmp_path / f"exported-{dtype}"
        export.export(tmp_path / dtype, out)
        from transformers import AutoModel

        assert str(AutoModel.from_pretrained(out, dtype="auto").dtype) == f"torch.{dtype}"


def test_a_sparse_mask_and_a_frozen_embedding_from_the_recipe(
    tiny_models: dict[str, Path], sst2: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    for trainable in ({"sparse": 0.05, "of": "smallest"}, ["*fc*"]):
        path.write_text(tiny.recipe(tiny_models["opt"], sst2, model_trainable=trainable))
        folder = tmp_path / str(len(str(trainable)))
        result = run.run(recipes.load(path), folder)
        assert run.load_recipe(folder).model == recipes.load(path).model
        assert run.verify(folder).digest == result["digest"]
        export.export(folder, folder / "out")
        assert export.evaluate(folder / "out").loss == pytest.approx(result["loss"], rel=1e-6)


def test_another_task_and_a_bare_model_can_be_measured(
    tiny_models: dict[str, Path], sst2: Path, tmp_path: Path
) -> None:
    bare = command("evaluate", str(tiny_models["qwen"]), "--task", "sst2", "--data-dir", str(sst2), "--json")
    assert bare.returncode == 0, bare.stderr
    assert last_json(bare.stdout)["examples"] == 20
    data = tmp_path / "data"
    data.mkdir()
    line = json.dumps({"passage": "the film is red .", "question": "is the film red", "label": True}) + "\n"
    for name in ("train.jsonl", "val.jsonl"):
        (data / name).write_text(line * 4)
    for kind in ("opt", "encoder"):
        path = tmp_path / f"{kind}.toml"
        path.write_text(tiny.recipe(tiny_models[kind], sst2, federation_rounds=2))
        run.run(recipes.load(path), tmp_path / kind)
        score = export.evaluate(tmp_path / kind, "boolq", [f"task.data_dir={data}"])
        assert (score.examples, set(score.metrics or {})) == (4, {"accuracy"})


def test_models_from_scratch_are_exported_too(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    (tmp_path / "recipe.toml").write_text(RECIPE)
    result = run.run(recipes.load(tmp_path / "recipe.toml"), tmp_path / "run")
    export.export(tmp_path / "run", tmp_path / "out")
    state = load_file(tmp_path / "out" / "model.safetensors")
    loaded = prepare.load_model(recipes.load(tmp_path / "recipe.toml"))
    loaded.model.load_state_dict(state)
    prepared = prepare.prepare(recipes.load(tmp_path / "recipe.toml"), loaded)
    assert prepared.measure().accuracy == result["accuracy"]


def test_a_damaged_run_is_not_exported(tiny_models: dict[str, Path], sst2: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(tiny.recipe(tiny_models["opt"], sst2))
    run.run(recipes.load(path), tmp_path / "run")
    toml = tmp_path / "run" / "recipe.toml"
    toml.write_text(toml.read_text().replace(str(tiny_models["opt"]), str(tiny_models["qwen"])))
    done = command("export", str(tmp_path / "run"), str(tmp_path / "out"))
    assert done.returncode == 3
    assert "gives another base" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"task_name": "digits", "task_data_dir": None}, "'digits' needs a model from scratch"),
        ({"task_name": "sts2"}, "did you mean 'sst2'?"),
        ({"model_name": "mlp"}, "'sst2': needs a language model"),
        ({"model_name": "/no/such/folder"}, "cannot be loaded"),
        ({"model_head": "masked"}, "cannot be loaded: Unrecognized configuration"),
        ({"model_device": "cuda:9"}, "model.device = 'cuda:9'"),
        ({"model_trainable": "lora", "model_lora_targets": ["nothing"]}, "model.lora_targets"),
        ({"model_trainable": ["nothing*"]}, "matches no parameter"),
        ({"model_trainable": {"sparse": 2.0}}, "model.trainable"),
        ({"task_label_words": ["good"]}, "1 given; the task has 2 classes"),
        ({"task_name": "own"}, "needs a file"),
        ({"task_name": "squad"}, "no train-v1.1.json there, which should hold SQuAD 1.1"),
        ({"evaluation_by": "clients", "evaluation_examples": 2}, "cannot be divided among 3 clients"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(
    changes: dict[str, object], says: str, tiny_models: dict[str, Path], sst2: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(tiny.recipe(tiny_models["opt"], sst2, **changes))
    with pytest.raises(InputError) as error:
        prepare.prepare(recipes.load(path))
    assert says in str(error.value)


def test_a_checkpoint_without_the_head_that_is_asked_for(
    tiny_models: dict[str, Path], sst2: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(tiny.recipe(tiny_models["encoder"], sst2, model_head="masked"))
    with pytest.raises(InputError, match=r"the checkpoint has no cls\.predictions"):
        prepare.prepare(recipes.load(path))


def test_a_folder_without_a_recipe_needs_a_task(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Name a task with --task"):
        export.evaluate(tiny_models["opt"])
    with pytest.raises(InputError, match="no such folder"):
        export.evaluate(tmp_path / "nothing", "sst2")


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parent.parent / "recipes").rglob("*.toml")), ids=lambda p: p.stem
)
def test_the_recipes_hold(path: Path) -> None:
    recipe = recipes.load(path)
    prepare.check_names(recipe)
    assert recipes.parse(tomllib.loads(recipes.to_toml(recipe))) == recipe
