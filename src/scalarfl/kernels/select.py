"""Which implementation of ``combine`` a device gets."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from scalarfl import directions


class Combine(Protocol):
    """out[i] = sum over q of c_q u_q[i]; see ``directions.combine``, the reference."""

    def __call__(
        self,
        out: Tensor,
        seed: int,
        step: int,
        address: int,
        perturbations: Sequence[int],
        coefficients: Sequence[float],
    ) -> None:
        """Overwrite ``out``."""


def best(device: torch.device) -> Combine:
    """The fastest implementation for ``device``; all give the same bits."""
    if device.type == "cpu":
        from scalarfl.kernels import cpu  # numba takes a second to import: not before it is needed

        return cpu.combine
    return directions.combine
