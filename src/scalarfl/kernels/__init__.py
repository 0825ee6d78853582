"""The reference's arithmetic, fast, and the walk over large tensors in blocks that stay in cache."""

from scalarfl.kernels.blocks import STREAM, Work, for_each_block
from scalarfl.kernels.select import REFERENCE, Kernels, best

__all__ = ["REFERENCE", "STREAM", "Kernels", "Work", "best", "for_each_block"]
