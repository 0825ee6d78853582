"""Which implementation of the generator's arithmetic a device gets."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from scalarfl import directions


class Kernels(NamedTuple):
    """The generator's arithmetic; the functions in ``directions`` are the reference and say what each one does."""

    combine: Callable[..., None]
    """out = sum over q of c_q u_q."""
    displace: Callable[..., None]
    """out = x + (mu u) s."""
    carry_scaled: Callable[..., None] | None = None
    """Replay in one pass over memory, where a method's scale is one number a round; None: no such kernel."""
    carry_hessian: Callable[..., None] | None = None
    """HiSo's replay in one pass over memory; None: no such kernel."""


REFERENCE = Kernels(directions.combine, directions.displace)


def best(device: torch.device) -> Kernels:
    """The fastest implementation for ``device``; all give the same bits."""
    if device.type == "cpu":
        from scalarfl.kernels import cpu  # numba takes a second to import: not before it is needed

        return Kernels(cpu.combine, cpu.displace, cpu.carry_scaled, cpu.carry_hessian)
    return REFERENCE
