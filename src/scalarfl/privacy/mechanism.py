"""The mechanism: clip, sum, add noise once. All on a grid of integers, so that no rounding weakens what is claimed.

With unit "example" it is DP-AggZO: each example's vector of slopes along all P directions is clipped to the norm C, the
vectors are summed, and the sum is noised once with N(0, sigma^2 C^2 I). The accounting does not depend on P. With unit
"client" the one vector is what the client would have sent.

Deviations from the continuous Gaussian mechanism: clipped vectors are rounded towards zero to multiples of C / 2^20,
so that their norm is at most C exactly (a coordinate changes by less than 1e-6 C), and the noise is a discrete Gaussian
on the same grid. Its Renyi divergences are at most the continuous one's (arXiv 2004.00010, theorems 4 and 14). Those of
the Poisson-sampled mechanism are sums over the grid of what are integrals for the continuous one, with equal likelihood
ratios at every point of the grid; by Poisson's summation formula they differ by a factor of 1 + O(exp(-2 pi^2 s^2)) for
noise of s steps, and s is above 10^5.
"""

import math
import os
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scalarfl.privacy.gaussian import Secret, discrete_gaussian

GRID = 1 << 20
"""Steps of the grid in the clipping norm."""

Vectors = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Mechanism:
    """Clips to ``clip``, C, and adds noise of ``scale`` steps of the grid: its standard deviation is scale C / 2^20."""

    clip: float
    scale: int

    def released(self, vectors: Vectors, divisor: float) -> npt.NDArray[np.float32]:
        """float32[P]: the noised sum of the clipped vectors, float64[n, P], over ``divisor``; n may be 0.

        The one release of these numbers: calling it again draws new noise, which has to be accounted for again.
        """
        total = on_grid(vectors, self.clip).sum(axis=0).tolist()
        secret = Secret()
        noised = [value + discrete_gaussian(self.scale, secret) for value in total]
        return (np.array(noised, dtype=np.float64) * (self.clip / GRID / divisor)).astype(np.float32)


def sample(examples: int, rate: float) -> npt.NDArray[np.int64]:
    """int64[k]: a Poisson sample of the indices below ``examples``, each with probability ``rate``, from the system.

    The probability is rounded down to a multiple of 2^-64.
    """
    if rate >= 1:
        return np.arange(examples)
    drawn = np.frombuffer(os.urandom(8 * examples), dtype=np.uint64)
    return np.flatnonzero(drawn < np.uint64(math.floor(rate * 2.0**64)))


def on_grid(vectors: Vectors, clip: float) -> npt.NDArray[np.int64]:
    """int64[n, P]: each vector clipped to the norm ``clip``, in steps of clip / 2^20, rounded towards zero.

    The norm of each row is at most 2^20, exactly. A vector that is not finite becomes zero: refusing it would tell the
    server about an example.
    """
    finite = np.where(np.isfinite(vectors).all(axis=1, keepdims=True), vectors, 0.0)
    largest = np.abs(finite).max(axis=1, keepdims=True, initial=0.0)
    unit = finite / np.where(largest > 0, largest, 1.0)  # no square can overflow
    norms = np.linalg.norm(unit, axis=1, keepdims=True)
    with np.errstate(over="ignore"):
        shrunk = np.minimum(largest / clip, 1.0 / np.where(norms > 0, norms, 1.0))
    steps: npt.NDArray[np.int64] = np.trunc(unit * (shrunk * GRID)).astype(np.int64)
    while (beyond := (steps * steps).sum(axis=1) > GRID * GRID).any():  # by the rounding of floats
        steps[beyond] = np.trunc(steps[beyond] * (1 - 2.0**-30)).astype(np.int64)
    return steps
