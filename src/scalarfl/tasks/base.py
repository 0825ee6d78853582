"""What a task is: data, a loss, a score."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from scalarfl.tasks.objective import Score, as_losses

Indices = npt.NDArray[np.int64] | Sequence[int]


class ExampleSet(Protocol):
    """Examples of any kind, held once however many clients share them."""

    def __len__(self) -> int: ...

    def batch(self, indices: Indices, /) -> Any:
        """The examples at ``indices`` as the task's loss wants them."""

    def take(self, indices: Indices, /) -> Self:
        """The examples at ``indices`` alone."""

    def classes(self) -> npt.NDArray[np.int64] | None:
        """Each example's class, int64[n]; None if there are none to skew a partition by."""


class Task(Protocol):
    """Training and test examples, and how a model is judged on them."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def train(self) -> ExampleSet: ...  # noqa: D102
    @property
    def test(self) -> ExampleSet: ...  # noqa: D102

    @property
    def metric(self) -> str:
        """What a score's ``accuracy`` is: "accuracy", or the task's own measure, such as "f1"."""

    def loss(self, model: nn.Module, batch: Any, /) -> Tensor:
        """Mean loss of a batch, reduced in float32."""

    def losses(self, model: nn.Module, batch: Any, /) -> Tensor:
        """float32[B]: the loss of each example alone, whatever else the batch holds. May serve in place of ``loss``."""

    def score(self, model: nn.Module, test: Any, /) -> Score:
        """Loss and metric on a set of examples."""


@dataclass(frozen=True)
class Examples:
    """Inputs float32[n, ...] and labels int64[n]."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.labels[index]

    def batch(self, indices: Indices) -> tuple[Tensor, Tensor]:
        """The examples at ``indices``, stacked."""
        at = torch.as_tensor(indices)
        return self.inputs[at], self.labels[at]

    def take(self, indices: Indices) -> "Examples":
        """The examples at ``indices`` alone."""
        return Examples(*self.batch(indices))

    def classes(self) -> npt.NDArray[np.int64]:
        """The labels."""
        return self.labels.numpy()


@dataclass(frozen=True)
class Shard:
    """One client's part of the examples: indices, no copy."""

    whole: ExampleSet
    indices: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.batch(np.asarray([index]))

    def batch(self, indices: npt.NDArray[np.int64]) -> Any:
        """The client's examples at ``indices``, as one batch."""
        return self.whole.batch(self.indices[indices])


@dataclass(frozen=True)
class ArrayTask(ABC):
    """A task whose inputs are arrays of one shape, for models from scratch and of your own.

    Losses and score are those of classification; override them for another kind of task: ``loss`` and ``losses``
    together, or ``loss`` alone where it returns one number for each example.
    """

    name: ClassVar[str]
    """The name in recipes."""
    inputs: ClassVar[tuple[int, ...]]
    """Shape of one input."""
    classes: ClassVar[int]
    """Number of classes: how many outputs a model from scratch gets."""
    size: ClassVar[int]
    """Training and test examples together."""
    metric: ClassVar[str] = "accuracy"
    """What ``Score.accuracy`` is."""

    train: Examples
    test: Examples

    @classmethod
    @abstractmethod
    def load(cls, data_dir: Path | None = None) -> Self:
        """The examples. data_dir: ``task.data_dir`` of the recipe. Raises InputError that names file and fault."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Mean cross entropy, reduced in float32."""
        inputs, labels = on_device_of(model, *batch)
        return functional.cross_entropy(model(inputs).float(), labels)

    def losses(self, model: nn.Module, batch: Any) -> Tensor:
        """float32[B]: the cross entropy of each example; their mean is ``loss`` to rounding.

        For clipping, and for directions of an example's own: see ``objective.as_losses`` for slopes. Raises InputError
        where only ``loss`` is overridden and returns a mean.
        """
        if type(self).loss is not ArrayTask.loss and type(self).losses is ArrayTask.losses:
            return as_losses(self.loss(model, batch), len(batch[1])).float()
        inputs, labels = on_device_of(model, *batch)
        return functional.cross_entropy(model(inputs).float(), labels, reduction="none")

    @torch.no_grad()
    def score(self, model: nn.Module, test: Examples) -> Score:
        """Mean cross entropy and accuracy on all of ``test``."""
        loss, right = 0.0, 0
        for begin in range(0, len(test), 1000):
            inputs, labels = on_device_of(model, test.inputs[begin : begin + 1000], test.labels[begin : begin + 1000])
            logits = model(inputs).float()
            loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
            right += int((logits.argmax(1) == labels).sum())
        accuracy = right / len(test)
        return Score(loss / len(test), accuracy, len(test), {self.metric: accuracy})


E = TypeVar("E", bound=ExampleSet)


def first(examples: E, count: int) -> E:
    """The first ``count`` examples; all where ``count`` is 0."""
    return examples.take(np.arange(count)) if 0 < count < len(examples) else examples


def on_device_of(model: nn.Module, *tensors: Tensor) -> list[Tensor]:
    """The tensors on the device that the model is on."""
    device = next(model.parameters()).device
    return [tensor.to(device) for tensor in tensors]
