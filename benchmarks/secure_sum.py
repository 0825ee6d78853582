"""What a secure sum costs beside the computation: `python -m benchmarks.secure_sum`.

100 clients, of whom 10 are lost in each of the three legs, through the package's server, clients and messages, but
without a wire. Losses of a batch are made up, so that nothing is computed but the protocol. The clock is the processor
time of this one process, so other processes do not count. What the plain protocol costs, measured alike, is taken off.
Keys are agreed on when two clients first meet; that is measured apart. The results go to
benchmarks/results/secure_sum.json.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scalarfl import Ledger, Probe, Replica, make_method
from scalarfl.ledger.codec import claims
from scalarfl.ledger.header import Header
from scalarfl.ledger.update import Update
from scalarfl.model.probe import Question
from scalarfl.privacy.secure_sum import KeyPair
from scalarfl.protocol.callbacks import together
from scalarfl.protocol.messages import Counted, RoundTask, Shared
from scalarfl.protocol.party import Party
from scalarfl.protocol.rounds import Policy, RoundLoop
from scalarfl.protocol.secure_client import make_client
from scalarfl.protocol.secure_server import make_server
from scalarfl.testing.samples import cross_entropy, network, shards

RESULTS = Path(__file__).parent / "results" / "secure_sum.json"
CLIENTS, LOST, ROUNDS = 100, 10, 6
DIRECTIONS = (5, 1000)


class MadeUp(Probe):
    """Answers at once."""

    def measure(self, queries: list[Question]) -> list[list[float]]:  # type: ignore[override]
        """Random losses."""
        return [np.random.default_rng().random(1 + len(query.perturbations)).tolist() for query in queries]


class Calls:
    """Carries messages by calls; ``lost`` clients have none of one leg's. Notes the processor time of each leg."""

    def __init__(self, parties: Mapping[str, Party], lost: Mapping[Any, list[str]]) -> None:
        self.parties = parties
        self.lost = lost
        self.now = 0.0
        self.bytes = {"up": 0, "down": 0}
        self.waiting: list[tuple[str, bytes]] = []

    def present(self) -> list[str]:
        """All."""
        return sorted(self.parties)

    def send(self, messages: Mapping[str, bytes]) -> None:
        """Ask."""
        for name, message in messages.items():
            if not any(claims(message, kind) and name in gone for kind, gone in self.lost.items()):
                self.waiting.append((name, self.parties[name].respond(message)))

    def receive(self, seconds: float) -> list[tuple[str, bytes]]:
        """Answer; the time that is waited for the lost passes at once."""
        self.now += 0.0 if self.waiting else seconds
        found, self.waiting = [(name, reply) for name, reply in self.waiting if reply], []
        return found

    def publish(self, update: Update) -> None:
        """Nothing."""


def federation(perturbations: int, secure: bool) -> tuple[RoundLoop, Ledger]:
    """Of clients that share a replica, as in a simulation, but whose messages are encoded and decoded."""
    replica = Replica(network(), make_method("decomfl"))
    head = Header(
        base=replica.base, layout=replica.layout.digest(), dimension=replica.layout.dimension, method="decomfl",
        settings={}, mu=1e-3, perturbations=perturbations, local_steps=1, directions="shared", aggregation="mean",
        secure_sum=3 if secure else 0, secure_bound=1e6 if secure else 0.0, seed=0,
    )  # fmt: skip
    replica.begin(head.digest())
    names, data = [f"client-{index:04d}" for index in range(CLIENTS)], shards(2)[0]
    probe = MadeUp(replica, cross_entropy)
    parties = {name: Party(make_client(name, data, probe, head, 1)) for name in names}
    for party in parties.values():
        party.client.batch = lambda *_: None  # type: ignore[method-assign]
    lost = {RoundTask: names[:LOST], Shared: names[LOST : 2 * LOST], Counted: names[2 * LOST : 3 * LOST]}
    transport = Calls(parties, lost)
    transport.publish = lambda update: replica.apply([update])  # type: ignore[method-assign]
    ledger = Ledger.create(None, head)
    server = make_server(ledger, lr=1e-9, sampled=CLIENTS)
    return RoundLoop(server, transport, Policy(ROUNDS, CLIENTS, deadline=1.0), clock=lambda: transport.now), ledger


def measured(perturbations: int, secure: bool) -> tuple[list[float], dict[str, float]]:
    """Processor seconds of every round, and bytes of a client-round."""
    loop, ledger = federation(perturbations, secure)
    times = [time.process_time()]
    loop.callbacks = together(lambda _: times.append(time.process_time()))
    loop.run()
    counted = {len(audit.participants) for _, audit in ledger.audits("round")}
    assert counted == {CLIENTS - (2 if secure else 1) * LOST}, counted
    assert all(update.slots for update in ledger.updates())
    moved = {way: getattr(loop, f"bytes_{way}") / CLIENTS / ROUNDS for way in ("up", "down")}
    return [after - before for before, after in pairwise(times)], moved


def best(work: Callable[[], object], times: int = 5) -> float:
    """Processor seconds, the least."""
    found = []
    for _ in range(times):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


def main() -> None:
    """Measure, print and keep."""
    torch.set_num_threads(1)
    rows = []
    for perturbations in DIRECTIONS:
        plain, without = measured(perturbations, secure=False)
        secure, moved = measured(perturbations, secure=True)
        row = {
            "clients": CLIENTS,
            "lost_in_each_leg": LOST,
            "perturbations": perturbations,
            "plain_ms_a_client_round": 1e3 * statistics.median(plain[1:]) / CLIENTS,
            "secure_ms_a_client_round": 1e3 * statistics.median(secure[1:]) / CLIENTS,
            "first_round_ms_a_client": 1e3 * secure[0] / CLIENTS,
            "bytes_up": moved["up"],
            "bytes_down": moved["down"],
            "plain_bytes_up": without["up"],
            "plain_bytes_down": without["down"],
        }
        row["cost_ms_a_client_round"] = row["secure_ms_a_client_round"] - row["plain_ms_a_client_round"]
        print({key: round(value, 3) for key, value in row.items()})
        rows.append(row)
    keys = [KeyPair() for _ in range(CLIENTS)]
    own = best(lambda: [KeyPair().pair(key.public) for key in keys[1:]])
    kept = {"x25519_anew_every_round_ms": 1e3 * own, "cores": os.cpu_count(), "rows": rows}
    print(f"X25519 with {CLIENTS - 1} others anew, as the paper does every round: {1e3 * own:.1f} ms")
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
