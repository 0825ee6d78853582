"""Secure sums: exact whoever is lost, closed to the server, refused where they would not be."""

import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from federation import BROKER, CLIENTS, RECIPE, Federation
from scalarfl import InputError, Ledger, Probe, ProtocolError, Replica, make_method, simulate
from scalarfl.experiment import recipe as recipes, run
from scalarfl.experiment.plan import plan
from scalarfl.experiment.verify import verify
from scalarfl.ledger.codec import claims, decode, encode, unpack
from scalarfl.ledger.entries import Participant
from scalarfl.ledger.update import Update
from scalarfl.model.probe import LossQuery
from scalarfl.privacy import secure_sum as core
from scalarfl.privacy.secure_sum import GRID, PRIME, KeyPair, Member, mean, threshold, to_ring, unmasked
from scalarfl.protocol.messages import (
    Counted,
    Failed,
    Masked,
    Opened,
    Peer,
    RoundReply,
    RoundTask,
    SecureHello,
    SecureTask,
    Shared,
    Shares,
    failure,
)
from scalarfl.protocol.party import Party
from scalarfl.protocol.rounds import Policy, RoundLoop
from scalarfl.protocol.secure_client import REFUSED, SecureClient
from scalarfl.protocol.secure_server import SecureServer
from scalarfl.transports.nats import kit, members
from scalarfl.transports.nats.identity import KitIdentity
from support import cross_entropy, header, network, shards

KEYS = [KeyPair() for _ in range(12)]
PUBLIC = [key.public for key in KEYS]
CONTEXT = b"a round"
BOUND = 10.0


def cohort_of(count: int, minimum: int = 3, lost: Iterable[int] = ()) -> dict[int, Member]:
    alive = [number for number in range(count) if number not in set(lost)]
    return {u: Member(KEYS[u], PUBLIC[:count], u, minimum, CONTEXT) for u in alive}


def sent_to(u: int, shared: Mapping[int, Member]) -> dict[int, tuple[bytes, bytes]]:
    return {v: (member.nonce, member.sealed[u]) for v, member in shared.items()}


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_a_sum_is_exact_whoever_is_lost_in_whichever_leg(data: st.DataObject) -> None:
    """To the last step of the grid, for any cohort, any numbers, and any losses that leave enough."""
    count = data.draw(st.integers(3, 12))
    needed = threshold(count, 3)
    order = data.draw(st.permutations(range(count)))
    cuts = sorted(data.draw(st.lists(st.integers(0, count - needed), min_size=3, max_size=3)))
    first, second, third = (set(order[: cuts[leg]]) for leg in range(3))
    values = data.draw(st.lists(st.floats(-2 * BOUND, 2 * BOUND, width=32), min_size=2 * count, max_size=2 * count))
    numbers = {u: to_ring(np.array(values[2 * u : 2 * u + 2], dtype=np.float32), BOUND) for u in range(count)}
    alive = cohort_of(count, lost=first)
    sums = {u: alive[u].masked(numbers[u], sent_to(u, alive)) for u in alive if u not in second}
    opened = {u: alive[u].opened(list(sums)) for u in sums if u not in third}
    deposits = {u: member.deposit for u, member in alive.items()}
    total = unmasked(sums, deposits, opened, needed, CONTEXT)
    exact = sum((numbers[u] for u in sums), start=np.zeros(2, dtype=np.uint64))
    assert total.tolist() == exact.tolist()
    plain = np.mean([np.clip(values[2 * u : 2 * u + 2], -BOUND, BOUND) for u in sums], axis=0)
    assert mean(total, len(sums), BOUND) == pytest.approx(plain, abs=2 * BOUND / GRID + 1e-6 * BOUND)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 40), st.data())
def test_shares_give_the_secret_back_and_fewer_give_nothing(count: int, data: st.DataObject) -> None:
    needed = data.draw(st.integers(1, count))
    secret = np.array(data.draw(st.lists(st.integers(0, PRIME - 1), min_size=3, max_size=3)), dtype="<u2")
    shares = core.split(secret, count, needed)
    points = data.draw(st.permutations(range(count)))[:needed]
    assert core.joined(shares[points], points).tolist() == secret.tolist()
    if needed > 1:  # the missing share may be anything, and each of its values stands for another secret
        guesses = []
        for guess in (0, 1, 2):
            forged = shares[points].copy()
            forged[0] = guess
            guesses.append(core.joined(forged, points).tolist())
        assert guesses[0] != guesses[1] != guesses[2]


def test_what_the_server_sees_is_noise() -> None:
    """Ten clients send nothing but zeros: every bit of what they send is set half of the time, and no two agree."""
    alive = cohort_of(10)
    zeros = np.zeros(200, dtype=np.uint64)
    sums = {u: member.masked(zeros, sent_to(u, alive)) for u, member in alive.items()}
    bits = np.unpackbits(np.concatenate(list(sums.values())).view(np.uint8))
    assert abs(float(bits.mean()) - 0.5) < 5 * 0.5 / np.sqrt(bits.size)
    assert len({one.tobytes() for one in sums.values()}) == 10
    again = Member(KEYS[0], PUBLIC[:10], 0, 3, CONTEXT)
    assert again.masked(zeros, sent_to(0, alive | {0: again})).tolist() != sums[0].tolist()


def test_less_than_the_agreed_number_opens_nothing() -> None:
    alive = cohort_of(6)
    numbers = to_ring(np.ones(1, dtype=np.float32), BOUND)
    few = {u: alive[u] for u in range(4)}
    with pytest.raises(ProtocolError, match="4 clients are to be added up; at least 5"):
        alive[0].masked(numbers, sent_to(0, few))
    sums = {u: member.masked(numbers, sent_to(u, alive)) for u, member in alive.items()}
    with pytest.raises(ProtocolError, match="at least 5"):
        alive[0].opened([0, 1, 2, 3])
    with pytest.raises(ProtocolError, match="at least 5"):
        alive[0].opened([1, 2, 3, 4, 5])  # without itself
    opened = {u: alive[u].opened(list(sums)) for u in range(4)}  # one too few, and a lie for the fifth
    total = unmasked(sums, {u: m.deposit for u, m in alive.items()}, opened | {4: opened[0]}, 5, CONTEXT)
    assert total.tolist() != (6 * numbers).tolist()


def test_a_share_that_is_not_its_sender_s_is_refused() -> None:
    alive = cohort_of(3)
    shared = sent_to(0, alive)
    shared[1] = (shared[1][0], shared[2][1])
    with pytest.raises(ProtocolError, match="not what its sender sealed"):
        alive[0].masked(np.zeros(1, dtype=np.uint64), shared)
    with pytest.raises(ProtocolError, match="a public key of the cohort is none"):
        Member(KEYS[0], [PUBLIC[0], PUBLIC[1], bytes(32)], 0, 3, CONTEXT)


def test_a_mean_beyond_the_bound_is_refused() -> None:
    with pytest.raises(ProtocolError, match="1 of 2 sums exceed 3 times the bound of 10"):
        mean(np.array([3 * GRID, 3 * GRID + 1000], dtype=np.uint64), 3, BOUND)
    assert mean(np.array([-3 * GRID], dtype=np.int64).view(np.uint64), 3, BOUND).tolist() == [-BOUND]


class Troubled:
    """A transport over calls that loses clients: ``lose`` says who is lost at which leg of which round."""

    def __init__(self, parties: Mapping[str, Party], lose: Callable[[str, bytes], bool] = lambda *_: False) -> None:
        self.parties = parties
        self.lose = lose
        self.now = 0.0
        self.seen: list[tuple[str, bytes]] = []
        self.waiting: list[tuple[str, bytes]] = []

    def present(self) -> list[str]:
        return sorted(self.parties)

    def send(self, messages: Mapping[str, bytes]) -> None:
        for name, message in messages.items():
            if not self.lose(name, message):
                self.waiting.append((name, self.parties[name].respond(message)))

    def receive(self, seconds: float) -> list[tuple[str, bytes]]:
        self.now += seconds if not self.waiting else 0.0
        found, self.waiting = [(name, reply) for name, reply in self.waiting if reply], []
        self.seen += found
        return found

    def publish(self, update: Update) -> None:
        pass


def made(count: int = 6, sampled: int | None = None, **changes: Any) -> tuple[SecureServer, dict[str, Party]]:
    method = make_method("hiso")
    replicas = [Replica(network(), method) for _ in range(count)]
    fields = {"secure_sum": 3, "secure_bound": 1000.0} | changes
    head = header(replicas[0], **fields)
    parties = {}
    data = shards(min(count, 6))
    for index, replica in enumerate(replicas):
        replica.begin(head.digest())
        client = SecureClient(f"c{index:03d}", data[index % 6], Probe(replica, cross_entropy), head, 8)
        parties[client.name] = Party(client)
    server = SecureServer(Ledger.create(None, head), lr=1e-2, sampled=count if sampled is None else sampled)
    return server, parties


def loop(server: SecureServer, transport: Troubled, rounds: int = 3, **policy: Any) -> RoundLoop:
    policy = {"minimum": 3, "deadline": 5.0} | policy
    made = RoundLoop(server, transport, Policy(rounds, **policy), clock=lambda: transport.now)
    made.run()
    return made


def found(party: Party, update: Update) -> np.ndarray[Any, Any]:
    """The scalars that a client found in a round that it has not applied yet."""
    client, h = party.client, party.client.header
    query = LossQuery(update.seed, update.lr, h.mu, (), range(h.perturbations), client.batch(update.round, 0))
    losses = np.array(client.probe.measure([query])[0])
    slopes: np.ndarray[Any, Any] = ((losses[1:] - losses[0]) / h.mu).astype(np.float32)
    return slopes


def test_a_hundred_clients_of_whom_ten_are_lost_in_each_leg() -> None:
    """The round closes, with exactly the mean of the eighty that were left after the second leg."""
    server, parties = made(100)
    names = sorted(parties)
    lost: dict[Any, list[str]] = {RoundTask: names[:10], Shared: names[10:20], Counted: names[20:30]}

    def lose(name: str, message: bytes) -> bool:
        return any(claims(message, kind) and name in gone for kind, gone in lost.items())

    transport = Troubled(parties, lose)
    made_loop = loop(server, transport, rounds=1)
    (update,), ((_, audit),) = list(server.ledger.updates()), list(server.ledger.audits("round"))
    assert sorted(audit.participants, key=lambda one: one.client) == [Participant(name, 0, 0) for name in names[20:]]
    assert (made_loop.retried, server.unused) == (0, 0)
    own = [found(parties[name], update) for name in names]
    exact = mean(sum((to_ring(one, 1000.0) for one in own[20:]), start=np.zeros(3, dtype=np.uint64)), 80, 1000.0)
    assert unpack(update.scalars).tolist() == exact.tolist()
    assert exact == pytest.approx(np.mean(own[20:], axis=0), rel=1e-5)
    holds_none_of(own, server, transport)


def holds_none_of(own: Sequence[Any], server: SecureServer, transport: Troubled) -> None:
    """No client's scalars, in floating point or on the grid, are in any message, or anywhere on the ledger."""
    sent, ledger = b"".join(body for _, body in transport.seen), b"".join(everything(server.ledger))
    assert min(len(sent), len(ledger)) > 500
    for one in own:
        steps = to_ring(one, 1000.0)
        for text in (one.tobytes(), one.astype(np.float64).tobytes(), *(step.tobytes() for step in steps)):
            assert text not in sent + ledger
        for scalar in one:
            assert scalar.tobytes() not in ledger
            assert np.float64(scalar).tobytes()[::-1] not in ledger


def everything(ledger: Ledger) -> list[bytes]:
    updates = [encode(update) for update in ledger.updates()]
    audits = [audit.encoded() for _, audit in ledger.audits()]
    return [*updates, *audits, ledger.header.encoded()]


def test_the_server_s_memory_and_log_hold_no_client_s_scalars(caplog: pytest.LogCaptureFixture) -> None:
    """Neither a round's state while it is open, nor what is said about it."""
    server, parties = made(4)
    seen: list[str] = []

    def lose(name: str, message: bytes) -> bool:
        seen.append(repr(vars(server._sum)) if server._sum else "")
        return claims(message, Counted) and name == "c000"

    with caplog.at_level(logging.DEBUG):
        transport = Troubled(parties, lose)
        loop(server, transport, rounds=1, quorum=4)
    update = next(iter(server.ledger.updates()))
    own = [found(party, update) for party in parties.values()]
    holds_none_of(own, server, transport)
    numbers = [str(int(steps)) for one in own for steps in to_ring(one, 1000.0)]
    numbers += [repr(float(scalar)) for one in own for scalar in one]
    for text in (*seen, caplog.text):
        assert not [number for number in numbers if number in text]
    assert any("sums" in text for text in seen)


def test_a_simulation_adds_up_what_a_plain_one_does(tmp_path: Path) -> None:
    """Losses apart, it ends where the plain run ends, to the rounding of the mean; again, and resumed, to the bit."""
    data = dict(zip("abcdef", shards(6), strict=True))

    def ran(rounds: int = 8, **keywords: Any) -> Any:
        more = {"lr": 1e-2, "perturbations": 3, "batch_size": 8, "sampled": 4, "rounds": rounds, "progress": False}
        return simulate(network(), data, cross_entropy, **(more | keywords))

    plain, secure, again = ran(), ran(secure_sum=3), ran(secure_sum=3)
    assert (secure.digest, secure.head) == (again.digest, again.head)
    assert secure.head != plain.head
    for one, other in zip(plain.model.parameters(), secure.model.parameters(), strict=True):
        assert one.detach().numpy() == pytest.approx(other.detach().numpy(), rel=1e-4, abs=1e-6)
    path = tmp_path / "ledger.sqlite"
    ran(4, secure_sum=3, ledger=path)
    resumed = ran(8, secure_sum=3, ledger=path, resume=True)
    assert resumed.digest == secure.digest


def test_too_few_after_the_first_leg_close_the_round_without_a_move(caplog: pytest.LogCaptureFixture) -> None:
    """A second sum of the same round could differ from the first by one client: there is none."""
    server, parties = made(6)

    def lose(name: str, message: bytes) -> bool:
        return claims(message, Counted) and decode(message, Counted).round == 1 and name > "c001"

    transport = Troubled(parties, lose)
    made_loop = loop(server, transport)
    slots = [len(update.slots) for update in server.ledger.updates()]
    assert (slots, made_loop.retried) == ([1, 0, 1], 0)
    assert "round 1: there is no sum: 2 of 6 clients were left, 5 are needed" in caplog.text
    assert "round 0" not in caplog.text


def test_too_few_in_the_first_leg_are_asked_again() -> None:
    server, parties = made(6)
    asked: list[str] = []

    def lose(name: str, message: bytes) -> bool:
        asked.extend([name] if claims(message, RoundTask) else [])
        return len(asked) <= 6 and claims(message, RoundTask) and name > "c001"

    made_loop = loop(server, Troubled(parties, lose), rounds=1)
    assert made_loop.retried == 1
    assert len(next(iter(server.ledger.updates())).slots) == 1


def test_losses_that_are_not_finite_end_the_run() -> None:
    server, parties = made(4)
    for party in parties.values():
        party.client.probe.loss = lambda _model, _batch: float("nan")
    made_loop = loop(server, Troubled(parties), rounds=50)
    assert (made_loop.diverged, server.ledger.rounds) == (True, 10)


def test_larger_scalars_are_cut_to_the_bound() -> None:
    server, parties = made(3, secure_bound=1e-3)
    loop(server, Troubled(parties), rounds=1)
    update = next(iter(server.ledger.updates()))
    own = np.mean([np.clip(found(party, update), -1e-3, 1e-3) for party in parties.values()], axis=0)
    assert unpack(update.scalars) == pytest.approx(own, rel=1e-6)
    assert np.abs(own).max() <= np.float32(1e-3)


def test_a_client_joins_one_sum_a_round_and_opens_one_way() -> None:
    """What a curious server would like to ask besides: other survivors, another cohort, scalars in the clear."""
    server, parties = made(6)
    for party in parties.values():
        server.admit(party.client.hello())
    tasks = server.open_round(sorted(parties))
    first = {name: parties[name].respond(task) for name, task in tasks.items()}
    assert {name: parties[name].respond(task) for name, task in tasks.items()} == first
    for name, message in first.items():
        assert server.receive(name, message) is None
    second = server.proceed()
    alice = parties["c000"]
    masked = alice.respond(second["c000"])
    assert claims(masked, Masked)
    assert alice.respond(second["c000"]) == masked
    asked = decode(second["c000"], Shared)
    fewer = encode(Shared(asked.round, asked.cohort, asked.shares[:-1]))
    assert alice.respond(fewer) == encode(Failed("c000", 0, REFUSED))
    for name in parties:
        server.receive(name, masked if name == "c000" else parties[name].respond(second[name]))
    third = server.proceed()
    opened = alice.respond(third["c000"])
    assert claims(opened, Opened)
    assert alice.respond(third["c000"]) == opened
    counted = decode(third["c000"], Counted)
    other = encode(Counted(counted.round, counted.cohort, counted.counted[:-1]))
    assert alice.respond(other) == encode(Failed("c000", 0, REFUSED))
    task = decode(tasks["c000"], SecureTask)
    plain = encode(RoundTask(task.round, task.seed, task.lr, task.slot, []))
    assert claims(alice.respond(plain), SecureHello), "it says hello instead of sending scalars in the clear"
    another = encode(SecureTask(task.round, task.seed, task.lr, task.slot, [], task.peers[:-1]))
    assert decode(alice.respond(another), Shares).sealed == []
    stolen = [Peer(peer.name, KEYS[1].public if peer.name == "c000" else peer.key, b"") for peer in task.peers]
    for peers in (stolen, [*task.peers, task.peers[0]], task.peers[1:]):
        message = encode(SecureTask(task.round + 1, task.seed, task.lr, task.slot, [], peers))
        assert alice.respond(message) == encode(Failed("c000", 1, REFUSED))


@pytest.mark.parametrize("gone", [False, True])
def test_a_server_that_crashes_in_the_middle_goes_on(gone: bool) -> None:
    """Clients answer the same questions again. To others they do not send their scalars twice: there is no sum."""
    server, parties = made(5)

    def crash(_name: str, message: bytes) -> bool:
        if claims(message, Counted) and decode(message, Counted).round == 1:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        loop(server, Troubled(parties, crash))
    if gone:
        del parties["c002"]
    again = SecureServer(server.ledger, lr=1e-2, sampled=5)
    loop(again, Troubled(parties))
    assert [len(update.slots) for update in again.ledger.updates()] == [1, 0 if gone else 1, 1]


def test_a_client_that_restarts_between_the_legs_is_lost_for_the_round_alone() -> None:
    server, parties = made(6)
    restarted: list[str] = []

    def lose(name: str, message: bytes) -> bool:
        if claims(message, Shared) and name == "c005" and not restarted:
            restarted.append(name)
            old = parties[name].client
            again = SecureClient(name, old.data, old.probe, old.header, 8)
            parties[name].client = again
        return False

    loop(server, Troubled(parties, lose), rounds=2)
    participants = [len(audit.participants) for _, audit in server.ledger.audits("round")]
    assert participants == [5, 5] or participants == [5, 6]


def test_replies_that_do_not_fit_are_refused_with_a_reason() -> None:
    server, parties = made(4)
    for party in parties.values():
        server.admit(party.client.hello())
    tasks = server.open_round(sorted(parties))
    shares = decode(parties["c000"].respond(tasks["c000"]), Shares)
    wrong = {
        "its shares do not fit a cohort of 4": Shares(*fields(shares, sealed=shares.sealed[:2])),
        "for another cohort": Shares(*fields(shares, cohort=bytes(32))),
        "in the name of": Shares(*fields(shares, client="c001")),
        "while round 0 is open": Shares(*fields(shares, round=7)),
        "nothing usable": Shares(*fields(shares, sealed=[])),
        "not a valid Shares": RoundReply("c000", 0, 10, bytes(12)),
    }
    for text, message in wrong.items():
        assert text in str(server.receive("c000", encode(message)))
    for name in parties:
        server.receive(name, parties[name].respond(tasks[name]))
    second = server.proceed()
    masked = decode(parties["c000"].respond(second["c000"]), Masked)
    assert "7 bytes of masked scalars, expected 24" in str(
        server.receive("c000", encode(Masked(masked.client, masked.round, masked.cohort, bytes(7))))
    )
    for name in parties:
        server.receive(name, parties[name].respond(second[name]))
    third = server.proceed()
    opened = decode(parties["c000"].respond(third["c000"]), Opened)
    assert "bytes of opened shares, expected 128" in str(
        server.receive("c000", encode(Opened(opened.client, opened.round, opened.cohort, b"1")))
    )
    assert decode(failure("c000", third["c000"], OSError()), Failed).round == 0


def fields(shares: Shares, **changes: Any) -> list[Any]:
    names = ("client", "round", "cohort", "nonce", "sealed", "deposit")
    return [changes.get(name, getattr(shares, name)) for name in names]


def test_a_lie_about_the_masks_gives_no_sum() -> None:
    """A client can spoil a sum, not read one."""
    server, parties = made(4)
    spoilt = parties["c001"].client
    assert isinstance(spoilt, SecureClient)
    honest = spoilt._masked

    def liar(asked: Shared) -> Masked:
        sent = honest(asked)
        return Masked(sent.client, sent.round, sent.cohort, os.urandom(len(sent.sums)))

    spoilt._masked = liar  # type: ignore[method-assign]
    loop(server, Troubled(parties), rounds=1)
    assert [len(update.slots) for update in server.ledger.updates()] == [0]


def test_what_needs_each_client_s_scalars_is_refused() -> None:
    data = dict(zip("abcd", shards(4), strict=True))

    def refused(text: str, **keywords: Any) -> None:
        more = {"rounds": 1, "batch_size": 8, "progress": False, "secure_sum": 3} | keywords
        with pytest.raises(InputError, match=text):
            simulate(network(), data, cross_entropy, **more)

    refused("own directions have no sum", directions="per-client")
    refused("accepted: mean", aggregation="weighted")
    refused("accepted: mean", aggregation="clip")
    refused("leave secure_sum out", attack="boost")
    refused("of two, each of them learns", secure_sum=2)
    refused("cohorts of 3 to 500 clients, federation.sampled is 2", sampled=2)
    refused("lr = 'auto' needs each client's slope", lr="auto")
    refused("no rule withstands false scalars that nobody sees", attackers=1)
    with pytest.raises(InputError, match="sampled is 2"):
        recipes.parse({"model": {"name": "mlp"}, "task": {"name": "digits"}, "federation": {"secure_sum": 3}})


def test_without_cryptography_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "_loaded", None)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.x25519", None)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    with pytest.raises(InputError, match="secure sums need cryptography"):
        KeyPair()


def test_a_recipe_with_a_secure_sum_is_planned_run_and_verified(tmp_path: Path) -> None:
    text = RECIPE.replace("sampled = 2", "sampled = 4\nsecure_sum = 3").replace("rounds = 40", "rounds = 6")
    (tmp_path / "recipe.toml").write_text(text.replace('by = "clients"', 'by = "server"'))
    recipe = recipes.load(tmp_path / "recipe.toml")
    result = run.run(recipe, tmp_path / "run")
    assert verify(tmp_path / "run").finished
    expected = plan(recipe, None)
    for way in ("up", "down"):
        assert getattr(expected, f"bytes_{way}") == pytest.approx(result[f"serialized_bytes_{way}"], rel=0.03)


def test_a_kit_vouches_for_its_client_s_key(tmp_path: Path) -> None:
    for name in ("one", "other"):
        kit.make(tmp_path / name, "trial", ["alice", "bob"])
    identities = {
        name: KitIdentity(tmp_path / "one" / name, kit.read(tmp_path / "one" / name, "client"))
        for name in ("alice", "bob")
    }
    foreign = tmp_path / "other" / "bob"
    alice, bob, stranger = identities["alice"], identities["bob"], KitIdentity(foreign, kit.read(foreign, "client"))
    key = PUBLIC[0]
    alice.check("bob", key, bob.proof(key))
    for name, vouched, proof in (
        ("bob", PUBLIC[1], bob.proof(key)),
        ("bob", key, alice.proof(key)),
        ("bob", key, stranger.proof(key)),
        ("bob", key, b""),
        ("bob", key, b"\x92\xa1a\xa1b"),
    ):
        with pytest.raises(ProtocolError, match="the key of 'bob' is not vouched for"):
            alice.check(name, vouched, proof)
    members.renew(tmp_path / "one", "bob")
    folder = tmp_path / "one" / "bob"
    renewed = KitIdentity(folder, kit.read(folder, "client"))
    assert renewed.proof(key) != bob.proof(key)
    alice.check("bob", key, renewed.proof(key))
    server, parties = made(4)
    client = parties["c000"].client
    assert isinstance(client, SecureClient)
    client.identity = alice
    for party in parties.values():
        server.admit(party.client.hello())
    task = server.open_round(sorted(parties))["c000"]
    assert client.answer(task) == encode(Failed("c000", 0, REFUSED)), "the others' keys have no proof"


@pytest.mark.skipif(BROKER is None, reason="needs nats-server (the extra network)")
def test_over_tls_it_ends_with_the_simulation_s_digest(federation: Callable[..., Federation], tmp_path: Path) -> None:
    """Clients prove their keys by their kits; the ledger is the simulation's."""
    text = RECIPE.replace("sampled = 2", "sampled = 4\nsecure_sum = 3").replace("rounds = 40", "rounds = 10")
    running = federation(text.replace("every = 20", "every = 5"), secure=True)
    running.server("--minimum", "4")
    for name in CLIENTS:
        running.client(name)
    result = running.result("server")
    ends = [running.result(name) for name in CLIENTS]
    simulated = run.run(recipes.load(running.recipe), tmp_path / "simulated")
    assert {str(end["digest"]) for end in ends} == {simulated["digest"], result["digest"]}
    assert sum(int(str(end["took_part"])) for end in ends) == 40


@pytest.mark.skipif(BROKER is None, reason="needs nats-server (the extra network)")
def test_over_nats_rounds_go_on_while_a_client_is_killed_and_comes_back(
    federation: Callable[..., Federation], tmp_path: Path
) -> None:
    text = RECIPE.replace("sampled = 2", "sampled = 4\nsecure_sum = 3").replace("rounds = 40", "rounds = 1000000")
    running = federation(text.replace('by = "clients"', 'by = "server"'))

    def counted() -> list[int]:
        """Of the last rounds: how many clients were added up."""
        with Ledger.open(tmp_path / "server" / "ledger.sqlite") as ledger:
            return [len(audit.participants) for _, audit in ledger.audits("round")][-3:]

    def goes_on(clients: int) -> None:
        reached = running.rounds()
        running.until(lambda: running.rounds() > reached + 3 and counted() == [clients] * 3)

    running.server("--minimum", "3", "--deadline", "1")
    for name in CLIENTS:
        running.client(name)
    goes_on(4)
    running.kill(CLIENTS[0])
    goes_on(3)
    running.client(CLIENTS[0])
    goes_on(4)
