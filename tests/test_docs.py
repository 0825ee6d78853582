"""The documentation is executed: examples run, commands work, golden vectors and formats are the package's."""

import json
import re
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from benchmarks import oracles, study, version_0_1

import scalarfl
from federation import Federation, free_port
from scalarfl.experiment.compare.intervals import paired
from scalarfl.experiment.compare.table import verdicts
from scalarfl.noise import rank_one
from scalarfl.noise.directions import Layout, noise
from scalarfl.noise.kernels import rank_one as compiled
from scalarfl.noise.table import TABLE, TABLE_DIGEST
from scalarfl.protocol.attacks import ATTACKS
from support import command, cross_entropy, network, shards

ROOT = Path(__file__).parent.parent
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "recipes" / "README.md",
    ROOT / "examples" / "README.md",
]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.S)


def execute(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(code, "example", "exec"), names)  # noqa: S102 - our own documentation
    return names


def test_the_readme_s_example_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("README.md", "python")
    assert len([line for line in code.splitlines() if line.strip()]) < 25
    run = execute(code)["run"]
    assert run.accuracy > 0.9
    assert (tmp_path / "mine.sqlite").exists()


def test_the_tutorial_of_one_s_own_module_stops_continues_and_rebuilds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = execute("\n".join(blocks("docs/tutorial-own-module.md", "python")))
    assert "stopped=True" in capsys.readouterr().out
    run, model = names["run"], names["build"]()
    assert run.rounds == 200
    assert names["payload"] == 200 * 2 * 5 * 4  # rounds, clients, directions, bytes
    model.load_state_dict(torch.load("digits.pt"))
    assert names["score"](model).accuracy == pytest.approx(run.accuracy)


def test_the_readme_s_commands_work(tmp_path: Path) -> None:
    (text,) = blocks("README.md", "console")
    for line in text.splitlines():
        line, _, target = line.removeprefix("$ ").partition(" > ")
        done = command(*shlex.split(line)[1:], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        if target:
            (tmp_path / target).write_text(done.stdout)


def test_the_generator_page_is_the_generator() -> None:
    code, third = blocks("docs/generator.md", "python")
    described, sign = execute(code)["noise"], execute(third)["sign"]
    for seed, step, perturbation, address in [(2026, 0, 0, 0), (2**64 - 1, 3, 9, (1 << 38) + 5)]:
        ours = noise(seed, step, perturbation, address, 50)
        assert ours.tolist() == [described(seed, step, perturbation, address + i, TABLE) for i in range(50)]
    for seed, step, q, first, begin in [(2026, 1, 5, 1, 0), (2**64 - 1, 3, 2**31 + 5, 1 << 35, 120)]:
        device = torch.device("cpu")
        for maker in (rank_one.signs, compiled.RankOne(Layout((), ())).signs):
            found = maker(seed, step, [q], first, begin, 150, device)
            assert found[0].tolist() == [sign(seed, step, q, first, begin + i) for i in range(150)]
    (golden,) = blocks("docs/generator.md", "text")
    assert golden.split() == [value.hex() for value in noise(2026, 0, 0, 0, 8).tolist()]
    page = (ROOT / "docs/generator.md").read_text()
    assert TABLE_DIGEST in page
    for generator in (scalarfl.noise.table.GENERATOR, scalarfl.noise.table.HADAMARD, scalarfl.noise.table.RANK_ONE):
        assert generator in page


def test_the_directions_page_s_example_learns() -> None:
    (code,) = blocks("docs/directions.md", "python")
    names = execute(code)
    inputs, labels = names["data"].tensors
    assert float((names["model"](inputs).argmax(1) == labels).float().mean()) > 0.8


def test_the_ledger_page_s_reader_reads(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    run = scalarfl.simulate(network(), shards(), cross_entropy, rounds=5, ledger=path)
    (code,) = blocks("docs/ledger.md", "python")
    assert execute(code)["check"](path) == run.head


def test_the_methods_page_s_method_runs() -> None:
    made = execute("".join(blocks("docs/methods.md", "python")))
    assert made["HiSoFzoo"].model_fields.keys() == scalarfl.HiSo.model_fields.keys()
    method = made["Cautious"](rate=0.2)
    run = scalarfl.simulate(network(), shards(), cross_entropy, method=method, lr=1e-2, rounds=20)
    assert all(bool((state["v"] > 0).any()) for state in run.replica.state)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in run.replica.tensors)


def test_the_extending_page_s_examples_run() -> None:
    """A task, an aggregation, a model, and the public tests bound to them."""
    composed = _IMPORTS + blocks("docs/methods.md", "python")[1]
    names = execute("".join([composed, *blocks("docs/extending.md", "python")]))
    task = names["Signs"].load()
    model = names["narrow"](task.inputs, task.classes)
    clients = [scalarfl.tasks.Shard(task.train, part) for part in scalarfl.iid(300, 4, 0)]
    before = task.score(model, task.test).loss
    run = scalarfl.simulate(model, clients, task.loss, aggregation=names["Trimmed"](), lr=3e-2, rounds=60)
    assert task.score(run.model, task.test).loss < before
    assert [name for name in names if name.startswith("Test")] == ["TestSigns", "TestTrimmed", "TestFZOO"]


_IMPORTS = "from typing import ClassVar\nimport scalarfl\n"


def test_the_robust_page_s_attack_is_one() -> None:
    (code,) = blocks("docs/robust.md", "python")
    silent = execute(code)["Silent"]
    assert not ATTACKS.fault(silent)
    assert silent().scalars(None, 3.0, None) == 0


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_example_improves_a_metric_without_a_gradient() -> None:
    names = execute((ROOT / "examples" / "macro_f1.py").read_text())
    before, after = names["main"]()
    assert before < 0.2
    assert after > 0.5


@pytest.mark.parametrize("index", [0, 1])
def test_the_readme_s_way_to_an_exported_model(
    index: int, tiny_models: dict[str, Path], sst2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The four commands, on a tiny model, for a few rounds; the hub's model and data are given as folders."""
    install, *lines = blocks("README.md", "sh")[index].splitlines()
    assert install == "pip install '.[llm]'"
    shutil.copytree(tiny_models["opt"], tmp_path / "my-model")
    records = [
        {"text": f"it is {'good' if n % 2 else 'bad'} .", "label": ["negative", "positive"][n % 2]} for n in range(60)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for line in lines:
        words, _, target = line.partition(" > ")
        arguments = shlex.split(words.replace("facebook/opt-125m", "./my-model"))[1:]
        if arguments[0] == "run":
            arguments += ["-s", "federation.rounds=5"]
            arguments += ["--data-dir", str(sst2)] if index == 0 else []
        done = command(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        if target:
            (tmp_path / target).write_text(done.stdout)
    out = tmp_path / lines[-1].split()[-1]
    assert (out / ("adapter_config.json" if "lora" in lines[0] else "config.json")).exists()


def test_the_protocol_page_s_messages_are_the_package_s() -> None:
    from scalarfl.ledger import codec
    from scalarfl.ledger.update import CurvedUpdate, Update
    from scalarfl.protocol import messages

    (golden,) = blocks("docs/protocol.md", "text")
    kinds: list[type[msgspec.Struct]]
    kinds = [Update, messages.Hello, messages.Welcome, messages.RoundTask, messages.RoundReply]
    kinds += [messages.Measure, messages.Measured, messages.Failed, CurvedUpdate, messages.Records]
    lines = golden.split()
    scalars = codec.pack(np.array([1.5, -2], dtype=np.float32))
    update = Update(0, 2026, 0.5, 1, [0], scalars)
    for line, kind in zip(lines, kinds, strict=True):
        assert codec.claims(bytes.fromhex(line), kind)
        assert codec.encode(codec.decode(bytes.fromhex(line), kind)).hex() == line
    assert codec.encode(update).hex() == lines[0]
    assert codec.encode(messages.RoundReply("alpha", 1, 100, scalars)).hex() == lines[4]
    curved = codec.decode(bytes.fromhex(lines[8]), Update)
    assert isinstance(curved, CurvedUpdate)
    assert (curved.coefficients, curved.curvatures, curved.perturbations) == (((1.5,),), ((-2.0,),), (0,))
    page = (ROOT / "docs/protocol.md").read_text()
    for one in json.loads((ROOT / "benchmarks/results/network.json").read_text()):
        row = [one["clients"], one["sampled"], f"{one['dimension']:,}", round(one["wire_up_a_client_round"])]
        assert "| " + " | ".join(str(entry) for entry in row) + " |" in page
    quick, slow = json.loads((ROOT / "benchmarks/results/catch-up.json").read_text())
    assert f"in {quick['requests']} requests and {quick['bytes'] / 1e6:.1f} MB: {quick['seconds']:.1f} s" in page
    assert f"{slow['seconds']:.1f} s over a line" in page


def test_the_readme_fits_two_screens() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_the_privacy_page_s_figures_are_the_example_s() -> None:
    found = execute((ROOT / "examples" / "what_scalars_reveal.py").read_text())["main"]()
    page = (ROOT / "docs/privacy.md").read_text()
    for scalars, (cosine, pixels) in found.items():
        (row,) = re.findall(rf"\| {scalars} \| ([0-9.-]+) \| ([0-9.-]+) \|", page)
        assert [float(entry) for entry in row] == pytest.approx([cosine, pixels], abs=0.02)


def test_the_tutorial_leads_from_kits_to_a_model(
    tiny_models: dict[str, Path], federation: Callable[..., Federation], tmp_path: Path
) -> None:
    """Every command of the page, each in its party's folder, with a tiny model and the broker on this machine."""
    made = federation(bare=True)
    folders = {"organiser": tmp_path, **{p: tmp_path / "kits" / p for p in ("broker", "server", "alpha", "beta")}}
    folders["observer"] = tmp_path / "kits" / "observer"
    page = (ROOT / "docs/tutorial-network.md").read_text()
    commands = [
        (party, line) for party, text in re.findall(r"```sh (\w+)\n(.*?)```", page, re.S) for line in text.splitlines()
    ]
    (recipe,) = blocks("docs/tutorial-network.md", "toml")
    recipe = recipe.replace("facebook/opt-125m", str(tiny_models["opt"])).replace("rounds = 300", "rounds = 30")
    reviews = [
        {"text": f"it is {'good' if n % 2 else 'bad'} .", "label": ["negative", "positive"][n % 2]} for n in range(40)
    ]
    port = str(free_port())
    for number, (party, line) in enumerate(commands):
        words = shlex.split(line.replace("broker.example.org", "127.0.0.1"))
        if words[0] == "pip":
            continue
        if words[1:3] == ["network", "init"]:
            assert command(*words[1:], "--port", port, cwd=tmp_path).returncode == 0
            for kit in folders.values():
                (kit / "reviews.toml").write_text(recipe)
                (kit / "reviews.jsonl").write_text("".join(json.dumps(review) + "\n" for review in reviews))
        elif words[1] in ("network", "server", "client"):
            made.program(party, words[1:], folders[party])
            if words[1] == "client" and "watched" not in folders:
                made.until(lambda: "is here" in made.log("server"))
                folders["watched"] = tmp_path
            elif words[1] == "network":
                time.sleep(1)
        else:
            if words[1] == "export":
                made.result("server")
            done = command(*words[1:], cwd=folders[party])
            assert done.returncode == 0, (number, done.stderr)
    digests = {str(made.result(party)["digest"]) for party in ("alpha", "beta")}
    assert len(digests) == 1
    assert (folders["server"] / "adapted" / "adapter_config.json").exists()
    assert digests.pop() in (folders["server"] / "adapted" / "README.md").read_text()


def test_the_study_s_tables_are_its_figures() -> None:
    from scalarfl.experiment.compare import markdown

    page = (study.DOCS / "README.md").read_text()
    for path in study.DOCS.glob("*/compare.json"):
        assert markdown(json.loads(path.read_text())) in path.with_suffix(".md").read_text()
    assert study.BEGIN + study.headlines() + study.END in page


def test_accuracy_against_bytes_is_its_figures() -> None:
    figures, rivals = oracles.results(), json.loads(oracles.RIVALS.read_text())
    assert oracles.BEGIN + oracles.table(figures) + oracles.END in (oracles.DOCS / "slopes.md").read_text()
    assert oracles.picture(figures, rivals) == oracles.PICTURE.read_text()


def test_the_tables_of_version_0_1_are_its_figures_and_say_by_which_rules() -> None:
    page = (study.DOCS / "README.md").read_text()
    assert version_0_1.BEGIN + version_0_1.overview() + version_0_1.END in page
    for name in version_0_1.names():
        tables = (version_0_1.OLD / name / "compare.md").read_text()
        assert tables == version_0_1.page(name)
        assert "chosen on the test examples" in tables
        assert f"(0.1/{name}/compare.md)" in page


def test_the_study_s_first_sentences_are_its_figures() -> None:
    """No paired interval of HiSo's best accuracy excludes zero; the medians of its speed-up are those on the page."""
    positive, medians = 0, []
    for name in version_0_1.SETTINGS:
        methods = {one["method"]: one for one in version_0_1.read(name)["methods"]}
        hiso, decomfl = methods["hiso"], methods["decomfl"]
        interval = paired(version_0_1.best(hiso), version_0_1.best(decomfl))
        assert interval is not None
        assert not interval.excludes_zero
        if name != "logistic":
            scores = zip(version_0_1.best(hiso), version_0_1.best(decomfl), strict=True)
            positive += sum(ours > theirs for ours, theirs in scores)
        medians.append(median(version_0_1.rounds_to_best(hiso, decomfl)[1]))
    assert positive == 14
    assert [round(value, 2) for value in medians] == [1.0, 1.33, 0.79, 1.11, 1.0, 0.0]
    page = " ".join((study.DOCS / "README.md").read_text().split())
    assert "positive in 14 of the 15 runs with a CNN" in page
    assert "1.00, 1.33, 0.79, 1.11 and 1.00 times as fast in the five settings with a CNN" in page
    logistic = json.loads((study.DOCS / "logistic" / "compare.json").read_text())
    assert (
        "hiso against decomfl: -0.1 points of test accuracy (95 % interval -0.3 to +0.1, 5 seeds)"
        in verdicts(logistic)[0]
    )
    (hiso,) = [one for one in logistic["reach"] if (one["method"], one["of"]) == ("hiso", "decomfl")]
    assert (hiso["reached"], hiso["runs"], hiso["speed_up"]) == (2, 5, 0.0)
    own = json.loads((study.DOCS / "own-logistic-8" / "compare.json").read_text())
    assert "+3.2 points of test accuracy (95 % interval +1.6 to +4.7, 5 seeds): better." in verdicts(own)[0]
    assert [round(one["speed_up"], 2) for one in own["reach"]] == [1.0, 0.0, 1.71, 1.0]
