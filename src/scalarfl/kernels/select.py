"""Which implementation of the generator's arithmetic a device gets."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import NamedTuple

import torch

from scalarfl import directions


class Kernels(NamedTuple):
    """The generator's arithmetic; the functions in ``directions`` are the reference and say what each one does."""

    combine: Callable[..., None]
    """out = sum over q of c_q u_q, or of c_q u_q^2."""
    displace: Callable[..., None]
    """out = x + (mu u) s."""
    dither: Callable[..., None] = directions.dither
    """Seeded stochastic rounding to a half-precision type."""
    displace_hessian: Callable[..., None] | None = None
    """out = x + (mu u) / sqrt(H) in one pass over memory; None: no such kernel."""
    carry_scaled: Callable[..., None] | None = None
    """Replay in one pass over memory, where a method's scale is one number a round; None: no such kernel."""
    carry_hessian: Callable[..., None] | None = None
    """HiSo's replay in one pass over memory; None: no such kernel."""


REFERENCE = Kernels(directions.combine, directions.displace)


def best(device: torch.device) -> Kernels:
    """The fastest implementation for ``device``; all give the same bits."""
    if device.type == "cpu":
        from scalarfl.kernels import cpu  # numba takes a second to import: not before it is needed

        return Kernels(cpu.combine, cpu.displace, cpu.dither, cpu.displace_hessian, cpu.carry_scaled, cpu.carry_hessian)
    if device.type == "cuda" and find_spec("triton") is not None:
        from scalarfl.kernels import cuda

        return Kernels(cuda.combine, cuda.displace, directions.dither, *cuda.FUSED)
    return REFERENCE
