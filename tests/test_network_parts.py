"""Around the rounds: snapshots at a client, the status, logs, metrics, a crowd, what a failing client does."""

import json
import logging
import re
import signal
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from federation import BROKER, CLIENTS, RECIPE, Federation, free_port
from scalarfl import DeComFL, HiSo, HiSoScalar, InputError, simulate
from scalarfl.ledger.store import Ledger
from scalarfl.model import snapshot
from scalarfl.model.replica import Replica
from scalarfl.model.snapshot_manager import SnapshotManager
from scalarfl.simulation import replay
from scalarfl.transports.nats.logs import JsonLines
from support import command, cross_entropy, last_json, network, shards

pytest.importorskip("nats")
needs_broker = pytest.mark.skipif(BROKER is None, reason="needs nats-server (the extra network)")


@pytest.fixture
def learnt(tmp_path: Path) -> Callable[..., tuple[Replica, Path]]:
    """Makes a replica that has applied some rounds, and the ledger it has them from."""

    def make(method: HiSo | DeComFL | HiSoScalar, trainable: str = "all") -> tuple[Replica, Path]:
        path = tmp_path / "ledger.sqlite"
        simulate(network(), shards(), cross_entropy, method=method, trainable=trainable, rounds=9, ledger=path)
        replica = Replica(network(), method, trainable)
        with Ledger.open(path) as ledger:
            replica.begin(ledger.header.digest())
            replay(replica, ledger, 6)
        return replica, path

    return make


@pytest.mark.parametrize("method", [DeComFL(), HiSo(), HiSoScalar()], ids=lambda method: method.name)
def test_a_replica_from_a_snapshot_goes_on_with_the_same_bits(
    method: HiSo | DeComFL | HiSoScalar, learnt: Callable[..., tuple[Replica, Path]], tmp_path: Path
) -> None:
    replica, path = learnt(method)
    snapshot.write(replica, tmp_path / "s" / "kept.safetensors", 0.25)
    found = snapshot.peek(tmp_path / "s" / "kept.safetensors")
    assert found is not None
    assert (found.position, found.seconds_a_round, found.digest) == (6, 0.25, replica.digest())
    other = Replica(network(), method)
    with Ledger.open(path) as ledger:
        other.begin(ledger.header.digest())
        snapshot.restore(found, other)
        assert (other.position, other.digest(), other.trail) == (6, replica.digest(), ledger.trail_at(6))
        for one in (replica, other):
            replay(one, ledger, 9)
    assert other.digest() == replica.digest()


def test_a_snapshot_that_is_damaged_or_another_s_changes_nothing(
    learnt: Callable[..., tuple[Replica, Path]], tmp_path: Path
) -> None:
    replica, ledger = learnt(HiSo())
    path = tmp_path / "kept.safetensors"
    assert snapshot.peek(path) is None
    snapshot.write(replica, path)
    fresh = Replica(network(), HiSo())
    before = fresh.digest()
    fresh.begin(bytes(32))
    keeper = SnapshotManager(fresh, path)
    keeper.begin(9)  # of another federation: said, not used
    assert (fresh.digest(), keeper.restored) == (before, False)

    fresh = Replica(network(), HiSo())
    with Ledger.open(ledger) as opened:
        fresh.begin(opened.header.digest())
    SnapshotManager(fresh, path).begin(5)  # it knows more rounds than are on record
    assert fresh.digest() == before
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    found = snapshot.peek(path)
    assert found is not None
    with pytest.raises(InputError, match="damaged"):
        snapshot.restore(found, fresh)
    assert (fresh.digest(), fresh.position) == (before, 0)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="cannot be read"):
        snapshot.peek(path)


def test_a_snapshot_is_written_when_it_saves_more_than_it_costs(
    learnt: Callable[..., tuple[Replica, Path]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    replica, _ = learnt(DeComFL())
    keeper = SnapshotManager(replica, tmp_path / "kept.safetensors")
    keeper.consider()
    assert not keeper.path.exists()  # six rounds of a small model are replayed in no time
    replica.seconds = 90.0
    keeper.consider()
    assert keeper.path.exists()
    keeper.announce(100, 1000)
    assert "catching up over 100 rounds: 1e+05 coordinates of noise, about 1500.0 s" in caplog.text
    replica.seconds += 0.5
    keeper.path.unlink()
    keeper.consider(ending=True)
    assert not keeper.path.exists()

    replica.seconds = 200.0
    keeper.consider(ending=True)
    again = SnapshotManager(learnt_again := Replica(network(), DeComFL()), keeper.path)
    learnt_again.begin(replica.genesis)
    again.begin(6)
    assert again.restored
    assert "restored 6 rounds from the snapshot; replaying them would have taken 200.0 s" in caplog.text


@needs_broker
def test_a_client_that_is_told_to_stop_comes_back_from_its_snapshot(
    federation: Callable[..., Federation],
) -> None:
    made = federation(RECIPE.replace("rounds = 40", "rounds = 1000000").replace('by = "clients"', 'by = "server"'))
    made.constants = {"scalarfl.model.snapshot_manager.WORTH": 0.0}  # however little it saves
    made.server("--minimum", "2")
    for name in CLIENTS[:2]:
        made.client(name)
    made.until(lambda: made.rounds() >= 25)
    made.processes[CLIENTS[0]].send_signal(signal.SIGTERM)
    assert made.processes[CLIENTS[0]].wait(60) == 130
    assert (made.folder / CLIENTS[0] / "snapshot.safetensors").exists()
    assert made.processes["server"].poll() is None
    made.processes.pop(CLIENTS[0]).communicate()
    made.client(CLIENTS[0])
    made.until(lambda: "rounds from the snapshot; replaying them would have taken" in made.log(CLIENTS[0]))
    made.kill("server")
    made.server("--minimum", "2", "-s", f"federation.rounds={made.rounds() + 20}")
    made.result("server")
    assert made.result(CLIENTS[0])["digest"] == made.result(CLIENTS[1])["digest"]


@needs_broker
@pytest.mark.parametrize("secure", [False, True], ids=["loopback", "tls"])
def test_the_status(secure: bool, federation: Callable[..., Federation]) -> None:
    made = federation(secure=secure)
    port = free_port()
    made.server("--minimum", "2", "--metrics", str(port), "--log", "json", "-s", "federation.rounds=100000")
    assert made.kits is not None or not secure
    where = (
        ["--kit", f"{made.folder}/kits/observer"] if secure else ["recipe", "--nats", f"nats://127.0.0.1:{made.port}"]
    )
    refused = command("status", *where)
    while "is running at" in refused.stderr:  # the server loads the model once, in a process of its own
        refused = command("status", *where)
    for name in CLIENTS[:2]:
        made.client(name, "--log", "json")
    made.until(lambda: made.rounds() >= 21)
    status = last_json(command("status", *where, "--json").stdout)
    assert {one["client"] for one in status["present"]} == set(CLIENTS[:2])
    assert status["round"] >= 21
    assert (status["rounds"], status["known"], status["rejected"]) == (100000, 2, 0)
    assert status["bytes_up"] > 0 < status["bytes_down"]
    assert 0 <= status["accuracy"] <= 1
    text = command("status", *where).stdout
    assert "of 100,000" in text
    assert "all clients" in text
    assert re.search(r"accuracy [0-9.]+ %, loss", text)
    assert CLIENTS[1] in text
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        metrics = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if not line.startswith("#"))
    assert float(metrics["scalarfl_rounds_total"]) >= 21
    assert float(metrics["scalarfl_clients_present"]) == 2
    assert float(metrics['scalarfl_bytes_total{direction="up"}']) >= status["bytes_up"]
    made.until(lambda: "took part in" in made.log(CLIENTS[0]), 60)
    lines = [json.loads(line) for line in made.log(CLIENTS[0]).splitlines()]
    told = next(line for line in lines if "took_part" in line)
    assert (told["rounds"], told["took_part"] > 0, told["up"] > 0) == (40, True, True)
    assert not any("eof_received" in made.log(name) for name in ("server", *CLIENTS[:2])), made.log("server")
    lines = [json.loads(line) for line in made.log("server").splitlines()]
    assert {"client": CLIENTS[0], "rounds": 0}.items() <= next(
        line for line in lines if line.get("client") == CLIENTS[0]
    ).items()


def test_nobody_answers() -> None:
    done = command("status", "digits", "--nats", f"nats://127.0.0.1:{free_port()}", "--once")
    assert done.returncode == 2
    assert "no answer" in done.stderr
    assert "RUN: missing" in command("status").stderr


def test_logs_for_machines() -> None:
    record = logging.LogRecord("x", logging.WARNING, "", 0, "%(client)s is late", ({"client": "a"},), None)
    line = json.loads(JsonLines().format(record))
    assert (line["level"], line["message"], line["client"]) == ("warning", "a is late", "a")


@needs_broker
def test_a_crowd_loses_no_round_and_bytes_do_not_depend_on_the_model() -> None:
    from benchmarks.network import crowd

    many = crowd(200, 20, 60)
    assert (many["rounds"], many["lost_replies"], many["rejected"], many["digests"]) == (60, 0, 0, 1)
    assert many["server_bytes_at_the_end"] < 1.1 * many["server_bytes_at_a_quarter"]
    small, large = crowd(3, 3, 60, 8), crowd(3, 3, 60, 600)
    assert large["dimension"] > 50 * small["dimension"]
    assert large["serialized"] == small["serialized"]
    for way in ("wire_up_a_client_round", "wire_down_a_client_round"):
        assert small[way] < 250
        assert large[way] < 250
        assert large[way] == pytest.approx(small[way], rel=0.1)


@needs_broker
def test_a_client_that_fails_does_not_hold_up_the_others() -> None:
    from benchmarks.network import crowd

    found = crowd(3, 3, 20, failing=True)
    assert (found["rounds"], found["lost_replies"], found["rejected"], found["digests"]) == (20, 20, 20, 1)
