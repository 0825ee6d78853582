"""A federation's processes for a test: a real broker on the loopback interface, a server, clients."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

from program import Program
from scalarfl import Ledger, ScalarflError
from scalarfl.transports.nats import kit

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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def recorded(path: Path) -> int:
    """Rounds on a ledger that another process writes; 0 where it is not there yet, or just being made."""
    try:
        with Ledger.open(path) as ledger:
            return ledger.rounds
    except ScalarflError:
        return 0


class Federation:
    """The processes of one test, all of them ended with it."""

    def __init__(self, folder: Path, text: str = RECIPE, secure: bool = False, bare: bool = False) -> None:
        self.folder = folder
        self.port = free_port()
        self.reached = self.port
        """Where clients and server find the broker; a proxy's port where there is one."""
        self.websocket = free_port()
        self.kits = folder / "kits" if secure else None
        if self.kits is not None:
            kit.make(self.kits, "trial", CLIENTS, port=self.port, websocket=self.websocket)
        self.recipe = folder / "recipe.toml"
        self.recipe.write_text(text)
        self.processes: dict[str, subprocess.Popen[str] | Program] = {}
        self.constants: dict[str, object] = {}
        """Of the clients' processes; see ``Program``."""
        if not bare:
            self.broker()

    def broker(self) -> None:
        assert BROKER is not None
        if self.kits is not None:
            command = [BROKER, "--config", str(self.kits / "broker" / kit.CONFIGURATION)]
            self.start("broker", command, self.kits / "broker")
            self.until(self.listening)
            return
        command = [BROKER, "--addr", "127.0.0.1", "--port", str(self.port)]
        self.start("broker", command)
        self.until(self.listening)

    def listening(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def server(self, *options: str) -> None:
        self.scalarfl("server", "server", str(self.recipe), "--out", str(self.folder / "server"), *options)

    def client(self, name: str, *options: str) -> None:
        self.scalarfl(name, "client", str(self.recipe), *(() if self.kits else ("--name", name)),
                      "--out", str(self.folder / name), *options)  # fmt: skip

    def scalarfl(self, name: str, *arguments: str) -> None:
        where = (
            ["--nats", f"nats://127.0.0.1:{self.reached}"] if self.kits is None else ["--kit", str(self.kits / name)]
        )
        self.program(name, [*arguments, *where])

    def program(self, name: str, arguments: list[str], folder: Path | None = None) -> None:
        """A server begins as a user's does, since it does without torch and is quick; others are forked."""
        if arguments[0] == "server":
            self.start(name, [sys.executable, "-m", "scalarfl", *arguments], folder)
        else:
            log = self.folder / f"{name}.log"
            self.processes[name] = Program(*arguments, cwd=folder, error=log, constants=self.constants)

    def start(self, name: str, command: list[str], folder: Path | None = None) -> None:
        log = (self.folder / f"{name}.log").open("a")
        self.processes[name] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder)
        log.close()

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=10)

    def result(self, name: str, timeout: float = 120) -> dict[str, object]:
        out, _ = self.processes[name].communicate(timeout=timeout)
        assert self.processes[name].returncode == 0, self.log(name)
        found = json.loads(out.splitlines()[-1])
        assert isinstance(found, dict)
        return found

    def rounds(self) -> int:
        return recorded(self.folder / "server" / "ledger.sqlite")

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
