"""Robust rules under attack, 3, 6 or 9 false clients of 32: ``python -m benchmarks.robust [SEED ...]``

Logistic regression on the digits (650 parameters), all 32 clients in every round, batches of 32, 10 directions, 60
rounds. Every rule, DeComFL and HiSo, equal and skewed clients (Dirichlet 0.1), 9 attackers with every attack, and 3 and
6 with the three that hurt most. Each method's learning
rate is the best of a grid for the mean without an attack, on a seed that is not reported, and is used for all rules.

``benchmarks/results/robust.json`` holds all runs; those it has are not repeated. ``--page`` prints the tables of
docs/robust.md. Simulation, server, rules and attacks are the package's; only the losses of a cohort are computed
together, which is the same arithmetic on a larger batch.
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn import functional

from scalarfl import simulate, simulation
from scalarfl.model import zoo
from scalarfl.model.probe import LossQuery, Probe
from scalarfl.protocol.aggregation import Mean, Reply, Scalars, State
from scalarfl.protocol.attacks import ATTACKS
from scalarfl.tasks import Shard, dirichlet, iid, load_task

RESULTS = Path(__file__).parent / "results" / "robust.json"
CLIENTS, ROUNDS = 32, 60
METHODS, PARTITIONS = ("decomfl", "hiso"), ("iid", "dirichlet")
RULES = ("mean", "clip", "median", "trimmed-mean", "nnm-trim")
SEEDS, TUNING = (0, 1), 1000
HARDEST = ("boost", "alie-against", "label-flip")
"""Attacks that are tried with 3 and 6 attackers too."""
LRS = (0.05, 0.1, 0.2, 0.4, 0.8)


class Together(Probe):
    """Answers a cohort's queries, which are all about the same points, with one forward pass a point."""

    @torch.no_grad()
    def losses(self, questions: Sequence[LossQuery]) -> list[list[float]]:
        """A loss at x and one in every direction, for each client."""
        here = questions[0]
        inputs = torch.cat([question.batch[0] for question in questions])
        labels = torch.cat([question.batch[1] for question in questions])
        sizes = torch.tensor([len(question.batch[1]) for question in questions])
        owner = torch.repeat_interleave(torch.arange(len(questions)), sizes)
        found = []
        for perturbation in (None, *here.perturbations):
            weights = self.replica.tensors
            if perturbation is not None:
                self._displace(weights, here, perturbation)
                weights = self._perturbed
            with self.overlay.whole(weights):
                each = functional.cross_entropy(self.replica.model(inputs), labels, reduction="none")
            found.append(torch.zeros(len(questions)).index_add(0, owner, each) / sizes)
        self.evaluations += len(found) * len(questions)
        losses: list[list[float]] = torch.stack(found, dim=1).tolist()
        return losses


class Watched(Mean):
    """The mean, which notes how much clients differ: their standard deviation over the length of their mean."""

    name: ClassVar[str] = "watched-mean"
    noise: ClassVar[list[float]] = []

    def aggregate(self, state: State, replies: Sequence[Reply]) -> tuple[Scalars, State]:
        """The mean."""
        vectors = np.stack([reply.scalars for reply in replies]).astype(np.float64)
        self.noise.append(float(np.sqrt(vectors.var(axis=0, ddof=1).sum()) / np.linalg.norm(vectors.mean(axis=0))))
        return super().aggregate(state, replies)


def run(method: str, partition: str, rule: Any, lr: float, seed: int, attackers: int, attack: str | None) -> float:
    """Test accuracy after the last round."""
    task = load_task("digits", None)
    train, seeded = task.train, (CLIENTS, seed)
    parts = iid(len(train), *seeded) if partition == "iid" else dirichlet(train.classes(), CLIENTS, 0.1, seed)
    done = simulate(
        zoo.build("logistic", type(task).inputs, type(task).classes, seed, None),
        {f"client-{index:04d}": Shard(train, part) for index, part in enumerate(parts)},
        task.loss,
        method=method,
        aggregation=rule,
        lr=lr,
        seed=seed,
        attackers=attackers,
        attack=attack,
        rounds=ROUNDS,
        perturbations=10,
        batch_size=32,
        evaluate=lambda model: task.score(model, task.test),
        evaluate_every=ROUNDS,
        progress=False,
    )
    assert done.accuracy is not None
    return done.accuracy


def cells(seeds: Sequence[int]) -> Iterator[tuple[str, str, str, int, int, str]]:
    """(method, partition, rule, seed, attackers, attack): the worst case first, so that little time shows much."""
    for seed, attackers in product(seeds, (9, 6, 3)):
        for attack, partition, method, rule in product(attacks(attackers), PARTITIONS, METHODS, RULES):
            yield method, partition, rule, seed, attackers, attack


def attacks(attackers: int) -> tuple[str, ...]:
    """Those that are run with so many attackers."""
    others = [name for name in ATTACKS.own if name not in HARDEST]
    return ("none", *HARDEST, *(others if attackers == 9 else ()))


def main(seeds: Sequence[int]) -> None:
    """Do the runs that are missing."""
    vars(simulation)["Probe"] = Together
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"tuning": {}, "noise": {}, "runs": {}}
    for method, partition in product(METHODS, PARTITIONS):
        for lr in LRS:
            key = f"{method} {partition} {lr}"
            if key not in found["tuning"]:
                Watched.noise.clear()
                found["tuning"][key] = run(method, partition, Watched(), lr, TUNING, 0, None)
                found["noise"][key] = float(np.median(Watched.noise))
                print(key, found["tuning"][key], found["noise"][key], flush=True)
                _keep(found)
    for method, partition, rule, seed, attackers, attack in cells(seeds):
        plain = attack == "none"
        if plain and rule in ("mean", "clip", "median"):
            attackers = 0  # which changes nothing in these
        key = f"{method} {partition} {rule} {seed} {attackers} {attack}"
        if key not in found["runs"]:
            began = time.process_time()
            lr = best(found, method, partition)
            accuracy = run(method, partition, rule, lr, seed, attackers, None if plain else attack)
            found["runs"][key] = accuracy
            print(f"{key}: {accuracy:.3f} ({time.process_time() - began:.1f} s)", flush=True)
            _keep(found)


def best(found: dict[str, Any], method: str, partition: str) -> float:
    """The learning rate with the highest accuracy without an attack."""
    return max(LRS, key=lambda lr: found["tuning"][f"{method} {partition} {lr}"])


def accuracy(found: dict[str, Any], method: str, partition: str, rule: str, attackers: int, attack: str) -> float:
    """The mean over the seeds that were run; NaN where none was."""
    if attack == "none" and rule in ("mean", "clip", "median"):
        attackers = 0
    keys = (f"{method} {partition} {rule} {seed} {attackers} {attack}" for seed in range(100))
    values = [found["runs"][key] for key in keys if key in found["runs"]]
    return fmean(values) if values else float("nan")


def page() -> None:
    """The tables of docs/robust.md, from the results."""
    found = json.loads(RESULTS.read_text())
    for method, partition in product(METHODS, PARTITIONS):
        lr = best(found, method, partition)
        noise = found["noise"][f"{method} {partition} {lr}"]
        title = f"{method}, {'iid' if partition == 'iid' else 'Dirichlet 0.1'}"
        print(f"\n**{title}** (lr {lr:g}, clients differ by {noise:.1f} times the length of their mean)\n")
        print("| rule | no attack | worst at 3 of 32 | at 6 | at 9 | by |\n|---|---:|---:|---:|---:|---|")
        for rule in RULES:
            worst = {
                f: min((accuracy(found, method, partition, rule, f, attack), attack) for attack in attacks(f)[1:])
                for f in (3, 6, 9)
            }
            plain = accuracy(found, method, partition, rule, 9, "none")
            figures = " | ".join(f"{100 * worst[f][0]:.1f}" for f in (3, 6, 9))
            print(f"| {rule} | {100 * plain:.1f} | {figures} | {worst[9][1]} |")
    print("\n| attack (9 of 32, hiso, iid) | " + " | ".join(RULES) + " |\n|---|" + "---:|" * len(RULES))
    for attack in ("none", *ATTACKS.own):
        figures = " | ".join(f"{100 * accuracy(found, 'hiso', 'iid', rule, 9, attack):.1f}" for rule in RULES)
        print(f"| {attack} | {figures} |")


def _keep(found: dict[str, Any]) -> None:
    beside = RESULTS.with_suffix(".tmp")
    beside.write_text(json.dumps(found, indent=1) + "\n")
    beside.replace(RESULTS)


if __name__ == "__main__":
    if sys.argv[1:] == ["--page"]:
        page()
    else:
        torch.set_num_threads(1)
        main([int(seed) for seed in sys.argv[1:]] or SEEDS)
