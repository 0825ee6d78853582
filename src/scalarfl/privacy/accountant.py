"""What releases cost: dp-accounting (Google) for the Gaussian mechanism on Poisson samples.

Rates are rounded up to two significant digits before they are accounted: clients of similar size share a calibration,
and the claim holds for the smaller true rate.
"""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from scalarfl.errors import InputError, install_hint
from scalarfl.privacy.mechanism import GRID

Unit = Literal["example", "client"]
"""What is protected: one example of a client, or everything that a client has."""

PRECISE = 1e-3
"""Width of a bucket of privacy loss; results are upper bounds whatever it is."""
ORDERS = [*range(2, 33), 40, 48, 64, 96, 128, 256]
"""Of Renyi divergences; whole numbers, for which the bound is a finite sum."""
LARGEST = 2000.0
"""Noise multipliers beyond this one are refused: no signal is left."""


class Promise(NamedTuple):
    """What all parties agree on, as the ledger's header has it."""

    epsilon: float
    delta: float
    clip: float
    unit: Unit

    @classmethod
    def of(cls, header: Mapping[str, Any]) -> "Promise":
        """From the header's ``privacy``."""
        return cls(**header)


class Terms(NamedTuple):
    """One client's terms: how it samples, and the noise that makes the promise true for so many releases."""

    rate: float
    """Probability with which each example is in a batch; 1 with unit "client", of which no sampling is secret."""
    sigma: float
    """Noise multiplier: the noise's standard deviation over the sensitivity."""
    releases: int
    """As many as sigma is calibrated for."""

    def scale(self, unit: Unit) -> int:
        """The noise's standard deviation in steps of the clipping norm's grid.

        The sensitivity is C if one example may be replaced by one that contributes nothing, and 2 C if all that a
        client has may be replaced by anything.
        """
        return math.ceil(self.sigma * GRID * (1 if unit == "example" else 2))


def terms(promise: Promise, examples: int, batch_size: int, releases: int) -> Terms:
    """The terms of a client with so many examples, calibrated by Renyi divergences (``calibrated``)."""
    rate = 1.0 if promise.unit == "client" else min(1.0, batch_size / examples)
    return Terms(rate, calibrated(promise.epsilon, promise.delta, rounded_up(rate), releases), releases)


def participations(rounds: int, sampled: int, clients: int) -> int:
    """Rounds that a client is prepared to take part in: the mean and three standard deviations, at most all."""
    share = min(1.0, sampled / clients)
    return min(rounds, math.ceil(rounds * share + 3 * math.sqrt(rounds * share * (1 - share))))


@lru_cache(maxsize=1024)
def calibrated(epsilon: float, delta: float, rate: float, releases: int) -> float:
    """The least noise multiplier, to 0.1 % above, whose ``releases`` releases are (epsilon, delta) private.

    By Renyi divergences of the sampled Gaussian (Mironov, Talwar and Zhang, arXiv 1908.10530). Raises InputError if
    there is none below ``LARGEST``.
    """
    if releases == 0:
        return 1.0
    low, high = 0.1, 1.0
    while renyi_epsilon(high, rate, releases, delta) > epsilon:
        low, high = high, 2 * high
        if high > LARGEST:
            raise InputError(
                f"privacy.epsilon = {epsilon:g}: {releases:,} releases at delta = {delta:g} need a noise multiplier "
                f"above {LARGEST:g}. Use fewer rounds or local steps, larger datasets, or a larger epsilon."
            )
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if renyi_epsilon(middle, rate, releases, delta) > epsilon else (low, middle)
    return high


def renyi_epsilon(sigma: float, rate: float, releases: int, delta: float) -> float:
    """An upper bound of epsilon, from Renyi divergences."""
    dp = _library()
    accountant = dp.rdp.RdpAccountant(ORDERS)
    accountant.compose(_event(dp, sigma, rate), releases)
    return float(accountant.get_epsilon(delta))


@lru_cache(maxsize=1024)
def spent(sigma: float, rate: float, releases: int, delta: float) -> float:
    """Epsilon of so many releases at ``delta``, from the distribution of the privacy loss: tight, and never too small.

    sigma: noise multiplier. rate: as in ``Terms``; it is rounded up.
    """
    if releases == 0:
        return 0.0
    dp = _library()
    loss = dp.pld.privacy_loss_distribution.from_gaussian_mechanism(
        sigma, sampling_prob=rounded_up(rate), value_discretization_interval=PRECISE
    )
    return float(loss.self_compose(releases).get_epsilon_for_delta(delta))


def affordable(promise: Promise, at: Terms) -> int:
    """Releases after which the next one would exceed the promise."""
    low, high = at.releases, max(1, at.releases)
    while spent(at.sigma, at.rate, high, promise.delta) <= promise.epsilon:
        low, high = high, 2 * high
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        if spent(at.sigma, at.rate, middle, promise.delta) <= promise.epsilon:
            low = middle
        else:
            high = middle
    return low


def rounded_up(rate: float) -> float:
    """The rate rounded up to two significant digits, 1 at most."""
    digit = 10.0 ** (math.floor(math.log10(rate)) - 1)
    return min(1.0, max(rate, math.ceil(rate / digit * (1 - 1e-12)) * digit))


def _event(dp: Any, sigma: float, rate: float) -> Any:
    noise = dp.GaussianDpEvent(sigma)
    return noise if rate == 1 else dp.PoissonSampledDpEvent(rate, noise)


def _library() -> Any:
    try:
        import dp_accounting
        from dp_accounting import pld, rdp  # noqa: F401
    except ImportError:
        raise InputError(f"[privacy] needs dp-accounting: {install_hint('privacy')}.") from None
    return dp_accounting
