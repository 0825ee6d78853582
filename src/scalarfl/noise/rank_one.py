"""Seed to noise, the third generator: directions of rank one, of +1 and -1. The reference of its kernels.

A direction for every example costs one forward pass for a whole batch only if a layer can apply them all at once. For a
matrix [R, C] the direction is therefore an outer product of two vectors of random signs (after GRZO, arXiv 2606.02857):

    z_q[i, j] = r_q[i] s_q[j]

E[vec z vec z^T] = I, as for the other generators. A tensor of more dimensions counts as a matrix of its first dimension
and all others together; one of fewer is a row of signs: z_q[j] = s_q[j].

Bits: Philox4x32-10 with the round's seed and the counter (block low, 2^31 + block high, direction, local step): the
highest bit of the block number, which no other generator reaches, keeps them apart. A block is 128 signs: sign i of a
vector is bit i mod 32 of word (i mod 128) div 32 of its block i div 128, and a set bit is -1. Every vector starts a new
block, in the order of the tensors, s before r.

Products of signs are exact, so a sum of directions is rounded at its additions alone: with the order of these fixed,
fused multiply-adds, threads and devices cannot change a bit.
"""

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scalarfl.noise.directions import Layout, philox

SIGNS = 128
"""In a Philox block."""
DOMAIN = 1 << 31
"""Set in the second word of every counter."""
AT_ONCE = 64  # directions whose signs are held together
_MASK = 0xFFFFFFFF


def signs(
    seed: int, step: int, perturbations: Sequence[int], block: int, begin: int, count: int, device: torch.device
) -> Tensor:
    """float32[Q, count]: for each direction, signs ``begin`` ... of the vector that starts at ``block``."""
    first, last = begin // SIGNS, -(-(begin + count) // SIGNS)
    index = torch.arange(block + first, block + last, device=device).expand(len(perturbations), -1)
    numbers = torch.tensor(perturbations, dtype=torch.int64, device=device).unsqueeze(1).expand_as(index)
    counter = [index & _MASK, (index >> 32) | DOMAIN, numbers, torch.full_like(index, step)]
    words = torch.stack(philox(counter, (seed & _MASK, seed >> 32)), dim=-1)  # [Q, blocks, 4]
    bits = (words.unsqueeze(-1) >> torch.arange(32, device=device)) & 1
    return 1.0 - 2.0 * bits.flatten(1)[:, begin - first * SIGNS :][:, :count].float()


class RankOne:
    """The generator for one layout; all addresses are those of ``directions.Layout``."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.rows = [shape[0] if len(shape) > 1 else 0 for shape in layout.shapes]
        """Of each tensor as a matrix; 0 for one that is a row of signs."""
        self.columns = [size // max(1, rows) for size, rows in zip(layout.sizes, self.rows, strict=True)]

    @cached_property
    def blocks(self) -> list[tuple[int, int]]:
        """The first block of each tensor's s, and of its r."""
        result, block = [], 0
        for rows, columns in zip(self.rows, self.columns, strict=True):
            after = block + -(-columns // SIGNS)
            result.append((block, after))
            block = after + -(-rows // SIGNS)
        return result

    def place(self, address: int) -> tuple[int, int]:
        """The tensor at an address, and the coordinate of it."""
        index = bisect_right(self.layout.addresses, address) - 1
        return index, address - self.layout.addresses[index]

    def factors(
        self, index: int, seed: int, step: int, perturbations: Sequence[int], device: torch.device
    ) -> tuple[Tensor | None, Tensor]:
        """r, float32[Q, R], and s, float32[Q, C], of one tensor; no r for one that is a row of signs."""
        of_s, of_r = self.blocks[index]
        s = self.signs(seed, step, perturbations, of_s, 0, self.columns[index], device)
        if not self.rows[index]:
            return None, s
        return self.signs(seed, step, perturbations, of_r, 0, self.rows[index], device), s

    def signs(
        self,
        seed: int,
        step: int,
        perturbations: Sequence[int],
        block: int,
        begin: int,
        count: int,
        device: torch.device,
    ) -> Tensor:
        """See the function; kernels have another."""
        return signs(seed, step, perturbations, block, begin, count, device)

    def combine(
        self,
        out: Tensor,
        seed: int,
        step: int,
        address: int,
        perturbations: Sequence[int],
        coefficients: Sequence[float],
        squared: bool = False,
    ) -> None:
        """out[i] = sum over q of c_q z_q[i], or of c_q z_q[i]^2 = c_q, for the coordinates that start at ``address``.

        float32, from +0, in the given order. ``out`` is contiguous and lies within one tensor.
        """
        index, begin = self.place(address)
        of_s, of_r = self.blocks[index]
        width, device = self.columns[index], out.device
        first, last = begin // width, -(-(begin + out.numel()) // width)
        start = begin - first * width if last - first == 1 else 0
        count = out.numel() if last - first == 1 else width
        sums = torch.zeros(last - first, count, device=device)
        for at in range(0, len(perturbations), AT_ONCE):
            asked = perturbations[at : at + AT_ONCE]
            c = torch.tensor(coefficients[at : at + AT_ONCE], dtype=torch.float32, device=device).unsqueeze(1)
            s = signs(seed, step, asked, of_s, start, count, device)
            r = signs(seed, step, asked, of_r, first, last - first, device) if self.rows[index] else torch.ones_like(c)
            if squared:
                r, s = torch.ones_like(r), torch.ones_like(s)
            for row, column in zip(c * r, s, strict=True):
                sums += row.unsqueeze(1) * column
        skip = begin - first * width - start
        out.copy_(sums.view(-1)[skip : skip + out.numel()].view_as(out))

    def displace(
        self,
        out: Tensor,
        x: Tensor,
        scale: Tensor | None,
        seed: int,
        step: int,
        address: int,
        perturbation: int,
        mu: float,
    ) -> None:
        """out[i] = x[i] + (mu z[i]) s[i] with a scale s, for the coordinates that start at ``address``."""
        displacement = torch.empty_like(x)
        self.combine(displacement, seed, step, address, [perturbation], [1.0])
        displacement *= mu
        torch.add(x, displacement if scale is None else displacement * scale, out=out)

    def project(
        self, gradient: Tensor, seed: int, step: int, address: int, perturbations: Sequence[int]
    ) -> npt.NDArray[np.float64]:
        """float64[P]: sum over i of gradient[i] z_p[i]; a measurement, so that no order is prescribed."""
        flat, z = gradient.reshape(-1), torch.empty(gradient.numel(), device=gradient.device)
        sums = np.zeros(len(perturbations), np.float64)
        for place, perturbation in enumerate(perturbations):
            self.combine(z, seed, step, address, [perturbation], [1.0])
            sums[place] = float(z.double() @ flat.double())
        return sums
