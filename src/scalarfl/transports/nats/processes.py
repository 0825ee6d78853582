"""The server and a client as processes: from a recipe and an address to the end of the federation."""

import asyncio
import contextlib
import logging
import shlex
import signal
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalarfl.experiment import spec as specs
from scalarfl.protocol.config import Slopes
from scalarfl.transports.nats.names import Names, check_address, check_client

if TYPE_CHECKING:
    from scalarfl.protocol.secure_client import Identity
    from scalarfl.transports.nats.status import Status

log = logging.getLogger("scalarfl.network")

SNAPSHOT, BUDGET = "snapshot.safetensors", "privacy.sqlite"


def serve(
    source: Path,
    overrides: Sequence[str],
    address: str,
    out: Path,
    *,
    run: str | None = None,
    minimum: int | None = None,
    quorum: int = 1,
    deadline: float = 60.0,
    connection: Mapping[str, Any] | None = None,
    metrics: int | None = None,
    watch: "Callable[[Status], None] | None" = None,
) -> dict[str, Any]:
    """Run the server until all rounds of the recipe are recorded, and write result.json. After a restart it resumes.

    Returns what result.json holds; where the clients did not measure the final model and there is none, the rounds,
    the ledger's head, the bytes of all clients together and whether the run diverged.

    source: a recipe, or a spec that `scalarfl spec` made of one. run: the federation's name on the broker; by default
    the recipe's. minimum: clients that must be present before a round begins; the recipe's cohort where None.
    connection: more arguments for the connection, such as a kit's. metrics, watch: see ``NatsServer``. Raises
    InputError where the folder holds another federation's ledger.
    """
    from scalarfl.protocol.rounds import Policy
    from scalarfl.protocol.secure_server import make_server
    from scalarfl.transports.nats.outcome import conclude
    from scalarfl.transports.nats.server import NatsServer
    from scalarfl.transports.nats.status import score
    from scalarfl.units import size

    check_address(address)
    announced = specs.load(source, overrides)
    names = Names(run or announced.name)
    with announced.opened(out) as ledger:
        server = make_server(
            ledger, lr=announced.run.first_lr, sampled=announced.sampled, aggregator=announced.aggregator
        )
        policy = Policy(
            announced.run.rounds,
            minimum=announced.sampled if minimum is None else minimum,
            quorum=quorum,
            deadline=deadline,
            evaluate_every=announced.evaluate_every,
            patience=announced.run.patience,
        )
        log.info(
            "server of '%(run)s' at %(address)s: %(method)s, %(sampled)d of %(clients)d clients a round, %(done)d of "
            "%(rounds)d rounds on record in %(out)s",
            {"run": names.run, "address": address, "method": ledger.header.method, "out": str(out)}
            | {"sampled": announced.sampled, "clients": announced.clients}
            | {"done": ledger.rounds, "rounds": policy.rounds},
        )
        hub = NatsServer(server, names, policy, watch, metrics, announced.metric)
        _finish(hub.run(address, **(connection or {})))
        status, head = hub.status(), ledger.head.hex()
    result = conclude(out, announced.metric, status.uptime)
    log.info(
        f"done: %(rounds)d rounds, %(score)s; per client {size(status.bytes_up / max(1, status.known))} up, "
        f"{size(status.bytes_down / max(1, status.known))} down; head of the ledger %(ledger_head)s",
        {"rounds": status.round, "score": score(status), "ledger_head": head},
    )
    if result is not None:
        log.info("digest of the model %(digest)s", {"digest": result["digest"]})
    folder = shlex.quote(str(out))
    log.info("next: scalarfl report %(folder)s, or scalarfl export %(folder)s DIR for the model", {"folder": folder})
    return result or {
        "rounds": status.round,
        "ledger_head": head,
        "bytes_up": status.bytes_up,
        "bytes_down": status.bytes_down,
        "diverged": hub.loop.diverged,
    }


def take_part(
    recipe: Path,
    overrides: Sequence[str],
    address: str,
    name: str,
    data: Path | None,
    *,
    run: str,
    out: Path | None = None,
    connection: Mapping[str, Any] | None = None,
    slopes: Slopes | None = None,
    identity: "Identity | None" = None,
) -> dict[str, Any]:
    """Run a client until the federation is done; returns its name, rounds, digest, bytes and how often it took part.

    data: the client's own file; else its share of the task, where ``name`` is one of the simulation's clients. out:
    folder for its snapshot, from which it goes on when started again; none is written where None. slopes: how it finds
    its scalars, where that is not what the recipe says. identity: a kit's, for secure sums.
    Raises InputError for a recipe or data that cannot be, ProtocolError where the server refuses this client.
    """
    from scalarfl.experiment import recipe as recipes
    from scalarfl.experiment.build import build_client
    from scalarfl.model.snapshot_manager import SnapshotManager
    from scalarfl.protocol.party import Party
    from scalarfl.transports.nats.client import NatsClient
    from scalarfl.transports.nats.progress import Progress

    check_address(address)
    check_client(name)
    loaded = recipes.load(recipe, overrides)
    client = build_client(loaded, name, data, slopes, identity, None if out is None else out / BUDGET)
    replica = client.probe.replica
    keeper = None if out is None else SnapshotManager(replica, out / SNAPSHOT)
    told = {"client": name, "run": run, "address": address, "examples": len(client.data)}
    trained = f"{replica.layout.dimension:,} trained parameters"
    log.info(f"client '%(client)s' of '%(run)s' at %(address)s: %(examples)d examples, {trained}", told)
    site = NatsClient(Party(client, keeper), Names(run), Progress(loaded.federation.rounds))
    try:
        _finish(site.run(address, **(connection or {})))
    finally:  # also when told to stop; whatever was being applied has been by then
        if keeper is not None:
            keeper.consider(ending=True)
    private = {} if client.budget is None else {"epsilon": client.budget.epsilon, "releases": client.budget.releases}
    if site.ended:
        log.warning("the federation ended early: %(reason)s", {"reason": site.ended})
    found = site.progress.result(replica.position, replica.digest()) | {"ended": site.ended or None} | private
    return {"client": name, **found}


def _finish(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end; SIGTERM stops as Ctrl-C does, with connections closed and what was begun in a thread finished."""

    async def stoppable() -> None:
        me = asyncio.current_task()
        assert me is not None
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):  # not in the main thread
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, me.cancel)
        await work

    try:
        asyncio.run(stoppable())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
