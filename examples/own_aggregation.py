"""An aggregation of one's own. `federation.aggregation = "own_aggregation.py:Midmean"`; see docs/extending.md."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from scalarfl.protocol.aggregation import Aggregator, Reply, Scalars, State


class Midmean(Aggregator):
    """Of every scalar the mean of the cohort's middle half: what less than a quarter says cannot matter much."""

    name: ClassVar[str] = "midmean"
    summary: ClassVar[str] = "the coordinatewise mean of the middle half"
    source: ClassVar[str] = "arXiv 1803.01498, trimmed by a quarter"

    def aggregate(self, state: State, replies: Sequence[Reply]) -> tuple[Scalars, State]:
        """float32[local_steps, kinds, P]; nothing is remembered."""
        ordered = np.sort([reply.scalars for reply in replies], axis=0)
        quarter = len(ordered) // 4
        return ordered[quarter : len(ordered) - quarter].mean(axis=0, dtype=np.float64).astype(np.float32), state
