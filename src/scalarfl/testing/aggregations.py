"""What every aggregation must keep: ``TestMine = aggregations.contract(Mine())``."""

import copy
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from scalarfl.protocol.aggregation import AGGREGATIONS, Aggregator, Linear, Reply
from scalarfl.simulation import Run, simulate
from scalarfl.testing.samples import cross_entropy, network, shards

SHAPE = (2, 1, 5)


def contract(*rules: Aggregator) -> type:
    """A class of tests for pytest over these rules; bind it to a name that begins with ``Test``."""
    given = [pytest.param(rule, id=rule.name) for rule in rules]
    return pytest.mark.parametrize("rule", given)(type("TestAggregations", (_Contract,), {}))


class _Contract:
    def test_it_says_what_it_is(self, rule: Aggregator) -> None:
        """And is made without arguments, as a server makes it from its name."""
        assert not AGGREGATIONS.fault(type(rule))
        assert type(rule)().name == rule.name

    @pytest.mark.parametrize("clients", [1, 2, 5])
    @pytest.mark.parametrize("kinds", [1, 2])
    def test_it_gives_one_reply_whatever_the_cohort(self, rule: Aggregator, clients: int, kinds: int) -> None:
        """float32, finite, shaped like a reply: of usual, of zero, and of very large and small scalars."""
        for scale in (1.0, 0.0, 1e15, 1e-30):
            found, _ = rule.aggregate(rule.init(), replies(clients, kinds=kinds, scale=scale))
            assert np.asarray(found).dtype == np.float32
            assert np.shape(found) == (SHAPE[0], kinds, SHAPE[2])
            assert np.isfinite(found).all()

    def test_pure(self, rule: Aggregator) -> None:
        """Same input, same output; nothing that was handed in is changed, and nothing kept in the object."""
        kept = copy.deepcopy(vars(rule))
        state = rule.init()
        for round_ in range(3):
            given = replies(4, seed=round_)
            before, untouched = copy.deepcopy(state), copy.deepcopy(given)
            first, after = rule.aggregate(state, given)
            again, after_again = rule.aggregate(state, given)
            assert np.array_equal(first, again)
            assert after == after_again
            assert state == before
            assert all(np.array_equal(a.scalars, b.scalars) for a, b in zip(given, untouched, strict=True))
            state = after
        assert vars(rule) == kept

    def test_the_order_of_the_cohort_means_nothing(self, rule: Aggregator) -> None:
        """Up to rounding."""
        given = replies(5)
        there, back = (rule.aggregate(rule.init(), one)[0] for one in (given, given[::-1]))
        assert np.allclose(there, back, rtol=1e-5, atol=1e-6)

    def test_what_it_remembers_survives_the_ledger(self, rule: Aggregator) -> None:
        """A server that was restarted goes on as the first one would have; None throughout, or never."""
        state = again = rule.init()
        for round_ in range(4):
            found, state = rule.aggregate(state, replies(4, seed=round_))
            other, again = rule.aggregate(again, replies(4, seed=round_))
            again = msgspec.msgpack.decode(msgspec.msgpack.encode(again))
            assert np.array_equal(found, other)
            assert (state is None) == (rule.init() is None)

    def test_weights_sum_to_one(self, rule: Aggregator) -> None:
        """Where it is a rule that gives every client a weight."""
        if not isinstance(rule, Linear):
            pytest.skip("it gives no weights")
        for examples in ([1], [10, 30, 60], [0, 0], [5, 0]):
            weights = rule.weights(examples)
            assert weights.shape == (len(examples),)
            assert weights.sum() == pytest.approx(1)
            assert (weights >= 0).all()

    def test_a_run_that_was_interrupted_ends_as_one_that_was_not(self, rule: Aggregator, tmp_path: Path) -> None:
        """With all that it remembers."""

        def run(rounds: int, **more: Any) -> Run:
            return simulate(
                network(), shards(), cross_entropy, aggregation=rule, rounds=rounds, lr=1e-2, sampled=3,
                attackers=rule.attackers or int(rule.needs_attackers), progress=False, **more,
            )  # fmt: skip

        run(3, ledger=tmp_path / "ledger")
        assert run(6, ledger=tmp_path / "ledger", resume=True).digest == run(6).digest


def replies(clients: int, *, kinds: int = 1, seed: int = 0, scale: float = 1.0) -> list[Reply]:
    """Made-up replies of a cohort."""
    random = np.random.default_rng(seed)
    shape = (SHAPE[0], kinds, SHAPE[2])
    return [
        Reply(f"client-{index}", 10 * (index + 1), (scale * random.uniform(-1, 1, shape)).astype(np.float32))
        for index in range(clients)
    ]
