"""What a task is: data, a loss, a score."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from scalarfl.objective import Score


@dataclass(frozen=True)
class Examples:
    """Inputs float32[n, ...] and labels int64[n], held once however many clients share them."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.labels[index]

    def batch(self, indices: npt.NDArray[np.int64] | Sequence[int]) -> tuple[Tensor, Tensor]:
        """The examples at ``indices``, stacked."""
        at = torch.as_tensor(indices)
        return self.inputs[at], self.labels[at]

    def first(self, count: int) -> "Examples":
        """The first ``count`` examples; all where ``count`` is 0."""
        return self if count == 0 else Examples(self.inputs[:count], self.labels[:count])


@dataclass(frozen=True)
class Shard:
    """One client's part of the examples: indices, no copy."""

    whole: Examples
    indices: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.whole[int(self.indices[index])]

    def batch(self, indices: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """The client's examples at ``indices``, stacked."""
        return self.whole.batch(self.indices[indices])


@dataclass(frozen=True)
class Task:
    """A classification task: training and test examples, and how a model is judged on them."""

    name: str
    train: Examples
    test: Examples
    classes: int

    @property
    def inputs(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.train.inputs.shape[1:])

    @staticmethod
    def loss(model: nn.Module, batch: Any) -> Tensor:
        """Mean cross entropy, reduced in float32."""
        inputs, labels = batch
        return functional.cross_entropy(model(inputs).float(), labels)

    @staticmethod
    @torch.no_grad()
    def score(model: nn.Module, test: Examples) -> Score:
        """Mean cross entropy and accuracy on all of ``test``."""
        loss, right = 0.0, 0
        for begin in range(0, len(test), 1000):
            inputs, labels = test.inputs[begin : begin + 1000], test.labels[begin : begin + 1000]
            logits = model(inputs).float()
            loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
            right += int((logits.argmax(1) == labels).sum())
        return Score(loss / len(test), right / len(test), len(test))
