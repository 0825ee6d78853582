"""Robust rules and simulated attacks, held against byzfl's; what is refused; large replies in the first rounds.

tests/data/byzfl.json holds byzfl 0.0.11's answers. ``python tests/test_robust.py FOLDER`` prints them, with the package
unpacked in FOLDER (it is no dependency: it needs torchvision, of which this only uses the two modules that do not).
"""

import json
import sys
import types
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from scalarfl import InputError, Ledger, Server, simulate
from scalarfl.experiment import recipe as recipes
from scalarfl.experiment.spec import make
from scalarfl.ledger.codec import decode, unpack
from scalarfl.protocol.aggregation import Aggregator, Reply, make_aggregator
from scalarfl.protocol.attacks import ATTACKS, Attackers
from scalarfl.protocol.messages import RoundReply
from scalarfl.testing.aggregations import contract
from support import RECIPE, Office, command, cross_entropy, header, last_json, network, reply, shards

RECORDED = Path(__file__).parent / "data" / "byzfl.json"
CASES = [(5, 1, 3), (8, 3, 1), (32, 9, 10), (7, 0, 4), (9, 4, 6)]
"""Clients, attackers, scalars."""


def vectors(clients: int, attackers: int, size: int) -> Any:
    """float64[clients, size], as many of them far away."""
    random = np.random.default_rng([clients, attackers, size])
    found = random.standard_normal((clients, size)).astype(np.float32).astype(np.float64) + 0.5
    found[clients - attackers :] *= -20
    return found.astype(np.float32).astype(np.float64)


def made(name: str, attackers: int) -> Aggregator:
    return make_aggregator(name, attackers=attackers)


def aggregated(rule: Aggregator, given: Any) -> Any:
    replies = [Reply(f"c{i:02d}", 10, row.astype(np.float32).reshape(1, 1, -1)) for i, row in enumerate(given)]
    return rule.aggregate(rule.init(), replies)[0].ravel()


TestWithAttackers = contract(*(made(name, 1) for name in ("trimmed-mean", "nnm-trim")))


@pytest.mark.parametrize("name", ["median", "trimmed-mean", "nnm-trim"])
@pytest.mark.parametrize("case", CASES)
def test_rules_give_byzfl_s_answers(name: str, case: tuple[int, int, int]) -> None:
    expected = json.loads(RECORDED.read_text())[name][str(case)]
    assert aggregated(made(name, case[1]), vectors(*case)) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", ["sign-flip", "ipm", "alie", "mimic"])
@pytest.mark.parametrize("case", CASES)
def test_attacks_give_byzfl_s_answers(name: str, case: tuple[int, int, int]) -> None:
    expected = json.loads(RECORDED.read_text())[name][str(case)]
    honest = vectors(*case)[:, None, None]
    false = ATTACKS.find(name)().scalars(honest, honest[0], np.random.default_rng(0))
    assert false.ravel() == pytest.approx(expected, rel=1e-9)


def test_rules_by_hand() -> None:
    five = np.array([[0.0], [1.0], [2.0], [3.0], [100.0]])
    assert aggregated(made("median", 1), five) == pytest.approx([2])
    assert aggregated(made("median", 1), five[1:]) == pytest.approx([2.5])
    assert aggregated(made("trimmed-mean", 1), five) == pytest.approx([2])
    # the four nearest to 0, 1, 2 and 3 are these, to 100 they are 1, 2, 3 and 100
    assert aggregated(made("nnm-trim", 1), five) == pytest.approx([1.5])
    assert aggregated(made("trimmed-mean", 2), five[:3]) == pytest.approx([1])  # no more than leaves one


def test_slopes_and_second_differences_are_mixed_apart() -> None:
    """A client may be an outlier in the one and not in the other."""
    slopes, bends = [0, 1, 2, 3, 100], [7e6, 1e6, 2e6, 1.5e6, 1.2e6]
    pairs = zip(slopes, bends, strict=True)
    both = [Reply(str(i), 1, np.array([[[s], [b]]], np.float32)) for i, (s, b) in enumerate(pairs)]
    found = made("nnm-trim", 1).aggregate(None, both)[0]
    assert found.shape == (1, 2, 1)
    assert found[0, 0, 0] == pytest.approx(1.5)
    assert found[0, 1, 0] == pytest.approx(1.425e6)


@pytest.mark.parametrize("name", ["clip", "median", "trimmed-mean", "nnm-trim"])
@pytest.mark.parametrize("attack", [a for a in ATTACKS.own if a not in ("mimic", "label-flip")])
def test_a_robust_rule_keeps_the_direction(name: str, attack: str) -> None:
    """9 attackers of 32, noise as large as the signal: the update still goes downhill."""
    random = np.random.default_rng(7)
    honest = 1 + random.standard_normal((23, 1, 1, 40))
    false = ATTACKS.find(attack)().scalars(honest, honest[0], random)
    found = aggregated(made(name, 9), np.concatenate([honest, np.broadcast_to(false, (9, 1, 1, 40))]).reshape(32, 40))
    assert found.mean() > 0.15


def test_what_is_refused() -> None:
    for keys, says in (
        ({"aggregation": "trimmed-mean"}, "'trimmed-mean': it removes nothing with attackers = 0; set federation.att"),
        ({"attackers": 1}, "aggregation = 'mean': one false reply moves it without bound; accepted: clip, median"),
        ({"attackers": 1, "aggregation": "weighted"}, "'weighted': a client's weight is what it claims; accepted: cl"),
        ({"attackers": 1, "aggregation": "weighted", "attack": "ipm"}, "'weighted': a client's weight is what it c"),
        ({"attackers": 2, "aggregation": "median"}, "no rule withstands half of a cohort; accepted are at most 1 of"),
        ({"attack": "ipm"}, "makes none of the 4 clients an attacker; set federation.attackers"),
        ({"attack": "imp"}, "no such"),
    ):
        with pytest.raises(InputError, match=says):
            simulate(network(), shards(4), cross_entropy, rounds=1, **keys)
    with pytest.raises(InputError, match='"per-client" share none'):
        simulate(
            network(), shards(4), cross_entropy, aggregation="nnm-trim", attackers=1, directions="per-client", rounds=1
        )
    base = ["model.name=mlp", "task.name=digits"]
    with pytest.raises(InputError, match="attackers: baselines send whole models"):
        recipes.load(None, [*base, "method.name=fedavg", "federation.attackers=1"])
    attacked = [*base, "federation.attack=ipm", "federation.attackers=1", "federation.aggregation=mean"]
    with pytest.raises(InputError, match="only a simulation has attackers"):
        make(None, attacked)
    words = [("x", 1)] * 4
    with pytest.raises(InputError, match="no pair of inputs and integer labels"):
        simulate(
            network(), [[({"a": 1.0}, 0.5, 2)] for _ in words], cross_entropy, attack="label-flip", attackers=1,
            rounds=1,
        )  # fmt: skip


def test_no_attackers_leave_the_header_as_it_was() -> None:
    office = Office()
    assert b"attackers" not in office.header.encoded()
    other = msgspec.structs.replace(office.header, attackers=1)
    assert b'"attackers":1' in other.encoded()
    assert [part for part, value in office.header.contract().items() if other.contract()[part] != value] == [
        "aggregation"
    ]
    found = recipes.settings(recipes.load(None, ["model.name=mlp", "task.name=digits"]))
    assert not {"federation.attackers", "federation.attack"} & found.keys()


def test_a_share_of_all_clients_attacks() -> None:
    office = Office(clients=10, sampled=5, attackers=2)
    names = [f"c{i}" for i in range(10)]
    assert Attackers("ipm", names, 5, office.header).names == {"c6", "c7", "c8", "c9"}


def test_with_an_attack_the_mean_is_lost_and_a_robust_rule_is_not(tmp_path: Path) -> None:
    data: Any = shards(1)[0]

    def run(**keys: Any) -> float:
        return simulate(
            network(), shards(8), cross_entropy, method="decomfl", lr=0.05, rounds=25, batch_size=16, progress=False,
            evaluate=lambda model: float(cross_entropy(model, data.batch(np.arange(60)))), **keys,
        ).evaluations[-1].loss  # fmt: skip

    plain, lost = run(), run(attack="boost", attackers=2)
    kept = run(attack="boost", attackers=2, aggregation="nnm-trim", ledger=tmp_path / "l")
    assert kept < 1.2 * plain < lost
    with Ledger.open(tmp_path / "l") as ledger:
        assert ledger.header.attackers == 2
        assert ledger.settings is not None
        assert ledger.settings["attack"] == "boost"


def test_label_flip_is_honest_work_on_false_labels() -> None:
    office = Office(clients=4, sampled=4, attackers=1)
    names: dict[str, Any] = {f"c{i}": one for i, one in enumerate(shards(4))}
    attackers = Attackers("label-flip", names, 4, office.header)
    data = attackers.poisoned(names)
    at = np.arange(5)
    classes = 1 + max(int(one.batch(np.arange(len(one)))[1].max()) for one in names.values())
    assert data["c0"] is names["c0"]
    assert (data["c3"].batch(at)[1] == classes - 1 - names["c3"].batch(at)[1]).all()
    assert (data["c3"].batch(at)[0] == names["c3"].batch(at)[0]).all()
    same = {"c3": reply("c3", 0, [1, 2, 3]), "c0": reply("c0", 0, [1, 1, 1])}
    assert attackers.falsified(same) == same


def test_attackers_replace_their_own_replies_alone() -> None:
    office = Office(clients=3, attackers=1)
    attackers = Attackers("gaussian", ["a", "b", "c"], 3, office.header)
    sent = {name: reply(name, 4, [1.0, 2.0, 3.0]) for name in "abc"}
    first, again = attackers.falsified(sent), attackers.falsified(sent)
    assert first == again
    assert [first["a"], first["b"]] == [sent["a"], sent["b"]]
    assert np.abs(unpack(decode(first["c"], RoundReply).scalars)).max() > 5
    only = {"c": sent["c"]}
    assert attackers.falsified(only) == only  # it knows no honest reply


def test_run_under_attack_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(RECIPE.replace("sampled = 2", "sampled = 4"))
    given = ["run", "r.toml", "--attack", "alie", "--attackers", "1", "-s", "federation.aggregation=nnm-trim"]
    done = command(*given, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    honest = command("run", "r.toml", "--out", "plain", "--json", cwd=tmp_path)
    assert last_json(done.stdout)["digest"] != last_json(honest.stdout)["digest"]
    assert command("verify", "runs/r", cwd=tmp_path).returncode == 0
    assert 'attack = "alie"' in (tmp_path / "runs" / "r" / "recipe.toml").read_text()
    again = command(*[*given[:3], "ipm", *given[4:]], "--resume", cwd=tmp_path)
    assert (again.returncode, "federation.attack" in again.stderr) == (2, True), again.stderr


def test_a_reply_is_bounded_by_the_others_from_the_first_round_on() -> None:
    """Before there is a running median: by a million times the round's own."""
    office = Office(clients=4, sampled=4)
    office.greet()
    names = sorted(office.clients)
    for round_ in range(3):
        office.server.open_round(names)
        for name in names[:3]:
            assert office.server.receive(name, reply(name, round_, [1.0, 0.5, 0.25])) is None
        said = office.server.receive(names[3], reply(names[3], round_, [0, 1e7, 0]))
        assert (said is None) == (round_ == 0), said  # later it is known on arrival
        assert list(office.server.sift()) == [names[3]] * (round_ == 0)
        assert not office.server.settled(4)
        assert office.server.settled(3)
        update = office.server.close_round()
        assert unpack(update.scalars).tolist() == [1.0, 0.5, 0.25]
    audits = [audit for _, audit in office.ledger.audits("round")]
    assert [[r.client for r in audit.rejected] for audit in audits] == [[names[3]]] * 3
    assert all("a scalar of 1e+07 is beyond 1e+06" in r.reason for audit in audits for r in audit.rejected)
    again = Server(office.ledger, lr=1e-2, sampled=4)
    assert again._magnitudes._first == office.server._magnitudes._first == [1.0]


def test_close_round_sifts_too_and_two_replies_have_no_majority() -> None:
    for clients, counted in ((3, 2), (2, 2)):
        office = Office(clients=clients, sampled=clients)
        office.greet()
        names = sorted(office.clients)
        office.server.open_round(names)
        sizes = [1e12, *[1.0] * (clients - 1)]
        office.server.close_round((name, reply(name, 0, [size] * 3)) for name, size in zip(names, sizes, strict=True))
        (audit,) = [audit for _, audit in office.ledger.audits("round")]
        assert len(audit.participants) == counted


def test_clients_are_told_another_number_of_attackers() -> None:
    office, other = Office(), Office(attackers=1, aggregation="median")
    with pytest.raises(Exception, match="another aggregation"):
        other.server.admit(next(iter(office.clients.values())).hello())
    assert header(office.replicas[0]).attackers == 0


def byzfl_s(folder: str) -> dict[str, Any]:
    """Its answers."""
    for name in ("byzfl", "byzfl.aggregators"):
        package = types.ModuleType(name)
        package.__path__ = [f"{folder}/{name.replace('.', '/')}"]
        sys.modules[name] = package
    rules = import_module("byzfl.aggregators.aggregators")
    before = import_module("byzfl.aggregators.preaggregators")
    sys.modules["byzfl.aggregators"].Average = rules.Average  # type: ignore[attr-defined]
    sys.modules["byzfl.aggregators"].Clipping = before.Clipping  # type: ignore[attr-defined]
    attacks = import_module("byzfl.attacks.attacks")
    given: dict[str, Any] = {
        "median": lambda f: rules.Median(),
        "trimmed-mean": lambda f: rules.TrMean(f),
        "nnm-trim": lambda f: lambda v: rules.TrMean(f)(before.NNM(f)(v)),
        "sign-flip": lambda f: attacks.SignFlipping(),
        "ipm": lambda f: attacks.InnerProductManipulation(),
        "alie": lambda f: attacks.ALittleIsEnough(),
        "mimic": lambda f: attacks.Mimic(),
    }
    return {
        name: {str(case): [float(x) for x in answer(case[1])(vectors(*case))] for case in CASES}
        for name, answer in given.items()
    }


if __name__ == "__main__":
    print(json.dumps(byzfl_s(sys.argv[1]), indent=1))
