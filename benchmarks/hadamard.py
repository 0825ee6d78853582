"""Hadamard directions against normal ones, on one core: `python -m benchmarks.hadamard`.

1. Catch-up over 50 rounds at P = 5, and over one round at P = 1,000: Hadamard against our normal noise, which is
   vectorised, and against the textbook's torch.randn, for DeComFL and HiSo. All in turn, in one run.
2. A gradient of the size of OPT-125M's weights (d = 109 M), projected on 1,000 directions.

Results: benchmarks/results/hadamard.json.
"""

import json
import time
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch

from scalarfl.bench import textbook
from scalarfl.bench.measure import environment, interleaved
from scalarfl.bench.replay import Vectors
from scalarfl.ledger.codec import pack
from scalarfl.ledger.update import Update
from scalarfl.methods import make_method
from scalarfl.model.replica import Replica
from scalarfl.noise.table import Noise

OUT = Path(__file__).parent / "results" / "hadamard.json"
NOISES: tuple[Noise, ...] = ("normal", "hadamard")


def missed(p: int, rounds: int, first: int) -> list[Update]:
    """Rounds of P made-up scalars."""
    random = np.random.default_rng(0)
    return [
        Update(first + i, 1000 + i, 1e-3, 1, [0], pack(random.normal(size=p).astype(np.float32))) for i in range(rounds)
    ]


def catch_up(name: str, p: int, rounds: int, sample: int, repeats: int) -> dict[str, Any]:
    """Seconds a round, of each. sample: directions that the textbook makes; its time is linear in them."""
    replicas = {noise: Replica(Vectors(256, 2, 8192), make_method(name), noise=noise) for noise in NOISES}
    d = replicas["normal"].layout.dimension
    plain, hessian = ([make(x) for x in replicas["normal"].tensors] for make in (torch.zeros_like, torch.ones_like))
    scalars = [(range(sample), [0.1] * sample)]

    def ours(noise: Noise) -> None:
        replicas[noise].apply(missed(p, rounds, replicas[noise].position))

    def theirs() -> None:
        if name == "hiso":
            textbook.replay_hiso(plain, hessian, scalars, 1e-3)
        else:
            textbook.replay(plain, scalars, 1e-3)

    contestants = {"normal": lambda: ours("normal"), "hadamard": lambda: ours("hadamard"), "textbook": theirs}
    seconds = interleaved(contestants, repeats)
    a_round = {noise: seconds[noise] / rounds for noise in NOISES} | {"textbook": seconds["textbook"] * p / sample}
    return {
        "method": name,
        "P": p,
        "d": d,
        "seconds a round": a_round,
        "G coordinates/s a round": d / a_round["hadamard"] / 1e9,
        "times normal noise": a_round["normal"] / a_round["hadamard"],
        "times the textbook": a_round["textbook"] / a_round["hadamard"],
    }


def projection(p: int) -> dict[str, Any]:
    """Seconds to project a gradient of 109 M on P directions, the best of three: nothing else can make it faster."""
    replica = Replica(Vectors(768, 12, 50272), make_method("decomfl"), noise="hadamard")
    gradients = [torch.randn_like(x) for x in replica.tensors]
    taken = []
    for seed in range(4):  # the first compiles
        started = time.perf_counter()
        for gradient, address in zip(gradients, replica.layout.addresses, strict=True):
            replica.kernels.project(gradient, seed, 0, address, range(p))
        taken.append(time.perf_counter() - started)
    return {"P": p, "d": replica.layout.dimension, "seconds": min(taken[1:])}


def main() -> None:
    """Measure, print and keep."""
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    found: dict[str, Any] = {"environment": environment(), "catch-up": [], "projection": projection(1000)}
    print(found["projection"], flush=True)
    for name in ("decomfl", "hiso"):
        for p, rounds, sample, repeats in ((5, 50, 5, 5), (1000, 1, 20, 3)):
            found["catch-up"].append(catch_up(name, p, rounds, sample, repeats))
            print(found["catch-up"][-1], flush=True)
    OUT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
