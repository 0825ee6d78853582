"""How clients find their scalars: exact slopes, projected local training, and clients that differ in it."""

import copy
import math
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

from scalarfl import (
    METHODS,
    InputError,
    Ledger,
    Method,
    Probe,
    Replica,
    Server,
    VerificationError,
    make_method,
    simulate,
)
from scalarfl.experiment import recipe as recipes, run as runs, run_folder as folder
from scalarfl.experiment.verify import verify
from scalarfl.ledger.accounting import backward_passes, forward_passes
from scalarfl.ledger.header import FoundBy
from scalarfl.model.cost import backward_cost
from scalarfl.model.gradients import Local, Training
from scalarfl.model.probe import LossQuery
from scalarfl.model.selection import Sparse, Trainable
from scalarfl.noise.table import Noise
from scalarfl.protocol.client import Client
from scalarfl.protocol.cohort import Cohort
from scalarfl.protocol.config import Slopes
from scalarfl.protocol.party import Party
from scalarfl.protocol.rounds import Policy, RoundLoop
from scalarfl.simulation import replay
from support import cross_entropy, examples, header, network, score, shards

ALL = [pytest.param(method(), id=name) for name, method in METHODS.items() if not method().curved]
Way = Literal["difference", "exact", "training"]
NOISES: list[Noise] = ["normal", "hadamard"]
BATCH = (examples(40).inputs, examples(40).labels)
ASKED = LossQuery(77, 0.05, 1e-3, (), range(4, 10), BATCH)


class Tied(nn.Module):
    """A weight used twice, a tensor of one coordinate, and a layer that the loss never meets."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(5, 5)
        self.scale = nn.Parameter(torch.tensor([0.7]))
        self.out = nn.Linear(5, 3)
        self.idle = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.out(torch.tanh(self.inner(torch.tanh(self.inner(x)))) * self.scale)
        return made


def gradient(replica: Replica, batch: object = BATCH) -> list[torch.Tensor]:
    """By torch alone."""
    model = copy.deepcopy(replica.model).double()
    inputs, labels = BATCH
    nn.functional.cross_entropy(model(inputs.double()), labels).backward()  # type: ignore[no-untyped-call]
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("method", ALL)
def test_exact_slopes_are_products_of_gradient_and_directions(method: Method, noise: Noise) -> None:
    replica = Replica(Tied(), method, noise=noise)
    for state in replica.state:
        for value in state.values():
            value.copy_(torch.rand_like(value) + 0.5)
    before = replica.digest()
    loss, *slopes = Probe(replica, cross_entropy).measure([ASKED._replace(exact=True)])[0]
    expected = []
    for p in ASKED.perturbations:
        total = 0.0
        for index, g in enumerate(gradient(replica)):
            z = torch.empty(g.numel())
            replica.displace(index, z, torch.zeros(g.numel()), 0, ASKED.seed, 0, p, 1.0)
            total += float((g.reshape(-1) * z.double()).sum())
        expected.append(total)
    assert slopes == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert loss == pytest.approx(float(cross_entropy(replica.model, BATCH).detach()), rel=1e-6)
    assert replica.digest() == before
    assert all(p.grad is None for p in replica.model.parameters())


def test_a_walk_is_followed() -> None:
    """In mid-round the gradient is taken where the client stands: a difference with a small mu agrees."""
    replica = Replica(Tied(), make_method("decomfl"))
    asked = ASKED._replace(walk=((0.3, -0.2, 0.1, 0.5, -0.4, 0.2),), mu=1e-4)
    (at, *ahead), (loss, *slopes) = Probe(replica, cross_entropy).measure([asked, asked._replace(exact=True)])
    assert loss == pytest.approx(at, rel=1e-6)
    assert slopes == pytest.approx((np.array(ahead) - at) / 1e-4, abs=2e-2)


@pytest.mark.parametrize("trainable", ["all", "norms", ["out.*"], Sparse(0.3)], ids=str)
def test_exact_slopes_for_every_choice_of_what_is_trained(trainable: Trainable) -> None:
    replica = Replica(Tied(), make_method("hiso"), trainable)
    asked = ASKED._replace(mu=1e-4)
    (at, *ahead), (_, *slopes) = Probe(replica, cross_entropy).measure([asked, asked._replace(exact=True)])
    assert slopes == pytest.approx((np.array(ahead) - at) / 1e-4, abs=2e-2)
    assert all(p.requires_grad for p in replica.model.parameters())


def test_half_precision_gives_slopes_too() -> None:
    exact = []
    for dtype in (torch.float32, torch.bfloat16):
        replica = Replica(Tied().to(dtype), make_method("decomfl"))
        batch = (BATCH[0].to(dtype), BATCH[1])
        exact.append(Probe(replica, cross_entropy).measure([ASKED._replace(exact=True, batch=batch)])[0][1:])
    one, other = np.array(exact)
    assert float(one @ other) > 0.98 * float(np.linalg.norm(one) * np.linalg.norm(other))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_training_sends_the_projections_of_its_whole_move(optimizer: str) -> None:
    replica = Replica(network(), make_method("decomfl"))
    before = replica.digest()
    batches = tuple((BATCH[0][i::3], BATCH[1][i::3]) for i in range(3))
    asked = Training(5, range(2, 6), batches, 0.05, optimizer)
    first, *found = Probe(replica, cross_entropy).measure([asked])[0]
    model = network()
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]
    steps = kind(model.parameters(), lr=0.05)
    for batch in batches:
        steps.zero_grad()
        cross_entropy(model, batch).backward()  # type: ignore[no-untyped-call]
        steps.step()
    for p, scalar in zip(asked.perturbations, found, strict=True):
        total = 0.0
        for index, (x, end) in enumerate(zip(replica.tensors, model.parameters(), strict=True)):
            z = torch.empty(x.numel())
            replica.displace(index, z, torch.zeros(x.numel()), 0, 5, 0, p, 1.0)
            total += float(((x - end.detach()).reshape(-1) / 0.05 * z).sum())
        assert scalar == pytest.approx(total, rel=1e-3, abs=1e-4)
    assert first == pytest.approx(float(cross_entropy(network(), batches[0]).detach()), rel=1e-6)
    assert replica.digest() == before


def test_training_of_one_step_by_sgd_sends_exact_slopes() -> None:
    replica = Replica(network(), make_method("hiso"))
    one, other = Probe(replica, cross_entropy).measure(
        [ASKED._replace(exact=True), Training(ASKED.seed, ASKED.perturbations, (BATCH,), 0.1, "sgd")]
    )
    assert one == pytest.approx(other, rel=1e-3, abs=1e-4)


class Line(nn.Module):
    """A loss whose differences are its slopes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 40))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


def linear(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    made: torch.Tensor = model(batch[0]).mean()
    return made


def test_clients_that_differ_in_it_send_equal_scalars_on_a_linear_model() -> None:
    """One measures differences, one takes the gradient: within rounding the same, and one mean."""
    data = torch.utils.data.TensorDataset(torch.randn(30, 40, generator=torch.Generator().manual_seed(3)))
    sent = []
    ways: list[tuple[FoundBy, Slopes | None]] = [("forward", None), ("forward", "exact"), ("exact", "difference")]
    for agreed, slopes in ways:
        made = header(Replica(Line(), make_method("decomfl")), mu=1e-2, found_by=agreed)
        replica = Replica(Line(), make_method("decomfl"))
        replica.begin(made.digest())
        with Ledger.create(None, made) as ledger:
            server = Server(ledger, lr=0.1, sampled=1)
            client = Client("a", data, Probe(replica, linear), made, batch_size=30, slopes=slopes)
            client.welcomed(server.admit(client.hello()))
            update = server.close_round([("a", client.answer(server.open_round(["a"])["a"]))])
            sent.append(np.array(update.coefficients))
    assert np.allclose(sent[0], sent[1], atol=1e-3)
    assert np.allclose(sent[0], sent[2], atol=1e-3)


@pytest.mark.parametrize(("agreed", "slopes"), [("forward", "training"), ("exact", "training"), ("second", "exact")])
def test_other_numbers_are_refused(agreed: FoundBy, slopes: Slopes) -> None:
    replica = Replica(network(), make_method("decomfl"))
    with pytest.raises(InputError, match=f"slopes = '{slopes}'"):
        Client("a", shards()[0], Probe(replica, cross_entropy), header(replica, found_by=agreed), 8, slopes=slopes)
    trained = header(replica, found_by="training")
    with pytest.raises(InputError, match="only 'sgd' mixes"):
        Client("a", shards()[0], Probe(replica, cross_entropy), trained, 8, local=Local(0.1, "adam"), slopes="exact")


def test_where_others_train_a_client_sends_the_sum_of_its_slopes() -> None:
    """The limit of training by SGD as its steps become small, in one unit: on a linear model equal at every step."""
    data = torch.utils.data.TensorDataset(torch.randn(30, 40, generator=torch.Generator().manual_seed(3)))
    sent = {}
    ways: list[Slopes] = ["training", "exact", "difference"]
    for slopes in ways:
        made = header(Replica(Line(), make_method("hiso")), mu=1e-2, found_by="training", local_steps=3)
        replica = Replica(Line(), make_method("hiso"))
        replica.begin(made.digest())
        with Ledger.create(None, made) as ledger:
            server = Server(ledger, lr=0.1, sampled=1)
            client = Client("a", data, Probe(replica, linear), made, batch_size=10, slopes=slopes)
            client.welcomed(server.admit(client.hello()))
            update = server.close_round([("a", client.answer(server.open_round(["a"])["a"]))])
            sent[slopes] = np.array(update.coefficients)
            assert sent[slopes].shape == (1, made.perturbations)
    assert np.allclose(sent["training"], sent["exact"], rtol=1e-4, atol=1e-4)
    assert np.allclose(sent["training"], sent["difference"], atol=2e-3)


def mixed(ledger: Ledger, replica: Replica, rounds: int) -> Server:
    """Three clients, each with another way, over the simulation's transport."""
    h = ledger.header
    if replica.position == 0:
        replica.begin(h.digest())
    probe = Probe(replica, cross_entropy)
    ways: dict[str, Slopes] = {"a": "training", "b": "exact", "c": "difference"}
    parties = {
        name: Party(Client(name, data, probe, h, 8, local=Local(0.05), slopes=ways[name]))
        for name, data in zip(ways, shards(3), strict=True)
    }
    server = Server(ledger, lr=0.2, sampled=2, shared=True)
    RoundLoop(server, Cohort(parties, probe), Policy(rounds, minimum=3, deadline=math.inf)).run()
    return server


@torch.no_grad()
def test_a_mixed_federation_learns_and_its_record_says_who_used_what(tmp_path: Path) -> None:
    replica = Replica(network(), make_method("decomfl"))
    made = header(replica, found_by="training", local_steps=3, perturbations=20)
    before = score(network()).loss
    with Ledger.create(tmp_path / "run.sqlite", made) as ledger:
        mixed(ledger, replica, 10)
    with Ledger.open(tmp_path / "run.sqlite", write=True) as ledger:  # another server knows it from the record
        mixed(ledger, replica, 30)
        own = {"b": "exact", "c": "forward"}
        replied = []
        for _, audit in ledger.audits("round"):
            asked = {name: own[name] for name in audit.cohort if name in own}
            assert audit.oracles == (asked or None) or audit.admitted
            replied += [participant.client for participant in audit.participants]
        assert len(replied) == 60
        each = {"a": 3 * 3, "b": 3 * 3, "c": 3 * 21}
        assert forward_passes(ledger) == sum(each[name] for name in replied)
        assert backward_passes(ledger) == 3 * sum(name != "c" for name in replied)
        again = Replica(network(), make_method("decomfl"))
        replay(again, ledger)
    assert again.digest() == replica.digest()
    assert score(replica.model).loss < 0.9 * before


@pytest.mark.parametrize("slopes", ["exact", "training"])
@pytest.mark.parametrize("method", ALL)
def test_contract_a_run_is_its_ledger_whatever_the_scalars_come_from(
    method: Method, slopes: Way, tmp_path: Path
) -> None:
    path = tmp_path / "run.sqlite"
    run = simulate(
        network(), shards(), cross_entropy, method=method, lr=5e-3, rounds=6, evaluate=score, ledger=path,
        slopes=slopes, local_steps=3, local_lr=0.05, perturbations=20, noise="hadamard",
    )  # fmt: skip
    with Ledger.open(path) as ledger:
        assert ledger.header.found_by == slopes
        again = Replica(network(), method, noise="hadamard")
        replay(again, ledger)
        assert [len(update.coefficients) for update in ledger.updates()] == [1 if slopes == "training" else 3] * 6
    assert again.digest() == run.digest
    assert run.forward_passes == 6 * len(shards()) * 3 * 3  # a backward pass counts as two


def test_they_learn_more_from_as_many_rounds() -> None:
    losses = {}
    ways: list[Way] = ["difference", "exact", "training"]
    for slopes in ways:
        run = simulate(
            network(width=40), shards(), cross_entropy, method="decomfl", rounds=60, evaluate=score, local_steps=5,
            perturbations=60, slopes=slopes, lr=0.05, local_lr=0.05, seed=1, evaluate_every=60,
        )  # fmt: skip
        losses[slopes] = run.evaluations[-1].loss
        assert losses[slopes] < run.evaluations[0].loss
    assert losses["training"] < 1.1 * losses["exact"]


def test_a_loss_without_a_gradient_is_refused() -> None:
    with pytest.raises(InputError, match="backward pass"):
        simulate(
            network(),
            shards(),
            lambda m, b: float(cross_entropy(m, b).detach()),
            method="decomfl",
            rounds=1,
            slopes="exact",
        )


def test_what_learns_from_differences_is_refused() -> None:
    with pytest.raises(InputError, match="hizoo"):
        simulate(network(), shards(), cross_entropy, method="hizoo", rounds=1, slopes="exact")
    with pytest.raises(InputError, match="masked weights"):
        simulate(
            network(), shards(), cross_entropy, method="decomfl", rounds=1, slopes="training", trainable=Sparse(0.2)
        )


def test_the_cost_of_a_backward_pass_is_measured() -> None:
    """A loss of which each pass takes a known time; gradients and flags are afterwards as before."""
    model = Tied()
    model.out.weight.requires_grad_(False)

    def slow(model: nn.Module, batch: Any) -> torch.Tensor:
        time.sleep(0.03 if torch.is_grad_enabled() else 0.01)
        return cross_entropy(model, batch)

    assert backward_cost(model, list(model.inner.parameters()), slow, BATCH) == pytest.approx(2, abs=0.8)
    assert [p.requires_grad for p in model.parameters()].count(False) == 1
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("method", ["decomfl", "fedavg"])
def test_forward_equivalents_of_a_result(method: str, tmp_path: Path) -> None:
    """Measured once for a result, which keeps it; verified as what the measurement gives."""
    slopes = ["method.slopes=exact"] if method == "decomfl" else []
    made = ["model.name=mlp", "model.hidden=[8]", "task.name=digits", "federation.rounds=3", f"method.name={method}"]
    recipe = recipes.load(None, [*made, *slopes])
    result = runs.run(recipe, tmp_path / "run")
    cost = result["backward_cost"]
    assert cost >= 0
    assert result["forward_passes"] == 3 * 2 * 3
    assert result["forward_equivalents"] == pytest.approx(3 * 2 * (1 + cost))
    assert runs.run(recipe, tmp_path / "run", resume=True)["backward_cost"] == cost
    if method == "decomfl":
        assert "backward_cost" in " ".join(verify(tmp_path / "run").unconfirmed)
        for key, value in {"forward_equivalents": 1.0, "backward_cost": "cheap"}.items():
            (tmp_path / "run" / "result.json").unlink()
            content = {k: v for k, v in result.items() if k != "checksum"} | {key: value}
            folder.keep_result(tmp_path / "run", content)
            with pytest.raises(VerificationError, match=key):
                verify(tmp_path / "run")


def test_differences_have_no_backward_pass(tmp_path: Path) -> None:
    made = ["model.name=mlp", "model.hidden=[8]", "task.name=digits", "federation.rounds=2", "method.name=decomfl"]
    result = runs.run(recipes.load(None, made), tmp_path / "run")
    assert result["forward_equivalents"] == result["forward_passes"] == 2 * 2 * 6
    assert result["backward_cost"] is None
