"""The direction of a recorded move, regenerated where it is needed: what lr = "auto" measures the slope along."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scalarfl.ledger.update import Update
from scalarfl.methods import LocalStep, State
from scalarfl.model.replica import Replica, sliced
from scalarfl.noise.kernels import for_each_block


class Heading:
    """The step of the round that a replica applied last, as long as one direction of a round.

        d = sum_k step(state, Dx_k)        Dx_k = sum_p w_kp z_kp, of the recorded scalars
        z = d / |w|                        |w|^2 = sum_kp w_kp^2

    so that a displacement by mu z is as large as one by mu z_p, and z is one more direction for whoever measures. Where
    a method's step is not Dx itself it is brought to the length of Dx, which is estimated from the first coordinates.
    The state is the one that the round left, which differs from the round's own by what it learnt in that round. No
    tensor of the model's size is held: any slice is made alone.
    """

    def __init__(self, replica: Replica, update: Update) -> None:
        self.replica = replica
        self.update = update
        self._weights = [replica.method.weights(row) for row in update.coefficients]
        length = math.sqrt(math.fsum(w * w for row in self._weights for w in row))
        self._factor = 1.0 / length if length else 0.0
        if length and not replica.method.plain:
            first = slice(0, min(SAMPLE, replica.tensors[0].numel()))
            moved = float(self.part(0, first).norm())
            plain = float(
                self._made(replica.tensors[0].view(-1)[first], {}, self._combiner(0, first), plain=True).norm()
            )
            self._factor *= plain / moved if moved else 0.0

    def part(self, index: int, part: slice) -> Tensor:
        """float32: the coordinates ``part`` of trainable tensor ``index``."""
        like = self.replica.tensors[index].view(-1)[part]
        return self._made(like, sliced(self.replica.state[index], part), self._combiner(index, part))

    def displace(self, index: int, out: Tensor, position: Tensor, begin: int, mu: float) -> None:
        """Write position + mu z to the flat ``out``, as ``Replica.displace`` does for one of a round's directions."""

        def work(_: int, part: slice) -> None:
            there = slice(begin + part.start, begin + part.stop)
            out[part] = position[there].float() + self.part(index, there) * mu

        for_each_block([out], work)

    def displace_rows(self, index: int, out: Tensor, position: Tensor, rows: Tensor, mu: float) -> None:
        """The same for the rows int64[k] of a matrix, as ``Replica.displace_rows``."""
        replica, width = self.replica, out.shape[1]
        state = {key: v.view(-1, width)[rows] if v.ndim else v for key, v in replica.state[index].items()}
        x = position.view(-1, width)[rows].float()
        addresses = [replica.layout.addresses[index] + row * width for row in rows.tolist()]

        def combine(sums: Tensor, step: int, row: tuple[float, ...]) -> None:
            sums.zero_()
            for perturbation, weight in zip(self.update.perturbations, row, strict=True):
                at = (self.update.seed, step, addresses, perturbation, weight)
                replica.kernels.displace_rows(sums, sums, None, *at)

        out.copy_(x + self._made(x, state, combine) * mu)

    def _combiner(self, index: int, part: slice) -> "Combine":
        address = self.replica.layout.addresses[index] + part.start
        kernels, update = self.replica.kernels, self.update
        return lambda sums, step, row: kernels.combine(sums, update.seed, step, address, update.perturbations, row)

    def _made(self, like: Tensor, state: State, combine: "Combine", plain: bool = False) -> Tensor:
        """z for some coordinates, shaped like ``like``. plain: of Dx instead of the method's step."""
        method = self.replica.method
        scale = method.scale(state) if state else None
        combined, total = (torch.zeros_like(like, dtype=torch.float32) for _ in range(2))
        for step, row in enumerate(self._weights):
            combine(combined, step, row)
            dx = combined if scale is None else combined * scale
            moved = plain or method.plain
            total += dx if moved else method.step(state, LocalStep(dx, row, step, len(self._weights)))
        return total * self._factor


Combine = Callable[[Tensor, int, tuple[float, ...]], None]
"""(sums, step, weights): write the weighted sum of a local step's directions to ``sums``."""
SAMPLE = 1 << 16
"""Coordinates from which the length of a method's step is estimated."""
