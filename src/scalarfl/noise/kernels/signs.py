"""A tile of Hadamard directions on the CPU: their weighted sum, by addition or by a transform, and the random signs.

The order of every sum is the reference's (``noise.hadamard``), and no multiplication is fused with an addition, so
the bits are the same.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

from scalarfl.noise.hadamard import BITS_NUMBER, DIRECT, TILE
from scalarfl.noise.kernels.cpu import philox_words

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint64]
Bits = npt.NDArray[np.uint32]
Counts = npt.NDArray[np.int64]

CHUNK = 256  # coordinates whose signs are written out when directions are added one by one
_LOW = 8  # log2 of it
LANES = 16  # transformed apart from the rest, since so few neighbours make no wide loop
BLOCKS = TILE // 128  # Philox blocks of the bits b in a tile
_NUMBER = np.uint64(BITS_NUMBER)
PLACES = TILE // LANES
TILE_BITS = np.uint64(12)
_AT_ONCE = 256  # rows
_TOP = np.uint32(1 << 31)


@njit(nogil=True, cache=True, inline="always")
def odd(x: np.uint64) -> bool:
    """The parity of a number's bits."""
    x ^= x >> np.uint64(32)
    x ^= x >> np.uint64(16)
    x ^= x >> np.uint64(8)
    x ^= x >> np.uint64(4)
    return bool((np.uint64(0x6996) >> (x & np.uint64(15))) & np.uint64(1))


@njit(nogil=True, cache=True, inline="always")
def _top_parity(x: np.uint64) -> np.uint32:
    """The parity of a number's bits, as the sign bit of a float32; without a branch, so that loops over it are wide."""
    x ^= x >> np.uint64(32)
    x ^= x >> np.uint64(16)
    x ^= x >> np.uint64(8)
    x ^= x >> np.uint64(4)
    x ^= x >> np.uint64(2)
    x ^= x >> np.uint64(1)
    return np.uint32(x) << np.uint32(31)


@njit(nogil=True, cache=True)
def _add_direct(v: Floats, low: int, high: int, tile: np.uint64, rows: Words, c: Floats, patterns: Floats) -> None:
    """v[256 low : 256 high] = sum over q, in order, of c_q times row q. patterns: room for [2, len(rows), 256]."""
    n = rows.size
    for q in range(n):
        pattern, negative = patterns[0, q], patterns[1, q]
        pattern[0] = c[q]
        for bit in range(_LOW):
            half = 1 << bit
            if (rows[q] >> np.uint64(bit)) & np.uint64(1):
                for j in range(half):
                    pattern[half + j] = -pattern[j]
            else:
                for j in range(half):
                    pattern[half + j] = pattern[j]
        for j in range(CHUNK):
            negative[j] = -pattern[j]
    zero = np.float32(0)
    for chunk in range(low, high):
        here = v[chunk * CHUNK : (chunk + 1) * CHUNK]
        index = tile * np.uint64(TILE // CHUNK) + np.uint64(chunk)
        p0 = patterns[_sign(index, rows[0]), 0]
        if n == 1:
            for j in range(CHUNK):
                here[j] = zero + p0[j]
            continue
        p1 = patterns[_sign(index, rows[1]), 1]
        q = 2
        if n >= 5:
            p2, p3 = patterns[_sign(index, rows[2]), 2], patterns[_sign(index, rows[3]), 3]
            p4 = patterns[_sign(index, rows[4]), 4]
            for j in range(CHUNK):
                here[j] = ((((zero + p0[j]) + p1[j]) + p2[j]) + p3[j]) + p4[j]
            q = 5
        else:
            for j in range(CHUNK):
                here[j] = (zero + p0[j]) + p1[j]
        while q + 4 <= n:
            p0, p1 = patterns[_sign(index, rows[q]), q], patterns[_sign(index, rows[q + 1]), q + 1]
            p2, p3 = patterns[_sign(index, rows[q + 2]), q + 2], patterns[_sign(index, rows[q + 3]), q + 3]
            for j in range(CHUNK):
                here[j] = (((here[j] + p0[j]) + p1[j]) + p2[j]) + p3[j]
            q += 4
        while q < n:
            p0 = patterns[_sign(index, rows[q]), q]
            for j in range(CHUNK):
                here[j] = here[j] + p0[j]
            q += 1


@njit(nogil=True, cache=True, inline="always")
def _sign(chunk: np.uint64, row: np.uint64) -> int:
    """1 where a chunk's coordinates have the opposite signs of the first chunk's, else 0."""
    return 1 if odd(chunk & (row >> np.uint64(_LOW))) else 0


@njit(nogil=True, cache=True, inline="always")
def two_levels(v: Floats, h: int) -> None:
    """The butterflies of distance h and 2 h."""
    for i in range(0, TILE, 4 * h):
        p, q, r, s = v[i : i + h], v[i + h : i + 2 * h], v[i + 2 * h : i + 3 * h], v[i + 3 * h : i + 4 * h]
        for j in range(h):
            a, b, c, d = p[j], q[j], r[j], s[j]
            ab, a_b, cd, c_d = a + b, a - b, c + d, c - d
            p[j], q[j], r[j], s[j] = ab + cd, a_b + c_d, ab - cd, a_b - c_d


@njit(nogil=True, cache=True, inline="always")
def upper_levels(v: Floats) -> None:
    """The butterflies of distance 16 to 2048."""
    two_levels(v, 16)
    two_levels(v, 64)
    two_levels(v, 256)
    two_levels(v, 1024)


@njit(nogil=True, cache=True)
def _add_transformed(v: Floats, turned: Floats, tile: np.uint64, rows: Words, c: Floats) -> None:
    """v = sum over q of c_q times row q, by a transform. turned: room for [lane, place]: lanes as wide as the rest."""
    turned[:] = np.float32(0)
    for begin in range(0, rows.size, _AT_ONCE):
        here, signed = rows[begin : begin + _AT_ONCE], np.empty(_AT_ONCE, np.uint32)
        values = c[begin : begin + _AT_ONCE].view(np.uint32)
        for q in range(here.size):
            signed[q] = values[q] ^ _top_parity(tile & (here[q] >> TILE_BITS))
        added = signed.view(np.float32)
        for q in range(here.size):
            turned[place_of(here[q])] += added[q]
    two_levels(turned, PLACES)
    two_levels(turned, 4 * PLACES)
    for place in range(PLACES):
        for lane in range(LANES):
            v[place * LANES + lane] = turned[lane * PLACES + place]
    upper_levels(v)


@njit(nogil=True, cache=True, inline="always")
def place_of(row: np.uint64) -> int:
    """Where a row's coefficient stands in [lane, place]."""
    lane, place = row & np.uint64(LANES - 1), (row >> np.uint64(4)) & np.uint64(PLACES - 1)
    return int(lane * np.uint64(PLACES) + place)


@njit(nogil=True, cache=True)
def flip(v: Bits, low: int, high: int, words: Bits, seed: np.uint64, step: np.uint64, tile: np.uint64) -> None:
    """Change the signs of the coordinates in chunks ``low`` to ``high - 1`` whose bit b is set."""
    philox_words(words, seed, step, tile * np.uint64(BLOCKS), _NUMBER)
    for k in range(2 * low, 2 * high):
        here, shift = v[128 * k : 128 * (k + 1)], np.uint32(31 - k)
        for j in range(128):
            here[j] ^= (words[j] << shift) & _TOP


@njit(nogil=True, cache=True)
def make(
    v: Floats,
    low: int,
    high: int,
    seed: np.uint64,
    step: np.uint64,
    tile: np.uint64,
    rows: Words,
    c: Floats,
    patterns: Floats,
    words: Bits,
    turned: Floats,
) -> None:
    """v = sum over q of c_q u_q at the addresses of one tile, at least in its chunks ``low`` to ``high - 1``."""
    if rows.size <= DIRECT:
        _add_direct(v, low, high, tile, rows, c, patterns)
    else:
        _add_transformed(v, turned, tile, rows, c)
    flip(v.view(np.uint32), low, high, words, seed, step, tile)
