"""Exact discrete Gaussian noise from the operating system's randomness.

Noise in floating point does not have the distribution that the accountant assumes: which of its values can occur
betrays the number it was added to (Mironov, CCS 2012). Here everything is an integer: the samplers of Canonne, Kamath
and Steinke, arXiv 2004.00010 (algorithms 1 to 3), which draw from the exact distribution by comparing whole random
numbers. They are not constant in time: how long a draw takes depends on its size.

This is the one place where randomness is not a function of the run's seed.
"""

import os
from math import isqrt

BUFFER = 1 << 12  # bytes drawn at once


class Secret:
    """Uniform whole numbers from the operating system. One object serves one release and is not kept: neither a fork
    nor a second thread may draw the same bytes again."""

    def __init__(self) -> None:
        self._bytes, self._at = b"", 0

    def below(self, end: int) -> int:
        """A whole number from 0 to end - 1, each equally likely."""
        bits = (end - 1).bit_length()
        width = (bits + 7) // 8
        while True:
            if self._at + width > len(self._bytes):
                self._bytes, self._at = os.urandom(max(BUFFER, width)), 0
            drawn = int.from_bytes(self._bytes[self._at : self._at + width]) >> (8 * width - bits)
            self._at += width
            if drawn < end:
                return drawn


def discrete_gaussian(scale: int, secret: Secret) -> int:
    """An integer x with probability proportional to exp(-x^2 / (2 scale^2)). Algorithm 3; scale: s >= 1.

    Mean 0; the variance is s^2 up to a relative difference of the order of exp(-2 pi^2 s^2), always below.
    """
    squared = scale * scale
    t = isqrt(squared) + 1
    while True:
        y = discrete_laplace(t, secret)
        if bernoulli_exp((abs(y) * t - squared) ** 2, 2 * squared * t * t, secret):
            return y


def discrete_laplace(scale: int, secret: Secret) -> int:
    """An integer x with probability proportional to exp(-|x| / scale). Algorithm 2."""
    while True:
        rest = secret.below(scale)
        if not bernoulli_exp(rest, scale, secret):
            continue
        whole = 0
        while bernoulli_exp(1, 1, secret):
            whole += 1
        size = rest + scale * whole
        if secret.below(2):
            return size
        if size:
            return -size


def bernoulli_exp(numerator: int, denominator: int, secret: Secret) -> bool:
    """True with probability exp(-numerator / denominator), both at least 0. Algorithm 1."""
    while numerator > denominator:
        if not bernoulli_exp(1, 1, secret):
            return False
        numerator -= denominator
    k = 1
    while secret.below(denominator * k) < numerator:
        k += 1
    return k % 2 == 1
