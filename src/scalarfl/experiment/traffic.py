"""A recipe's bytes, worked out before it is run."""

import math
from collections.abc import Iterable

import numpy as np

from scalarfl.experiment.recipe import Recipe
from scalarfl.ledger.accounting import traffic
from scalarfl.ledger.codec import decode, encode, pack
from scalarfl.ledger.header import Header
from scalarfl.ledger.store import Ledger
from scalarfl.ledger.update import CurvedUpdate, Update
from scalarfl.protocol.messages import PROTOCOL, Hello, Measure, Measured, RoundReply, RoundTask, Welcome
from scalarfl.protocol.secure import legs
from scalarfl.protocol.server import Server

MANY = 2000
"""Clients up to which every one is made up; for more, bytes are expected values."""
SIMULATED = 2000
"""Rounds whose messages are really made; a longer run's bytes are extrapolated from them."""


def planned_bytes(recipe: Recipe, dimension: int) -> tuple[float, float]:
    """Serialized bytes (up, down) of the whole run, all clients together: the real server, fed with made-up scalars."""
    federation = recipe.federation
    made = recipe.config.header("0" * 64, "0" * 64, dimension, recipe.method.lr)
    up, down = _plain(recipe, made)
    if made.secure_sum:
        asked = federation.rounds * federation.sampled
        more_up, more_down = legs(made, f"client-{0:04d}", federation.sampled)
        up, down = up + asked * more_up, down + asked * more_down
    return up, down


def _plain(recipe: Recipe, made: Header) -> tuple[float, float]:
    """The same as if every client sent its scalars in the clear."""
    federation, method = recipe.federation, recipe.method
    scalars = pack(np.ones(math.prod(made.shape) + made.extra, dtype=np.float32))
    if federation.clients > MANY:
        return _expected(recipe, made, scalars)
    names = [f"client-{index:04d}" for index in range(federation.clients)]
    rounds = min(federation.rounds, SIMULATED)
    with Ledger.create(None, made) as ledger:
        server = Server(
            ledger, lr=method.first_lr, sampled=federation.sampled, shared=True, aggregator=recipe.config.aggregation
        )
        for name in names:
            server.admit(encode(Hello(PROTOCOL, name, **made.contract(), position=0, trail=made.digest()[:8])))
        for round_ in range(rounds + 1):
            if recipe.evaluation.by == "clients" and (round_ % recipe.evaluation.every == 0 or round_ == rounds):
                server.close_evaluation(
                    (name, encode(Measured(name, round_, 100, 1.0, 0.5, b"\0" * 32)))
                    for name in server.open_evaluation(names)
                )
            if round_ < rounds:
                server.close_round(_replies(server.open_round(names), scalars))
        moved = traffic(ledger)
    up, down = (
        sum(serialized for (way, _), (_, serialized) in moved.items() if way == direction)
        for direction in ("up", "down")
    )
    longer = federation.rounds / rounds if rounds else 0.0
    return up * longer, down * longer


def _replies(tasks: dict[str, bytes], scalars: bytes) -> Iterable[tuple[str, bytes]]:
    for name, message in tasks.items():
        yield name, encode(RoundReply(name, decode(message, RoundTask).round, 1000, scalars))


def _expected(recipe: Recipe, made: Header, scalars: bytes) -> tuple[float, float]:
    """The same for more clients than are worth making up one by one: message sizes times expected numbers.

    A client takes part in a round with probability p = m / M. When it is asked at round r, it lacks (1 - (1 - p)^r) / p
    rounds on average. An evaluation by the clients brings all of them up to date.
    """
    federation, evaluation = recipe.federation, recipe.evaluation
    many, asked, rounds = federation.clients, federation.sampled, federation.rounds
    name, middle = f"client-{many:04d}", rounds // 2
    slots = list(range(asked)) if made.directions != "shared" else [0]
    kind = Update if made.kinds == 1 else CurvedUpdate
    seed, lr, packed = 2**63, recipe.method.first_lr or 1e-3, scalars[: 4 * math.prod(made.shape)] * len(slots)
    record = len(encode(kind(middle, seed, lr, made.local_steps, slots, packed)))
    hello = encode(Hello(PROTOCOL, name, **made.contract(), position=0, trail=made.digest()[:8]))
    task, reply = encode(RoundTask(middle, seed, lr, 0, [])), encode(RoundReply(name, middle, 1000, scalars))
    measure, measured = encode(Measure(middle, [])), encode(Measured(name, middle, 100, 1.0, 0.5, b"\0" * 32))
    p = asked / many

    def lacking(round_: int) -> float:
        """Rounds that a client lacks so many rounds after all were up to date."""
        return float(round_) if p == 1 and round_ < 2 else -math.expm1(round_ * math.log1p(-p)) / p if p < 1 else 1.0

    def sent(length: int) -> float:
        """Records sent to cohorts in so many rounds after all were up to date."""
        return asked / p * (length - lacking(length)) if length else 0.0

    by_clients = evaluation.by == "clients"
    window = min(evaluation.every, rounds) if by_clients else rounds
    windows = rounds / window if window else 0.0
    records = windows * (sent(window) + (many * lacking(window) if by_clients else 0.0))
    times = many * (1 + windows) if by_clients else 0.0
    up = many * len(hello) + rounds * asked * len(reply) + times * len(measured)
    welcome = len(encode(Welcome(PROTOCOL, 0)))
    down = many * welcome + rounds * asked * len(task) + times * len(measure) + records * record
    return up, down
