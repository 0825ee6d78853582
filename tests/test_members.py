"""Who may take part, changed while the broker runs: certificates that stop working at once, and those that go on."""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from federation import BROKER, CLIENTS, Federation
from scalarfl import InputError
from scalarfl.transports.nats import kit, members
from scalarfl.transports.nats.names import Names
from support import command

nats = pytest.importorskip("nats")
NAMES = Names("trial")


async def connected(folder: Path, party: str) -> Any:
    """A connection with a copy of the party's kit, as its machine has it; it does not come back once it is closed."""

    async def silent(_error: Exception) -> None:
        pass

    own = kit.read(folder, "client")
    return await nats.connect(
        own.address, inbox_prefix=NAMES.inbox(party), allow_reconnect=False, connect_timeout=5, error_cb=silent,
        **own.connection(folder),
    )  # fmt: skip


@pytest.mark.skipif(BROKER is None, reason="needs nats-server (the extra network)")
def test_parties_come_and_go_while_the_broker_runs(federation: Callable[..., Federation], tmp_path: Path) -> None:
    made = federation(secure=True)
    assert made.kits is not None
    kits = made.kits
    ours, theirs, lost = CLIENTS[:3]
    copies = {name: (kits / name).rename(tmp_path / name) for name in (ours, theirs, lost)}

    async def closes(link: Any) -> None:
        ends = time.monotonic() + 20
        while not link.is_closed:
            assert time.monotonic() < ends
            await asyncio.sleep(0.02)

    async def refused(folder: Path, party: str) -> None:
        with pytest.raises((nats.errors.Error, OSError)):
            await connected(folder, party)

    async def changes() -> None:
        links = {name: await connected(copies[name], name) for name in (ours, theirs, lost)}
        done = await asyncio.to_thread(command, "network", "add", str(kits), "newcomer")
        assert "The running broker has been told" in done.stdout, done.stderr
        ends = time.monotonic() + 20
        while True:  # a signal takes a moment
            try:
                newcomer = await connected(kits / "newcomer", "newcomer")
                break
            except (nats.errors.Error, OSError):
                assert time.monotonic() < ends
                await asyncio.sleep(0.05)
        await asyncio.to_thread(members.renew, kits, theirs)
        await asyncio.to_thread(members.revoke, kits, lost)
        await asyncio.to_thread(members.remove, kits, "newcomer")
        assert members.reload(kits)
        await closes(links[lost])
        await closes(newcomer)
        await refused(copies[lost], lost)
        again = {name: await connected(kits / name, name) for name in (theirs, lost)}
        old = await connected(copies[theirs], theirs)  # valid until it is revoked
        for link in (links[ours], links[theirs], old, *again.values()):
            await link.flush()
        for link in (links[ours], links[theirs], old, *again.values()):
            await link.close()

    asyncio.run(changes())
    found = {party["name"]: party for party in json.loads(command("network", "list", str(kits), "--json").stdout)}
    assert [found[name]["certificates"] for name in (ours, theirs, lost, "newcomer")] == [[1], [1, 2], [2], []]
    assert found[theirs]["days_left"] == 824
    assert not (kits / "newcomer").exists()


def test_what_cannot_be_changed(tmp_path: Path) -> None:
    kits = tmp_path / "kits"
    kit.make(kits, "trial", ["alpha", "beta"])
    before = (kits / "broker" / kit.CONFIGURATION).read_text()
    changes: list[tuple[Callable[[], None], str]] = [
        (lambda: members.add(kits, ["Alpha"]), "has taken part already"),
        (lambda: members.add(kits, ["broker"]), "is reserved"),
        (lambda: members.add(kits, ['x"']), "accepted are"),
        (lambda: members.remove(kits, "gamma"), "no such party"),
        (lambda: members.remove(kits, "server"), "every federation has one"),
        (lambda: members.renew(kits, "broker"), "no such party"),
        (lambda: members.revoke(tmp_path, "alpha"), "not a folder that `scalarfl network init`"),
    ]
    for change, says in changes:
        with pytest.raises(InputError, match=says):
            change()
    assert (kits / "broker" / kit.CONFIGURATION).read_text() == before
    assert not members.reload(kits), "no broker runs"
    (kits / "broker" / kit.PID).write_text(str(1))  # left by an earlier broker; another process has its number now
    assert not members.reload(kits)
    members.remove(kits, "beta")
    with pytest.raises(InputError, match="has taken part already"):
        members.add(kits, ["beta"])
    members.renew(kits, "beta")  # and so it comes back, as itself
    assert members.read(kits).certificates["beta"] == [2]
    assert '"beta.2@trial"' in (kits / "broker" / kit.CONFIGURATION).read_text()
    assert '"beta@trial"' not in (kits / "broker" / kit.CONFIGURATION).read_text()
    (kits / "authority" / "key.pem").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="not an authority's key and certificate"):
        members.renew(kits, "alpha")
