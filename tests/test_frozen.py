"""Frozen layers are computed once an example: the same bits with and without a cache, for every family."""

import copy
import io
import sqlite3
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import families
import tiny
from scalarfl import InputError, Probe, Replica, make_method, simulate
from scalarfl.experiment import export, recipe as recipes, report, run
from scalarfl.experiment.plan import plan, suggested_lr
from scalarfl.experiment.prepare import prepare
from scalarfl.language import class_head
from scalarfl.model import frozen
from scalarfl.model.activations import OVERHEAD, Activations
from scalarfl.model.layers import last
from scalarfl.model.probe import LossQuery
from support import command

llm = pytest.mark.skipif(find_spec("transformers") is None, reason="needs transformers (the extra llm)")

DIGITS = """
[model]
name = "cnn"
trainable = "last:1"
[task]
name = "digits"
train_examples = 40
[federation]
clients = 3
sampled = 2
rounds = 3
batch_size = 4
[evaluation]
every = 2
examples = 10
"""


def ran(recipe: recipes.Recipe) -> tuple[str, list[Any], frozen.Frozen | None]:
    """A run's digest and curve, and what is attached to its model."""
    prepared = prepare(recipe)
    finished = run.start(prepared)
    return finished.digest, finished.evaluations, frozen.attached(prepared.model)


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# In every family


@llm
@pytest.mark.parametrize("family", [*families.FAMILIES, *families.MASKED])
def test_every_family_is_split_before_its_last_layer(family: str) -> None:
    torch.manual_seed(0)
    model = families.make(family)
    tokens = torch.randint(3, 130, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[0, 5:] = mask[2, 7:] = 0
    there, found = mask.bool(), []
    with torch.no_grad():
        whole = model(input_ids=tokens, attention_mask=mask).logits
        for memory in (0, 10):
            split = frozen.attach(model, "last:1", memory, calls=True)
            assert split is not None
            found += [model(input_ids=tokens, attention_mask=mask).logits[there] for _ in range(2)]
            found.append(model(input_ids=tokens[[2, 0, 1]], attention_mask=mask[[2, 0, 1]]).logits[[1, 2, 0]][there])
            assert split.cut is not None
            assert split.cut.skipped
            assert split.activations is not None
            assert split.activations.computed == (3 if memory else 9)
    assert all(torch.equal(found[0], other) for other in (found[1], found[3], found[4]))
    for other in (found[2], found[5], whole[there]):  # batches in another order, or in one piece
        torch.testing.assert_close(found[0], other, rtol=1e-4, atol=1e-5)
    frozen.detach(model)
    with torch.no_grad():
        assert torch.equal(model(input_ids=tokens, attention_mask=mask).logits, whole)


@llm
@pytest.mark.parametrize("family", [*families.FAMILIES, *families.MASKED])
def test_the_last_layer_and_what_runs_after_it_is_selected(family: str) -> None:
    torch.manual_seed(0)
    model, order = families.make(family), list[nn.Module]()
    hooks = [module.register_forward_pre_hook(lambda module, _: order.append(module)) for module in model.modules()]
    with torch.no_grad():
        model(input_ids=torch.tensor([[5, 6, 7]]))
    for hook in hooks:
        hook.remove()
    chosen = last(model, 1)
    above = (parent for name, _ in chosen for parent in _above(name))
    stack = next(name for name in above if isinstance(model.get_submodule(name), nn.ModuleList))
    blocks = model.get_submodule(stack)
    begin = order.index(blocks[len(blocks) - 1])
    early, late = (
        {id(p) for module in part for p in module.parameters(recurse=False)} for part in (order[:begin], order[begin:])
    )
    assert {id(p) for _, p in chosen} == late - early


def _above(name: str) -> list[str]:
    """The modules that a parameter is in, from the outside in."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


@llm
@pytest.mark.parametrize(
    ("kind", "trainable"),
    [
        ("opt", "last:1"),
        ("llama", "last:1"),
        ("gpt2", "last:1"),
        ("bert", "last:1"),
        ("encoder", "last:1"),
        ("classifier", "last:1"),
        ("opt", "head"),
        ("qwen", "head"),
        ("bert", "head"),
        ("encoder", "head"),
        ("classifier", "head"),
    ],
)
def test_a_run_is_the_same_with_and_without_a_cache(
    kind: str, trainable: str, tiny_models: Any, sst2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several clients, batches of several lengths, evaluations; in memory, from a file, and computed every time."""
    text = tiny.recipe(tiny_models[kind], sst2, model_trainable=trainable, federation_rounds=3, method_perturbations=2)
    monkeypatch.setenv("SCALARFL_CACHE", str(tmp_path / "cache"))
    found, computed = [], []
    for number, memory in enumerate((None, 0, 64)):  # the third reads what the first wrote
        path = written(tmp_path / f"{number}.toml", text)
        recipe = recipes.load(path, [] if memory is None else [f"model.frozen_cache={memory}"])
        digest, curve, attached = ran(recipe)
        assert attached is not None
        assert attached.cut is not None
        assert attached.activations is not None
        found.append((digest, [(one.round, one.loss, one.accuracy) for one in curve]))
        computed.append(attached.activations.computed)
    assert found[0] == found[1] == found[2]
    assert computed[0] <= 80 < computed[1]  # 60 rows to train on, 20 to measure on
    assert computed[2] == 1  # the first that a file gives is computed again, to compare


@llm
@pytest.mark.parametrize("slopes", ["exact", "training"])
def test_slopes_by_a_backward_pass_use_the_cache_too(slopes: str, tiny_models: Any, sst2: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "r.toml", tiny.recipe(tiny_models["llama"], sst2, model_trainable="last:1"))
    changes = [f'method.slopes="{slopes}"', "federation.rounds=2", "method.name=decomfl"]
    digests = {ran(recipes.load(path, [*changes, f"model.frozen_cache={memory}"]))[0] for memory in (0, 8)}
    assert len(digests) == 1


@llm
def test_layer_by_layer_as_in_one_piece(tiny_models: Any, sst2: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "r.toml", tiny.recipe(tiny_models["opt"], sst2, model_trainable="last:1"))
    prepared = prepare(recipes.load(path))
    replica = Replica(prepared.model, make_method("hiso"), "last:1")
    batch = prepared.task.train.batch(np.arange(6))
    question = LossQuery(7, 1e-2, 1e-2, (), range(3), batch)
    before = replica.digest()
    assert Probe(replica, prepared.task.loss, small=0).measure([question]) == Probe(
        replica, prepared.task.loss
    ).measure([question])
    assert replica.digest() == before


# Models from scratch, and models of one's own


@pytest.mark.parametrize("name", ["cnn", "mlp", "logistic"])
@pytest.mark.parametrize("trainable", ["last:1", "head"])
def test_a_model_from_scratch(name: str, trainable: str, tmp_path: Path) -> None:
    path = written(tmp_path / "r.toml", DIGITS)
    own = [f"model.name={name}", f"model.trainable={trainable}"]
    found = [ran(recipes.load(path, [*own, *more])) for more in ([], ["model.frozen_cache=0"], ["federation.rounds=1"])]
    assert found[0][:2] == found[1][:2]
    assert found[0][0] != found[2][0]
    attached = found[0][2]
    assert attached is not None
    assert (attached.cut is None) == (name == "logistic")  # it has nothing but its head


class Residual(nn.Module):
    """What the first layer gives is used after the last one too, or the last one's weights before the first."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.tied = tied

    def forward(self, x: Tensor) -> Tensor:
        """x: [b, 4]."""
        first = self.first(x * self.third.weight.sum()) if self.tied else self.first(x)
        out: Tensor = self.third(self.second(first))
        return out if self.tied else out + first[:, :2]


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_that_lets_more_through_is_computed_as_a_whole(tied: bool) -> None:
    torch.manual_seed(0)
    model, x = Residual(tied), torch.randn(3, 4)
    whole = model(x)
    split = frozen.attach(model, "head", 1, calls=True)
    assert split is not None
    assert torch.equal(model(x), whole)
    assert split.cut is None
    frozen.detach(model)


class Own(nn.Module):
    """Layers of one's own, and reshaping between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.lin, self.out = nn.Conv2d(1, 3, 3), nn.Linear(27, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        """x: [b, 1, 8, 8]."""
        hidden = functional.max_pool2d(torch.relu(self.conv(x)), 2).flatten(1)
        out: Tensor = self.out(torch.relu(self.lin(hidden)))
        return out


def entropy(model: nn.Module, batch: Any) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def shards() -> list[Any]:
    made = torch.Generator().manual_seed(2)
    return [[(torch.randn(1, 8, 8, generator=made), index % 2) for index in range(9)] for _ in range(3)]


@pytest.mark.parametrize("trainable", ["head", "last:1", "last:2"])
def test_simulate_with_a_model_of_ones_own(trainable: str) -> None:
    digests = []
    for memory in (None, 0, 1):
        finished = simulate(
            Own(), shards(), entropy, trainable=trainable, frozen_cache=memory, rounds=3, batch_size=4, progress=False
        )
        digests.append(finished.digest)
        assert frozen.attached(finished.model) is None
    assert len(set(digests)) == 1
    with pytest.raises(InputError, match=r"model.trainable = 'last:4': the model has 3 layers; accepted are last:1 to"):
        simulate(Own(), shards(), entropy, trainable="last:4", rounds=1, progress=False)


def test_patterns_are_split_where_that_is_asked_for() -> None:
    """Runs of version 0.1 keep their bits: only head and last:N are split by default."""
    kept = [
        simulate(Own(), shards(), entropy, trainable=["out.*"], frozen_cache=memory, rounds=2, progress=False).digest
        for memory in (None, 0, 1)
    ]
    assert kept[1] == kept[2]
    model = Own()
    assert frozen.attach(model, ["out.*"], None, calls=True) is None
    split = frozen.attach(model, ["out.*"], 1, calls=True)
    assert split is not None
    model(torch.zeros(1, 1, 8, 8))
    assert split.cut is not None
    assert split.cut.name == "out"


def test_a_copy_of_the_model_is_an_ordinary_one() -> None:
    model, x = Own(), torch.randn(2, 1, 8, 8)
    frozen.attach(model, "head", 1, calls=True)
    model(x)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.conv.weight.zero_()
        assert not torch.equal(other(x), model(x))


@llm
def test_a_loss_of_ones_own_that_calls_a_transformers_model(tiny_models: Any) -> None:
    from transformers import AutoModelForCausalLM

    def loss(model: Any, batch: Any) -> Tensor:
        tokens, mask = batch
        found: Tensor = model(input_ids=tokens, attention_mask=mask, labels=tokens).loss
        return found

    made = torch.Generator().manual_seed(3)
    data = [
        [(torch.randint(5, 200, (8,), generator=made), (torch.arange(8) < 4 + index % 4).long()) for index in range(6)]
        for _ in range(2)
    ]
    digests = set()
    for memory in (0, 4):
        model: Any = AutoModelForCausalLM.from_pretrained(tiny_models["llama"])
        run_ = simulate(
            model, data, loss, trainable="last:1", frozen_cache=memory, rounds=2, batch_size=3, progress=False
        )
        digests.add(run_.digest)
        ids = torch.tensor([[5, 6, 7]])
        assert model.generate(input_ids=ids, max_new_tokens=3, do_sample=False).shape == (1, 6)
    assert len(digests) == 1


# A head for the classes


@llm
@pytest.mark.parametrize("kind", ["opt", "qwen", "phi", "bert", "encoder"])
def test_a_head_begins_as_the_label_words_answer(kind: str, tiny_models: Any, sst2: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "r.toml", tiny.recipe(tiny_models[kind], sst2))
    plain, with_head = (prepare(recipes.load(path, changes)) for changes in ([], ["model.trainable=head"]))
    made = class_head.class_head(with_head.model)
    assert made is not None
    batch = plain.task.train.batch(range(8))
    with torch.no_grad():
        assert float(with_head.task.loss(with_head.model, batch)) == pytest.approx(
            float(plain.task.loss(plain.model, batch)), rel=1e-5
        )
    names = [part.name for part in Replica(with_head.model, make_method("hiso"), "head").parts]
    assert names == ["class_head.weight", "class_head.bias"]


@llm
@pytest.mark.parametrize("kind", ["opt", "encoder"])
def test_resume_verify_export_and_evaluate(kind: str, tiny_models: Any, sst2: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "r.toml", tiny.recipe(tiny_models[kind], sst2, model_trainable="head", method_lr=0.05))
    whole = run.run(recipes.load(path), tmp_path / "whole")
    run.run(recipes.load(path, ["federation.rounds=3"]), tmp_path / "parts")
    resumed = run.run(recipes.load(path, ["model.frozen_cache=0"]), tmp_path / "parts", resume=True)
    assert resumed["digest"] == whole["digest"]
    assert run.verify(tmp_path / "whole").digest == whole["digest"]
    export.export(tmp_path / "whole", tmp_path / "out")
    assert (tmp_path / "out" / class_head.FILE).is_file()
    assert class_head.FILE in (tmp_path / "out" / "README.md").read_text()
    for folder, more in ((tmp_path / "whole", []), (tmp_path / "out", [f"task.data_dir={sst2}"])):
        score = export.evaluate(folder, None, more)
        assert score.loss == pytest.approx(whole["loss"], rel=1e-5)
        assert score.loss != pytest.approx(whole["curve"][0][2], rel=1e-5)
    damaged = tmp_path / "out" / class_head.FILE
    damaged.write_bytes(damaged.read_bytes()[:50])
    with pytest.raises(InputError, match=r"class_head.safetensors: cannot be read"):
        export.evaluate(tmp_path / "out", None, [f"task.data_dir={sst2}"])


@llm
def test_other_labels_than_the_heads_are_refused(tiny_models: Any, sst2: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "r.toml", tiny.recipe(tiny_models["opt"], sst2, model_trainable="head"))
    run.run(recipes.load(path, ["federation.rounds=1"]), tmp_path / "run")
    with pytest.raises(InputError, match=r"the model's head answers .*, the task asks for"):
        export.evaluate(tmp_path / "run", None, ['task.label_words=["bad", "good"]'])


@llm
def test_layers_that_are_not_there(tiny_models: Any, sst2: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "r.toml", tiny.recipe(tiny_models["opt"], sst2, model_trainable="last:3"))
    done = command("run", str(path), "--out", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "model.trainable = 'last:3': the model has 2 layers; accepted are last:1 to last:2." in done.stderr
    for wrong in ("last:0", "last:x", "last"):
        with pytest.raises(InputError, match=r"model\.trainable"):
            recipes.load(path, [f"model.trainable={wrong}"])


@llm
def test_a_plan_says_what_the_cache_takes(tiny_models: Any, sst2: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "r.toml", tiny.recipe(tiny_models["opt"], sst2))
    plain, head, layer, off = (
        plan(recipes.load(path, changes))
        for changes in (
            [],
            ["model.trainable=head"],
            ["model.trainable=last:1"],
            ["model.trainable=head", "model.frozen_cache=0"],
        )
    )
    assert suggested_lr(recipes.load(path, ["model.trainable=head"])) == 1e-3
    assert (plain.frozen_bytes, plain.frozen_example_bytes) == (0, 0)
    assert (head.dimension, head.frozen_example_bytes) == (2 * 32 + 2, 4 * 32)
    assert layer.frozen_example_bytes == 4 * 32 * 64
    assert 0 < layer.frozen_bytes <= 6 * 2 * 4 * (4 * 32 * 64 + OVERHEAD)
    assert off.frozen_bytes == 0
    assert "frozen layers" in dict(report.planned(asdict(layer)))
    assert "frozen" not in str(list(report.planned(asdict(plain))))


# The cache


def test_memory_is_limited_and_the_rest_is_in_the_file(tmp_path: Path) -> None:
    made = [torch.full((1, 1000), float(index)) for index in range(8)]
    keys = [bytes([index]) for index in range(8)]
    store = Activations(10_000, tmp_path / "a.sqlite")
    for _ in range(2):
        assert all(map(torch.equal, store.get(keys, made.__getitem__), made))
    assert store.computed == 8
    assert len(store._kept) == 2
    alone = Activations(10_000)
    for _ in range(2):
        assert all(map(torch.equal, alone.get(keys, made.__getitem__), made))
    assert alone.computed == 8 + 6
    half = Activations(10_000, tmp_path / "b.sqlite")
    odd = torch.randn(1, 3, 5, dtype=torch.bfloat16)
    half.get([b"k"], lambda _: odd)
    half.close()
    assert torch.equal(Activations(10_000, tmp_path / "b.sqlite").get([b"k"], lambda _: odd.clone())[0], odd)
    assert (tmp_path / "b.sqlite").stat().st_mode & 0o777 == 0o600


def values(store: Activations) -> list[float]:
    keys = [bytes([index]) for index in range(4)]
    return [float(one[0, 0]) for one in store.get(keys, lambda index: torch.full((1, 5000), float(index)))]


@pytest.mark.parametrize("damage", ["no database", "empty", "a value", "other values", "a checksum"])
def test_a_damaged_file_is_begun_anew(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "a.sqlite"
    first = Activations(10**6, file)
    assert values(first) == [0, 1, 2, 3]
    first.close()
    with sqlite3.connect(file) as database:
        if damage == "a value":
            database.execute("UPDATE activations SET data = zeroblob(20000) WHERE key = x'02'")
        elif damage == "a checksum":
            database.execute("UPDATE activations SET checksum = 7")
        elif damage == "other values":  # of another program, sound in themselves
            database.execute(
                "UPDATE activations SET (data, checksum) = (SELECT data, checksum FROM activations LIMIT 1 OFFSET 3)"
            )
    database.close()
    if damage == "no database":
        file.write_bytes(b"nothing of the kind" * 1000)
    elif damage == "empty":
        file.write_bytes(b"")
    caplog.set_level("INFO", "scalarfl")
    again = Activations(10**6, file)
    assert values(again) == [0, 1, 2, 3]
    assert ("begun anew" in caplog.text) == (damage != "empty")
    again.close()
    third = Activations(10**6, file)
    assert values(third) == [0, 1, 2, 3]
    assert third.computed == 1


def test_a_folder_that_cannot_be_used_is_no_reason_to_stop(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Activations(10**6, tmp_path / "file" / "a.sqlite")
    assert values(store) == values(store) == [0, 1, 2, 3]
    assert store.computed == 4


@llm
def test_another_prompt_length_or_base_gives_other_activations(
    tiny_models: Any, sst2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCALARFL_CACHE", str(tmp_path / "cache"))
    rows = [f"the film is {'very ' * 9}{word},{index % 2}" for index, word in enumerate(["bad", "good"] * 6)]
    own = {
        "name": "own",
        "data_dir": None,
        "file": str(written(tmp_path / "own.csv", "\n".join(["text,label", *rows]))),
        "label_words": ["bad", "good"],
        "prompt": "{text} It was",
    }
    task = {f"task_{key}": value for key, value in own.items()}
    base = tiny.recipe(tiny_models["opt"], sst2, model_trainable="last:1", federation_rounds=1, **task)
    path = written(tmp_path / "r.toml", base)

    def computed(*changes: str) -> int:
        attached = ran(recipes.load(path, changes))[2]
        assert attached is not None
        assert attached.activations is not None
        return attached.activations.computed

    first = computed()
    assert computed() == 1
    assert computed("method.lr=1e-2", "federation.seed=0") == 1
    assert computed("task.prompt={text} So") >= first
    assert computed("task.max_length=8") >= first
    assert len(list((tmp_path / "cache").glob("*.sqlite"))) == 1
    other = tiny.save("gpt2", tmp_path / "gpt2")
    assert computed(f"model.name={other}") >= first
    assert len(list((tmp_path / "cache").glob("*.sqlite"))) == 2


def test_nothing_of_a_cache_is_pickled_with_the_model() -> None:
    model = Own()
    split = frozen.attach(model, "head", 1, calls=False)
    assert split is not None
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert frozen.attached(torch.load(file, weights_only=False)) is None
