"""FedAvg with compressed updates: the rivals of scalars at equal bytes.

A client sends C(p) of p = x - x_i + e and keeps e = p - C(p), its error memory: float32, as large as the trained
weights, until it takes part again (error feedback; Stich et al., arXiv 1809.07599; Karimireddy et al., arXiv
1901.09847). The published algorithms compress every step of every worker; here a client compresses the move of all its
local steps, and with partial participation its error waits with it.

Sizes are those of the numbers alone, without framing or entropy coding. Down goes what the clients of the missed rounds
sent up, counted one by one, or the whole model where that is smaller; a client applies them in their order.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from scalarfl.baselines.base import Baseline, Upload

ITERATIONS = 3
"""Power iterations of the low-rank approximation."""


class Compressed(Baseline):
    """FedAvg whose clients send less than their move."""

    costs: ClassVar[str] = "sends compressed updates; memory of a client: 1 float32 per parameter"
    forwarded: ClassVar[bool] = True
    feedback: ClassVar[bool] = True
    """Whether a client keeps what it did not send."""

    def optimizer(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """Plain SGD, which every client can follow."""
        return torch.optim.SGD(parameters, lr=self.server_lr)

    def upload(self, move: list[Tensor], memory: list[Tensor], random: np.random.Generator) -> Upload:
        """C(move + memory), and as the new memory what that leaves out."""
        wanted = [m + e for m, e in zip(move, memory, strict=True)] if memory else move
        sent, size = self.compress(wanted, random)
        return Upload(sent, size, [w - s for w, s in zip(wanted, sent, strict=True)] if self.feedback else [])

    @abstractmethod
    def compress(self, move: list[Tensor], random: np.random.Generator) -> tuple[list[Tensor], int]:
        """C(move), as the server unpacks it, and its bytes."""


class FedAvgTopK(Compressed):
    """The k coordinates of the whole model that are largest in magnitude: index and value.

    A value takes 4 bytes, an index as many whole bytes as the number of parameters needs: 2 up to 65,536 parameters,
    3 up to 16.8 million.
    """

    name: ClassVar[str] = "fedavg-topk"
    summary: ClassVar[str] = "baseline: FedAvg, the largest coordinates of each update, with error feedback"
    source: ClassVar[str] = "arXiv 1809.07599"

    fraction: float = Field(0.01, gt=0, le=1, description="share of the coordinates that a client sends")
    bytes_up: int | None = Field(
        None, ge=8, examples=[400], description="bytes that a client may send in a round, instead of a fraction"
    )

    def kept(self, dimension: int) -> tuple[int, int]:
        """(k, bytes of one coordinate) for so many parameters."""
        each = 4 + max(1, -(-(dimension - 1).bit_length() // 8))
        k = round(self.fraction * dimension) if self.bytes_up is None else self.bytes_up // each
        return min(max(1, k), dimension), each

    def compress(self, move: list[Tensor], random: np.random.Generator) -> tuple[list[Tensor], int]:  # noqa: ARG002
        """Zero, but at the k largest coordinates."""
        flat = torch.cat([tensor.reshape(-1) for tensor in move])
        k, each = self.kept(flat.numel())
        chosen = torch.topk(flat.abs(), k).indices
        sparse = torch.zeros_like(flat)
        sparse[chosen] = flat[chosen]
        parts = torch.split(sparse, [tensor.numel() for tensor in move])
        return [part.view_as(tensor) for part, tensor in zip(parts, move, strict=True)], k * each


class FedAvgSigns(Compressed):
    """One bit a coordinate, and one float32 a tensor: C(p) = mean |p| sign(p) (EF-signSGD, by tensor)."""

    name: ClassVar[str] = "fedavg-signs"
    summary: ClassVar[str] = "baseline: FedAvg, the signs of each update, scaled, with error feedback"
    source: ClassVar[str] = "arXiv 1901.09847"

    def compress(self, move: list[Tensor], random: np.random.Generator) -> tuple[list[Tensor], int]:  # noqa: ARG002
        """The signs, zero as positive, times the tensor's mean magnitude."""
        sent = [torch.where(tensor >= 0, 1.0, -1.0) * tensor.abs().mean() for tensor in move]
        return sent, sum(-(-tensor.numel() // 8) + 4 for tensor in move)


class FedAvgLowRank(Compressed):
    """Two thin factors of every matrix, and the other tensors whole; a tensor (n, ...) is a matrix of n rows.

    Deviation from PowerSGD: the factors are each client's own, since all-reducing them takes two exchanges a round; so
    the iteration starts from draws instead of the last round's factor, and runs three times.
    """

    name: ClassVar[str] = "fedavg-lowrank"
    summary: ClassVar[str] = "baseline: FedAvg, a low-rank approximation of each update, with error feedback"
    source: ClassVar[str] = "arXiv 1905.13727"

    rank: int = Field(1, ge=1, description="rank of every matrix that a client sends")

    def compress(self, move: list[Tensor], random: np.random.Generator) -> tuple[list[Tensor], int]:
        """P Q^T with orthonormal P = qr(M Q) and Q = M^T P, where the factors are smaller than the matrix M."""
        sent, size = [], 0
        for tensor in move:
            matrix = tensor.reshape(len(tensor), -1) if tensor.ndim > 1 else tensor.reshape(1, -1)
            factors = self.rank * sum(matrix.shape)
            if factors >= matrix.numel():
                sent.append(tensor)
                size += tensor.nbytes
                continue
            drawn = random.standard_normal((matrix.shape[1], self.rank), np.float32)
            right = torch.from_numpy(drawn).to(matrix.device)
            for _ in range(ITERATIONS):
                left = torch.linalg.qr(matrix @ right).Q
                right = matrix.T @ left
            sent.append((left @ right.T).view_as(tensor))
            size += 4 * factors
        return sent, size


class FedAvgInt8(Compressed):
    """One byte a coordinate and one float32 a tensor: max |p| / 127 times a whole number, rounded at random.

    The rounding is unbiased (QSGD with 127 levels of the largest magnitude, in place of the norm), so clients keep no
    error.
    """

    name: ClassVar[str] = "fedavg-int8"
    summary: ClassVar[str] = "baseline: FedAvg, each update in 8 bits a coordinate, rounded at random"
    source: ClassVar[str] = "arXiv 1610.02132"
    costs: ClassVar[str] = "sends compressed updates"
    feedback: ClassVar[bool] = False

    def compress(self, move: list[Tensor], random: np.random.Generator) -> tuple[list[Tensor], int]:
        """floor(p / scale + u) scale, u uniform in [0, 1)."""
        sent = []
        for tensor in move:
            scale = (tensor.abs().max() / 127).clamp_min(torch.finfo(torch.float32).tiny)
            drawn = torch.from_numpy(random.random(tensor.shape, np.float32)).to(tensor.device)
            sent.append(torch.floor(tensor / scale + drawn).clamp(-127, 127) * scale)
        return sent, sum(tensor.numel() + 4 for tensor in move)
