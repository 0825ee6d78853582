"""What `verify` finds, what may be resumed, and that a refusal leaves a folder as it was."""

import contextlib
import json
import random
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch

from scalarfl import InputError, Ledger, Replica, VerificationError, make_method
from scalarfl.experiment import prepare, recipe as recipes, report, run, run_folder as folder
from scalarfl.ledger.entries import Evaluation, best
from scalarfl.model import snapshot
from support import RECIPE, network, updates
from test_cli import contents, refused, scalarfl


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run's folder; tests that alter it copy it first."""
    out = tmp_path_factory.mktemp("finished")
    (out / "r.toml").write_text(RECIPE)
    run.run(recipes.load(out / "r.toml"), out / "run")
    return out


def changed(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1 if value >= 0 else value - 1
    if isinstance(value, list):
        return [*value, "more"]
    return "another" if value is None else value[:-1] + ("0" if value[-1] != "0" else "1")


def test_verify_checks_every_number_of_the_result(finished: Path, tmp_path: Path) -> None:
    """Also those of a forger who mends the checksum; only seconds and memory are the run's own word."""
    shutil.copytree(finished / "run", tmp_path / "run")
    path = tmp_path / "run" / "result.json"
    whole = json.loads(path.read_text())
    assert run.verify(tmp_path / "run").finished
    for key in whole:
        other = whole | {key: changed(whole[key])}
        path.write_text(json.dumps(other))
        with pytest.raises(VerificationError, match="its checksum is"):
            run.load_result(tmp_path / "run")
        if key in ("seconds", "peak_rss_bytes", "checksum", "warnings"):
            continue
        path.write_text(json.dumps(other | {"checksum": folder.checksum(other)}))
        with pytest.raises(VerificationError, match=f"result.json claims {key} = "):
            run.verify(tmp_path / "run")
    for other in ({**whole, "fame": 1}, {key: value for key, value in whole.items() if key != "lr"}):
        path.write_text(json.dumps(other | {"checksum": folder.checksum(other)}))
        with pytest.raises(VerificationError, match=r"result.json (has an unknown key, fame|claims lr)"):
            run.verify(tmp_path / "run")
    path.write_text(json.dumps({key: value for key, value in whole.items() if key not in ("checksum", "best_round")}))
    with pytest.raises(VerificationError, match="has no checksum"):
        run.verify(tmp_path / "run")


OTHER = {
    "model.name": "logistic", "model.dtype": "bfloat16", "model.trainable": "norms", "model.head": "causal",
    "task.name": "mnist", "federation.partition": "dirichlet", "federation.aggregation": "weighted",
    "method.name": "decomfl", "method.directions": "per-client", "method.difference": "central",
    "method.slopes": "exact", "method.noise": "hadamard", "method.local_optimizer": "adam",
    "method.hessian_update": "last", "evaluation.by": "clients", "federation.balanced": True, "model.hidden": [9],
    "task.labels": ["a"], "task.label_words": ["a"], "task.label_sentences": ["a"], "task.prompt": "{text}",
    "model.revision": "x", "model.lora_targets": ["x"], "federation.sampled": 1, "method.nu": 0.1,
    "task.test_fraction": 0.2, "task.validation": 0.2, "evaluation.every": 6, "federation.seed": 1,
}  # fmt: skip


def test_verify_checks_every_key_of_the_recipe(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    path = tmp_path / "run" / "recipe.toml"
    whole = recipes.load(path)
    names = recipes.settings(whole)
    assert {
        "federation.batch_size",
        "federation.alpha",
        "task.train_examples",
        "method.lr",
        "method.nu",
    } <= names.keys()
    checked = 0
    for name, value in names.items():
        other = OTHER.get(name, value + 1 if isinstance(value, int | float) else None)
        if other is None or (name == "method.name" and other == value):
            continue
        path.write_text(
            recipes.to_toml(recipes.load(finished / "run" / "recipe.toml", [f"{name}={json.dumps(other)}"]))
        )
        with pytest.raises(VerificationError, match=r"recipe.toml has ") as refusal:
            run.verify(tmp_path / "run")
        assert name in str(refusal.value)
        checked += 1
    assert checked == len(names)


def test_a_refused_resume_leaves_the_folder_as_it_was(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    again = ["run", str(finished / "r.toml"), "--out", str(tmp_path / "run"), "--resume"]
    before = contents(tmp_path / "run")
    for setting in ("method.lr=1", "federation.batch_size=7", "federation.sampled=1", "federation.rounds=3"):
        code, _, error = scalarfl(capsys, *again, "-s", setting)
        assert code == 2
        assert setting.split("=")[0] in refused(error)
        assert contents(tmp_path / "run") == before
    with Ledger.open(tmp_path / "run" / "ledger.sqlite", write=True):  # a run that is at work
        code, _, error = scalarfl(capsys, *again, "-s", "federation.rounds=13")
        assert code == 2
        assert "another process is writing" in refused(error)
        assert (tmp_path / "run" / "recipe.toml").read_bytes() == before[tmp_path / "run" / "recipe.toml"]


def test_a_folder_whose_ledger_is_gone_is_not_overwritten(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    (tmp_path / "run" / "ledger.sqlite").unlink()
    for resume in ([], ["--resume"]):
        code, _, error = scalarfl(capsys, "run", str(finished / "r.toml"), "--out", str(tmp_path / "run"), *resume)
        assert code == 2
        assert "contains a result.json but no ledger.sqlite" in refused(error)
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "run" / "recipe.toml").write_text("# mine\n")
    code, _, error = scalarfl(capsys, "run", str(finished / "r.toml"), "--out", str(tmp_path / "run"))
    assert code == 2
    assert "contains a recipe.toml but no ledger.sqlite" in refused(error)
    assert (tmp_path / "run" / "recipe.toml").read_text() == "# mine\n"


def test_a_ledger_that_lost_its_end_is_noticed_by_all_who_read_it(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is left is a sound chain; the result names the head that is gone."""
    shutil.copytree(finished / "run", tmp_path / "run")
    with contextlib.closing(sqlite3.connect(tmp_path / "run" / "ledger.sqlite")) as db, db:
        db.execute("DELETE FROM entries WHERE id = (SELECT max(id) FROM entries)")
    for command in (["show"], ["verify"], ["export", str(tmp_path / "out")], ["evaluate"]):
        code, _, error = scalarfl(capsys, command[0], str(tmp_path / "run"), *command[1:])
        assert code == 3
        assert "claims ledger_head" in refused(error)


def test_the_best_round_is_named_and_can_be_exported(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file

    result = run.load_result(finished / "run")
    assert result is not None
    scores = {round_: accuracy for round_, accuracy, _ in result["curve"]}
    assert scores[result["best_round"]] == max(scores.values()) == result["best_accuracy"]

    digests = {}
    for at in ("0", "5", "best", "12"):
        code, out, error = scalarfl(capsys, "export", str(finished / "run"), str(tmp_path / at), "--round", at)
        assert code == 0, error
        digests[at] = out.split()[-1]
        assert digests[at] in (tmp_path / at / "README.md").read_text()
    assert digests["12"] == result["digest"]
    assert digests["best"] in digests.values()
    with Ledger.open(finished / "run" / "ledger.sqlite") as ledger:
        recorded = {evaluation.round: evaluation.digest.hex() for evaluation in ledger.evaluations()}
    assert (digests["0"], digests["5"]) == (recorded[0], recorded[5])
    assert digests["best"] == recorded[result["best_round"]]
    base = prepare.load_model(recipes.load(finished / "r.toml")).model.state_dict()
    untrained = load_file(tmp_path / "0" / "model.safetensors")
    assert all(torch.equal(base[name], value) for name, value in untrained.items())
    for wrong in ("13", "-1", "latest", "1.5"):
        code, _, error = scalarfl(capsys, "export", str(finished / "run"), str(tmp_path / "new"), f"--round={wrong}")
        assert code == 2
        assert "accepted is 'best', 'last' or a number of rounds from 0 to 12" in refused(error)
        assert not (tmp_path / "new").exists()


def test_a_best_score_of_the_untrained_model_is_called_so() -> None:
    scores = [Evaluation(0, 0.7, 1.0, 10, b""), Evaluation(5, 0.7, 0.9, 10, b""), Evaluation(9, 0.5, 0.8, 10, b"")]
    assert best(scores).round == 0
    assert report.best({"best_accuracy": 0.7, "best_round": 0}) == "70.0 % (untrained)"
    assert report.best({"best_accuracy": 0.7, "best_round": 25}) == "70.0 % @ 25"
    losses = [
        Evaluation(0, None, 2.0, 10, b""),
        Evaluation(5, None, 0.9, 10, b""),
        Evaluation(9, None, float("nan"), 1, b""),
    ]
    assert best(losses).round == 5


def test_a_flipped_bit_in_a_snapshot_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    """Also in what the file says of itself: with another trail the client would be refused by its own server."""
    replica = Replica(network(), make_method("hiso"))
    replica.begin(bytes(range(32)))
    replica.apply(updates(5))
    path = tmp_path / "kept.safetensors"
    snapshot.write(replica, path, 0.5)
    whole, dice, refused_ones = path.read_bytes(), random.Random(1), 0
    start = int.from_bytes(whole[:8], "little")
    for index in range(300):
        damaged = bytearray(whole)
        damaged[8 + index % start if index < 200 else dice.randrange(len(whole))] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        fresh = Replica(network(), make_method("hiso"))
        fresh.begin(bytes(range(32)))
        try:
            found = snapshot.peek(path)
            assert found is not None
            snapshot.restore(found, fresh)
        except InputError:
            refused_ones += 1
        else:
            assert (fresh.digest(), fresh.trail, fresh.position) == (replica.digest(), replica.trail, 5)
            assert found.seconds_a_round == 0.5
    assert refused_ones > 250
