"""The commands that change who may take part in a federation over a network, also while it runs."""

import json
from pathlib import Path
from typing import Annotated

import typer

Kits = Annotated[Path, typer.Argument(metavar="DIR", help="The folder that `scalarfl network init` wrote.")]
Party = Annotated[str, typer.Argument(metavar="NAME", help="A party, as `scalarfl network list` shows it.")]


def add(
    folder: Kits,
    clients: Annotated[list[str], typer.Argument(metavar="NAME...", help="The new clients' names.")],
) -> None:
    """Make kits for new clients of a federation, which may be running."""
    from scalarfl.transports.nats import members

    members.add(folder, clients)
    print(f"{', '.join(clients)}: give each its folder in {folder}; START.txt has its start command.")
    _reload(folder)


def remove(folder: Kits, name: Party) -> None:
    """Shut a client out for good: the broker closes its connection and takes none of its certificates."""
    from scalarfl.transports.nats import members

    members.remove(folder, name)
    print(f"{name}: removed. What it contributed stays in the ledger.")
    _reload(folder)


def renew(folder: Kits, name: Party) -> None:
    """Make a party's kit with a new certificate; its old one stays valid until it expires or is revoked."""
    from scalarfl.transports.nats import members

    members.renew(folder, name)
    print(f"{name}: copy {folder / name} to its machine, then restart it there.")
    _reload(folder)


def revoke(folder: Kits, name: Party) -> None:
    """Refuse all certificates that a party has had, and make its kit with a new one: its key was lost or stolen."""
    from scalarfl.transports.nats import members

    members.revoke(folder, name)
    print(f"{name}: what it had is refused. Copy {folder / name} to its machine, then start it there.")
    _reload(folder)


def listed(
    folder: Kits, as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False
) -> None:
    """List the parties, the numbers of their valid certificates, and the days until their kit expires."""
    from scalarfl.transports.nats import members

    found = members.listed(folder)
    if as_json:
        print(json.dumps(found))
        return
    for party in found:
        numbers, days = party["certificates"], party["days_left"]
        state = f"certificates {', '.join(map(str, numbers))}" if isinstance(numbers, list) and numbers else "removed"
        print(f"{party['name']}: {state}" + ("" if days is None else f", {days} days left"))


def _reload(folder: Path) -> None:
    from scalarfl.transports.nats.kit import CONFIGURATION, PID
    from scalarfl.transports.nats.members import reload

    if reload(folder):
        print("The running broker has been told.")
    else:
        print(
            f"If the broker runs elsewhere: copy {folder / 'broker' / CONFIGURATION} to its folder there and run\n"
            f"    nats-server --signal reload={PID}"
        )


def register(network: typer.Typer) -> None:
    """Add the commands to `scalarfl network`."""
    for function in (add, remove, renew, revoke):
        network.command()(function)
    network.command("list")(listed)
