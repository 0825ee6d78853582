"""Seed to noise, the second generator: orthogonal directions of +1 and -1. The reference of its kernels.

A randomised Hadamard transform (Ailon and Chazelle, "The fast Johnson-Lindenstrauss transform", STOC'06; subsampled as
in Tropp, "Improved analysis of the subsampled randomized Hadamard transform", 2011):

    u_p[i] = (-1)^(b[i] + parity(i AND r_p))

where i is a coordinate's address (``directions``), b one random bit a coordinate, and r_p the row of a Walsh-Hadamard
matrix that stands for direction p. E[u u^T] = I over the bits b; two directions of a round have different rows, so they
are orthogonal wherever whole rows are summed, and nearly so where a model's addresses end earlier.

- bits: Philox4x32-10 with the round's seed and the counter (block low, block high, 0xFFFFFFFD, local step). A tile of
  4096 addresses takes 32 blocks, 128 words: with j = i mod 128 and k = (i mod 4096) // 128, b[i] is bit k of word
  j mod 4 of block 32 (i // 4096) + j // 4;
- rows: a keyed bijection of the numbers below 2^K, where 2^K is the first power of two that is at least the number of
  addresses and 4096; so P directions have P different rows as long as P <= 2^K. See ``rows``.

All the directions of a round together cost a fast transform, not P times the noise: ``combine`` and ``project``. The
order of every sum is fixed, so that kernels on any device give the same bits.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scalarfl.noise.directions import random_words

TILE = 4096
"""Coordinates that are transformed together: their addresses have the bits above the lowest 12 in common."""
DIRECT = 12
"""Up to this many directions are added one by one; more are transformed."""

BITS_NUMBER, ROWS_NUMBER = 0xFFFFFFFD, 0xFFFFFFFC
"""Reserved perturbation numbers, for the bits b and the rows' keys."""

_ROUNDS = 4  # of the bijection


def width(addresses: int) -> int:
    """K for a layout with so many addresses: log2 of the transform's whole length."""
    return max(TILE.bit_length() - 1, (addresses - 1).bit_length())


@lru_cache(256)
def row_keys(seed: int, step: int) -> tuple[tuple[int, int], ...]:
    """The keys of the bijection, (multiplier, offset) for each of its rounds, 64 bits each.

    The Philox blocks 0 to 3 with the perturbation number ROWS_NUMBER: words 0 and 1 of a block are the multiplier, low
    word first, whose lowest bit is set; words 2 and 3 the offset.
    """
    blocks = random_words(seed, step, ROWS_NUMBER, 0, _ROUNDS, torch.device("cpu")).tolist()
    return tuple((a0 | a1 << 32 | 1, b0 | b1 << 32) for a0, a1, b0, b1 in blocks)


def rows(seed: int, step: int, perturbations: Sequence[int], bits: int) -> npt.NDArray[np.uint64]:
    """uint64[len(perturbations)]: the row of each direction, a number below 2^bits. Not to be changed.

    Four rounds of x <- (a x + c) mod 2^bits, x <- x XOR (x >> ceil(bits / 2)), each of which is a bijection: different
    numbers below 2^bits have different rows.
    """
    return _rows(seed, step, tuple(perturbations), bits)


@lru_cache(256)  # of a round that is replayed in many blocks
def _rows(seed: int, step: int, perturbations: tuple[int, ...], bits: int) -> npt.NDArray[np.uint64]:
    mask, half = np.uint64((1 << bits) - 1), np.uint64((bits + 1) // 2)
    x = np.array(perturbations, dtype=np.uint64) & mask
    for multiplier, offset in row_keys(seed, step):  # what overflows 64 bits lies beyond the mask
        x = (np.uint64(multiplier) * x + np.uint64(offset)) & mask
        x ^= x >> half
    return x


def flips(seed: int, step: int, address: int, count: int, device: torch.device) -> Tensor:
    """bool[count]: the bits b of the coordinates from ``address`` on."""
    first, last = address // TILE, -(-(address + count) // TILE)
    words = random_words(seed, step, BITS_NUMBER, 32 * first, 32 * (last - first), device).view(last - first, 1, 128)
    bits = (words >> torch.arange(32, device=device).view(32, 1)) & 1  # [tiles, k, j]
    return bits.reshape(-1)[address - first * TILE :][:count].bool()


def _odd(values: Tensor, row: int) -> Tensor:
    """bool: parity(value AND row) of int64 values."""
    x = values & row
    for shift in (32, 16, 8, 4, 2, 1):
        x = x ^ (x >> shift)
    return (x & 1).bool()


def _signed(value: Tensor, negative: Tensor) -> Tensor:
    return torch.where(negative, -value, value)


def noise(
    seed: int, step: int, perturbation: int, address: int, count: int, bits: int, device: torch.device | str = "cpu"
) -> Tensor:
    """float32[count]: direction ``perturbation`` at the coordinates from ``address`` on, +1 or -1 each."""
    device = torch.device(device)
    row = int(rows(seed, step, [perturbation], bits)[0])
    index = torch.arange(address, address + count, device=device)
    return _signed(torch.ones(count, device=device), flips(seed, step, address, count, device) ^ _odd(index, row))


def combine(
    out: Tensor,
    seed: int,
    step: int,
    address: int,
    perturbations: Sequence[int],
    coefficients: Sequence[float],
    squared: bool = False,
    *,
    bits: int,
) -> None:
    """out[i] = sum over q of c_q u_q[i], or of c_q u_q[i]^2, for the coordinates that start at ``address``.

    float32, from +0. Up to ``DIRECT`` directions are added in the given order. With more of them a tile of 4096
    coordinates is made by a transform: c_q, with the tile's sign, is added, in the given order, to place r_q mod 4096;
    then for h = 1, 2, 4, ..., 2048 the places j and j + h (bit log2 h of j unset) become their sum and their
    difference. At the end the bit b[i] changes the sign. Squares are 1, and their sum is taken in the given order.
    """
    flat, device = out.view(-1), out.device
    c = torch.tensor(list(coefficients), dtype=torch.float32, device=device)
    if squared:
        total = torch.zeros((), device=device)
        for one in c:
            total += one
        flat.fill_(total)
        return
    chosen = [int(row) for row in rows(seed, step, perturbations, bits)]
    if len(chosen) <= DIRECT:
        index = torch.arange(address, address + flat.numel(), device=device)
        flat.zero_()
        for one, row in zip(c, chosen, strict=True):
            flat += _signed(one.expand_as(flat), _odd(index, row))
    else:
        first, last = address // TILE, -(-(address + flat.numel()) // TILE)
        tiles = [_transformed(tile, chosen, c) for tile in range(first, last)]
        flat.copy_(torch.cat(tiles)[address - first * TILE :][: flat.numel()])
    flat.copy_(_signed(flat, flips(seed, step, address, flat.numel(), device)))


def _transformed(tile: int, chosen: Sequence[int], coefficients: Tensor) -> Tensor:
    """float32[TILE]: the sum of c_q times row q, at the addresses of one tile."""
    v = torch.zeros(TILE, device=coefficients.device)
    for one, row in zip(coefficients, chosen, strict=True):
        v[row % TILE] += -one if (tile & (row >> 12)).bit_count() % 2 else one
    return butterflies(v, 1, TILE)


def butterflies(v: Tensor, h: int, end: int) -> Tensor:
    """float32[TILE]: the unnormalised transform over the places' bits from log2 h to log2 end - 1, lowest first."""
    while h < end:
        pairs = v.view(-1, 2, h)
        v = torch.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], dim=1).view(-1)
        h *= 2
    return v


def displace(
    out: Tensor,
    x: Tensor,
    scale: Tensor | None,
    seed: int,
    step: int,
    address: int,
    perturbation: int,
    mu: float,
    *,
    bits: int,
) -> None:
    """out[i] = x[i] + (mu u[i]) s[i], as ``directions.displace``."""
    displacement = noise(seed, step, perturbation, address, x.numel(), bits, x.device).view_as(x) * mu
    torch.add(x, displacement if scale is None else displacement * scale, out=out)


def project(
    gradient: Tensor, seed: int, step: int, address: int, perturbations: Sequence[int], *, bits: int
) -> npt.NDArray[np.float64]:
    """float64[P]: sum over i of gradient[i] u_p[i], over the float32 coordinates from ``address`` on.

    Tile by tile: the bits b, the butterflies for h = 16, 32, ..., 2048 and then for h = 1, 2, 4, 8, in float32;
    direction p's term stands at place r_p mod 4096, with the tile's sign. The tiles are summed in float64, in order.
    """
    flat = gradient.reshape(-1)
    chosen = [int(row) for row in rows(seed, step, perturbations, bits)]
    sums = np.zeros(len(chosen), np.float64)
    signed = _signed(flat, flips(seed, step, address, flat.numel(), flat.device))
    for tile in range(address // TILE, -(-(address + flat.numel()) // TILE)):
        begin, end = max(address, tile * TILE), min(address + flat.numel(), (tile + 1) * TILE)
        v = flat.new_zeros(TILE)
        v[begin - tile * TILE : end - tile * TILE] = signed[begin - address : end - address]
        v = butterflies(butterflies(v, 16, TILE), 1, 16)
        for q, row in enumerate(chosen):
            value = float(v[row % TILE])
            sums[q] += -value if (tile & (row >> 12)).bit_count() % 2 else value
    return sums
