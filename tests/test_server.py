"""Client and server as pure protocol: cohorts, rejections, partial rounds, catch-up, restarts."""

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from scalarfl import Ledger, ProtocolError, Replica, Server, make_method
from scalarfl.ledger.codec import decode, encode, unpack
from scalarfl.ledger.entries import Audit
from scalarfl.ledger.update import Update
from scalarfl.protocol import tally
from scalarfl.protocol.aggregation import Weighted, per_client, shared
from scalarfl.protocol.messages import (
    REFUSED,
    SAY_HELLO,
    Failed,
    Hello,
    Measure,
    Measured,
    RoundReply,
    RoundTask,
    Welcome,
)
from scalarfl.protocol.party import Party, Refused
from scalarfl.protocol.schedule import DIVERGED_AFTER, diverged
from support import Office, header, network, reply


def audits(office: Office) -> list[Audit]:
    return [audit for _, audit in office.ledger.audits()]


def test_the_server_needs_no_model() -> None:
    program = """
import sys, scalarfl.protocol.server
assert not [name for name in ("torch", "numba", "pydantic") if name in sys.modules]
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_cohort_is_a_function_of_seed_and_round() -> None:
    cohorts = []
    for _ in range(2):
        office = Office(clients=4, sampled=2)
        office.greet()
        for _ in range(6):
            office.round()
        cohorts.append([audit.cohort for audit in audits(office)])
        assert all(len(set(cohort)) == 2 for cohort in cohorts[0])
    assert cohorts[0] == cohorts[1]
    assert len({tuple(sorted(cohort)) for cohort in cohorts[0]}) > 1


def test_the_update_is_the_mean_of_the_sound_replies() -> None:
    office = Office(perturbations=2)
    office.greet()
    names = sorted(office.clients)
    office.server.open_round(names)
    update = office.server.close_round((name, reply(name, 0, [i, -2.0])) for i, name in enumerate(names))
    assert unpack(update.scalars).tolist() == [1.0, -2.0]
    assert update.coefficients == ((0.5, -1.0),)


def test_weighted_aggregation_counts_examples() -> None:
    office = Office(perturbations=1, aggregation="weighted")
    office.greet()
    names = sorted(office.clients)
    office.server.open_round(names)
    sizes = {names[0]: 10, names[1]: 30, names[2]: 60}
    update = office.server.close_round((name, reply(name, 0, [i], sizes[name])) for i, name in enumerate(names))
    assert unpack(update.scalars)[0] == pytest.approx(0.1 * 0 + 0.3 * 1 + 0.6 * 2)


@given(st.lists(st.tuples(st.integers(1, 1000), st.floats(-1e3, 1e3, width=32)), min_size=1, max_size=6))
def test_per_client_scalars_average_to_the_weighted_mean(replies: list[tuple[int, float]]) -> None:
    weights = Weighted().weights([count for count, _ in replies])
    vectors = [np.full((1, 2), value, dtype=np.float32) for _, value in replies]
    assert weights.sum() == pytest.approx(1)
    expected = shared(weights, vectors)[0, 0]
    assert per_client(weights, vectors).mean() == pytest.approx(expected, rel=1e-4, abs=1e-3)


NAN, BIG = float("nan"), 1e30


@pytest.mark.parametrize("directions", ["shared", "per-client"])
@pytest.mark.parametrize(
    ("spoilt", "reason"),
    [
        (lambda name: reply(name, 0, [1, NAN, 1]), "1 of 3 scalars are not finite"),
        (lambda name: reply(name, 0, [float("inf")] * 3), "3 of 3 scalars are not finite"),
        (lambda name: reply(name, 0, [BIG, 0, 0]), "beyond 1e+15 in magnitude"),
        (lambda name: reply(name, 0, [1, 1]), "8 bytes of scalars, expected 12"),
        (lambda name: reply(name, 0, []), "0 bytes of scalars, expected 12"),
        (lambda name: reply(name, 7, [1, 1, 1]), "a reply for round 7 while round 0 is open"),
        (lambda name: reply("somebody", 0, [1, 1, 1]), "in the name of 'somebody'"),
        (lambda name: b"\x93garbage", "not a valid RoundReply"),
        (lambda name: b"", "not a valid RoundReply"),
    ],
)
def test_unsound_replies_are_rejected_with_a_reason_on_record(directions: str, spoilt, reason: str) -> None:  # type: ignore[no-untyped-def]
    office, honest = Office(directions=directions), Office(directions=directions)
    for one in (office, honest):
        one.greet()
    bad = sorted(office.clients)[1]
    update = office.round(spoilt={bad: spoilt(bad)})
    (audit,) = audits(office)
    assert [rejection.client for rejection in audit.rejected] == [bad]
    assert reason in audit.rejected[0].reason
    assert bad not in [participant.client for participant in audit.participants]
    assert update == honest.round(missing=[bad])  # as if it had not replied at all
    office.round()  # and it is welcome in the next round


def test_a_second_reply_and_a_stranger_s_are_rejected() -> None:
    office = Office(clients=3, sampled=2)
    office.greet()
    tasks = office.server.open_round(sorted(office.clients))
    inside, outside = next(iter(tasks)), next(name for name in office.clients if name not in tasks)
    answers = [(name, office.clients[name].answer(task)) for name, task in tasks.items()]
    office.server.close_round(
        [*answers, (inside, reply(inside, 0, [9, 9, 9])), (outside, reply(outside, 0, [9, 9, 9]))]
    )
    reasons = {rejection.client: rejection.reason for rejection in audits(office)[0].rejected}
    assert "second reply" in reasons[inside]
    assert "not in this round's cohort" in reasons[outside]


def test_a_round_nobody_answers_is_recorded_and_moves_nobody() -> None:
    office = Office()
    office.greet()
    update = office.round(missing=list(office.clients))
    assert update.slots == []
    before = [tensor.clone() for tensor in office.replicas[0].tensors]
    office.round()
    assert office.ledger.rounds == 2
    replica = Replica(network(), office.method)
    replica.apply([update])
    assert all(np.array_equal(a, b) for a, b in zip(before, replica.tensors, strict=True))


def test_per_client_directions_keep_their_slots_when_one_client_drops_out() -> None:
    office = Office(directions="per-client")
    office.greet()
    tasks = office.server.open_round(sorted(office.clients))
    slots = {name: decode(task, RoundTask).slot for name, task in tasks.items()}
    assert sorted(slots.values()) == [0, 1, 2]
    dropped = next(name for name, slot in slots.items() if slot == 1)
    answers = {name: office.clients[name].answer(task) for name, task in tasks.items() if name != dropped}
    update = office.server.close_round(answers.items())
    assert update.slots == [0, 2]
    assert update.perturbations == (0, 1, 2, 6, 7, 8)
    (audit,) = audits(office)
    assert {participant.client: participant.slot for participant in audit.participants} == {
        name: slot for name, slot in slots.items() if name != dropped
    }


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sets(st.integers(0, 2), min_size=1), min_size=3, max_size=10))
def test_a_client_is_sent_exactly_the_records_it_lacks(present: list[set[int]]) -> None:
    """Whoever is away, every client's replica follows, and no record is sent twice to a client that replied."""
    office = Office(clients=3, sampled=3)
    office.greet()
    names = sorted(office.clients)
    for here in present:
        tasks = office.server.open_round([names[i] for i in here])
        for name, task in tasks.items():
            sent = [decode(update, Update).round for update in decode(task, RoundTask).updates]
            position = office.clients[name].probe.replica.position
            assert sent == list(range(position, office.ledger.rounds))
        office.server.close_round((name, office.clients[name].answer(task)) for name, task in tasks.items())
    for replica in office.replicas:
        replica.apply(list(office.ledger.updates(replica.position)))
    assert len({replica.digest() for replica in office.replicas}) == 1


def test_traffic_is_counted_by_client_direction_and_purpose() -> None:
    office = Office(clients=2, sampled=2, perturbations=5)
    hellos = {name: len(client.hello()) for name, client in office.clients.items()}
    office.greet()
    sizes = []
    for _ in range(3):
        tasks = office.server.open_round(sorted(office.clients))
        replies = {name: office.clients[name].answer(task) for name, task in tasks.items()}
        office.server.close_round(replies.items())
        sizes.append((tasks, replies))
    for round_, (audit, (tasks, replies)) in enumerate(zip(audits(office), sizes, strict=True)):
        rows = {(row.client, row.direction, row.purpose): row for row in audit.traffic}
        for name in office.clients:
            up = rows[name, "up", "round"]
            assert (up.messages, up.payload, up.serialized) == (1, 20, len(replies[name]))
            down, behind = rows[name, "down", "round"], rows.get((name, "down", "catch-up"))
            assert down.payload == 8
            assert down.serialized + (behind.serialized if behind else 0) == len(tasks[name])
            assert (behind.payload if behind else 0) == (28 if round_ else 0)
            assert ((name, "up", "handshake") in rows) == (round_ == 0)
            if round_ == 0:
                assert rows[name, "up", "handshake"].serialized == hellos[name]


def test_a_server_made_anew_on_its_ledger_goes_on(tmp_path: Path) -> None:
    def office_on(path: Path | None) -> Office:
        office = Office(clients=3, sampled=2)
        if path is not None:
            office.ledger = Ledger.create(path, office.header)
            office.server = Server(office.ledger, lr=1e-2, sampled=2)
        office.greet()
        return office

    steady, shaky = office_on(None), office_on(tmp_path / "l.sqlite")
    for _ in range(6):
        steady.round()
        shaky.round()
        shaky.ledger.close()
        shaky.ledger = Ledger.open(tmp_path / "l.sqlite", write=True)
        shaky.server = Server(shaky.ledger, lr=1e-2, sampled=2)
    assert shaky.ledger.head == steady.ledger.head


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"protocol": 99}, "speaks protocol 99"),
        ({"seed": b"12345678"}, "another seed than"),
        ({"aggregation": b"12345678"}, "another aggregation"),
        ({"batch_size": b"12345678"}, "another batch size"),
        ({"base": b"12345678"}, "another base model"),
        ({"layout": b"12345678"}, "another set of trainable parameters"),
        ({"method": b"12345678"}, "another method"),
        ({"generator": b"12345678"}, "another generator"),
        ({"position": 5}, "has applied 5 rounds, the ledger holds 0"),
        ({"trail": b"12345678"}, "other updates than this ledger's"),
    ],
)
def test_a_client_that_differs_is_refused_with_what_differs(change: dict[str, object], says: str) -> None:
    office = Office()
    hello = decode(next(iter(office.clients.values())).hello(), Hello)
    fields = {name: getattr(hello, name) for name in Hello.__struct_fields__} | change
    with pytest.raises(ProtocolError, match=says):
        office.server.admit(encode(Hello(**fields)))


def test_methods_and_models_that_differ_differ_in_the_contract() -> None:
    replica = Replica(network(), make_method("hiso"))
    ours = header(replica).contract()
    for part, other in {
        "base": header(Replica(network(seed=1), make_method("hiso"))),
        "layout": header(Replica(network(), make_method("hiso"), ["2.*"])),
        "method": header(Replica(network(), make_method("hiso", {"nu": 0.1}))),
        "generator": header(replica, generator="another"),
        "seed": header(replica, seed=1),
        "aggregation": header(replica, aggregation="weighted"),
        "batch_size": header(replica, batch_size=9),
    }.items():
        theirs = other.contract()
        assert [name for name in ours if ours[name] != theirs[name]] == [part]
    for change in ({"mu": 1e-2}, {"perturbations": 4}, {"local_steps": 2}, {"directions": "per-client"}):
        assert header(replica, **change).contract()["method"] != ours["method"]


def test_strangers_and_gaps_are_refused() -> None:
    office = Office()
    with pytest.raises(ProtocolError, match="has not completed the handshake"):
        office.server.open_round(["nobody"])
    office.greet()
    name = sorted(office.clients)[0]
    with pytest.raises(ProtocolError, match="asked for round 5, but its replica is at 0"):
        office.clients[name].answer(encode(RoundTask(5, 1, 0.1, 0, [])))


def opened(sampled: int = 3) -> tuple[Office, dict[str, bytes]]:
    """A federation with a round open, and each client's good reply."""
    office = Office(sampled=sampled)
    office.greet()
    office.round()
    tasks = office.server.open_round(sorted(office.clients))
    return office, {name: office.clients[name].answer(task) for name, task in tasks.items()}


def test_replies_are_judged_as_they_arrive() -> None:
    office, good = opened()
    names = sorted(good)
    assert office.server.awaited == set(names)
    for index, name in enumerate(names):
        assert office.server.receive(name, good[name]) is None
        assert (office.server.sound, office.server.awaited) == (
            frozenset(names[: index + 1]),
            frozenset(names[index + 1 :]),
        )
    update = office.server.close_round()
    steady, replies = opened()
    assert update == steady.server.close_round(replies.items())
    assert office.ledger.head == steady.ledger.head
    assert not office.server.awaited
    assert office.server.receive(names[0], good[names[0]]) == "no round or evaluation is open."


@pytest.mark.parametrize(
    ("wrong", "says", "awaited"),
    [
        (lambda name: reply(name, 0, [1, 1, 1]), "a reply for round 0 while round 1 is open", True),
        (lambda name: reply(name, 2, [1, 1, 1]), "a reply for round 2 while round 1 is open", True),
        (lambda name: reply("client-0001", 1, [1, 1, 1]), "in the name of 'client-0001'", True),
        (lambda name: b"junk", "not a valid RoundReply", True),
        (lambda name: encode(Failed("client-0001", 1, "OSError")), "in the name of 'client-0001'", True),
        (lambda name: encode(Failed(name, 0, "OSError")), "a reply for round 0", True),
        (lambda name: encode(Failed(name, 1, "OSError")), "it failed: OSError", False),
        (lambda name: reply(name, 1, [1, NAN, 1]), "not finite", False),
    ],
)
def test_a_reply_that_does_not_count_takes_no_one_s_place(wrong, says: str, awaited: bool) -> None:  # type: ignore[no-untyped-def]
    """Before the good reply and after it; only an answer to this very question ends the wait for it."""
    steady, replies = opened()
    expected = steady.server.close_round(replies.items())
    office, good = opened()
    first, *others = sorted(good)
    reason = office.server.receive(first, wrong(first))
    assert reason is not None
    assert says in reason
    assert (first in office.server.awaited) == awaited
    assert not office.server.sound
    for name in (first, *others):
        assert office.server.receive(name, good[name]) is None
    for name in (first, *others):
        assert office.server.receive(name, wrong(name)) == "a second reply in the same round."
        assert office.server.receive(name, good[name]) == "a second reply in the same round."
    assert (office.server.sound, office.server.awaited) == (frozenset(good), frozenset())
    assert office.server.close_round() == expected
    assert {rejection.client for rejection in audits(office)[1].rejected} == {first, *others}


def test_a_round_opened_again_begins_without_replies_and_keeps_what_was_rejected() -> None:
    office, good = opened()
    names = sorted(good)
    office.server.receive(names[0], good[names[0]])
    office.server.receive(names[1], b"junk")
    office.server.open_round(names)
    assert (office.server.sound, office.server.awaited) == (frozenset(), frozenset(names))
    office.server.close_round(good.items())
    assert [rejection.client for rejection in audits(office)[1].rejected] == [names[1]]
    assert len(audits(office)[1].participants) == 3


def test_own_directions_stay_a_client_s_own_when_the_round_is_opened_again() -> None:
    """Whoever is there by then: a late reply was found along the directions that it is put on record for."""
    office = Office(clients=5, sampled=3, directions="per-client")
    office.greet()
    names, slots, late = sorted(office.clients), dict[str, int](), dict[str, bytes]()
    for present in (names[:3], names[2:], names[1:4], names):
        tasks = office.server.open_round(present)
        assert len(tasks) == 3
        for name, task in tasks.items():
            assert slots.setdefault(name, decode(task, RoundTask).slot) == decode(task, RoundTask).slot
            late.setdefault(name, office.clients[name].answer(task))
    assert sorted(slots.values()) == [0, 1, 2, 3, 4]
    for name in tasks:
        assert office.server.receive(name, late[name]) is None
    update = office.server.close_round()
    assert dict(zip(tasks, update.slots, strict=True)) == {name: slots[name] for name in tasks}
    for name, own in zip(tasks, np.split(unpack(update.scalars), 3), strict=True):
        assert np.array_equal(own, unpack(decode(late[name], RoundReply).scalars))
    tasks = office.server.open_round(names)  # the next round begins anew
    assert [decode(task, RoundTask).slot for task in tasks.values()] == [0, 1, 2]
    for replica in office.replicas:
        replica.apply([update])
    assert len({replica.digest() for replica in office.replicas}) == 1


def test_what_a_flood_leaves_on_record_is_bounded() -> None:
    office, good = opened(sampled=2)
    inside, outside = next(iter(good)), next(name for name in office.clients if name not in good)
    for number in range(1000):
        office.server.receive(inside, b"\x93" + bytes([number % 200]) * 50)
        office.server.receive(inside, reply(inside, 7 + number, [1, 1, 1]))
        office.server.receive(inside, reply("x" * 200, 1, [1, 1, 1]))
        office.server.receive(outside, good[inside])
        office.server.receive(f"stranger-{number}", b"junk")
        office.server.admit(office.clients[outside].hello())
    office.server.close_round(good.items())
    audit = audits(office)[1]
    assert [(entry.client, entry.position) for entry in audit.admitted] == [(outside, 0)]
    assert len([r for r in audit.rejected if r.client == inside]) == tally.REASONS + 1
    assert len({r.client for r in audit.rejected}) == 1 + tally.STRANGERS + 1
    assert sum(r.count for r in audit.rejected) == 5000
    assert max(len(r.reason) for r in audit.rejected) <= tally.LONGEST
    assert sum(row.messages for row in audit.traffic if (row.direction, row.purpose) == ("up", "round")) == 5002
    assert len(msgspec.msgpack.encode(audit)) < 6000


@pytest.mark.parametrize(
    ("replies", "quorum", "settled"),
    [
        ("good good good", 2, True),
        ("good good late", 2, True),
        ("good late late", 2, False),
        ("good ill ill", 1, True),
        ("good ill ill", 2, False),
        ("good good good", 9, True),
        ("ill ill ill", 1, True),
        ("ill failed failed", 1, True),
        ("ill ill late", 1, False),
        ("ill ill junk", 1, False),
        ("failed failed failed", 1, False),
        ("late late late", 1, False),
    ],
)
def test_when_a_round_can_be_closed(replies: str, quorum: int, settled: bool) -> None:
    """Where enough replies count; or where everybody answered, and nobody with a finite loss."""
    office, good = opened()
    for name, what in zip(sorted(good), replies.split(), strict=True):
        message = {
            "good": good[name],
            "ill": reply(name, 1, [NAN] * 3),
            "junk": b"junk",
            "failed": encode(Failed(name, 1, "OSError")),
        }.get(what)
        if message is not None:
            office.server.receive(name, message)
    assert office.server.settled(quorum) == settled


def test_ten_rounds_in_a_row_without_a_usable_reply_are_divergence_also_after_a_restart() -> None:
    office = Office()
    office.greet()
    ill = {round_: {name: reply(name, round_, [NAN] * 3) for name in office.clients} for round_ in range(30)}
    for round_ in range(9):
        office.round(spoilt=ill[round_])
        assert not diverged(office.ledger)
    office.round()
    for round_ in range(10, 19):
        office.round(spoilt=ill[round_])
    office.server = Server(office.ledger, lr=1e-2, sampled=3)
    assert not diverged(office.ledger)
    office.greet()
    office.round(spoilt=ill[19])
    assert diverged(office.ledger)
    assert office.server.unused == Server(office.ledger, lr=1e-2, sampled=3).unused == DIVERGED_AFTER


def test_a_party_answers_whatever_it_is_sent() -> None:
    """Handshake, round, evaluation, a task that it lacks records for, one that its data fail at, a refusal."""
    office = Office()
    name, client = next(iter(office.clients.items()))
    party = Party(client)
    assert party.respond(SAY_HELLO) == client.hello()
    assert party.respond(office.server.admit(client.hello())) == b""
    assert decode(party.respond(office.server.open_round([name])[name]), RoundReply).client == name
    assert decode(party.respond(encode(RoundTask(5, 1, 0.1, 0, []))), Hello).position == 0
    assert decode(party.respond(encode(Measure(0, []))), Hello).client == name  # it has nothing to measure on
    client.evaluate = lambda model: 0.5
    assert decode(party.respond(encode(Measure(0, []))), Measured).loss == 0.5

    def broken(model: object) -> float:
        raise OSError("the patient's name")

    client.evaluate = broken
    failed = decode(party.respond(encode(Measure(0, []))), Failed)
    assert (failed.client, failed.round, failed.reason) == (name, 0, "OSError")
    with pytest.raises(Refused, match="the server is faulty: it announced the seed 1 for round 0, the header implies "):
        party.respond(encode(RoundTask(0, 1, 0.1, 0, [])))
    with pytest.raises(Refused, match="the server refuses: another base model"):
        party.respond(REFUSED + b"another base model")
    with pytest.raises(Refused, match="speaks protocol 99, this client 2"):
        party.respond(encode(Welcome(99, 0)))
