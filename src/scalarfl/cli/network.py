"""The commands of a federation over a network."""

import contextlib
import json
import logging
import math
import os
import shutil
import sysconfig
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from scalarfl.cli import members
from scalarfl.errors import InputError, install_hint

if TYPE_CHECKING:
    from scalarfl.transports.nats.kit import Kit
    from scalarfl.transports.nats.status import Status

Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file, the same for every party.")]
Setting = Annotated[
    list[str] | None, typer.Option("-s", "--set", metavar="SECTION.KEY=VALUE", help="Override a recipe's key.")
]
LOOPBACK = "nats://127.0.0.1:4222"
Address = Annotated[
    str | None,
    typer.Option(
        "--nats",
        metavar="ADDRESS",
        help=f"The broker: nats://HOST:PORT, tls://…, or wss://… behind a proxy; default: the kit's, or {LOOPBACK}.",
    ),
]
RunName = Annotated[
    str | None, typer.Option("--run", help="The federation's name on the broker; default: the recipe's.")
]
KitFolder = Annotated[
    Path | None,
    typer.Option("--kit", help="A party's kit, from `scalarfl network init`: address, run, name, identity."),
]


class Way(StrEnum):
    """How a client finds its scalars."""

    difference = "difference"
    exact = "exact"
    training = "training"


class LogFormat(StrEnum):
    """How the log on standard error is written."""

    text = "text"
    json = "json"


Log = Annotated[LogFormat, typer.Option(help="Log format on standard error: text or JSON lines.")]
GONE = 60.0
"""Seconds without an answer after which a server that was there counts as gone."""


def spec(
    recipe: Recipe,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write, federation.json say.")],
    setting: Setting = None,
) -> None:
    """Write all that a federation's server needs to a file: it then runs without torch and the model."""
    from scalarfl.experiment.spec import make

    made = make(recipe, setting or [])
    made.write(file)
    print(f"{file}: {made.header.method}, {made.clients} clients, {made.header.dimension:,} trained parameters")
    print(f"Start the server with `scalarfl server {file} --out DIR`.")


def server(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A TOML file, or a .json file that `scalarfl spec` made of it.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the ledger; a restarted server resumes there.")],
    address: Address = None,
    kit: KitFolder = None,
    run: RunName = None,
    setting: Setting = None,
    minimum: Annotated[
        int | None, typer.Option(min=1, help="Clients to wait for before a round; default: the cohort's size.")
    ] = None,
    quorum: Annotated[int, typer.Option(min=1, help="Replies that a round needs by its deadline.")] = 1,
    deadline: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for a round's replies.")] = 60.0,
    metrics: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port for Prometheus, on localhost only.")
    ] = None,
    log: Log = LogFormat.text,
) -> None:
    """Run a federation's server. It keeps the ledger; the model is loaded once, to compute its digest."""
    from scalarfl.transports.nats.logs import configure
    from scalarfl.transports.nats.processes import serve

    configure(log.value)
    if not math.isfinite(deadline):
        raise InputError(f"--deadline {deadline}: expected a finite number of seconds.")
    _, where, named, connection = _reached(kit, "server", address, run)
    result = serve(
        recipe,
        setting or [],
        where,
        out,
        run=named,
        connection=connection,
        minimum=minimum,
        quorum=quorum,
        deadline=deadline,
        metrics=metrics,
        watch=_said,
    )
    print(json.dumps(result))


def client(
    recipe: Recipe,
    name: Annotated[str | None, typer.Option(help="This client's name; default: the kit's.")] = None,
    address: Address = None,
    kit: KitFolder = None,
    data: Annotated[Path | None, typer.Option(help="This client's data file; default: its share of the task.")] = None,
    slopes: Annotated[
        Way | None, typer.Option(help="How this client measures its slopes; default: as in the recipe.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for its snapshot; default: runs/NAME.")] = None,
    run: RunName = None,
    setting: Setting = None,
    log: Log = LogFormat.text,
) -> None:
    """Run one client. Its data stay here; it sends only a few scalars."""
    from scalarfl.transports.nats.identity import KitIdentity
    from scalarfl.transports.nats.logs import configure
    from scalarfl.transports.nats.processes import take_part

    configure(log.value)
    own, where, named, connection = _reached(kit, "client", address, run)
    known = name if own is None else own.name
    if known is None:
        raise InputError("--name: missing. Name this client, or give its --kit.")
    found = take_part(
        recipe,
        setting or [],
        where,
        known,
        data,
        out=Path("runs") / known if out is None else out,
        run=named or recipe.stem,
        connection=connection,
        slopes=None if slopes is None else slopes.value,
        identity=None if kit is None or own is None else KitIdentity(kit, own),
    )
    print(json.dumps(found))


network = typer.Typer(
    help="Create a federation's start-up kits, change who takes part, or start a broker.", no_args_is_help=True
)


@network.command("init")
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New folder for the kits.")],
    clients: Annotated[str, typer.Option(help="The clients' names, separated by commas.")],
    run: Annotated[str, typer.Option("--run", help="Name of the federation on the broker.")] = "federation",
    host: Annotated[str, typer.Option(help="Host name or address at which parties reach the broker.")] = "127.0.0.1",
    listen: Annotated[
        str | None, typer.Option(help="Address on which the broker listens, such as 0.0.0.0; default: --host.")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The broker's port.")] = 4222,
    websocket: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="A second port, 443 say, for sites whose proxy lets only HTTPS out."),
    ] = None,
) -> None:
    """Write certificates, the broker's configuration and one folder per party, each with its start command."""
    from scalarfl.transports.nats.kit import make

    make(folder, run, [name.strip() for name in clients.split(",") if name.strip()], host, port, listen, websocket)
    print(f"{folder}: kits for the broker, the server and the clients. START.txt in each has its start command.")
    print(f"Keep {folder / 'authority'} safe: anyone with its key can admit others.")


@network.command("start")
def start(
    kit: Annotated[
        Path | None, typer.Option("--kit", help="The broker's kit; without it, no TLS and localhost only.")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on the loopback interface.")] = 4222,
) -> None:
    """Run a NATS broker with a kit's configuration, or for a trial on localhost."""
    from scalarfl.transports.nats.kit import CONFIGURATION

    program = shutil.which("nats-server", path=sysconfig.get_path("scripts")) or shutil.which("nats-server")
    if kit is not None and not (kit / CONFIGURATION).is_file():
        raise InputError(f"--kit {kit}: not a broker's kit. `scalarfl network init` writes one.")
    if program is None:
        raise InputError(f"nats-server is not installed: {install_hint('network')}, or use your own NATS server.")
    command = [program, "--addr", "127.0.0.1", "--port", str(port)]
    if kit is not None:
        command = [program, "--config", CONFIGURATION]
        os.chdir(kit)
    os.execv(program, command)  # this process becomes the broker


def status(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="The federation's name; default: the kit's.")
    ] = None,
    address: Address = None,
    kit: KitFolder = None,
    once: Annotated[
        bool, typer.Option("--once", help="Print once and exit; otherwise update until Ctrl-C or the end.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON and exit.")] = False,
) -> None:
    """Show a federation's progress: rounds, speed, clients, lag, score with its curve, bytes, time left.

    On a terminal it is shown live, elsewhere once.
    """
    import asyncio

    from rich.console import Console, Group
    from rich.live import Live

    from scalarfl.transports.nats.names import Names
    from scalarfl.transports.nats.status import ask, shown

    _, where, name, connection = _reached(kit, "observer", address, run)
    if name is None:
        raise InputError("RUN: missing. Give the federation's name (the server's --run; by default its recipe's name).")
    names = Names(name)
    found = asyncio.run(ask(where, names, connection))
    console = Console()
    if as_json:
        print(msgspec.json.encode(found).decode())
    elif once or not console.is_terminal:
        console.print(shown(found))
    else:
        with Live(shown(found), console=console, auto_refresh=False) as live, contextlib.suppress(KeyboardInterrupt):
            heard = time.monotonic()
            live.refresh()
            while found.round < found.rounds:
                time.sleep(1)
                try:
                    found = asyncio.run(ask(where, names, connection))
                    heard = time.monotonic()
                except InputError as error:  # it may be restarting
                    if time.monotonic() - heard > GONE:
                        raise
                    live.update(Group(shown(found), f"no answer now: {error}"), refresh=True)
                else:
                    live.update(shown(found), refresh=True)


def _reached(
    kit: Path | None, role: str, address: str | None, run: str | None
) -> "tuple[Kit | None, str, str | None, dict[str, Any]]":
    """(kit, address, run, arguments for the connection): a kit's, or else what the options say."""
    from scalarfl.transports.nats.kit import read

    if kit is None:
        return None, address or LOOPBACK, run, {}
    own = read(kit, role)
    return own, address or own.address, own.run, own.connection(kit)


def _said(now: "Status") -> None:
    from scalarfl.transports.nats.status import score
    from scalarfl.units import duration

    text = "round %(round)d of %(rounds)d, %(present)d present"
    if now.evaluated is not None:
        text += ", %(score)s"
    if now.seconds_left is not None:
        text += f", {duration(now.seconds_left)} left"
    fields: dict[str, object]
    fields = {"round": now.round, "rounds": now.rounds, "present": len(now.present), "seconds_left": now.seconds_left}
    fields |= {} if now.evaluated is None else {"score": score(now)}
    logging.getLogger("scalarfl.network").info(text, fields)


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command()(spec)
    app.command()(server)
    app.command()(client)
    app.command()(status)
    members.register(network)
    app.add_typer(network, name="network")
