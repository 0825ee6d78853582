"""Every transport keeps the contract of ``scalarfl.testing.transports``, and so does the one on the page."""

import asyncio
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from federation import BROKER, free_port
from scalarfl.ledger.update import Update
from scalarfl.protocol.client import Client
from scalarfl.protocol.cohort import Cohort
from scalarfl.protocol.party import Party
from scalarfl.simulation import replay
from scalarfl.testing import transports
from scalarfl.testing.transports import Clients, Federate, Respondent

PAGE = Path(__file__).parent.parent / "docs" / "transports.md"


class Direct:
    """A call is a message's way there and back."""

    def __init__(self, clients: Clients) -> None:
        self.clients = clients
        self.replies: list[tuple[str, bytes]] = []

    def present(self) -> list[str]:
        return sorted(self.clients)

    def send(self, messages: Mapping[str, bytes]) -> None:
        found = [(name, self.clients[name](message)) for name, message in messages.items()]
        self.replies += [(name, reply) for name, reply in found if reply]

    def receive(self, _seconds: float) -> list[tuple[str, bytes]]:
        found, self.replies = self.replies, []
        return found

    def publish(self, update: Update) -> None:
        pass


def directly(federate: Federate, clients: Clients) -> None:
    federate(Direct(clients)).run()


def simulated(federate: Federate, clients: Clients) -> None:
    probe = next(iter(clients.values())).probe()
    loop = federate(Cohort({name: client.party(probe) for name, client in clients.items()}, probe))
    replay(probe.replica, loop.server.ledger)
    loop.run()


TestDirect = transports.contract(directly)
TestSimulation = transports.contract(simulated, shared=True)


class Resident:
    """A party of the suite's, as a site knows it: the client as it is now."""

    keeper, rounds = None, 0

    def __init__(self, respond: Respondent) -> None:
        self.respond = respond
        self.name = respond.name

    @property
    def client(self) -> Client:
        return self.respond.alive.client


class Later:
    """Stands for a transport that needs the loop to be made."""

    hub: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.hub, name)


async def sites(federate: Federate, clients: Clients, address: str) -> None:
    from scalarfl.transports.nats.client import NatsClient
    from scalarfl.transports.nats.names import Names
    from scalarfl.transports.nats.server import NatsServer
    from scalarfl.transports.nats.status import Monitor

    later, names = Later(), Names("trial")
    loop = federate(later)
    later.hub = hub = NatsServer(loop.server, names, loop.policy)
    hub.loop, hub.monitor = loop, Monitor(loop, names)
    running = [
        asyncio.create_task(NatsClient(cast(Party, Resident(one)), names).run(address)) for one in clients.values()
    ]
    try:
        async with asyncio.timeout(300):
            await hub.run(address)
            await asyncio.gather(*running)
    finally:
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def over_nats(federate: Federate, clients: Clients) -> None:
    assert BROKER is not None
    port = free_port()
    process = subprocess.Popen([BROKER, "--addr", "127.0.0.1", "--port", str(port)], stderr=subprocess.DEVNULL)
    try:
        asyncio.run(sites(federate, clients, f"nats://127.0.0.1:{port}"))
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(BROKER is None, reason="needs nats-server (the extra network)")
class TestNats(transports.contract(over_nats, exact=False)):  # type: ignore[misc]
    """Whose clients fetch records before they say hello, which is counted."""


def over_flower(federate: Federate, clients: Clients) -> None:
    from flwr.app import Message

    from scalarfl.transports.flower.envelope import content, packed, welcome
    from scalarfl.transports.flower.grid import GridTransport
    from test_flower import OwnGrid

    nodes: dict[int, Any] = dict(enumerate(clients.values(), 100))

    class Nodes(OwnGrid):
        def _push(self, message: Message) -> str:
            self.sent += 1
            identifier = message.metadata.__dict__["_message_id"] = str(self.sent)
            respond = nodes[message.metadata.dst_node_id]
            if welcome(message):
                respond(welcome(message))
            if reply := respond(content(message)):
                self._held[identifier] = [Message(packed(reply), reply_to=message)]
            return identifier

    federate(GridTransport(Nodes(nodes), 60.0, 1.0)).run()


class TestFlower(transports.contract(over_flower)):  # type: ignore[misc]
    """Flower's Grid, in this process."""

    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("flwr")
        from flwr.supercore.task_identity import TaskIdentity

        from scalarfl.transports.flower import grid

        monkeypatch.setattr(grid, "PAUSE", 0.01)
        for what in ("_run_id", "_node_id", "_task_id"):  # Flower's processes know who they are
            monkeypatch.setattr(TaskIdentity, what, 1)


def test_the_transport_on_the_page_keeps_the_contract(tmp_path: Path) -> None:
    files = re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", PAGE.read_text(), re.S)
    assert [name for name, _ in files] == ["pipes.py", "test_pipes.py"]
    assert len(files[0][1].splitlines()) <= 60
    for name, text in files:
        (tmp_path / name).write_text(text)
    chosen = "Threads or (Processes and crashes)"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "15 passed" in done.stdout
