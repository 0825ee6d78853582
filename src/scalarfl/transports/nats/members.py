"""Who may take part, changed while a federation runs: the broker reads its configuration again, and nobody restarts.

A party keeps its name and its rights; only its certificate's number changes. The broker takes the certificates whose
numbers its configuration lists, and closes the connections of the others as soon as it reads it again.
"""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from scalarfl.errors import InputError, nearest, shown
from scalarfl.transports.nats import kit
from scalarfl.transports.nats.authority import Authority, expires
from scalarfl.transports.nats.kit import MEMBERS, PID, Members
from scalarfl.transports.nats.names import OBSERVER, SERVER, check_client


def read(folder: Path) -> Members:
    """The members of a federation whose kits are in the folder. Raises InputError."""
    path = folder / "authority" / MEMBERS
    try:
        return msgspec.json.decode(path.read_bytes(), type=Members)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"{folder}: not a folder that `scalarfl network init` of this version wrote: {path}: {reason}."
        ) from None


def add(folder: Path, clients: Sequence[str]) -> None:
    """Make kits for new clients. Raises InputError for a name that cannot be, or that a party has or had."""
    members = read(folder)
    taken = {name.lower() for name in members.certificates}
    for client in clients:
        check_client(client)
        if client.lower() in taken:
            raise InputError(f"{client}: has taken part already; `scalarfl network renew` makes it a new kit.")
        taken.add(client.lower())
    _change(folder, members, {client: [1] for client in clients}, issued=clients)


def remove(folder: Path, name: str) -> None:
    """Refuse all certificates of a client, and delete its kit here. Its name stays taken, so that nobody else has it.

    Raises InputError for a party that is no client.
    """
    members = read(folder)
    _known(members, name)
    if name in (SERVER, OBSERVER):
        raise InputError(f"{name}: every federation has one; `renew` and `revoke` change its certificate.")
    _change(folder, members, {name: []})
    shutil.rmtree(folder / name, ignore_errors=True)


def renew(folder: Path, name: str) -> None:
    """Make a party a kit with a new certificate; the ones that it has stay valid until they expire or are revoked."""
    members = read(folder)
    numbers = _known(members, name)
    following = members.latest[name] + 1
    _change(folder, members, {name: [*numbers, following]}, issued=[name])


def revoke(folder: Path, name: str) -> None:
    """Refuse all certificates of a party from now on, and make it a kit with a new one."""
    members = read(folder)
    _known(members, name)
    following = members.latest[name] + 1
    _change(folder, members, {name: [following]}, issued=[name])


def listed(folder: Path) -> list[dict[str, object]]:
    """Every party: its name, the numbers of the certificates that the broker takes, and when its newest expires."""
    found: list[dict[str, object]] = []
    for name, numbers in read(folder).certificates.items():
        until: datetime | None = None
        with contextlib.suppress(OSError, ValueError):
            until = expires(folder / name / "certificate.pem")
        days = None if until is None else (until - datetime.now(UTC)).days
        found.append({"name": name, "certificates": numbers, "days_left": days})
    return found


def reload(folder: Path) -> bool:
    """Let the broker read its configuration again, if it runs on this machine with the kit in this folder."""
    path = folder / "broker" / PID
    try:
        pid = int(path.read_text())
        running = subprocess.run(["ps", "-p", str(pid), "-o", "comm="], capture_output=True, text=True, check=False)
        if "nats-server" not in running.stdout:  # the file is an earlier broker's
            return False
        os.kill(pid, signal.SIGHUP)
    except (OSError, ValueError, AttributeError):  # Windows has no SIGHUP
        return False
    return True


def _change(folder: Path, members: Members, certificates: dict[str, list[int]], issued: Sequence[str] = ()) -> None:
    """Write the kits of the parties that are issued one, then who takes part."""
    latest = members.latest | {name: certificates[name][-1] for name in issued}
    now = msgspec.structs.replace(members, certificates=members.certificates | certificates, latest=latest)
    authority = Authority.kept(folder, members.run)
    for name in issued:
        kit.check_identity(kit.identity(name, members.run, latest[name]))
    try:
        for name in issued:
            kit.issue(folder, authority, now, name)
        kit.keep(folder, now)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}.") from None


def _known(members: Members, name: str) -> list[int]:
    """The numbers of the party's certificates."""
    if name not in members.certificates:
        raise InputError(f"{shown(name)}: no such party; {nearest(name, list(members.certificates))}")
    return members.certificates[name]
