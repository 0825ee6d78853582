"""Sums of rank-one directions on the CPU: a tile of a matrix is added up while it stays in cache.

Every coordinate adds its directions one by one in the reference's order (``noise.rank_one``). The products are exact,
so even a fused multiply-add gives the reference's bits.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from scalarfl.noise import rank_one
from scalarfl.noise.kernels.compiled import njit
from scalarfl.noise.kernels.cpu import Floats, Words, philox_words

HEIGHT, WIDTH, AT_ONCE = 64, 1024, 32  # rows and columns of a tile, directions whose signs are held together
BLOCKS = WIDTH // rank_one.SIGNS + 1  # Philox blocks that so many signs may lie in
_DOMAIN = np.uint64(rank_one.DOMAIN << 32)
_ONE, _31 = np.uint32(0x3F800000), np.uint32(31)  # the bits of 1.0


@njit(nogil=True, cache=True)
def _fill(
    out: Floats, words: Words, seed: np.uint64, step: np.uint64, block: np.uint64, begin: int, perturbation: np.uint64
) -> None:
    """Write signs ``begin`` ... of the vector that starts at ``block``; words: room for BLOCKS of them."""
    done = 0
    bits = out.view(np.uint32)
    while done < out.size:
        first = (begin + done) // 128
        skip = begin + done - first * 128
        count = min(out.size - done, BLOCKS * 128 - skip)
        here = words[: 4 * ((skip + count + 127) // 128)]
        philox_words(here, seed, step, _DOMAIN + block + np.uint64(first), perturbation)
        for i in range(count):
            at = skip + i
            bits[done + i] = _ONE | ((here[at >> 5] >> np.uint32(at & 31)) << _31)
        done += count


@njit(nogil=True, cache=True)
def _combine(
    out: Floats,
    seed: np.uint64,
    step: np.uint64,
    of_s: np.uint64,
    of_r: np.uint64,
    rows: int,
    width: int,
    begin: int,
    perturbations: Words,
    coefficients: Floats,
) -> None:
    words = np.empty(4 * BLOCKS, np.uint32)
    r, s = np.empty((AT_ONCE, HEIGHT), np.float32), np.empty((AT_ONCE, WIDTH), np.float32)
    end = begin + out.size
    out[:] = np.float32(0)
    for top in range(begin // width, (end - 1) // width + 1, HEIGHT):
        bottom = min(top + HEIGHT, (end - 1) // width + 1)
        low, high = 0, width
        if bottom - top == 1:
            low, high = max(0, begin - top * width), min(width, end - top * width)
        for left in range(low, high, WIDTH):
            right = min(left + WIDTH, high)
            for first in range(0, perturbations.size, AT_ONCE):
                last = min(first + AT_ONCE, perturbations.size)
                for q in range(first, last):
                    _fill(s[q - first, : right - left], words, seed, step, of_s, left, perturbations[q])
                    if rows:
                        _fill(r[q - first, : bottom - top], words, seed, step, of_r, top, perturbations[q])
                        for i in range(bottom - top):
                            r[q - first, i] *= coefficients[q]
                    else:
                        r[q - first, 0] = coefficients[q]
                for i in range(top, bottom):
                    a, b = max(left, begin - i * width), min(right, end - i * width)
                    if a >= b:
                        continue
                    here = out[i * width + a - begin : i * width + b - begin]
                    q, n = 0, last - first
                    while q + 4 <= n:
                        c0, c1, c2, c3 = r[q, i - top], r[q + 1, i - top], r[q + 2, i - top], r[q + 3, i - top]
                        s0, s1 = s[q, a - left : b - left], s[q + 1, a - left : b - left]
                        s2, s3 = s[q + 2, a - left : b - left], s[q + 3, a - left : b - left]
                        for j in range(here.size):
                            here[j] = (((here[j] + c0 * s0[j]) + c1 * s1[j]) + c2 * s2[j]) + c3 * s3[j]
                        q += 4
                    while q < n:
                        c0, s0 = r[q, i - top], s[q, a - left : b - left]
                        for j in range(here.size):
                            here[j] = here[j] + c0 * s0[j]
                        q += 1


@njit(nogil=True, cache=True)
def _signs(out: Floats, seed: np.uint64, step: np.uint64, block: np.uint64, begin: int, perturbations: Words) -> None:
    words = np.empty(4 * BLOCKS, np.uint32)
    for q in range(perturbations.size):
        _fill(out[q], words, seed, step, block, begin, perturbations[q])


class RankOne(rank_one.RankOne):
    """The reference's generator on the CPU, with the same bits."""

    def signs(
        self,
        seed: int,
        step: int,
        perturbations: Sequence[int],
        block: int,
        begin: int,
        count: int,
        device: torch.device,  # noqa: ARG002 (the CPU)
    ) -> Tensor:
        """float32[Q, count]: see ``rank_one.signs``."""
        out = torch.empty(len(perturbations), count)
        numbers = np.array(perturbations, np.uint64)
        _signs(out.numpy(), np.uint64(seed), np.uint64(step), np.uint64(block), begin, numbers)
        return out

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
        """out[i] = sum over q of c_q z_q[i]: see the reference."""
        if squared:
            super().combine(out, seed, step, address, perturbations, coefficients, squared)
            return
        index, begin = self.place(address)
        of_s, of_r = self.blocks[index]
        _combine(
            out.view(-1).numpy(),
            np.uint64(seed),
            np.uint64(step),
            np.uint64(of_s),
            np.uint64(of_r),
            self.rows[index],
            self.columns[index],
            begin,
            np.array(perturbations, np.uint64),
            np.array(coefficients, np.float32),
        )
