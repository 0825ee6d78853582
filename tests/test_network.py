"""Real processes and a real broker on loopback: the simulation's digest, and one digest after everything was killed."""

import asyncio
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from scalarfl import InputError, Ledger, ScalarflError, recipe as recipes, run
from scalarfl.messages import RoundReply, encode, pack
from scalarfl.network import kit
from scalarfl.network.names import Names, check_address, check_client, client_of

pytest.importorskip("nats")

RECIPE = """
[model]
name = "mlp"
hidden = [64]

[task]
name = "digits"

[federation]
clients = 4
sampled = 2
rounds = 40
batch_size = 64

[method]
name = "hiso"
lr = 1e-2
perturbations = 3

[evaluation]
every = 20
by = "clients"
"""
CLIENTS = [f"client-{index:04d}" for index in range(4)]
BROKER = shutil.which("nats-server", path=sysconfig.get_path("scripts")) or shutil.which("nats-server")
pytestmark = pytest.mark.skipif(BROKER is None, reason="needs nats-server (the extra network)")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Federation:
    """The processes of one test, all of them ended with it."""

    def __init__(self, folder: Path, text: str = RECIPE, secure: bool = False) -> None:
        self.folder = folder
        self.port = free_port()
        self.kits = folder / "kits" if secure else None
        if self.kits is not None:
            kit.make(self.kits, "trial", CLIENTS, port=self.port)
        self.recipe = folder / "recipe.toml"
        self.recipe.write_text(text)
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.broker()

    def broker(self) -> None:
        assert BROKER is not None
        store = str(self.folder / "store")
        if self.kits is not None:
            command = [BROKER, "--config", str(self.kits / "broker" / kit.CONFIGURATION)]
            self.start("broker", command, self.kits / "broker")
            self.until(self.listening)
            return
        command = [BROKER, "--addr", "127.0.0.1", "--port", str(self.port), "--jetstream", "--store_dir", store]
        self.start("broker", command)
        self.until(self.listening)

    def listening(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def server(self, *options: str) -> None:
        self.scalarfl("server", "server", str(self.recipe), "--out", str(self.folder / "server"), *options)

    def client(self, name: str, *options: str) -> None:
        self.scalarfl(name, "client", str(self.recipe), *(() if self.kits else ("--name", name)), *options)

    def scalarfl(self, name: str, *arguments: str) -> None:
        where = ["--nats", f"nats://127.0.0.1:{self.port}"] if self.kits is None else ["--kit", str(self.kits / name)]
        self.start(name, [sys.executable, "-m", "scalarfl", *arguments, *where])

    def start(self, name: str, command: list[str], folder: Path | None = None) -> None:
        log = (self.folder / f"{name}.log").open("a")
        self.processes[name] = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
            cwd=folder,
        )  # fmt: skip
        log.close()

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()

    def result(self, name: str, timeout: float = 120) -> dict[str, object]:
        out, _ = self.processes[name].communicate(timeout=timeout)
        assert self.processes[name].returncode == 0, self.log(name)
        found = json.loads(out.splitlines()[-1])
        assert isinstance(found, dict)
        return found

    def rounds(self) -> int:
        path = self.folder / "server" / "ledger.sqlite"
        try:
            with Ledger.open(path) as ledger:
                return ledger.rounds
        except ScalarflError:  # not there yet, or just being made
            return 0

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def until(self, true: Callable[[], bool], timeout: float = 120) -> None:
        ends = time.monotonic() + timeout
        while not true():
            assert time.monotonic() < ends, {name: self.log(name)[-800:] for name in self.processes}
            time.sleep(0.05)

    def close(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Callable[..., Federation]]:
    made: list[Federation] = []

    def make(text: str = RECIPE, secure: bool = False) -> Federation:
        made.append(Federation(tmp_path, text, secure))
        return made[-1]

    yield make
    for one in made:
        one.close()


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


def test_everything_is_killed_once_and_a_client_joins_late(
    federation: Callable[..., Federation], tmp_path: Path
) -> None:
    text = RECIPE.replace("rounds = 40", "rounds = 500").replace("perturbations = 3", "perturbations = 40")
    made = federation(text.replace("every = 20", "every = 200"))
    options = ("--minimum", "2", "--deadline", "3")
    made.server(*options)
    for name in CLIENTS[:3]:
        made.client(name)
    made.until(lambda: made.rounds() >= 5)

    made.kill(CLIENTS[0])
    made.client(CLIENTS[0])
    made.client(CLIENTS[3])  # joins late
    reached = made.rounds()
    made.kill("server")
    made.server(*options)
    made.until(lambda: made.rounds() > reached + 5)
    made.kill("broker")
    time.sleep(1)
    made.broker()
    reached = made.rounds()
    made.until(lambda: made.rounds() > reached + 5)
    made.until(lambda: "welcome" in made.log(CLIENTS[3]))
    made.kill("server")
    made.server(*options)

    head = made.result("server", 200)["ledger_head"]
    ends = [made.result(name) for name in CLIENTS]
    assert len({str(end["digest"]) for end in ends}) == 1
    with Ledger.open(tmp_path / "server" / "ledger.sqlite") as ledger:  # opening checks the chain
        assert (ledger.rounds, ledger.head.hex()) == (500, head)
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
    made.server("--minimum", "2", "--deadline", "2")
    for name in CLIENTS[:2]:
        made.client(name)
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
        assert tasks.pending_msgs == 0
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
    assert "dropped 3145728 bytes from 'client-0002'" in made.log("server")


def test_kits(tmp_path: Path) -> None:
    kit.make(tmp_path / "kits", "trial", ["alpha", "beta"])
    assert sorted(path.name for path in (tmp_path / "kits").iterdir()) == [
        "alpha",
        "authority",
        "beta",
        "broker",
        "server",
    ]
    for name in ("alpha", "beta", "server"):
        folder = tmp_path / "kits" / name
        assert (folder / "key.pem").stat().st_mode & 0o077 == 0
        assert "scalarfl " in (folder / "START.txt").read_text()
    assert kit.read(tmp_path / "kits" / "alpha", "client").name == "alpha"
    with pytest.raises(InputError, match="it is a client's kit, and a server is being started"):
        kit.read(tmp_path / "kits" / "alpha", "server")
    with pytest.raises(InputError, match="no kit can be read"):
        kit.read(tmp_path, "server")
    with pytest.raises(InputError, match="there is something already"):
        kit.make(tmp_path / "kits", "trial", ["alpha"])
    for clients in ([], ["a", "a"], ["a.b"]):
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
