"""Models from scratch, from a portable seed; which of a model's tensors are trained; digests of weights."""

import fnmatch
import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from scalarfl.directions import random_words
from scalarfl.errors import InputError, nearest
from scalarfl.seeds import derive

Trainable = Literal["all", "norms"] | Sequence[str]
"""``all``; ``norms``: biases and normalisation weights (every vector); or shell patterns of parameter names."""


def logistic(inputs: tuple[int, ...], classes: int) -> nn.Module:
    """Multinomial logistic regression on flattened inputs."""
    return nn.Sequential(nn.Flatten(), nn.Linear(_size(inputs), classes))


def mlp(inputs: tuple[int, ...], classes: int, hidden: Sequence[int] = (64,)) -> nn.Module:
    """A multilayer perceptron with ReLU on flattened inputs."""
    layers: list[nn.Module] = [nn.Flatten()]
    width = _size(inputs)
    for units in hidden:
        layers += [nn.Linear(width, units), nn.ReLU()]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, classes))


def cnn(inputs: tuple[int, ...], classes: int, channels: Sequence[int] = (8, 16)) -> nn.Module:
    """A small convolutional network: per stage a 3x3 convolution, ReLU and 2x2 max-pooling, then a linear layer.

    inputs: (channels, height, width).
    """
    planes, height, width = inputs
    layers: list[nn.Module] = []
    for units in channels:
        layers += [nn.Conv2d(planes, units, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        planes, height, width = units, height // 2, width // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(planes * height * width, classes))


def _size(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def build(
    name: str, inputs: tuple[int, ...], classes: int, seed: int, hidden: Sequence[int] | None = None
) -> nn.Module:
    """The model ``name`` ("logistic", "mlp", "cnn") for inputs of a shape, its weights drawn from ``seed``.

    hidden: widths of the MLP's hidden layers or channels of the CNN's stages; None for the model's default.
    """
    if name == "logistic":
        model = logistic(inputs, classes)
    elif name == "mlp":
        model = mlp(inputs, classes) if hidden is None else mlp(inputs, classes, hidden)
    elif name == "cnn":
        model = cnn(inputs, classes) if hidden is None else cnn(inputs, classes, hidden)
    else:
        raise InputError(f"model.name = '{name}': no such model; {nearest(name, ['cnn', 'mlp', 'logistic'])}")
    initialise(model, seed)
    return model


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Uniform in +-1/sqrt(fan in), weights and biases, as torch's layers do by default, but portably.

    The numbers come from the portable generator and exact arithmetic: the same bits on every machine. ``model``
    consists of linear and convolutional layers.
    """
    for layer, module in enumerate(m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)):
        bound = torch.tensor(float(module.weight[0].numel())).sqrt().reciprocal()
        for part, tensor in enumerate((module.weight, module.bias)):
            if tensor is not None:
                words = random_words(derive(seed, "weights", layer), part, 0, 0, -(-tensor.numel() // 4), tensor.device)
                uniform = (words.view(-1)[: tensor.numel()] >> 8).float() * 2.0**-23 - 1  # 24 bits: exact
                tensor.copy_((uniform * bound).view_as(tensor))


def trainable_parameters(model: nn.Module, trainable: Trainable = "all") -> list[tuple[str, nn.Parameter]]:
    """The (name, parameter) pairs that are trained, in ``named_parameters()`` order, tied weights once.

    Raises InputError where nothing is selected, a pattern matches nothing, or a tensor's type is not supported.
    """
    named = list(model.named_parameters())
    if trainable == "all":
        chosen = named
    elif trainable == "norms":
        chosen = [(name, parameter) for name, parameter in named if parameter.ndim <= 1]
    elif isinstance(trainable, str):
        raise InputError(f"model.trainable = '{trainable}': accepted are 'all', 'norms' or a list of patterns.")
    else:
        for pattern in trainable:
            if not any(fnmatch.fnmatchcase(name, pattern) for name, _ in named):
                raise InputError(
                    f"model.trainable: the pattern '{pattern}' matches no parameter; the first are "
                    + ", ".join(name for name, _ in named[:4])
                    + "."
                )
        chosen = [pair for pair in named if any(fnmatch.fnmatchcase(pair[0], pattern) for pattern in trainable)]
    if not chosen:
        raise InputError(f"model.trainable = {trainable!r} selects no parameter of the model.")
    for name, parameter in chosen:
        if parameter.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise InputError(f"parameter '{name}' is {parameter.dtype}: accepted are float32, bfloat16 and float16.")
    return chosen


def base_digest(model: nn.Module) -> str:
    """SHA-256 over all parameters and buffers, trained or not: what every party must hold before the first round."""
    return digest_tensors((*model.named_parameters(), *model.named_buffers()))


def digest_tensors(named: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names, dtypes, shapes and raw bytes (little endian, row-major)."""
    result = hashlib.sha256()
    for name, tensor in named:
        result.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        result.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return result.hexdigest()
