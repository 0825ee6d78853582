"""Start-up kits: an authority, a broker's configuration with TLS and tight permissions, one identity for every party.

A party's identity follows from its certificate (`verify_and_map`): the broker lets a client publish its own handshakes,
heartbeats, requests and replies, and read its own tasks and answers and the end of the run. The observer may ask for
the status and for records. Only the server may write to other parties, and the broker stores nothing.
"""

import contextlib
import ipaddress
import json
import re
import ssl
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from scalarfl.errors import InputError, shown
from scalarfl.transports.nats.authority import Authority
from scalarfl.transports.nats.names import OBSERVER, SERVER, Names, check_address, check_client

KIT, CONFIGURATION, MEMBERS, PID = "kit.json", "broker.conf", "members.json", "broker.pid"
FORMAT = 2
HTTPS = 443
MAX_PAYLOAD = 1 << 20
"""Bytes of the longest message that the broker takes: NATS's own default."""


@dataclass(frozen=True)
class Kit:
    """One party's settings beside its certificate: the content of ``kit.json``."""

    run: str
    name: str
    address: str
    role: str
    """"server", "client" or "observer"."""
    format: int = 1
    """The kit's format; other formats have other subjects and permissions."""

    def connection(self, folder: Path) -> dict[str, Any]:
        """The arguments with which this party connects: TLS both ways. Raises InputError for a damaged certificate."""
        try:
            context = ssl.create_default_context(cafile=str(folder / "authority.pem"))
            context.load_cert_chain(folder / "certificate.pem", folder / "key.pem", password="")
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(
                f"--kit {folder}: authority.pem, certificate.pem and key.pem do not make an identity: {reason}. "
                "Copy the kit again."
            ) from None
        return {"tls": context}


def read(folder: Path, role: str) -> Kit:
    """The kit in a folder. Raises InputError if there is none, or one for another role."""
    path = folder / KIT
    try:
        kit = msgspec.json.decode(path.read_bytes(), type=Kit)
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not such JSON, or a path with NUL
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"--kit {folder}: {KIT} cannot be read: {reason}.") from None
    if kit.format != FORMAT:
        raise InputError(f"--kit {folder}: made by another version; make new kits with `scalarfl network init`.")
    if kit.role != role:
        raise InputError(f"--kit {folder}: a kit for the role {kit.role}, not {role}.")
    try:
        Names(kit.run)
        if role == "client":
            check_client(kit.name)
        check_address(kit.address)
    except InputError as error:
        raise InputError(f"--kit {folder}: {KIT} is damaged: {error}") from None
    return kit


def make(
    folder: Path,
    run: str,
    clients: Sequence[str],
    host: str = "127.0.0.1",
    port: int = 4222,
    listen: str | None = None,
    websocket: int | None = None,
) -> None:
    """Write the kits: ``broker``, ``server``, ``observer`` (who may ask for the status) and one folder a client.

    ``authority`` stays with the person who made them. The folder appears whole or not at all.

    host: the name or address by which the others reach the broker. listen: the address of the broker's own machine to
    listen on, ``host`` where None. websocket: a second port, for connections by ``wss://``; none where None.

    Raises InputError if the folder exists or a name or port is invalid.
    """
    Names(run)  # raises
    for client in clients:
        check_client(client)
        check_identity(f"{client}@{run}")
    check_identity(f"{OBSERVER}@{run}")
    if not clients or len({client.lower() for client in clients}) < len(clients):
        raise InputError(
            f"--clients {shown(','.join(clients))}: accepted are one or more names that differ in more than case."
        )
    if websocket == port:
        raise InputError(f"--websocket {websocket}: --port has the same; choose another for one of them.")
    host, listen = check_host("--host", host), check_host("--listen", host if listen is None else listen)
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder}: already exists; choose another folder.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".kits-") as beside:
            made = Path(beside) / "kits"
            made.mkdir()
            _write(made, clients, Members(run, host, listen, port, {}, {}, websocket))
            if folder.exists():  # and is empty
                folder.rmdir()
            made.replace(folder)
    except (OSError, ValueError) as error:  # a path with NUL is a ValueError
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{folder}: the kits cannot be written: {reason}.") from None


def _write(folder: Path, clients: Sequence[str], nobody: "Members") -> None:
    authority = Authority.made(nobody.run)
    (folder / "authority").mkdir(parents=True)
    _secret(folder / "authority" / "key.pem", authority.private())
    (folder / "authority" / "authority.pem").write_bytes(authority.certificate())
    issue_broker(folder, authority, nobody.host)
    first = dict.fromkeys((SERVER, OBSERVER, *clients), 1)
    members = msgspec.structs.replace(nobody, certificates={name: [1] for name in first}, latest=first)
    for name in first:
        issue(folder, authority, members, name)
    keep(folder, members)
    _note(folder / "broker", f"nats-server --config {CONFIGURATION}")


class Members(msgspec.Struct, frozen=True):
    """Who may take part: the content of ``authority/members.json``, from which the broker's configuration is made."""

    run: str
    host: str
    listen: str
    port: int
    certificates: dict[str, list[int]]
    """By party: the numbers of the certificates that the broker takes, the newest last."""
    latest: dict[str, int]
    """By party: the highest number that one of its certificates has or had."""
    websocket: int | None = None
    """The broker's port for connections by ``wss://``."""

    @property
    def wss(self) -> str | None:
        """The broker's address for parties behind a proxy."""
        port = "" if self.websocket == HTTPS else f":{self.websocket}"
        return None if self.websocket is None else f"wss://{_bracketed(self.host)}{port}"


def issue(folder: Path, authority: Authority, members: Members, name: str) -> None:
    """Write a party's kit, with its newest certificate, in place of the one that it has."""
    role = name if name in (SERVER, OBSERVER) else "client"
    command = {
        SERVER: "scalarfl server RECIPE --kit . --out run",
        OBSERVER: "scalarfl status --kit .",
    }.get(role, "scalarfl client RECIPE --kit . --data FILE")
    _party(folder / name, authority, identity(name, members.run, members.latest[name]), None)
    kit = Kit(members.run, name, f"tls://{_bracketed(members.host)}:{members.port}", role, FORMAT)
    (folder / name / KIT).write_text(json.dumps(asdict(kit), indent=1) + "\n")
    _note(folder / name, command, members.wss)


def issue_broker(folder: Path, authority: Authority, host: str) -> None:
    """Write the broker's certificate."""
    _party(folder / "broker", authority, "broker", host)


def keep(folder: Path, members: Members) -> None:
    """Write who takes part, and the broker's configuration; each file whole or not at all."""
    names = Names(members.run)
    for path, content in (
        (folder / "authority" / MEMBERS, msgspec.json.format(msgspec.json.encode(members)).decode() + "\n"),
        (folder / "broker" / CONFIGURATION, configuration(names, members)),
    ):
        beside = path.with_suffix(".new")
        beside.write_text(content)
        beside.replace(path)


def identity(name: str, run: str, number: int) -> str:
    """What a party's certificate says: its name, the certificate's number from the second on, and the run."""
    return f"{name}@{run}" if number == 1 else f"{name}.{number}@{run}"


def configuration(names: Names, members: Members) -> str:
    """The broker's configuration file, in NATS's own language; paths are relative to its folder."""
    run, listen = names.run, _bracketed(members.listen)
    asked = [names.hello("*"), names.here("*"), names.reply("*"), names.records("*"), names.status("*")]
    rights = {
        SERVER: ([names.task("*"), names.done, names.inbox("*") + ".>"], asked),
        OBSERVER: ([names.status(OBSERVER), names.records(OBSERVER)], [names.inbox(OBSERVER) + ".>"]),
    }
    users = []
    for name, numbers in members.certificates.items():
        publish, subscribe = rights.get(name) or (
            [names.hello(name), names.here(name), names.reply(name), names.records(name)],
            [names.task(name), names.done, names.inbox(name) + ".>"],
        )
        users += [_user(identity(name, run, number), publish, subscribe) for number in numbers]
    return f"""# The broker of the federation '{run}': nats-server --config {CONFIGURATION}
listen: "{listen}:{members.port}"
max_payload: {MAX_PAYLOAD}
pid_file: "{PID}"
{_TLS}
{_WEBSOCKET % (f"{listen}:{members.websocket}", _TLS) if members.websocket else ""}authorization {{
  users: [
{"".join(users)}  ]
}}
"""


_TLS = """tls {
  cert_file: "certificate.pem"
  key_file: "key.pem"
  ca_file: "authority.pem"
  verify_and_map: true
}"""
_WEBSOCKET = """websocket {
listen: "%s"
%s
}
"""


def _user(name: str, publish: Sequence[str], subscribe: Sequence[str]) -> str:
    allowed = f"publish: {json.dumps(list(publish))}, subscribe: {json.dumps(list(subscribe))}"
    return f'    {{ user: "{name}", permissions: {{ {allowed} }} }}\n'


def _party(folder: Path, authority: Authority, identity: str, host: str | None) -> None:
    folder.mkdir(exist_ok=True)
    certificate, key = authority.issue(identity, host)
    (folder / "certificate.pem").write_bytes(certificate)
    _secret(folder / "key.pem", key)
    (folder / "authority.pem").write_bytes(authority.certificate())


def _note(folder: Path, command: str, wss: str | None = None) -> None:
    note = f"Keep key.pem to yourself. In this folder:\n\n    {command}\n"
    if wss is not None:
        note += f"\nBehind a proxy that lets only HTTPS out, set HTTPS_PROXY and add: --nats {wss}\n"
    (folder / "START.txt").write_text(note)


def check_host(option: str, host: str) -> str:
    """The host name or IP address. Raises InputError."""
    if "%" not in host:  # a zone, which may hold anything
        with contextlib.suppress(ValueError):
            return str(ipaddress.ip_address(host.removeprefix("[").removesuffix("]")))
    if not _HOST.fullmatch(host):
        raise InputError(f"{option} {shown(host)}: accepted is a host name or an IP address.")
    return host


_HOST = re.compile(r"(?=.{1,253}$)(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")


def _bracketed(host: str) -> str:
    """The host as it stands before a port."""
    return f"[{host}]" if ":" in host else host


def check_identity(identity: str) -> None:
    """Raise InputError for an identity that no certificate can hold."""
    if len(identity) > 64:
        raise InputError(f"{shown(identity, 80)}: longer than 64 characters; choose shorter names.")


def _secret(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)
