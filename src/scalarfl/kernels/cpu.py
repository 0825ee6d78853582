"""The portable generator on the CPU, in numba: noise, product and sum in one pass, no d-sized temporary.

A tile of Philox blocks is made at once so that the compiler vectorises across blocks; the bytes are then looked up in
the table while both sit in the first-level cache. Compiled without ``fastmath``: products and sums are rounded one by
one, as the reference rounds them. Threads are the caller's affair (the function releases the GIL).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from numba import njit
from torch import Tensor

from scalarfl.directions import COORDINATES_PER_BLOCK
from scalarfl.table import TABLE

_TILE = 64  # Philox blocks made at once: 1 KiB of random bytes

_32 = np.uint64(32)
_MASK = np.uint64(0xFFFFFFFF)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)


@njit(nogil=True, cache=True)  # pragma: no cover - compiled
def _combine(
    out: npt.NDArray[np.float32],
    table: npt.NDArray[np.float32],
    seed: np.uint64,
    step: np.uint64,
    block: np.uint64,
    skip: int,
    perturbations: npt.NDArray[np.uint64],
    coefficients: npt.NDArray[np.float32],
) -> None:
    words = np.empty((_TILE, 4), np.uint32)
    octets = words.view(np.uint8).reshape(_TILE * 16)
    key0, key1 = seed & _MASK, seed >> _32
    for first in range(0, out.size + skip, _TILE * 16):  # first: in coordinates, from the start of `block`
        begin, end = max(first - skip, 0), min(first + _TILE * 16 - skip, out.size)
        tile = out[begin:end]
        bytes_ = octets[begin + skip - first : end + skip - first]
        tile[:] = np.float32(0)
        for q in range(perturbations.size):
            coefficient = coefficients[q]
            for lane in range(_TILE):
                index = block + np.uint64(first // 16 + lane)
                c0, c1, c2, c3 = index & _MASK, index >> _32, perturbations[q], step
                k0, k1 = key0, key1
                for _ in range(10):
                    product0, product1 = _M0 * c0, _M1 * c2
                    c0, c1 = (product1 >> _32) ^ c1 ^ k0, product1 & _MASK
                    c2, c3 = (product0 >> _32) ^ c3 ^ k1, product0 & _MASK
                    k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
                words[lane, 0] = np.uint32(c0)
                words[lane, 1] = np.uint32(c1)
                words[lane, 2] = np.uint32(c2)
                words[lane, 3] = np.uint32(c3)
            for i in range(tile.size):
                tile[i] = tile[i] + coefficient * table[bytes_[i]]


def combine(
    out: Tensor, seed: int, step: int, address: int, perturbations: Sequence[int], coefficients: Sequence[float]
) -> None:
    """The kernel of ``directions.combine``: same arguments, same bits. ``out`` lies on the CPU."""
    block, skip = divmod(address, COORDINATES_PER_BLOCK)
    _combine(
        out.view(-1).numpy(),
        TABLE,
        np.uint64(seed),
        np.uint64(step),
        np.uint64(block),
        skip,
        np.asarray(perturbations, dtype=np.uint64),
        np.asarray(coefficients, dtype=np.float32),
    )
