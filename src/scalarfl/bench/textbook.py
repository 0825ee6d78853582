"""The opponent: zeroth-order steps and replay as MeZO (arXiv 2305.17333) and DeComFL describe them, plainly.

Perturb in place with torch.randn from a seed, evaluate, restore by subtracting the same noise made again; replay by
making every direction of every missed round again, tensor by tensor.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

Parameters = Sequence[Tensor]


def noises(parameters: Parameters, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(parameter, its noise), the generator seeded once for all of them."""
    random = torch.Generator(parameters[0].device).manual_seed(seed)
    for parameter in parameters:
        yield parameter, torch.randn(parameter.shape, generator=random, device=parameter.device, dtype=parameter.dtype)


def shift(parameters: Parameters, seed: int, amount: float) -> None:
    """x <- x + amount * z, in place."""
    for parameter, z in noises(parameters, seed):
        parameter.add_(z, alpha=amount)


def replay(parameters: Parameters, rounds: Sequence[tuple[Sequence[int], Sequence[float]]], lr: float) -> None:
    """DeComFL: every round's directions made again and subtracted."""
    for seeds, scalars in rounds:
        for seed, g in zip(seeds, scalars, strict=True):
            shift(parameters, seed, -lr * g / len(seeds))


def replay_hiso(
    parameters: Parameters,
    hessian: Parameters,
    rounds: Sequence[tuple[Sequence[int], Sequence[float]]],
    lr: float,
    nu: float = 0.05,
    eps: float = 1e-8,
) -> None:
    """HiSo: likewise, with H learnt from each round's Dx."""
    for seeds, scalars in rounds:
        dx = [torch.zeros_like(parameter) for parameter in parameters]
        for seed, g in zip(seeds, scalars, strict=True):
            for (_, z), total, h in zip(noises(parameters, seed), dx, hessian, strict=True):
                total.add_(z / h.sqrt(), alpha=g / len(seeds))
        for parameter, total, h in zip(parameters, dx, hessian, strict=True):
            parameter.sub_(total, alpha=lr)
            h.mul_(1 - nu).add_(total.square() + eps, alpha=nu)
