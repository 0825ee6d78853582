"""The whole path on tiny models of every architecture: recipe, run, verify, export, the exported model's logits."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from scalarfl import language
from scalarfl.experiment import export, prepare, recipe as recipes, run
from scalarfl.language import task

pytestmark = pytest.mark.skipif(
    find_spec("transformers") is None or find_spec("peft") is None, reason="needs the extra llm"
)

CAUSAL = ["opt", "llama", "qwen", "gpt2", "phi"]


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def logits(model: Any, tokens: Any) -> Any:
    with torch.no_grad():
        out = model(**tokens)
    return out.last_hidden_state if hasattr(out, "last_hidden_state") else out.logits


@pytest.mark.filterwarnings("ignore:`is_gradient:FutureWarning")  # peft asks transformers so
@pytest.mark.parametrize("trainable", ["all", "lora"])
@pytest.mark.parametrize("kind", [*CAUSAL, "bert", "encoder", "classifier"])
def test_the_whole_path(kind: str, trainable: str, tiny_models: dict[str, Path], sst2: Path, tmp_path: Path) -> None:
    text = tiny.recipe(tiny_models[kind], sst2, model_trainable=trainable, method_lr=1e-3)
    recipe = recipes.load(written(tmp_path, text))
    result = run.run(recipe, tmp_path / "run")
    assert result["rounds"] == 6
    assert not result["diverged"]
    losses = [point[2] for point in result["curve"]]
    assert losses[0] != losses[-1]

    verified = run.verify(tmp_path / "run")
    assert verified.digest == result["digest"]
    export.export(tmp_path / "run", tmp_path / "out")
    assert export.evaluate(tmp_path / "out").loss == pytest.approx(losses[-1], rel=1e-6)

    import transformers
    from peft import PeftModel

    live = prepare.load_model(recipe)
    with run.open_ledger(tmp_path / "run") as ledger:
        run.rebuild(recipe, live.model, ledger)
    auto = {"encoder": "AutoModel", "bert": "AutoModelForMaskedLM", "classifier": "AutoModelForSequenceClassification"}
    cls = getattr(transformers, auto.get(kind, "AutoModelForCausalLM"))
    if trainable == "lora":
        base = cls.from_pretrained(tiny_models[kind])
        again = PeftModel.from_pretrained(base, tmp_path / "out")
        assert (tmp_path / "out" / "adapter_config.json").exists()
        if kind == "opt":  # "all" of a folder of adapters is the base and the adapters, though peft would freeze them
            again_whole = language.load(str(tmp_path / "out"), "causal")
            assert all(parameter.requires_grad for parameter in again_whole.parameters())
    else:
        again = cls.from_pretrained(tmp_path / "out")
    tokens = live.tokenizer(["the film is good .", "the plot is very bad ."], padding=True, return_tensors="pt")
    tokens.pop("token_type_ids", None)
    assert torch.equal(logits(again.eval(), tokens), logits(live.model, tokens))


def test_lora_trains_adapters_and_shares_the_rest(tiny_models: dict[str, Path], sst2: Path, tmp_path: Path) -> None:
    recipe = recipes.load(written(tmp_path, tiny.recipe(tiny_models["opt"], sst2, model_trainable="lora")))
    loaded = prepare.load_model(recipe)
    from scalarfl import Probe, Replica, make_method
    from scalarfl.model.probe import LossQuery

    before = {name: (p.data_ptr(), p.detach().clone()) for name, p in loaded.model.named_parameters()}
    replica = Replica(loaded.model, make_method("hiso"), prepare.trainable(recipe.model))
    assert all("lora_" in name for name in replica.layout.names)
    assert replica.layout.dimension == 2 * 2 * 2 * 8 * 32  # layers, query and value, A and B, rank, width
    prepared = prepare.prepare(recipe, loaded)
    batch = prepared.task.train.batch([0, 1, 2])
    Probe(replica, prepared.task.loss).measure([LossQuery(1, 1e-2, 1e-2, (), range(3), batch)])
    for name, parameter in loaded.model.named_parameters():
        assert parameter.data_ptr() == before[name][0]
        assert torch.equal(parameter, before[name][1])


@pytest.mark.parametrize("metric", ["f1", "exact_match"])
def test_own_completions_are_scored_by_what_is_generated(
    metric: str, tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole answers, of several lines too; a network's server knows the score's name without examples."""
    rows = [{"prompt": "the film is", "completion": "good\nand great"}] * 10
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    about = {"name": "own", "file": str(tmp_path / "mine.jsonl"), "metric": metric}
    recipe = recipes.parse({"model": {"name": str(tiny_models["opt"]), "device": "cpu"}, "task": about})
    prepared = prepare.prepare(recipe)
    untrained = prepared.measure_test()
    assert untrained.metrics is not None
    assert set(untrained.metrics) == {"f1", "exact_match"}
    assert untrained.accuracy == untrained.metrics[metric]
    monkeypatch.setattr(task, "_generated", lambda model, head, prompts, ends: [" Good\nand great. "] * len(prompts))
    assert prepared.measure_test().accuracy == 1.0
    assert language.collect(recipe.task.model_copy(update={"file": None}), examples=False).metric == metric
