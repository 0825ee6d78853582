"""Real processes and a real broker on loopback: the simulation's digest, and one digest after everything was killed."""

import asyncio
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tiny
from federation import BROKER, CLIENTS, RECIPE, Federation
from scalarfl import InputError, Ledger, recipe as recipes, run
from scalarfl.bench.proxy import Proxy
from scalarfl.messages import PROTOCOL, Hello, Measure, RoundReply, RoundTask, claims, decode, encode, pack
from scalarfl.network import kit
from scalarfl.network.names import Names, check_address, check_client, client_of

pytest.importorskip("nats")
pytestmark = pytest.mark.skipif(BROKER is None, reason="needs nats-server (the extra network)")


@pytest.mark.parametrize("secure", [False, True], ids=["loopback", "tls"])
def test_it_ends_with_the_simulation_s_digest(
    secure: bool, federation: Callable[..., Federation], tmp_path: Path
) -> None:
    made = federation(secure=secure)
    made.server("--minimum", "4")
    for name in CLIENTS:
        made.client(name)
    head = made.result("server")["ledger_head"]
    ends = [made.result(name) for name in CLIENTS]
    simulated = run.run(recipes.load(made.recipe), tmp_path / "simulated")
    assert {str(end["digest"]) for end in ends} == {simulated["digest"]}
    assert {end["rounds"] for end in ends} == {40}
    with Ledger.open(tmp_path / "server" / "ledger.sqlite") as ledger:
        assert ledger.head.hex() == head
        mine = [(e.round, e.examples, e.digest) for e in ledger.evaluations()]
        assert [round_ for round_, _, _ in mine] == [0, 20, 40]
        for evaluation, point in zip(ledger.evaluations(), simulated["curve"], strict=True):
            assert [evaluation.round, evaluation.accuracy, evaluation.loss] == pytest.approx(point)
    assert "torch" not in made.log("server")


def test_a_language_model_over_tls(
    federation: Callable[..., Federation], tiny_models: dict[str, Path], sst2: Path, tmp_path: Path
) -> None:
    made = federation(tiny.recipe(tiny_models["opt"], sst2, federation_sampled=3, model_trainable="lora"), secure=True)
    made.server()
    for name in CLIENTS[:3]:
        made.client(name)
    made.result("server")
    simulated = run.run(recipes.load(made.recipe), tmp_path / "simulated")
    assert {str(made.result(name)["digest"]) for name in CLIENTS[:3]} == {simulated["digest"]}


def test_everything_is_killed_and_a_client_joins_late(federation: Callable[..., Federation], tmp_path: Path) -> None:
    text = RECIPE.replace("rounds = 40", "rounds = 1000000").replace("perturbations = 3", "perturbations = 40")
    made = federation(text.replace("every = 20", "every = 300"))
    options = ("--minimum", "2", "--deadline", "3")

    def goes_on() -> None:
        reached = made.rounds()
        made.until(lambda: made.rounds() > reached + 5)

    with Proxy(made.port) as proxy:
        made.reached = proxy.port
        for name in CLIENTS[:3]:  # through the proxy
            made.client(name)
        made.reached = made.port
        made.server(*options)
        goes_on()
        for name in CLIENTS[:3]:
            made.kill(name)
            made.reached = proxy.port
            made.client(name)
            goes_on()
        made.reached = made.port
        made.client(CLIENTS[3])  # joins late
        made.kill("server")
        made.server(*options)
        goes_on()
        made.kill("broker")
        time.sleep(1)
        made.broker()
        goes_on()
        made.until(lambda: "welcome" in made.log(CLIENTS[3]))
        proxy.cut()
        time.sleep(10)
        proxy.mend()
        goes_on()
        made.kill("server")
        last = made.rounds() + 100  # however fast the machine is, all of the above came before the end
        made.server(*options, "-s", f"federation.rounds={last}")

        head = made.result("server", 200)["ledger_head"]
        ends = [made.result(name) for name in CLIENTS]
    assert len({str(end["digest"]) for end in ends}) == 1
    with Ledger.open(tmp_path / "server" / "ledger.sqlite") as ledger:  # opening checks the chain
        assert (ledger.rounds, ledger.head.hex()) == (last, head)
        took_part = {p.client for _, audit in ledger.audits("round") for p in audit.participants}
    assert took_part == set(CLIENTS)


def test_the_stream_rebuilds_a_lost_ledger(federation: Callable[..., Federation], tmp_path: Path) -> None:
    made = federation(RECIPE.replace('by = "clients"', 'by = "server"'))
    made.server("--minimum", "2")
    for name in CLIENTS[:2]:
        made.client(name)
    made.result("server")
    digests = {str(made.result(name)["digest"]) for name in CLIENTS[:2]}
    for path in (tmp_path / "server").glob("ledger.sqlite*"):
        path.unlink()
    made.server("--minimum", "1", "-s", "federation.rounds=41", "--quorum", "1")
    made.client(CLIENTS[0], "-s", "federation.rounds=41")
    made.result("server")
    made.result(CLIENTS[0])
    assert len(digests) == 1
    assert made.rounds() == 41
    assert "it is on the ledger again" in made.log("server")


def test_another_base_model_is_refused_on_both_sides(federation: Callable[..., Federation]) -> None:
    made = federation()
    made.server("--minimum", "1")
    made.client(CLIENTS[0], "-s", "model.hidden=[63]")
    made.processes[CLIENTS[0]].wait(60)
    assert made.processes[CLIENTS[0]].returncode == 2
    assert "error: the server refuses: client 'client-0000' has another base model" in made.log(CLIENTS[0])
    assert "refused: client 'client-0000' has another base model" in made.log("server")


def test_what_an_intruder_or_a_false_client_is_refused(federation: Callable[..., Federation], tmp_path: Path) -> None:
    """No certificate, another's name, the ledger's subject, others' tasks; and messages that do not count."""
    import nats

    made = federation(secure=True)
    assert made.kits is not None
    made.server("--minimum", "2", "--deadline", "2", "-s", "federation.rounds=2500", "-s", "federation.sampled=3")
    for name in CLIENTS[:2]:
        made.client(name, "-s", "federation.rounds=2500")
    made.until(lambda: made.rounds() >= 3)
    folder = made.kits / CLIENTS[2]
    own, names = kit.read(folder, "client"), Names("trial")
    violations: list[str] = []

    async def note(error: Exception) -> None:
        violations.append(str(error))

    async def intrude() -> None:
        bare = ssl.create_default_context(cafile=str(folder / "authority.pem"))
        with pytest.raises((nats.errors.Error, OSError, ssl.SSLError)):
            await nats.connect(own.address, tls=bare, allow_reconnect=False, connect_timeout=3, error_cb=note)
        link = await nats.connect(own.address, error_cb=note, **own.connection(folder))
        tasks = await link.subscribe(names.task(CLIENTS[2]))
        for subject in (names.records, names.reply(CLIENTS[0]), names.hello(CLIENTS[0]), names.task(CLIENTS[0])):
            await link.publish(subject, b"forged")
        await link.subscribe(names.task(CLIENTS[0]))
        await link.subscribe("scalarfl.>")
        await link.publish(names.reply(CLIENTS[2]), b"malformed")
        await link.publish(names.reply(CLIENTS[2]), bytes(3 << 20))
        for round_ in (0, made.rounds() + 100):
            late = encode(RoundReply(CLIENTS[2], round_, 10, pack(np.ones(3, dtype=np.float32))))
            await link.publish(names.reply(CLIENTS[2]), late)
        answer = await link.request(names.hello(CLIENTS[2]), b"nonsense", timeout=5)
        assert answer.data.startswith(b"!not a valid Hello")
        await link.flush()
        await asyncio.sleep(0.5)
        assert not any(message.data != b"?" for message in [await tasks.next_msg() for _ in range(tasks.pending_msgs)])

        with Ledger.open(tmp_path / "server" / "ledger.sqlite") as ledger:  # now with a good hello, in rounds
            contract, trail = ledger.header.contract(), ledger.header.digest()[:8]
        hello = encode(Hello(PROTOCOL, CLIENTS[2], **contract, position=0, trail=trail))
        assert not (await link.request(names.hello(CLIENTS[2]), hello, timeout=5)).data.startswith(b"!")
        told = 0
        while told < 4:
            await link.publish(names.here(CLIENTS[2]), b"")
            message = (await tasks.next_msg(timeout=20)).data
            if message == b"?" or claims(message, Measure):  # an evaluation may be due just then
                continue
            round_, good = decode(message, RoundTask).round, np.ones(3, dtype=np.float32)
            if told % 2:
                await link.publish(names.reply(CLIENTS[2]), encode(RoundReply(CLIENTS[2], round_, 10, pack(good))))
                await link.publish(names.reply(CLIENTS[2]), encode(RoundReply(CLIENTS[2], round_, 10, pack(good))))
            else:
                bad = np.array([1, np.nan, 1], dtype=np.float32)
                await link.publish(names.reply(CLIENTS[2]), encode(RoundReply(CLIENTS[2], round_, 10, pack(bad))))
            told += 1
        await link.close()

    asyncio.run(intrude())
    made.result("server")
    assert len({str(made.result(name)["digest"]) for name in CLIENTS[:2]}) == 1
    denied = [text for text in violations if "permissions violation" in text.lower()]
    assert len(denied) == 6, violations
    with Ledger.open(tmp_path / "server" / "ledger.sqlite") as ledger:
        reasons = {r.reason for _, audit in ledger.audits() for r in audit.rejected if r.client == CLIENTS[2]}
    assert any("not a valid RoundReply" in reason for reason in reasons)
    assert any("a reply for round 0 while" in reason for reason in reasons)
    assert any("1 of 3 scalars are not finite" in reason for reason in reasons)
    assert any("a second reply" in reason or "while round" in reason for reason in reasons)
    assert "dropped 3145728 bytes from 'client-0002'" in made.log("server")


def test_kits(tmp_path: Path) -> None:
    kit.make(tmp_path / "kits", "trial", ["alpha", "beta"])
    assert sorted(path.name for path in (tmp_path / "kits").iterdir()) == [
        "alpha",
        "authority",
        "beta",
        "broker",
        "observer",
        "server",
    ]
    for name in ("alpha", "beta", "observer", "server"):
        folder = tmp_path / "kits" / name
        assert (folder / "key.pem").stat().st_mode & 0o077 == 0
        assert "scalarfl " in (folder / "START.txt").read_text()
    assert kit.read(tmp_path / "kits" / "alpha", "client").name == "alpha"
    with pytest.raises(InputError, match="it is the kit of a client, and a server is being started"):
        kit.read(tmp_path / "kits" / "alpha", "server")
    with pytest.raises(InputError, match="no kit can be read"):
        kit.read(tmp_path, "server")
    with pytest.raises(InputError, match="there is something already"):
        kit.make(tmp_path / "kits", "trial", ["alpha"])
    for clients in ([], ["a", "a"], ["a.b"], ["a", "server"]):
        with pytest.raises(InputError, match="accepted are"):
            kit.make(tmp_path / "other", "trial", clients)


def test_addresses_and_names() -> None:
    assert check_address("nats://127.0.0.1:4222")
    assert check_address("tls://broker.example.org:4222")
    for address in ("nats://broker.example.org:4222", "http://127.0.0.1", "127.0.0.1:4222"):
        with pytest.raises(InputError, match="--nats"):
            check_address(address)
    for name in ("", "a.b", "a*", "a b", ">"):
        with pytest.raises(InputError, match="accepted are letters"):
            check_client(name)
        with pytest.raises(InputError, match="accepted are letters"):
            Names(name)
    assert client_of(Names("run").reply("alpha")) == "alpha"
