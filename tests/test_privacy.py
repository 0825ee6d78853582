"""Differential privacy: the noise, the accountant, the mechanism, one durable release, and what is refused."""

import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from scalarfl import InputError, Ledger, Probe, Replica, Score, simulate
from scalarfl.ledger.codec import decode, encode, unpack
from scalarfl.ledger.header import Header
from scalarfl.methods import make_method
from scalarfl.noise.seeds import derive
from scalarfl.privacy.accountant import Promise, Terms, calibrated, participations, renyi_epsilon, spent, terms
from scalarfl.privacy.budget import Budget, BudgetSpent
from scalarfl.privacy.gaussian import Secret, discrete_gaussian
from scalarfl.privacy.mechanism import GRID, Mechanism, on_grid, sample
from scalarfl.protocol.client import Client
from scalarfl.protocol.config import FederationConfig
from scalarfl.protocol.keys import Privacy
from scalarfl.protocol.messages import Failed, Measure, RoundReply, RoundTask
from scalarfl.protocol.private import SPENT
from scalarfl.protocol.private_client import PrivateClient
from scalarfl.protocol.rounds import Policy, RoundLoop
from scalarfl.protocol.server import Server
from scalarfl.simulation import replay
from scalarfl.testing.samples import examples, network, shards
from support import header

PRIVACY: dict[str, Any] = {"epsilon": 8.0, "delta": 1e-5, "clip": 1.0, "unit": "example"}


def each(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


# The noise


@pytest.mark.parametrize("scale", [1, 2, 7])
def test_the_noise_is_the_discrete_gaussian(scale: int) -> None:
    """Chi-squared against exp(-x^2 / 2 s^2) at every integer; fails by chance once in a million."""
    count, secret = 6000, Secret()
    drawn = np.array([discrete_gaussian(scale, secret) for _ in range(count)])
    support = np.arange(-12 * scale, 12 * scale + 1)
    weights = np.exp(-(support**2) / (2 * scale**2))
    expected = count * weights / weights.sum()
    kept = expected > 8
    observed = np.array([(drawn == x).sum() for x in support[kept]])
    statistic = float(((observed - expected[kept]) ** 2 / expected[kept]).sum())
    degrees = int(kept.sum())
    assert statistic < degrees + 7 * math.sqrt(2 * degrees)
    assert (~np.isin(drawn, support[kept])).sum() < 2 * expected[~kept].sum() + 30


def test_on_a_fine_grid_it_is_the_normal_distribution() -> None:
    count, scale, secret = 4000, GRID, Secret()
    drawn = np.sort([discrete_gaussian(scale, secret) / scale for _ in range(count)])
    normal = np.array([0.5 * (1 + math.erf(x / math.sqrt(2))) for x in drawn])
    distance = np.abs(normal - np.arange(1, count + 1) / count).max()
    assert distance < 2.6 / math.sqrt(count)  # Kolmogorov and Smirnov; by chance once in a million


def test_secret_numbers_are_uniform_and_never_repeat() -> None:
    secret = Secret()
    drawn = [secret.below(5) for _ in range(5000)]
    assert min(drawn) == 0
    assert max(drawn) == 4
    assert all(abs(drawn.count(x) - 1000) < 150 for x in range(5))
    assert secret.below(1) == 0
    assert len({Secret().below(2**64) for _ in range(50)}) == 50


# The mechanism


def test_clipped_vectors_have_at_most_the_clipping_norm_exactly() -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((200, 7)) * 10.0 ** random.integers(-12, 12, (200, 1))
    vectors[0], vectors[1], vectors[2] = 1e308, np.nan, 0.0
    vectors[3, 2] = np.inf
    steps = on_grid(vectors, 0.3)
    norms = [math.isqrt(sum(int(x) ** 2 for x in row)) for row in steps]
    assert all(sum(int(x) ** 2 for x in row) <= GRID**2 for row in steps)
    assert norms[0] > 0.999 * GRID
    assert norms[1] == norms[2] == norms[3] == 0
    short = np.array([[0.1, -0.2, 0.05]])
    np.testing.assert_allclose(on_grid(short, 0.3) * 0.3 / GRID, short, atol=0.3 / GRID)


def test_a_release_is_the_sum_with_noise_of_the_stated_size() -> None:
    mechanism = Mechanism(0.5, GRID * 2)
    vectors = np.full((10, 3000), 0.5 / math.sqrt(3000))
    released = mechanism.released(vectors, 4.0).astype(np.float64)
    mean, deviation = 10 * vectors[0, 0] / 4, 2 * 0.5 / 4
    assert released.mean() == pytest.approx(mean, abs=5 * deviation / math.sqrt(3000))
    assert released.std() == pytest.approx(deviation, rel=0.08)
    assert mechanism.released(np.zeros((0, 3)), 4.0).shape == (3,)  # an empty sample


def test_samples_are_poisson() -> None:
    sizes = [len(sample(400, 0.05)) for _ in range(400)]
    assert np.mean(sizes) == pytest.approx(20, abs=1.2)
    assert np.var(sizes) == pytest.approx(19, rel=0.4)
    assert len(sample(400, 1.0)) == 400


# The accountant


def independent_epsilon(sigma: float, rate: float, releases: int, delta: float) -> float:
    """Renyi divergences of the sampled Gaussian at whole orders (arXiv 1908.10530, section 3.3), by themselves."""
    best = math.inf
    for order in range(2, 200):
        logs = [
            math.lgamma(order + 1) - math.lgamma(k + 1) - math.lgamma(order - k + 1)
            + k * math.log(rate) + (order - k) * math.log1p(-rate) + (k * k - k) / (2 * sigma**2)
            for k in range(order + 1)
        ]  # fmt: skip
        top = max(logs)
        divergence = (top + math.log(sum(math.exp(x - top) for x in logs))) / (order - 1)
        conversion = math.log1p(-1 / order) - math.log(delta * order) / (order - 1)
        best = min(best, releases * divergence + conversion)
    return best


def test_epsilon_agrees_with_an_independent_accountant() -> None:
    ours, theirs = renyi_epsilon(1.11, 16 / 1000, 500, 1e-5), independent_epsilon(1.11, 0.016, 500, 1e-5)
    assert theirs == pytest.approx(2.0, rel=0.05)
    assert ours == pytest.approx(theirs, rel=0.02)
    assert 0.8 * ours < spent(1.11, 0.016, 500, 1e-5) < ours  # the tighter one
    promise = Promise(2.0, 1e-5, 1.0, "example")
    assert terms(promise, 1000, 16, 500).sigma == pytest.approx(1.11, rel=0.05)
    assert spent(3.0, 1.0, 1, 1e-5) == pytest.approx(gaussian_epsilon(3.0, 1e-5), rel=0.01)


def gaussian_epsilon(sigma: float, delta: float) -> float:
    """Of one release without sampling, exactly (Balle and Wang, arXiv 1805.06530, theorem 8), by bisection."""

    def phi(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    low, high = 0.0, 50.0
    for _ in range(60):
        middle = (low + high) / 2
        found = phi(0.5 / sigma - middle * sigma) - math.exp(middle) * phi(-0.5 / sigma - middle * sigma)
        low, high = (middle, high) if found > delta else (low, middle)
    return high


def test_more_rounds_than_noise_allows_are_refused() -> None:
    with pytest.raises(InputError, match=r"privacy.epsilon = 0.001: .* need a noise multiplier above"):
        calibrated(0.001, 1e-6, 1.0, 100_000)
    assert participations(100, 2, 8) == 38
    assert participations(100, 8, 8) == 100


# One release, once


def made(tmp_path: Path | None = None, planned: int = 50, **changes: Any) -> PrivateClient:
    """A private client with a model, data and a budget."""
    replica = Replica(network(), make_method("decomfl"))
    own = header(replica, **{"privacy": PRIVACY, "batch_size": 8, "perturbations": 4} | changes)
    replica.begin(own.digest())
    promise = Promise.of(own.privacy or {})
    data = shards(1)[0]
    at = Terms(min(1.0, 8 / len(data)) if promise.unit == "example" else 1.0, 2.0, planned)
    path = None if tmp_path is None else tmp_path / "privacy.sqlite"
    budget = Budget(promise, at, own.digest(), path)
    return PrivateClient("one", data, Probe(replica, each), own, 8, budget=budget)


SEED = derive(0, "directions", 0)
TASK, OTHER = (encode(RoundTask(0, SEED, lr, 0, [])) for lr in (0.1, 0.2))


def test_the_same_task_gets_the_same_bytes_and_another_one_new_noise(tmp_path: Path) -> None:
    client = made(tmp_path)
    first = client.answer(TASK)
    assert client.answer(TASK) == first
    assert client.budget.releases == 1
    other = client.answer(OTHER)
    assert other != first
    assert client.budget.releases == 2
    assert decode(first, RoundReply).examples == 0
    client.budget.close()


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_privacy
folder = Path({folder!r})
reply = test_privacy.made(folder).answer(test_privacy.TASK)
(folder / "noised").write_bytes(reply)
os.kill(os.getpid(), signal.SIGKILL)  # noised and durable, and nothing of it sent
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is a signal of POSIX")
def test_killed_between_noising_and_sending_it_sends_the_same_bytes(tmp_path: Path) -> None:
    program = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    dead = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    again = made(tmp_path)
    assert again.budget.releases == 1
    assert again.answer(TASK) == (tmp_path / "noised").read_bytes()
    assert again.budget.releases == 1
    again.budget.close()


def test_a_budget_is_of_one_federation_and_of_one_process(tmp_path: Path) -> None:
    first, second = made(tmp_path), made(tmp_path)
    first.answer(TASK)
    with pytest.raises(InputError, match="another process uses this client's budget"):
        second.answer(TASK)
    first.budget.close()
    second.budget.close()
    with pytest.raises(InputError, match="a privacy budget for another federation"):
        made(tmp_path, seed=1)
    (tmp_path / "privacy.sqlite").write_bytes(b"no database, " * 100)
    with pytest.raises(InputError, match="not a readable privacy budget"):
        made(tmp_path)


def test_beyond_its_budget_a_client_refuses() -> None:
    client = made(planned=1, privacy=PRIVACY | {"epsilon": 1.0})
    budget = client.budget
    budget.terms = budget.terms._replace(sigma=0.6)
    assert decode(client.answer(TASK), RoundReply).round == 0
    refused = client.answer(OTHER)
    assert decode(refused, Failed).reason == SPENT
    assert budget.releases == 1
    with pytest.raises(BudgetSpent, match="1 releases cost epsilon = "):
        budget.check(1)


def test_nothing_but_noised_scalars_is_sent() -> None:
    client = made()
    assert decode(client.measure(encode(Measure(0, []))), Failed).reason == "failed"
    assert decode(client.failed(TASK, MemoryError("of a batch")), Failed).reason == "failed"


class _Leaky(PrivateClient):
    """Forgets to make its row a release."""

    def _row(self, asked: Any, batches: Any) -> Any:  # noqa: ARG002
        return Client._row(self, asked, [self.data.batch(np.arange(4))])  # type: ignore[attr-defined]


def test_a_reply_that_was_not_noised_is_not_sent() -> None:
    client = made()
    leaky = _Leaky("one", client.data, Probe(client.probe.replica, lambda m, b: each(m, b).mean()), client.header, 8,
                   budget=client.budget)  # fmt: skip
    with pytest.raises(Exception, match="this reply must not be sent"):
        leaky.answer(TASK)
    assert client.budget.releases == 0


@pytest.mark.parametrize(("difference", "steps"), [("forward", 1), ("central", 1), ("forward", 3)])
def test_without_noise_a_reply_is_the_clipped_mean_of_examples(difference: str, steps: int) -> None:
    """With everything sampled, a wide clip and noise of a millionth, it is what a client without privacy sends."""
    replica = Replica(network(), make_method("decomfl"))
    plain = header(replica, found_by=difference, local_steps=steps, batch_size=10**6)
    private = header(replica, found_by=difference, local_steps=steps, batch_size=10**6, privacy=PRIVACY)
    data = shards(1)[0]
    wide = Promise(8.0, 1e-5, 1e4, "example")
    budget = Budget(wide, Terms(1.0, 1e-9, 100), b"")
    probe = Probe(replica, each)
    ours = PrivateClient("one", data, probe, private, 10**6, budget=budget).answer(TASK)
    theirs = Client("one", data, Probe(replica, lambda m, b: each(m, b).mean()), plain, 10**6).answer(TASK)
    ours_, theirs_ = (unpack(decode(reply, RoundReply).scalars) for reply in (ours, theirs))
    np.testing.assert_allclose(ours_, theirs_, atol=5e-3)
    assert budget.releases == steps


# An audit: guessing whether a canary was in the data, from the scalars alone


def advantage(noise: bool, tries: int = 400) -> tuple[float, float]:
    """(largest lower bound of epsilon that the attack shows, the epsilon that is claimed) for one release."""
    slope = np.zeros((2, 6))
    slope[:, 0] = 5.0  # both examples point the same way, beyond the clip
    at = Terms(1.0, 1.2, 1)
    mechanism = Mechanism(1.0, at.scale("example") if noise else 1)
    scores = np.array(
        [[mechanism.released(slope[: 1 + member], 1.0)[0] for _ in range(tries)] for member in (False, True)]
    )
    found = 0.0
    for threshold in np.linspace(0.0, 3.0, 13):
        missed, hit = (scores > threshold).mean(axis=1)
        margin = 3.3 * math.sqrt(0.25 / tries)  # of both shares: by chance once in a thousand
        low, high = max(hit - margin, 1e-9), missed + margin
        found = max(found, math.log(max(low - 1e-5, 1e-9) / high))
    return found, spent(at.sigma, at.rate, 1, 1e-5)


def test_a_membership_attack_stays_below_the_bound_and_breaks_it_without_noise() -> None:
    found, claimed = advantage(noise=True)
    assert 0.2 < found < claimed
    found, _ = advantage(noise=False)
    assert found > math.log(10)  # beyond what chance can give: it knows every time


# A federation


def federation(**keywords: Any) -> Any:
    settings: dict[str, Any] = {"method": "decomfl", "rounds": 6, "sampled": 2, "batch_size": 8, "seed": 1}
    return simulate(network(), shards(4), each, progress=False, **settings | {"privacy": PRIVACY} | keywords)


def test_two_runs_differ_and_the_ledger_replays_to_the_bit(tmp_path: Path) -> None:
    seen: list[Any] = []
    ours: dict[str, Any] = {"ledger": tmp_path / "a.sqlite", "evaluate": lambda _: Score(1.0, 0.5, 10)}
    first = federation(**ours, callbacks=seen.append)
    second = federation()
    assert first.digest != second.digest
    assert all(math.isnan(progress.loss) for progress in seen)  # the cohort's own losses are not shown
    assert 0 < first.epsilon <= 8
    with Ledger.open(tmp_path / "a.sqlite") as ledger:
        assert ledger.header.privacy == PRIVACY
        assert not [key for key in ledger.settings or {} if key.startswith("clients.")]
        assert {p.examples for _, audit in ledger.audits("round") for p in audit.participants} == {0}
        replica = Replica(network(), make_method("decomfl"))
        replay(replica, ledger)
        assert replica.digest() == first.digest
    with pytest.raises(InputError, match="the noise is calibrated for the rounds it began with"):
        federation(**ours, resume=True, rounds=8)
    again = federation(**ours, resume=True)
    assert (again.digest, again.epsilon) == (first.digest, first.epsilon)


@pytest.mark.parametrize(
    "keywords",
    [
        {"privacy": PRIVACY | {"unit": "client"}, "slopes": "training", "epsilon": 8},
        {"privacy": PRIVACY | {"unit": "client"}, "local_steps": 2},
        {"privacy": PRIVACY, "directions": "per-client", "local_steps": 2, "transforms": ["sign"]},
        {"privacy": PRIVACY, "aggregation": "clip", "difference": "central"},
    ],
)
def test_units_slopes_and_rules_go_together(keywords: dict[str, Any]) -> None:
    keywords = {key: value for key, value in keywords.items() if key != "epsilon"}
    mean = keywords["privacy"]["unit"] == "client"
    loss = (lambda m, b: each(m, b).mean()) if mean else each
    settings: dict[str, Any] = {"method": "decomfl", "rounds": 3, "sampled": 2, "batch_size": 8}
    run = simulate(network(), shards(4), loss, progress=False, **settings | keywords)
    assert run.rounds == 3
    assert 0 < run.epsilon <= 8.0  # type: ignore[operator]


def test_the_slope_along_the_latest_move_is_part_of_the_release(monkeypatch: pytest.MonkeyPatch) -> None:
    widths, released = [], Mechanism.released

    def noting(self: Mechanism, vectors: Any, divisor: float) -> Any:
        widths.append(vectors.shape[1])
        return released(self, vectors, divisor)

    monkeypatch.setattr(Mechanism, "released", noting)
    run = federation(lr="auto", perturbations=4, local_steps=2, rounds=3)
    assert widths[:4] == [4] * 4  # two clients, two steps: nothing was before
    assert sorted(widths[4:]) == [4] * 4 + [5] * 4
    assert run.lr_final > 0


def test_a_run_ends_when_every_budget_is_spent() -> None:
    """Client for client, as they refuse; what is on record stays."""
    clients = [made(planned=2, privacy=PRIVACY | {"epsilon": 2.0}) for _ in range(3)]
    for index, client in enumerate(clients):
        client.name = f"client-{index}"
        client.budget.terms = client.budget.terms._replace(sigma=0.9)
    with Ledger.create(None, clients[0].header) as book:
        server = Server(book, lr=1e-3, sampled=2)
        loop = RoundLoop(server, _Direct(clients), Policy(1000, minimum=3))
        loop.run()
        assert server.spent == {"client-0", "client-1", "client-2"}
        assert 3 <= loop.rounds < 100
        assert "the privacy budget of every client is spent" in loop.warnings[-1]


class _Direct:
    """Clients of their own replicas, called at once."""

    def __init__(self, clients: list[PrivateClient]) -> None:
        from scalarfl.protocol.party import Party

        self.parties = {client.name: Party(client) for client in clients}
        self._inbox: list[tuple[str, bytes]] = []

    def present(self) -> list[str]:
        return sorted(self.parties)

    def send(self, messages: Mapping[str, bytes]) -> None:
        for name, message in messages.items():
            reply = self.parties[name].respond(message)
            if reply:
                self._inbox.append((name, reply))

    def receive(self, _seconds: float) -> list[tuple[str, bytes]]:
        found, self._inbox = self._inbox, []
        return found

    def publish(self, _update: object) -> None:
        pass


# What is refused


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        ({"aggregation": "weighted"}, "weights clients by their numbers of examples"),
        ({"secure_sum": 3, "sampled": 3}, "not together with secure_sum = 3"),
        ({"directions": "per-example"}, "there is no sum to noise"),
        ({"slopes": "exact"}, "gives one slope for a whole batch"),
        ({"slopes": "training"}, "of steps that mix the examples"),
        ({"method": "hizoo"}, "second differences are not covered"),
        ({"privacy": {"epsilon": 2.0}}, "privacy"),
        ({"privacy": PRIVACY | {"epsilon": -1.0}}, "privacy"),
        ({"privacy": PRIVACY | {"delta": 0.2}}, "allows one of them to be published"),
        ({"evaluate": {"client-0000": lambda _: 1.0}}, "evaluations by clients are not covered"),
    ],
)
def test_what_cannot_be_promised_is_refused(keywords: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        federation(**keywords)


def test_a_loss_of_the_whole_batch_is_refused() -> None:
    with pytest.raises(InputError, match="Return one number for each example"):
        simulate(
            network(), shards(2), lambda m, b: each(m, b).mean(), method="decomfl", rounds=1, privacy=PRIVACY,
            progress=False,
        )  # fmt: skip


def test_a_plain_client_cannot_join_and_a_federation_without_privacy_is_unchanged() -> None:
    replica = Replica(network(), make_method("decomfl"))
    private, plain = header(replica, privacy=PRIVACY), header(replica)
    with pytest.raises(InputError, match="needs a PrivateClient"):
        Client("one", examples(), Probe(replica, each), private, 8)
    assert b"privacy" not in plain.encoded()
    assert plain.contract()["method"] != private.contract()["method"]
    assert FederationConfig(privacy=Privacy(**PRIVACY)).header("", "", 1).privacy == PRIVACY
    assert isinstance(plain, Header)
