"""The server and a client as processes: from a recipe and an address to the end of the federation."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalarfl.errors import InputError, LedgerError
from scalarfl.ledger import Header, Ledger
from scalarfl.network.announce import announce
from scalarfl.network.names import Names, check_address, check_client

if TYPE_CHECKING:
    from scalarfl.network.status import Status

RECIPE, LEDGER, SNAPSHOT = "recipe.toml", "ledger.sqlite", "snapshot.safetensors"


def serve(
    recipe: Path,
    overrides: Sequence[str],
    address: str,
    out: Path,
    *,
    run: str,
    minimum: int | None = None,
    quorum: int = 1,
    deadline: float = 60.0,
    connection: Mapping[str, Any] | None = None,
    metrics: int | None = None,
    watch: "Callable[[Status], None] | None" = None,
) -> str:
    """Run the server until the recipe's rounds are on record; returns the ledger's head. Started again, it goes on.

    minimum: clients that must be present before a round begins; the recipe's cohort where None. connection: more
    arguments for the connection, such as a kit's. metrics, watch: see ``Hub``. Raises InputError where the folder
    holds another federation's ledger.
    """
    from scalarfl.network.hub import Hub
    from scalarfl.server import Server

    check_address(address)
    announced = announce(recipe, overrides)
    out.mkdir(parents=True, exist_ok=True)
    path = out / LEDGER
    with _opened(path, announced.header) as ledger:
        (out / RECIPE).write_text(announced.recipe)  # with the ledger, all that `scalarfl export` needs
        server = Server(ledger, lr=announced.lr, sampled=announced.sampled)
        hub = Hub(
            server,
            Names(run),
            announced.rounds,
            announced.sampled if minimum is None else minimum,
            quorum,
            deadline,
            announced.evaluate_every,
            watch,
            metrics,
        )
        _finish(hub.run(address, **(connection or {})))
        return ledger.head.hex()


def _opened(path: Path, header: Header) -> Ledger:
    if not path.exists():
        return Ledger.create(path, header)
    ledger = Ledger.open(path, write=True)
    if ledger.header != header:
        ledger.close()
        raise LedgerError(f"{path}: this ledger is another federation's; choose another --out.")
    return ledger


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
) -> dict[str, Any]:
    """Run a client until the federation is done; returns its name, rounds and digest.

    data: the client's own file; else its share of the task, where ``name`` is one of the simulation's clients. out:
    folder for its snapshot, from which it goes on when started again; none is written where None.
    Raises InputError for a recipe or data that cannot be, ProtocolError where the server refuses this client.
    """
    from scalarfl import recipe as recipes
    from scalarfl.client import Client
    from scalarfl.network.keeper import Keeper
    from scalarfl.network.site import Site
    from scalarfl.prepare import header, prepare
    from scalarfl.probe import Probe
    from scalarfl.replica import Replica

    check_address(address)
    check_client(name)
    loaded = recipes.load(recipe, overrides)
    if data is not None:
        task = loaded.task.model_copy(update={"name": "own", "file": str(data.resolve()), "data_dir": None})
        alone = loaded.federation.model_copy(update={"clients": 1, "sampled": 1, "partition": "iid"})
        prepared = prepare(loaded.model_copy(update={"task": task, "federation": alone}))
        (own,) = prepared.clients.values()
    else:
        prepared = prepare(loaded)
        if name not in prepared.clients:
            raise InputError(
                f"--name {name}: without --data it should be one of {', '.join(sorted(prepared.clients)[:3])}, …"
            )
        own = prepared.clients[name]
    replica = Replica(prepared.model, loaded.method.scalar_only, prepared.trainable)
    made = header(loaded, replica.base, replica.layout.digest(), replica.layout.dimension)
    replica.begin(made.digest())
    share = prepared.test if data is not None else prepared.shares.get(name)
    measure = None
    if loaded.evaluation.by == "clients" and share is not None:

        def measure(model: Any) -> Any:
            return prepared.task.score(model, share)

    probe = Probe(replica, prepared.task.loss)
    client = Client(name, own, probe, made, loaded.federation.batch_size, measure)
    keeper = None if out is None else Keeper(replica, out / SNAPSHOT)
    try:
        _finish(Site(client, Names(run), keeper).run(address, **(connection or {})))
    finally:  # also when told to stop; whatever was being applied has been by then
        if keeper is not None:
            keeper.consider(ending=True)
    return {"client": name, "rounds": replica.position, "digest": replica.digest()}


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
