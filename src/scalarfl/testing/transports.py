"""What every transport must keep, as tests for pytest to run on your own.

Two lines in a test file are enough::

    from scalarfl.testing import transports
    TestMine = transports.contract(run)

where ``run(federate, clients)`` connects every client to a transport of yours, has its messages answered by its
function, and runs ``federate(transport)``, which is a ``RoundLoop``, to the end. docs/transports.md shows one.

Whatever goes wrong on the way, the ledger must hold the simulation's updates in the end, and give its digest.
"""

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from inspect import isawaitable
from typing import Any, Literal

import pytest
from torch import nn

from scalarfl.ledger.codec import claims, decode, encode
from scalarfl.ledger.header import Header
from scalarfl.ledger.store import Ledger
from scalarfl.ledger.update import Update
from scalarfl.methods import make_method
from scalarfl.model.probe import Probe
from scalarfl.model.replica import Replica
from scalarfl.protocol.callbacks import Progress
from scalarfl.protocol.client import Client
from scalarfl.protocol.config import FederationConfig
from scalarfl.protocol.messages import RoundReply, RoundTask, failure
from scalarfl.protocol.own_directions import Directions
from scalarfl.protocol.party import Party
from scalarfl.protocol.rounds import Policy, RoundLoop, Transport
from scalarfl.protocol.schedule import DIVERGED_AFTER
from scalarfl.protocol.server import Server
from scalarfl.simulation import Run, replay, simulate
from scalarfl.tasks.objective import Score
from scalarfl.testing.samples import cross_entropy, losses, network, shards

Federate = Callable[[Transport], RoundLoop]
"""Makes the loop that is to run over a transport."""
Clients = Mapping[str, "Respondent"]
"""Each client's function, by name: of a message the answer to it, which is empty where none is to be sent."""

NAMES = ("alpha", "beta", "gamma")
ROUNDS = 12
METHOD = make_method("hiso")
SETTINGS: dict[str, Any] = {"lr": 1e-2, "sampled": 2, "perturbations": 3, "batch_size": 8}
EVERY = 4
"""Rounds between two measurements by the clients."""
SOON, DEADLINE = 0.1, 1.5
"""Seconds after which a client is asked once more, and for which a round waits, where something is to go wrong."""
AT = 3
"""The round of which something goes wrong, at a client."""

BETWEEN = ("lost", "late", "doubled", "stale")
"""What may happen to messages on the way."""
AT_A_CLIENT = ("forged", "malformed", "failing", "slow", "killed")
"""What may happen at a client: replies in another's name, of no use, or none; too late; all that it knew forgotten."""


class Respondent:
    """A client's function. It can be pickled, and loads its model and data at its first message."""

    def __init__(self, name: str, header: Header, trouble: str = "") -> None:
        self.name = name
        self.header = header
        self.trouble = trouble
        self._alive: Party | None = None
        self._spared = name != NAMES[0]  # one client has the trouble, and once

    def __call__(self, message: bytes) -> bytes:
        """The answer to a message of the server's."""
        due = claims(message, RoundTask) and decode(message, RoundTask).round >= AT
        if self._spared or not due or self.trouble not in AT_A_CLIENT:
            return self.alive.respond(message)
        self._spared = True
        if self.trouble == "killed":
            self._alive = None
            return b""
        if self.trouble == "malformed":
            return b"\x93junk"
        if self.trouble == "failing":
            return failure(self.name, message, OSError())
        reply = self.alive.respond(message)
        if self.trouble == "slow":
            time.sleep(1.3 * DEADLINE)
        if self.trouble == "forged":
            sent = decode(reply, RoundReply)
            return encode(RoundReply(NAMES[1], sent.round, sent.examples, sent.scalars))
        return reply

    @property
    def alive(self) -> Party:
        """The client as it is now: made anew once it was killed."""
        if self._alive is None:
            self._alive = self.party(self.probe())
        return self._alive

    def probe(self) -> Probe:
        """A replica of the base model, and the loss."""
        replica = _replica(self.header.directions)
        replica.begin(self.header.digest())
        loss = losses if self.header.directions == "per-example" else cross_entropy
        return Probe(replica, _nan if self.trouble == "diverged" else loss)

    def party(self, probe: Probe) -> Party:
        """The client on this replica."""
        data = shards(len(NAMES))[NAMES.index(self.name)]
        return Party(Client(self.name, data, probe, self.header, SETTINGS["batch_size"], _score))


class Between:
    """A transport with trouble between it and the loop: it loses, delays, doubles or repeats replies and tasks."""

    def __init__(self, transport: Transport, trouble: str) -> None:
        self.transport = transport
        self.trouble = trouble
        self._count = 0
        self._held: list[tuple[float, tuple[str, bytes]]] = []  # when to deliver it
        self._earlier: dict[str, bytes] = {}

    def present(self) -> Sequence[str] | Awaitable[Sequence[str]]:
        """As the transport says."""
        return self.transport.present()

    def send(self, messages: Mapping[str, bytes]) -> object:
        """Send most messages."""
        kept = {name: message for name, message in messages.items() if not (self._due("lost") and message[:1] != b"?")}
        return self.transport.send(kept)

    def receive(self, seconds: float) -> Iterable[tuple[str, bytes]] | Awaitable[Iterable[tuple[str, bytes]]]:
        """Receive, and make trouble."""
        found = self.transport.receive(min(seconds, SOON) if self._held else seconds)
        return self._waited(found) if isawaitable(found) else self._troubled(found)

    def publish(self, update: Update) -> object:
        """As the transport does."""
        return self.transport.publish(update)

    def _due(self, trouble: str) -> bool:
        """Whether this is the trouble, and due: with every fourth message."""
        self._count += self.trouble == trouble
        return self.trouble == trouble and self._count % 4 == 0

    async def _waited(self, found: Awaitable[Iterable[tuple[str, bytes]]]) -> list[tuple[str, bytes]]:
        return self._troubled(await found)

    def _troubled(self, found: Iterable[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        now, result = time.monotonic(), []
        for client, message in found:
            if not claims(message, RoundReply):
                result.append((client, message))
            elif self._due("late"):
                self._held.append((now + 2 * SOON, (client, message)))
            elif not self._due("lost"):
                if self._due("stale") and client in self._earlier:
                    result.append((client, self._earlier[client]))
                result += [(client, message)] * (2 if self._due("doubled") else 1)
                self._earlier[client] = message
        result += [reply for due, reply in self._held if due <= now]
        self._held = [held for held in self._held if held[0] > now]
        return result


class Crash(Exception):
    """The server's process dies."""


def contract(run: Callable[[Federate, Clients], None], *, shared: bool = False, exact: bool = True) -> type:
    """A class of tests for pytest; bind it to a name that begins with ``Test``.

    shared: all clients work on one replica, which ``publish`` brings forward: a simulation's transport. exact: the
    ledger's bytes and participants, too, are the simulation's; False for a transport with messages of its own, which
    are counted.
    """

    def ran(ledger: Ledger, trouble: str, policy: Policy, crash: bool = False) -> RoundLoop:
        """One process of the server: the loop that it ran to the end, or until it crashed."""
        made: list[RoundLoop] = []

        def die(progress: Progress) -> None:
            if crash and progress.round == AT:
                raise Crash

        def federate(transport: Transport) -> RoundLoop:
            lr = None if ledger.header.lr == "auto" else SETTINGS["lr"]
            server = Server(ledger, lr=lr, sampled=SETTINGS["sampled"], shared=shared)
            made.append(RoundLoop(server, Between(transport, trouble), policy, die, measuring=NAMES))
            return made[0]

        with pytest.raises(Crash) if crash else nullcontext():
            run(federate, {name: Respondent(name, ledger.header, trouble) for name in NAMES})
        return made[0]

    class Contract:
        @pytest.mark.parametrize("directions", ["shared", "per-example"])
        def test_it_ends_as_the_simulation_ends(self, directions: Directions) -> None:
            """To the last byte of the ledger, with directions of the cohort's or of every example's."""
            expected, ledger = _simulated(directions=directions), _ledger(directions=directions)
            loop = ran(ledger, "", _patient())
            _same(ledger, expected)
            assert ledger.evaluations() == expected.evaluations
            assert not exact or ledger.head.hex() == expected.head
            assert not loop.retried

        def test_a_learning_rate_that_finds_itself(self) -> None:
            """Clients measure along the latest move, though evaluations have given them its record before."""
            expected, ledger = _simulated(lr="auto"), _ledger("auto")
            ran(ledger, "", _patient())
            _same(ledger, expected)
            assert not exact or ledger.head.hex() == expected.head

        def test_a_run_without_a_finite_loss_ends(self) -> None:
            """After ten rounds, without waiting for a deadline, and with the simulation's ledger."""
            expected, ledger = _simulated(_nan), _ledger()
            loop = ran(ledger, "diverged", _patient())
            assert (loop.diverged, expected.diverged, ledger.rounds) == (True, True, DIVERGED_AFTER)
            _same(ledger, expected)
            assert not exact or ledger.head.hex() == expected.head

        @pytest.mark.parametrize("trouble", BETWEEN if shared else BETWEEN + AT_A_CLIENT)
        def test_trouble_changes_no_update(self, trouble: str) -> None:
            """Messages lost, late, doubled, repeated; clients that forge, fail, lag, and lose all they knew."""
            expected, ledger = _simulated(), _ledger()
            ran(ledger, trouble, _quick())
            _same(ledger, expected)
            assert not exact or ledger.head.hex() != expected.head, "the trouble left no trace: there was none"

        def test_a_server_that_crashes_goes_on(self) -> None:
            """With clients that begin from nothing."""
            ledger = _ledger()
            ran(ledger, "", _patient(), crash=True)
            assert ledger.rounds == AT
            ran(ledger, "", _patient())
            _same(ledger, _simulated())

    return Contract


def _patient() -> Policy:
    return Policy(ROUNDS, minimum=len(NAMES), quorum=len(NAMES), deadline=120.0, evaluate_every=EVERY)


def _quick() -> Policy:
    return Policy(ROUNDS, len(NAMES), len(NAMES), deadline=DEADLINE, again=SOON, evaluate_every=EVERY)


def _config(directions: Directions) -> FederationConfig:
    own = directions == "per-example"
    method = make_method("decomfl") if own else METHOD  # whose vector leaves no direction of rank one
    keys = {key: SETTINGS[key] for key in ("perturbations", "batch_size")}
    return FederationConfig(method=method, directions=directions, **keys)


def _replica(directions: Directions) -> Replica:
    config = _config(directions)
    return Replica(network(), config.method, noise=config.generator)


def _ledger(lr: float | Literal["auto"] = SETTINGS["lr"], directions: Directions = "shared") -> Ledger:
    config, replica = _config(directions), _replica(directions)
    return Ledger.create(None, config.header(replica.base, replica.layout.digest(), replica.layout.dimension, lr))


def _simulated(
    loss: Any = None, lr: float | Literal["auto"] = SETTINGS["lr"], directions: Directions = "shared"
) -> Run:
    """The run that every transport must end with."""
    data = dict(zip(NAMES, shards(len(NAMES)), strict=True))
    measured = dict.fromkeys(NAMES, _score)
    more = SETTINGS | {"lr": lr, "rounds": ROUNDS, "evaluate_every": EVERY, "progress": False}

    def ledger(header: Header) -> Ledger:  # the head of a server's ledger covers no settings of a simulation
        return Ledger.create(None, header)

    loss = loss or (losses if directions == "per-example" else cross_entropy)
    return simulate(network(), data, loss, _config(directions), evaluate=measured, ledger=ledger, **more)


def _same(ledger: Ledger, expected: Run) -> None:
    """The ledger has the run's updates, gives its digest, and its clients measured that very model at the end."""
    replica = _replica(ledger.header.directions)
    replica.begin(ledger.header.digest())
    replay(replica, ledger)
    assert (replica.digest(), ledger.trail) == (expected.digest, expected.replica.trail)
    last = ledger.evaluations()[-1]
    assert (last.round, last.digest.hex()) == (expected.rounds, expected.digest)


def _score(model: nn.Module) -> Score:
    return Score(sum(float(parameter.detach().abs().sum()) for parameter in model.parameters()), None, 20)


def _nan(_model: nn.Module, _batch: object) -> float:
    return float("nan")
