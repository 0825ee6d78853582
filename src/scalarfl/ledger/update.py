"""One recorded round, as every replica replays it."""

from functools import cached_property
from typing import Annotated, ClassVar

import msgspec
import numpy as np

from scalarfl.ledger.codec import MOST, Count, Seed, coefficients, unpack

BATCH_BYTES, BATCH_RECORDS = 512 << 10, 8192
"""Records sent together while a party catches up: at most so many bytes, half of what NATS carries by default in one
message, and so many records; one record at least."""


class Update(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, dict=True, tag=1):
    """One round as every replica replays it: everything needed to move from ``round`` to ``round + 1``.

    Slot j of the cohort owns perturbations jP to jP + P - 1; with shared directions there is slot 0 alone. An update
    without slots (no usable reply) leaves every replica unchanged.
    """

    kinds: ClassVar[int] = 1
    """Scalars a direction."""

    round: Count
    seed: Seed
    lr: float
    local_steps: Annotated[int, msgspec.Meta(ge=1, le=MOST)]
    slots: list[Count]
    scalars: bytes
    """float32, little endian, [local_steps, kinds, len(slots) * P]: what the mean over all directions is taken of."""

    def __post_init__(self) -> None:
        values = unpack(self.scalars)
        if not np.isfinite(values).all() or not np.isfinite(self.lr):
            raise ValueError("a scalar or the learning rate is not finite")
        rows = self.local_steps * self.kinds * len(self.slots)
        if (rows == 0) != (values.size == 0) or (rows and values.size % rows):
            raise ValueError(
                f"{values.size} scalars do not fit {self.local_steps} local steps and {len(self.slots)} slots"
            )
        if len(set(self.slots)) != len(self.slots) or self.seed >> 64:
            raise ValueError("slots repeat or the seed exceeds 64 bits")

    @property
    def moved(self) -> bool:
        """Whether it is a step forward, as opposed to an unused round or to one that takes a step back."""
        return bool(self.slots) and self.lr > 0

    @cached_property
    def perturbations(self) -> tuple[int, ...]:
        """The indices of the directions, in the order of the scalars."""
        if not self.slots:
            return ()
        each = len(self.scalars) // (4 * self.local_steps * self.kinds * len(self.slots))
        return tuple(slot * each + p for slot in self.slots for p in range(each))

    @cached_property
    def coefficients(self) -> tuple[tuple[float, ...], ...]:
        """[local_steps][directions]: scalar / number of directions, rounded to float32; Dx_k = sum_q c_kq z_kq."""
        return self._weights(0)

    def _weights(self, kind: int) -> tuple[tuple[float, ...], ...]:
        if not self.slots:
            return ()
        return coefficients(unpack(self.scalars).reshape(self.local_steps, self.kinds, -1)[:, kind])

    @property
    def payload(self) -> int:
        """Bytes: the scalars and the seed."""
        return len(self.scalars) + 8


class CurvedUpdate(Update, frozen=True, tag=9):
    """A round of clients who measured second differences too: of every local step first the slopes, then those."""

    kinds: ClassVar[int] = 2

    @cached_property
    def curvatures(self) -> tuple[tuple[float, ...], ...]:
        """[local_steps][directions]: second difference / number of directions, rounded to float32."""
        return self._weights(1)
