"""lr = "auto": the slope along the latest move, the controller, and what lies in the ledger."""

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from scalarfl import simulate
from scalarfl.errors import InputError
from scalarfl.experiment.recipe import parse
from scalarfl.ledger.accounting import forward_passes
from scalarfl.ledger.codec import unpack
from scalarfl.ledger.entries import Audit, Evaluation
from scalarfl.ledger.header import Header
from scalarfl.ledger.store import Ledger
from scalarfl.ledger.update import Update
from scalarfl.methods import METHODS, make_method
from scalarfl.model.heading import Heading
from scalarfl.model.probe import LossQuery, Probe
from scalarfl.model.replica import Replica
from scalarfl.protocol.callbacks import StopRun, fallen, verdicts
from scalarfl.protocol.config import FederationConfig, RunConfig
from scalarfl.protocol.pace import Pace
from scalarfl.simulation import Run, replay
from scalarfl.testing.samples import cross_entropy, examples, network, shards, updates

BATCH = examples()


def score(model: torch.nn.Module) -> float:
    return float(cross_entropy(model, (BATCH.inputs, BATCH.labels)))


def run(ledger: Path, rounds: int = 8, **keys: Any) -> Run:
    given: dict[str, Any] = {"lr": "auto", "perturbations": 4, "batch_size": 8, "sampled": 2, "progress": False} | keys
    return simulate(network(), shards(), cross_entropy, ledger=ledger, rounds=rounds, **given)


CASES = [
    *({"method": name} for name in METHODS.own),
    {"method": "decomfl", "directions": "per-client", "local_steps": 2},
    {"method": "hiso", "slopes": "exact", "noise": "hadamard", "local_steps": 2},
    {"method": "momentum", "slopes": "training", "local_steps": 3},
    {"method": "decomfl", "transforms": [{"name": "clip", "norm": 0.5}]},
]


@pytest.mark.parametrize("keys", CASES, ids=lambda keys: "-".join(map(str, keys.values())))
def test_every_method_resumes_and_replays_with_the_rates_on_record(keys: dict[str, Any], tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", **keys)

    def stop(progress: Any) -> None:
        if progress.round == 5:
            raise StopRun

    run(tmp_path / "part", callbacks=stop, **keys)
    resumed = run(tmp_path / "part", resume=True, **keys)
    assert (resumed.head, resumed.digest) == (whole.head, whole.digest)
    with Ledger.open(tmp_path / "whole") as ledger:
        rates = [update.lr for update in ledger.updates()]
        replica = Replica(network(), make_method(keys["method"]), noise=keys.get("noise", "normal"))
        replay(replica, ledger)
        assert forward_passes(ledger) == whole.forward_passes
        assert ledger.header.extra == 1
    assert replica.digest() == whole.digest
    assert len(set(rates)) > 4
    assert all(math.isfinite(rate) and rate for rate in rates)


def test_forward_passes_count_the_one_along_the_latest_move(tmp_path: Path) -> None:
    count = 0

    def counted(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        nonlocal count
        count += 1
        return cross_entropy(model, batch)

    given: dict[str, Any] = {"perturbations": 4, "batch_size": 8, "progress": False, "rounds": 5, "lr": "auto"}
    for method, each in (("decomfl", 1), ("mezo", 2), ("hizoo", 2)):
        count = 0
        found = simulate(network(), shards(), counted, method=method, **given)
        fixed = simulate(network(), shards(), cross_entropy, method=method, **given | {"lr": 1e-3})
        assert count == found.forward_passes == fixed.forward_passes + 4 * 4 * each, method


@pytest.mark.parametrize("method", METHODS.own)
def test_the_heading_is_the_latest_move(method: str) -> None:
    """Made again from the record alone, in any slices; as long as a direction."""
    made = make_method(method)
    replica = Replica(network(width=40), made)
    replica.begin(b"")
    rounds = [one for one in updates(6, local_steps=2, method=made) if one.slots]
    rounds = [type(one)(at, *(getattr(one, key) for key in one.__struct_fields__[1:])) for at, one in enumerate(rounds)]
    replica.apply(rounds[:-1])
    before = [x.clone() for x in replica.tensors]
    replica.apply(rounds[-1:])
    heading = Heading(replica, rounds[-1])
    moved = torch.cat([(old - x).flatten() for old, x in zip(before, replica.tensors, strict=True)])
    parts = [heading.part(index, slice(0, x.numel())) for index, x in enumerate(replica.tensors)]
    whole = torch.cat(parts)
    assert float(torch.cosine_similarity(moved, whole, dim=0)) > (
        0.8 if method == "momentum" else 0.97
    )  # the state has learnt from the move since
    scales = [made.scale(state) for state in replica.state]
    sizes = [torch.ones_like(x) if s is None else s.expand_as(x) for s, x in zip(scales, replica.tensors, strict=True)]
    usual = float(torch.cat([size.flatten() for size in sizes]).square().mean().sqrt())
    assert 0.4 < float(whole.square().mean().sqrt()) / usual < 2.5
    first = replica.tensors[0]
    rows = torch.tensor([3, 0, 7])
    beside = torch.empty(3, first.shape[1])
    heading.displace_rows(0, beside, first, rows, 0.5)
    full = torch.empty(first.numel())
    heading.displace(0, full, first.view(-1), 0, 0.5)
    torch.testing.assert_close(beside, full.view_as(first)[rows])
    torch.testing.assert_close(full, first.view(-1) + parts[0] * 0.5)


def test_all_ways_to_measure_along_it_agree() -> None:
    """Differences, in one copy or layer by layer, and a backward pass; beside the same other slopes."""
    made = make_method("hiso")
    replica = Replica(network(), made)
    replica.begin(b"")
    (latest,) = updates(1, local_steps=2, method=made)
    replica.apply([latest])
    batch = (BATCH.inputs, BATCH.labels)
    asked = LossQuery(5, 1e-3, 1e-3, (), range(4), batch, back=latest)
    whole, layered = (Probe(replica, cross_entropy, small).measure([asked])[0] for small in (1 << 20, 0))
    assert whole == layered
    assert len(whole) == 6
    assert whole[:5] == Probe(replica, cross_entropy).measure([asked._replace(back=None)])[0]
    slopes = [(ahead - whole[0]) / 1e-3 for ahead in whole[1:]]
    exact = Probe(replica, cross_entropy).measure([asked._replace(exact=True)])[0]
    assert exact[1:] == pytest.approx(slopes, rel=0.05, abs=5e-3)


@pytest.mark.parametrize("method", ["decomfl", "hiso", "fzoo", "feedsign"])
def test_a_start_too_high_ruins_nothing(method: str, tmp_path: Path) -> None:
    """Asked for 10^4, the first step is as long as mu, from which no run ends clearly above where it began."""
    found = run(tmp_path / "ledger", 40, method=method, lr_start=1e4, evaluate=score, evaluate_every=40)
    first, last = found.evaluations
    with Ledger.open(tmp_path / "ledger") as ledger:
        assert 1e-4 < next(ledger.updates()).lr < 0.1
    assert fallen([first, last], "auto") is None


def test_steps_that_overshoot_are_taken_back() -> None:
    """By a record with the same directions and scalars and a negative rate."""
    (latest,) = updates(1)
    asked = msgspec.structs.replace(latest, round=1, lr=0.5)
    norm = float(np.linalg.norm(unpack(latest.scalars)))

    def decided(update: Update, along: list[float]) -> tuple[Update, float]:
        pace = Pace(header("auto"), 0.5)
        pace.recall(Audit([], [], [], [], [], pace=[0.5]))
        return pace.decided(update, msgspec.structs.replace(latest, lr=0.5), along)[0], pace.lr

    back, lr = decided(asked, [-9 * norm, -9 * norm])
    assert (back.seed, back.scalars, back.round) == (latest.seed, latest.scalars, 1)
    assert [back.lr, lr] == pytest.approx([-0.45, 0.05])
    back, lr = decided(msgspec.structs.replace(asked, slots=[], scalars=b""), [])
    assert back.scalars == latest.scalars
    assert [back.lr, lr] == pytest.approx([-0.5, 0.05])
    ahead, lr = decided(asked, [norm, norm])
    assert ahead == asked
    assert lr > 1
    ahead, lr = decided(asked, [-norm, -norm])
    assert ahead == asked
    assert lr < 0.5


def test_a_step_back_returns_the_replica() -> None:
    replica = Replica(network(), make_method("decomfl"))
    replica.begin(b"")
    before = [x.clone() for x in replica.tensors]
    (latest,) = updates(1)
    replica.apply([latest, msgspec.structs.replace(latest, round=1, lr=-latest.lr)])
    for old, x in zip(before, replica.tensors, strict=True):
        torch.testing.assert_close(old, x, rtol=1e-6, atol=1e-6)


def header(lr: Any) -> Header:
    return FederationConfig(method=make_method("decomfl")).header("0" * 64, "0" * 64, 10, lr)


def test_a_header_is_silent_about_a_given_rate() -> None:
    assert b'"lr"' not in header(1e-3).encoded()
    assert b'"lr":"auto"' in header("auto").encoded()
    ours, theirs = header(1e-3).contract(), header("auto").contract()
    assert [key for key in ours if ours[key] != theirs[key]] == ["method"]


def test_what_does_not_go_together() -> None:
    with pytest.raises(InputError, match="lr_start: it is where"):
        RunConfig(lr_start=1e-3)
    with pytest.raises(InputError, match="baselines send no scalars"):
        parse({"model": {"name": "mlp"}, "task": {"name": "digits"}, "method": {"name": "fedavg", "lr": "auto"}})
    with pytest.raises(InputError, match="lr"):
        simulate(network(), shards(), cross_entropy, lr="fast")  # type: ignore[arg-type]


def test_a_run_that_learns_nothing_says_so() -> None:
    first, last = (Evaluation(round_, 0.5, 0.7, 1000, b"") for round_ in (0, 50))
    assert "more rounds, perturbations" in verdicts([first, last], 50, "auto", diverged=False)[0]
    assert not verdicts([first, last], 50, 1e-3, diverged=False)
    worse = Evaluation(50, 0.3, 0.9, 1000, b"")
    assert "lr = 'auto' found no step" in verdicts([first, worse], 50, "auto", diverged=False)[0]
    assert "Check the data" in verdicts([first], 10, "auto", diverged=True)[0]
