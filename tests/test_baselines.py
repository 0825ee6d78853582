"""The dense baselines: against hand-written loops, on the cohorts and batches of the scalar-only methods."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from scalarfl import InputError
from scalarfl.baselines import BASELINES, FedAvg
from scalarfl.baselines.dense import DenseConfig, DenseRun, train
from scalarfl.experiment import recipe as recipes, run
from scalarfl.experiment.prepare import prepare
from scalarfl.ledger.store import Ledger
from scalarfl.model.selection import Sparse
from scalarfl.protocol.client import drawn
from scalarfl.protocol.config import RunConfig
from scalarfl.protocol.sampling import cohort
from support import RECIPE, command, cross_entropy, last_json, network, score, shards

NAMED = {f"client-{index:04d}": shard for index, shard in enumerate(shards())}


def settings(name: str = "fedavg", **changes: Any) -> tuple[DenseConfig, RunConfig]:
    agreed = {"local_steps": 2, "batch_size": 8, "mu": 1e-3, "perturbations": 4, "aggregation": "mean", "seed": 3}
    start = {"lr": 0.1, "rounds": 6, "sampled": 2, "evaluate_every": 2}
    return (
        DenseConfig(method=BASELINES[name](), **{key: changes.get(key, value) for key, value in agreed.items()}),
        RunConfig(**{key: changes.get(key, value) for key, value in start.items()}),
    )


def trained(name: str = "fedavg", checkpoint: Path | None = None, **changes: object) -> DenseRun:
    return train(network(), NAMED, cross_entropy, *settings(name, **changes), "all", score, checkpoint)


def test_fedavg_is_the_textbook_s() -> None:
    """A loop of its own: copies of the model, torch's SGD, an average of state dicts."""
    model, (s, start) = network(), settings()
    for round_ in range(start.rounds):
        copies = []
        for name in cohort(sorted(NAMED), 2, s.seed, round_):
            local = copy.deepcopy(model)
            optimizer = torch.optim.SGD(local.parameters(), lr=start.first_lr or 0.0)
            for step in range(s.local_steps):
                optimizer.zero_grad()
                loss = cross_entropy(local, drawn(NAMED[name], s.batch_size, s.seed, name, round_, step))
                torch.autograd.backward(loss)
                optimizer.step()
            copies.append(local.state_dict())
        model.load_state_dict({key: torch.stack([c[key] for c in copies]).mean(0) for key in copies[0]})
    found = trained()
    for mine, theirs in zip(found.model.parameters(), model.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_fedavg_on_a_recipe_is_flower_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digits, 10 clients of unequal size: the accuracy, and the weights, of Flower's own strategy round after round."""
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.serverapp.strategy import FedAvg as Theirs
    from flwr.supercore.task_identity import TaskIdentity

    for what in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, what, 1)
    overrides = ["model.name=mlp", "task.name=digits", "federation.clients=10", "federation.partition=dirichlet"]
    made = prepare(recipes.load(None, overrides))
    s, start = settings(sampled=10, rounds=40, local_steps=5, batch_size=16, aggregation="weighted", evaluate_every=40)
    model, strategy = copy.deepcopy(made.model), Theirs()
    examples = made.judged.examples
    found = train(
        made.model, made.clients, made.task.loss, s, start, "all", lambda m: made.task.score(m, examples), None
    )
    for round_ in range(start.rounds):
        replies = []
        for name, data in made.clients.items():
            local = copy.deepcopy(model)
            optimizer = torch.optim.SGD(local.parameters(), lr=start.first_lr or 0.0)
            for step in range(s.local_steps):
                optimizer.zero_grad()
                loss = made.task.loss(local, drawn(data, s.batch_size, s.seed, name, round_, step))
                torch.autograd.backward(loss)
                optimizer.step()
            record = RecordDict()
            record["arrays"] = ArrayRecord(local.state_dict())
            record["metrics"] = MetricRecord({"num-examples": len(data)})
            replies.append(Message(record, 1, "train"))
        arrays, _ = strategy.aggregate_train(round_, replies)
        assert arrays is not None
        model.load_state_dict(arrays.to_torch_state_dict())
    theirs = made.task.score(model, examples)
    assert found.evaluations[-1].accuracy == pytest.approx(theirs.accuracy, abs=0.006)  # one of 180 examples
    assert theirs.accuracy is not None
    assert theirs.accuracy > 0.85
    for mine, other in zip(found.model.parameters(), model.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-4)


@pytest.mark.parametrize("name", list(BASELINES))
def test_every_baseline_learns_and_is_reproducible(name: str) -> None:
    rounds = 60 if name != "fedzo" else 150
    lr = 0.05 if name == "fedzo" else 0.1
    first, second = (trained(name, rounds=rounds, evaluate_every=rounds, lr=lr) for _ in range(2))
    assert first.digest == second.digest
    assert first.evaluations[-1].loss < 0.95 * first.evaluations[0].loss
    assert not first.diverged


def test_which_parameters_require_a_gradient_is_afterwards_as_before() -> None:
    """A run on the same model afterwards trains what it would have trained before; frozen ones stay unless named."""
    model = network()
    model.get_parameter("0.bias").requires_grad_(False)
    for trainable, moving in (("all", {"0.weight", "2.weight", "2.bias"}), (["0.*"], {"0.weight", "0.bias"})):
        before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
        train(model, NAMED, cross_entropy, *settings(rounds=1), trainable)
        assert {n for n, tensor in model.named_parameters() if not torch.equal(tensor, before[n])} == moving
        assert [tensor.requires_grad for tensor in model.parameters()] == [True, False, True, True]


def test_one_step_of_each_server_optimiser() -> None:
    """After one round, by the papers' formulas; the libraries' correction for the start makes the first step lr."""
    before = [parameter.detach().clone() for parameter in network().parameters()]
    average = trained("fedavg", rounds=1)
    moved = [x - p.detach() for x, p in zip(before, average.model.parameters(), strict=True)]
    for name in ("fedadam", "fedyogi", "fedadagrad"):
        found = trained(name, rounds=1)
        for x, p, gradient in zip(before, found.model.parameters(), moved, strict=True):
            step = (x - p.detach()) / 1e-2
            expected = gradient / (gradient.abs() + 1e-3)
            if name == "fedyogi":  # both moments begin at 1e-6
                first = (0.9 * 1e-6 + 0.1 * gradient) / 0.1
                second = 1e-6 - 0.01 * torch.sign(1e-6 - gradient**2) * gradient**2
                expected = first / ((second / 0.01).sqrt() + 1e-3)
            close = torch.isclose(step, expected, atol=2e-2 if name != "fedyogi" else 1e-3)
            assert close[gradient.abs() > 1e-4].float().mean() > 0.99


def test_fedzo_moves_along_estimated_gradients() -> None:
    """With many directions its round is FedAvg's, nearly."""
    exact = trained("fedavg", rounds=1, local_steps=1)
    guess = trained("fedzo", rounds=1, local_steps=1, perturbations=3000)
    before = torch.cat([p.detach().view(-1) for p in network().parameters()])
    one, two = (torch.cat([p.detach().view(-1) for p in r.model.parameters()]) - before for r in (exact, guess))
    assert torch.nn.functional.cosine_similarity(one, two, dim=0) > 0.9


def test_costs() -> None:
    d = sum(parameter.numel() for parameter in network().parameters())
    found = trained()
    assert found.dimension == d
    assert found.traffic == {("up", "round"): (4 * d * 12, 4 * d * 12), ("down", "round"): (4 * d * 12, 4 * d * 12)}
    assert found.forward_passes == 6 * 2 * 2 * 3  # rounds, clients, steps, a pass and a backward pass
    assert trained("fedzo").forward_passes == 6 * 2 * 2 * 5


@pytest.mark.parametrize("name", ["fedavg", "fedadam", "fedyogi"])
def test_it_goes_on_from_a_checkpoint_with_the_same_bits(name: str, tmp_path: Path) -> None:
    straight = trained(name)
    trained(name, tmp_path / "kept.pt", rounds=4)
    resumed = trained(name, tmp_path / "kept.pt")
    assert resumed.digest == straight.digest
    assert resumed.forward_passes == straight.forward_passes
    assert [e.round for e in resumed.evaluations] == [0, 2, 4, 6]


def test_it_stops_where_it_diverges() -> None:
    calls = 0

    def breaking(model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return cross_entropy(model, batch) * (1.0 if calls <= 8 else float("nan"))

    found = train(network(), NAMED, breaking, *settings(), "all", score)
    assert found.diverged
    assert found.rounds == 3


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(InputError, match="no gradient"):
        train(network(), NAMED, lambda model, batch: float(cross_entropy(model, batch).detach()), *settings())
    with pytest.raises(InputError, match="do not support a sparse mask"):
        train(network(), NAMED, cross_entropy, *settings(), Sparse(0.1))
    with pytest.raises(InputError, match="baselines train float32"):
        train(network().bfloat16(), NAMED, cross_entropy, *settings())


def test_a_baseline_from_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    options = (
        "-s",
        "method.name=fedadam",
        "-s",
        "method.tau=1e-2",
        "-s",
        "method.lr=0.1",
        "--out",
        str(tmp_path / "r"),
    )
    result = last_json(command("run", str(path), *options, "--json").stdout)
    assert result["serialized_bytes_up"] == 4 * result["dimension"] * 12 * 2 / 4
    assert result["accuracy"] == result["curve"][-1][1]
    assert "tau = 0.01" in (tmp_path / "r" / "recipe.toml").read_text()
    assert command("run", str(path), *options).returncode == 2  # not over an earlier run
    again = last_json(command("run", str(path), *options, "--resume", "--json").stdout)
    assert again["digest"] == result["digest"]
    refused = command("verify", str(tmp_path / "r"))
    assert refused.returncode == 2
    assert "baseline" in refused.stderr
    wrong = command("run", str(path), "-s", "method.name=fedavg", "-s", "method.tau=1", "--out", str(tmp_path / "x"))
    assert "method.tau" in wrong.stderr


def test_the_cohorts_are_the_scalar_only_methods_(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    run.run(recipes.load(path), tmp_path / "run")
    with Ledger.open(tmp_path / "run" / "ledger.sqlite") as ledger:
        names = [f"client-{index:04d}" for index in range(4)]
        for round_, audit in ledger.audits("round"):
            assert audit.cohort == cohort(names, 2, ledger.header.seed, round_)


def test_settings_are_validated() -> None:
    assert FedAvg().server_lr == 1.0
    with pytest.raises(InputError, match=r"method\.server_lr"):
        recipes.parse(
            {"model": {"name": "mlp"}, "task": {"name": "digits"}, "method": {"name": "fedavg", "server_lr": -1.0}}
        )
    json.dumps(FedAvg().model_dump())
