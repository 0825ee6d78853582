"""docs/generator.md is enough to write the arithmetic and the draws again: done here, from its words alone.

Nothing below takes a number from the package but the noise (whose own test is in test_docs.py) and what is compared.
"""

import hashlib
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from scalarfl import Method, Replica, make_method
from scalarfl.noise.directions import noise
from scalarfl.protocol.client import drawn
from scalarfl.protocol.sampling import cohort
from scalarfl.tasks.partition import dirichlet, iid
from support import network, updates

f = np.float32
Vector = Any  # float32; NumPy's types would make float64 of a product with a scalar


class Rule:
    """The page's "Arithmetic on top", for one tensor; float32 arrays and scalars, one rounding an operation."""

    def __init__(self, name: str, x: Vector, **own: Any) -> None:
        self.name, self.x, self.own = name, x, own
        self.hessian = np.ones_like(x)  # or h, one number
        self.moment: Any = np.zeros_like(x) if name == "momentum" else f(0)
        self.weight = f(0)
        if name == "hiso-scalar":
            self.hessian = np.ones((), np.float32)

    def round(self, seed: int, lr: float, steps: list[list[np.float32]], perturbations: list[int], start: int) -> None:
        shaped = self.name in ("hiso", "hiso-scalar")
        s = f(1) / np.sqrt(self.hessian) if shaped else None
        chosen = {"first": [0], "last": [len(steps) - 1], "all": range(len(steps))}[self.own.get("update", "first")]
        for step, scalars in enumerate(steps):
            c = [scalar / f(len(scalars)) for scalar in scalars]
            if self.name == "feedsign":
                c = [f(float(np.sign(weight)) / len(c)) for weight in c]
            a = np.zeros_like(self.x)
            for q, weight in zip(perturbations, c, strict=True):
                a = a + weight * noise(seed, step, q, start, a.size).numpy()
            dx = a if s is None else a * s
            squares = [float(weight) * float(weight) for weight in c]
            n = len(c)
            if self.name == "meazo":
                beta = self.own["beta"]
                self.moment = self.moment * f(beta) + f(math.fsum(squares) * n) * f(1 - beta)
                self.weight = self.weight * f(beta) + f(1 - beta)
                dx = a / (np.sqrt(self.moment / self.weight) + f(self.own["eps"]))
            if self.name == "fzoo":
                mean = math.fsum(map(float, c)) / n
                spread = n * math.sqrt(math.fsum((float(weight) - mean) ** 2 for weight in c) / (n - 1))
                dx = a / f(spread) if spread else np.zeros_like(a)
            if self.name == "momentum":
                beta = self.own["beta"]
                self.moment = self.moment * f(beta) + dx * f(1 - beta)
                dx = self.moment
            self.x = self.x - dx * f(lr)
            if shaped and step in chosen:
                nu, eps, floor = (self.own[key] for key in ("nu", "eps", "floor"))
                energy = dx * dx if self.name == "hiso" else f(math.fsum(squares)) / self.hessian
                self.hessian = np.maximum(self.hessian * f(1 - nu) + (energy + f(eps)) * f(nu), f(floor))


SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("decomfl", {}),
    *(
        (name, {"nu": 0.1, "eps": 1e-4, "floor": 0.9, "hessian_update": update})
        for name in ("hiso", "hiso-scalar")
        for update in ("first", "last", "all")
    ),
    ("meazo", {"beta": 0.7, "eps": 1e-3}),
    ("momentum", {"beta": 0.7}),
    ("fzoo", {}),
    ("feedsign", {}),
]


@pytest.mark.parametrize(("name", "own"), SETTINGS)
def test_the_arithmetic_is_the_page_s(name: str, own: dict[str, Any]) -> None:
    method: Method = make_method(name, own)
    replica, rounds = Replica(network(), method), updates(5, local_steps=3, slots=(0, 2))
    page = {key: value for key, value in own.items() if key != "hessian_update"}
    rules, first = [], 0
    for x in replica.tensors:
        rules.append((Rule(name, x.numpy().ravel().copy(), update=own.get("hessian_update", "first"), **page), first))
        first += -(-x.numel() // 16) * 16
    for update in rounds:
        scalars = np.frombuffer(update.scalars, "<f4").reshape(3, -1)
        for rule, start in rules:
            if update.slots:
                rule.round(update.seed, update.lr, [list(row) for row in scalars], [0, 1, 2, 6, 7, 8], start)
    replica.apply(rounds)
    for (rule, _), x, state in zip(rules, replica.tensors, replica.state, strict=True):
        assert x.numpy().tobytes() == rule.x.tobytes()
        if "hessian" in state:
            assert state["hessian"].numpy().tobytes() == rule.hessian.tobytes()
        if name == "meazo":
            assert (float(state["moment"]), float(state["weight"])) == (float(rule.moment), float(rule.weight))


def rng(*words: object) -> np.random.Generator:
    """The page's "Other draws": a generator for one purpose. words: the run seed, then the purpose's."""
    text = b""
    for word in ("scalarfl/1", *words):
        text += len(str(word).encode()).to_bytes(4, "little") + str(word).encode()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(hashlib.sha256(text).digest()[:8], "little")))


class Indexed:
    """Data that say which of them are asked for."""

    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> int:
        return index

    def batch(self, indices: npt.NDArray[np.int64]) -> list[int]:
        return [int(index) for index in indices]


@pytest.mark.parametrize("seed", [0, 7, 2**63])
def test_cohorts_and_batches_are_the_page_s(seed: int) -> None:
    names = sorted(f"client-{i}" for i in range(12))
    for round_, count in ((0, 5), (3, 12), (4, 20)):
        places = rng(seed, "cohort", round_).choice(12, min(count, 12), replace=False)
        assert cohort(names, count, seed, round_) == [names[place] for place in places]
        size = min(4 * count, 23)
        found = drawn(Indexed(), 4 * count, seed, "client-3", round_, 2)
        assert found == rng(seed, "batch", "client-3", round_, 2).choice(23, size, replace=False).tolist()


def by_class(pools: list[list[int]], clients: int, alpha: float, random: np.random.Generator) -> list[list[int]]:
    parts: list[list[int]] = [[] for _ in range(clients)]
    for pool in pools:
        total, cuts = 0.0, []
        for share in random.dirichlet([alpha] * clients)[:-1]:
            total += share
            cuts.append(round(total * len(pool)))  # Python rounds halves to the even number
        for part, begin, end in zip(parts, [0, *cuts], [*cuts, len(pool)], strict=True):
            part += pool[begin:end]
    for part in parts:
        if not part:
            largest = max(range(clients), key=lambda i: (len(parts[i]), -i))
            part.append(parts[largest].pop())
    return parts


def balanced(pools: list[list[int]], clients: int, alpha: float, random: np.random.Generator) -> list[list[int]]:
    n, parts = sum(map(len, pools)), []
    for i in range(clients):
        places, part = ((i + 1) * n) // clients - (i * n) // clients, list[int]()
        mix = random.dirichlet([alpha] * len(pools))
        while len(part) < places:
            left = np.array([share if pool else 0.0 for share, pool in zip(mix, pools, strict=True)])
            if left.sum() <= 1e-9:
                left = np.array([float(len(pool)) for pool in pools])
            for pool, wanted in zip(pools, random.multinomial(places - len(part), left / left.sum()), strict=True):
                for _ in range(min(int(wanted), len(pool))):
                    part.append(pool.pop())
        parts.append(part)
    return parts


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("clients", "alpha"), [(5, 1.0), (20, 0.05), (3, 100.0), (60, 0.1)])
def test_partitions_are_the_page_s(seed: int, clients: int, alpha: float) -> None:
    labels = np.random.default_rng(seed).integers(0, 4, 80)
    expected = [sorted(part) for part in np.array_split(rng(seed, "partition").permutation(80), clients)]
    assert [part.tolist() for part in iid(80, clients, seed)] == expected
    for even, deal in ((False, by_class), (True, balanced)):
        random = rng(seed, "partition")
        pools = [
            [int(i) for i in random.permutation([i for i in range(80) if labels[i] == label])]
            for label in sorted(set(labels.tolist()))
        ]
        expected = [sorted(part) for part in deal(pools, clients, alpha, random)]
        assert [part.tolist() for part in dirichlet(labels, clients, alpha, seed, even)] == expected
