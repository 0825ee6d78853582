"""The reference's arithmetic, fast, and the walk over large tensors in blocks that stay in cache."""

from scalarfl.kernels.blocks import Work, for_each_block
from scalarfl.kernels.select import Combine, best

__all__ = ["Combine", "Work", "best", "for_each_block"]
