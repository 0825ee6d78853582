"""Real processes and a real broker on loopback: the simulation's digest, and one digest after everything was killed."""

import asyncio
import signal
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tiny
from federation import BROKER, CLIENTS, RECIPE, Federation
from scalarfl import InputError, Ledger
from scalarfl.bench.proxy import Proxy
from scalarfl.experiment import recipe as recipes, run
from scalarfl.experiment.verify import verify
from scalarfl.ledger.codec import decode, encode, pack
from scalarfl.protocol.messages import PROTOCOL, Hello, Records, RoundReply, RoundTask
from scalarfl.transports.nats import kit
from scalarfl.transports.nats.names import Names, check_address, check_client, party_of

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
    result = made.result("server")
    head = result["ledger_head"]
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
    same = result.keys() - {"seconds", "peak_rss_bytes", "ledger_head", "checksum", "clients"}
    same -= {f"{what}_bytes_{way}" for what in ("payload", "serialized") for way in ("up", "down")}
    assert len(same) > 15
    assert {key: result[key] for key in same} == {key: simulated[key] for key in same}
    assert 0 < float(str(result["peak_rss_bytes"])) < float(str(simulated["peak_rss_bytes"])), "a server holds no model"
    if not secure:
        assert verify(tmp_path / "server").finished
    for name in ("server", *CLIENTS):
        assert "eof_received" not in made.log(name), made.log(name)
    assert "digest of the model" in made.log(CLIENTS[0])
    assert f"digest of the model {simulated['digest']}" in made.log("server")
    assert "next: scalarfl report" in made.log("server")
    assert sum(int(str(end["took_part"])) for end in ends) == 80
    assert all(float(str(end["bytes_up"])) > 0 < float(str(end["bytes_down"])) for end in ends)


def test_a_pause_costs_a_client_the_rounds_of_the_pause(federation: Callable[..., Federation], tmp_path: Path) -> None:
    """Stopped for 5 s, the slower of two clients is back in the rounds at once, and its late replies starve nobody."""
    text = RECIPE.replace("rounds = 40", "rounds = 1000000").replace('by = "clients"', 'by = "server"')
    made = federation(text)
    made.server("--minimum", "2", "--deadline", "0.7")
    for name in CLIENTS[:2]:
        made.client(name)
    made.until(lambda: made.rounds() >= 5)
    made.processes[CLIENTS[1]].send_signal(signal.SIGSTOP)
    time.sleep(5)
    made.processes[CLIENTS[1]].send_signal(signal.SIGCONT)
    began = made.rounds()
    made.until(lambda: made.rounds() >= began + 100)
    with Ledger.open(tmp_path / "server" / "ledger.sqlite") as ledger:
        cohorts = [len(audit.participants) for number, audit in ledger.audits("round") if number >= began]
    assert cohorts[:100].count(2) >= 90, cohorts


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
        made.until(lambda: all(made.log(name).count("the broker is back") >= 2 for name in CLIENTS[:3]))
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


def test_another_base_model_is_refused_on_both_sides(federation: Callable[..., Federation]) -> None:
    made = federation()
    made.server("--minimum", "1")
    made.client(CLIENTS[0], "-s", "model.hidden=[63]")
    made.processes[CLIENTS[0]].wait(60)
    assert made.processes[CLIENTS[0]].returncode == 2
    assert "error: the server refuses: client 'client-0000' has another base model" in made.log(CLIENTS[0])
    assert "refused: client 'client-0000' has another base model" in made.log("server")


def test_a_hostile_kit_stops_nobody(federation: Callable[..., Federation], tmp_path: Path) -> None:
    """A client's kit and the observer's: forged subjects, answers sent elsewhere, messages that do not count."""
    import nats
    from nats.aio.client import Client

    made = federation(secure=True)
    assert made.kits is not None
    kits = made.kits
    options = ("--minimum", "2", "--deadline", "2", "-s", "federation.sampled=3", "-s", "evaluation.by=server")
    made.server(*options, "-s", "federation.rounds=1000000")
    for name in CLIENTS[:2]:
        made.client(name, "-s", "evaluation.by=server")
    false, names = CLIENTS[2], Names("trial")
    violations: list[str] = []

    async def note(error: Exception) -> None:
        violations.append(str(error))

    async def connected(party: str, role: str) -> Client:
        folder = kits / party
        own = kit.read(folder, role)
        return await nats.connect(own.address, error_cb=note, inbox_prefix=names.inbox(party), **own.connection(folder))

    async def goes_on() -> None:
        reached = await asyncio.to_thread(made.rounds)
        await asyncio.to_thread(made.until, lambda: made.rounds() > reached + 3)

    async def intrude() -> None:
        folder = kits / false
        bare = ssl.create_default_context(cafile=str(folder / "authority.pem"))
        address = kit.read(folder, "client").address
        with pytest.raises((nats.errors.Error, OSError, ssl.SSLError)):
            await nats.connect(address, tls=bare, allow_reconnect=False, connect_timeout=3, error_cb=note)
        link, observer = await connected(false, "client"), await connected("observer", "observer")

        # subjects of others, and the broker's own
        elsewhere = ["scalarfl.trial.records", names.reply(CLIENTS[0]), names.task(CLIENTS[0]), names.done]
        elsewhere += [names.inbox(CLIENTS[0]) + ".x", names.inbox(false), names.inbox(false) + "2.x", names.inbox("*")]
        violations.clear()
        for party in (link, observer):
            for subject in elsewhere[1:5]:
                await party.publish(subject, b"forged")
            for api in ("STREAM.INFO", "STREAM.PURGE", "STREAM.DELETE", "STREAM.MSG.GET"):
                await party.publish(f"$JS.API.{api}.scalarfl_trial", b"", reply=elsewhere[0])
            await party.publish("$SYS.REQ.USER.INFO", b"", reply=elsewhere[1])
            await party.publish(names.status(CLIENTS[0]), b"", reply=elsewhere[1])
            for subject in (names.task(CLIENTS[0]), "scalarfl.>", names.inbox(CLIENTS[0]) + ".>", names.reply("*")):
                await party.subscribe(subject)
            await party.flush()
        await asyncio.sleep(0.5)
        denied = [text for text in violations if "permissions violation" in text.lower()]
        assert len(denied) == 2 * (4 + 4 + 2 + 4), violations

        # an answer of the server's, sent to somebody else
        with Ledger.open(tmp_path / "server" / "ledger.sqlite") as ledger:
            contract, trail = ledger.header.contract(), ledger.header.digest()[:8]
        hello = encode(Hello(PROTOCOL, false, **contract, position=0, trail=trail))
        for _ in range(20):
            for reply in elsewhere:
                await link.publish(names.records(false), b"0", reply=reply)
                await link.publish(names.hello(false), hello, reply=reply)
                await observer.publish(names.status("observer"), b"", reply=reply)
                await observer.publish(names.records("observer"), b"0", reply=reply)
        await goes_on()

        # what it may ask is answered
        found = decode((await link.request(names.records(false), b"0", timeout=5)).data, Records)
        assert found.rounds >= len(found.updates) > 3
        assert (await observer.request(names.status("observer"), b"", timeout=5)).data.startswith(b"{")
        assert decode((await observer.request(names.records("observer"), b"1", timeout=5)).data, Records).updates
        for junk in (b"", b"-1", b"9" * 21, bytes(1000)):
            await link.publish(names.records(false), junk, reply=link.new_inbox())
        assert decode((await link.request(names.records(false), b"9" * 20, timeout=5)).data, Records).updates == []
        answer = await link.request(names.hello(false), b"nonsense", timeout=5)
        assert answer.data.startswith(b"!not a valid Hello")

        # from here on it is a client like the others, and replies with what does not count
        assert not (await link.request(names.hello(false), hello, timeout=5)).data.startswith(b"!")
        tasks = await link.subscribe(names.task(false))
        await link.publish(names.reply(false), bytes(600_000))
        told = 0
        while told < 6:
            await link.publish(names.here(false), b"")
            message = (await tasks.next_msg(timeout=30)).data
            if message == b"?":
                continue
            round_ = decode(message, RoundTask).round
            ones, bad = np.ones(3, dtype=np.float32), np.array([1, np.nan, 1], dtype=np.float32)
            of = {
                "malformed": b"malformed",
                "late": encode(RoundReply(false, 0, 10, pack(ones))),
                "twice": encode(RoundReply(false, round_, 10, pack(ones))),
                "not finite": encode(RoundReply(false, round_, 10, pack(bad))),
            }
            for reply in [["malformed", "late"], ["twice", "twice"], ["not finite"]][told % 3]:
                await link.publish(names.reply(false), of[reply])
            told += 1
        await link.close()
        await observer.close()
        await goes_on()

    made.until(lambda: made.rounds() >= 5)
    asyncio.run(intrude())
    made.kill("server")  # and it can start again
    last = made.rounds() + 20
    made.server(*options, "-s", f"federation.rounds={last}")
    made.result("server")
    assert len({str(made.result(name)["digest"]) for name in CLIENTS[:2]}) == 1
    log = made.log("server")
    assert f"dropped from '{false}', a reply subject outside its inbox" in log
    assert "dropped from 'observer', a reply subject outside its inbox" in log
    assert f"dropped from '{false}', longer than" in log
    with Ledger.open(tmp_path / "server" / "ledger.sqlite") as ledger:  # opening checks the chain
        assert ledger.rounds == last
        audits = [audit for _, audit in ledger.audits("round")]
    honest = [len({p.client for p in audit.participants} & set(CLIENTS[:2])) for audit in audits]
    assert honest.count(2) > 0.8 * len(audits)
    rejected = [rejection for audit in audits for rejection in audit.rejected]
    assert {rejection.client for rejection in rejected} == {false}
    reasons = {rejection.reason for rejection in rejected}
    assert any("not a valid RoundReply" in reason for reason in reasons)
    assert any("a reply for round 0 while" in reason for reason in reasons)
    assert any("1 of 3 scalars are not finite" in reason for reason in reasons)
    assert any("a second reply" in reason or "while round" in reason for reason in reasons)


def test_addresses_and_names() -> None:
    assert check_address("nats://127.0.0.1:4222")
    assert check_address("tls://broker.example.org:4222")
    for address in ("nats://broker.example.org:4222", "http://127.0.0.1", "127.0.0.1:4222", "nats://[::1", "tls://a:b",
                    "tls://a\n:1", "tls://:4222", ""):  # fmt: skip
        with pytest.raises(InputError, match="--nats"):
            check_address(address)
    for name in ("", "a.b", "a*", "a b", ">"):
        with pytest.raises(InputError, match="accepted are 1 to 60 letters"):
            check_client(name)
        with pytest.raises(InputError, match="accepted are 1 to 60 letters"):
            Names(name)
    names = Names("run")
    assert party_of(names.reply("alpha")) == "alpha"
    assert names.is_inbox("alpha", names.inbox("alpha") + ".AbC123.x9")
    own = [names.inbox("alpha") + end for end in ("", ".", ".>", ".*", ".a b", ".x\n", "2", "2.x")]
    for subject in [*own, names.inbox("beta") + ".x", names.reply("alpha"), "_INBOX.x", ""]:
        assert not names.is_inbox("alpha", subject), subject
