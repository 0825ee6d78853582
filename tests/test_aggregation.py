"""Aggregators: their rules by hand, what they remember, and what they may be combined with."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from scalarfl import InputError, Ledger, Server, simulate
from scalarfl.ledger.codec import unpack
from scalarfl.ledger.entries import Audit
from scalarfl.protocol.aggregation import AGGREGATIONS, Aggregator, Clip, Reply, Scalars, State, make_aggregator
from scalarfl.testing.aggregations import contract
from support import Office, cross_entropy, network, reply, shards

TestEveryAggregation = contract(*(kind() for kind in AGGREGATIONS.values()))


def replies(*vectors: Sequence[float]) -> list[Reply]:
    return [Reply(f"c{i}", 10, np.array(v, np.float32).reshape(1, 1, -1)) for i, v in enumerate(vectors)]


def test_clip_by_hand() -> None:
    """Norms 5, 10 and 100: the bound is 10. A round of norms 2, 2, 8 later it is the lower median of 10 and 2."""
    found, state = Clip().aggregate([], replies([3, 4], [6, 8], [60, 80]))
    assert found.ravel() == pytest.approx([(3 + 6 + 6) / 3, (4 + 8 + 8) / 3])
    assert state == [[10.0]]
    found, state = Clip().aggregate(state, replies([0, 2], [2, 0], [8, 0]))
    assert found.ravel() == pytest.approx([4 / 3, 2 / 3])
    assert state == [[10.0], [2.0]]


def test_clip_bounds_slopes_and_second_differences_apart() -> None:
    both = np.array([[[1, 0], [300, 400]]], np.float32)
    found, state = Clip().aggregate([[1.0, 5.0]] * 20, [Reply("a", 1, both)])
    assert found.tolist() == [[[1, 0], [3, 4]]]
    assert len(state) == 9


def test_an_attacker_moves_a_clipped_mean_by_a_bound() -> None:
    honest = np.random.default_rng(0).normal(size=(6, 5))
    for attack in (1e3, -1e12):
        found, _ = Clip().aggregate([], replies(*honest, *([[attack] * 5] * 3)))
        assert np.linalg.norm(found) <= np.linalg.norm(honest, axis=1).max()


def test_what_an_aggregator_remembers_is_on_the_ledger(tmp_path: Path) -> None:
    """An interrupted run ends as one that was not; the mean records nothing."""
    whole = simulate(network(), shards(), cross_entropy, aggregation="clip", rounds=8, ledger=tmp_path / "a")
    simulate(network(), shards(), cross_entropy, aggregation="clip", rounds=3, ledger=tmp_path / "b")
    with Ledger.open(tmp_path / "b") as ledger:
        assert [len(audit.aggregator) for _, audit in ledger.audits("round")] == [1, 2, 3]
    parts = simulate(
        network(), shards(), cross_entropy, aggregation="clip", rounds=8, ledger=tmp_path / "b", resume=True
    )
    assert parts.digest == whole.digest
    mean = simulate(network(), shards(), cross_entropy, rounds=8, ledger=tmp_path / "c")
    assert mean.digest != whole.digest
    with Ledger.open(tmp_path / "c") as ledger:
        assert all(audit.aggregator is None for _, audit in ledger.audits())


def test_an_audit_without_memory_has_the_bytes_it_always_had() -> None:
    assert Audit([], [], [], [], [], [1.5]).encoded().hex() == "96909090909091cb3ff8000000000000"
    assert Audit([], [], [], [], [], [], [1.5]).encoded().hex() == "979090909090" + "90" + "91cb3ff8000000000000"


def test_a_restarted_server_remembers_through_rounds_without_a_reply() -> None:
    office = Office(aggregation="clip")
    office.greet()
    office.round()
    office.round(spoilt={name: reply(name, 1, [float("nan")] * 3) for name in office.clients})
    again = Server(office.ledger, lr=1e-2, sampled=3)
    assert again._combiner.state == office.server._combiner.state
    assert len(again._combiner.state) == 1


def test_a_rule_that_compares_scalars_needs_shared_directions() -> None:
    says = "aggregation = 'clip'.*\"per-client\" share none; accepted: mean, weighted"
    with pytest.raises(InputError, match=says):
        simulate(network(), shards(), cross_entropy, aggregation="clip", directions="per-client", rounds=1)
    with pytest.raises(InputError, match="a baseline sends tensors; accepted: mean, weighted"):
        make_aggregator("clip", dense=True)
    for name in ("mean", "weighted"):
        assert make_aggregator(name, directions="per-client", dense=True).name == name


class Odd(Aggregator):
    """Does what its settings say, wrongly."""

    name: ClassVar[str] = "odd"
    summary: ClassVar[str] = "a test's"
    source: ClassVar[str] = "a test"

    def __init__(self, wrong: str = "shape") -> None:
        self.wrong = wrong

    def aggregate(self, state: State, replies: Sequence[Reply]) -> tuple[Scalars, State]:
        scalars = replies[0].scalars
        if self.wrong == "shape":
            return scalars[0], state
        if self.wrong == "nan":
            return scalars * np.float32("nan"), state
        return scalars, object()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("shape", r"'odd': it gave scalars of shape \(1, 3\), 3 of them finite; accepted are \(1, 1, 3\)"),
        ("nan", r"'odd': it gave scalars of shape \(1, 1, 3\), 0 of them finite"),
        ("state", "'odd': its state is <object .*accepted are numbers, texts, lists and dicts"),
    ],
)
def test_a_rule_that_gives_no_reply_is_named_and_nothing_is_recorded(wrong: str, says: str) -> None:
    office = Office(aggregation="odd", aggregator=Odd(wrong=wrong))
    office.greet()
    with pytest.raises(InputError, match=says):
        office.round()
    assert office.ledger.rounds == 0


def test_a_mean_s_update_is_the_mean() -> None:
    office = Office(clients=2, sampled=2, aggregation="mean")
    office.greet()
    names = sorted(office.clients)
    office.server.open_round(names)
    update = office.server.close_round((name, reply(name, 0, [i, 2, 3])) for i, name in enumerate(names))
    assert unpack(update.scalars).tolist() == [0.5, 2, 3]


def test_every_aggregation_runs() -> None:
    digests = {
        simulate(
            network(), shards(7, 50), cross_entropy, aggregation=name, rounds=3, attackers=int(rule.needs_attackers)
        ).digest
        for name, rule in AGGREGATIONS.items()
    }
    assert len(digests) == len(AGGREGATIONS)
