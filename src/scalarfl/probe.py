"""Losses at x + (walk) + mu z, with x untouched.

The weights are never perturbed and restored: adding and subtracting loses bits. The perturbed weights are written to
a scratch buffer and the model's parameters point there for as long as a loss is evaluated; x itself is only read.
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from scalarfl.kernels import for_each_block
from scalarfl.objective import Loss
from scalarfl.replica import Replica, sliced

K = TypeVar("K", bound=Hashable)

Walk = tuple[tuple[float, ...], ...]
"""A client in mid-round: for each local step done, the coefficients of its directions. Its position is
x_r - lr sum_k sum_p w_kp z_kp: a list of scalars, not a copy of the model."""


class Probing(NamedTuple):
    """One local step's questions: the loss at the client's position and at mu z_p beside it, for every direction p."""

    seed: int
    lr: float
    mu: float
    walk: Walk
    perturbations: range
    batch: Any


class Probe:
    """Measures losses around a replica's position."""

    def __init__(self, replica: Replica, loss: Loss) -> None:
        self.replica = replica
        self.loss = loss
        self.evaluations = 0
        """Losses evaluated so far: forward passes of one batch."""
        self._perturbed: list[Tensor] = []
        self._walked: list[Tensor] = []

    @torch.no_grad()
    def measure(self, questions: Sequence[Probing]) -> list[list[float]]:
        """For each question its 1 + P losses: at the client's position, then in every direction.

        Clients that ask about the same points (a cohort at its first local step, with shared directions) share each
        perturbed copy of the weights. Neither their order nor their company changes a bit of anybody's losses.
        """
        losses: list[dict[int | None, float]] = [{} for _ in questions]
        for members in _grouped((_standpoint(question), index) for index, question in enumerate(questions)).values():
            here = questions[members[0]]
            position = self._position(here)
            with self._weights(position):
                for index in members:
                    losses[index][None] = self._loss(questions[index].batch)
            points = _grouped((p, index) for index in members for p in questions[index].perturbations)
            for perturbation, askers in points.items():
                self._displace(position, here.seed, len(here.walk), perturbation, here.mu)
                with self._weights(self._perturbed):
                    for index in askers:
                        losses[index][perturbation] = self._loss(questions[index].batch)
        return [
            [answers[None], *(answers[p] for p in question.perturbations)]
            for question, answers in zip(questions, losses, strict=True)
        ]

    def _position(self, question: Probing) -> list[Tensor]:
        """Where the client stands in mid-round: x itself before its first local step, else a scratch copy of it."""
        x = self.replica.tensors
        if not question.walk:
            return x
        if not self._walked:
            self._walked = [torch.empty_like(tensor) for tensor in x]
        kernels, method, addresses = self.replica.kernels, self.replica.method, self.replica.layout.addresses

        def walk(index: int, part: slice) -> None:
            here = self._walked[index].view(-1)[part]
            here.copy_(x[index].view(-1)[part])
            scale = method.scale(sliced(self.replica.state[index], part))
            combined = torch.empty_like(here)
            for step, row in enumerate(question.walk):
                kernels.combine(
                    combined, question.seed, step, addresses[index] + part.start, question.perturbations, row
                )
                here -= (combined if scale is None else combined * scale) * question.lr

        for_each_block(x, walk)
        return self._walked

    def _displace(self, position: list[Tensor], seed: int, step: int, perturbation: int, mu: float) -> None:
        """Write position + mu z to the scratch buffer."""
        if not self._perturbed:
            self._perturbed = [torch.empty_like(tensor) for tensor in position]
        kernels, method, addresses = self.replica.kernels, self.replica.method, self.replica.layout.addresses

        def displace(index: int, part: slice) -> None:
            there, here = self._perturbed[index].view(-1)[part], position[index].view(-1)[part]
            scale = method.scale(sliced(self.replica.state[index], part))
            kernels.displace(there, here, scale, seed, step, addresses[index] + part.start, perturbation, mu)

        for_each_block(position, displace, stream=method.vectors == 0)

    @contextmanager
    def _weights(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Let the model's parameters point at ``tensors``."""
        try:
            for parameter, tensor in zip(self.replica.parameters, tensors, strict=True):
                parameter.data = tensor
            yield
        finally:
            for parameter, tensor in zip(self.replica.parameters, self.replica.tensors, strict=True):
                parameter.data = tensor

    def _loss(self, batch: Any) -> float:
        self.evaluations += 1
        return float(self.loss(self.replica.model, batch))


def _standpoint(question: Probing) -> Hashable:
    """Equal for questions that are asked from the same position."""
    return (question.seed, question.mu, question.walk and (question.lr, question.walk, question.perturbations))


def _grouped(pairs: Iterable[tuple[K, int]]) -> dict[K, list[int]]:
    """The indices of each key, keys in order of first appearance."""
    groups: dict[K, list[int]] = {}
    for key, index in pairs:
        groups.setdefault(key, []).append(index)
    return groups
