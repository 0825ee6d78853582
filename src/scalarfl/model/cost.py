"""What passes cost that are more than a plain forward pass, measured on the machine at hand."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from scalarfl.model.overlay import Overlay
from scalarfl.model.per_example import PerExample
from scalarfl.model.replica import Replica
from scalarfl.tasks.objective import Loss

REPEATS = 5
SECONDS = 2.0
"""After so many repetitions, or seconds, the measurement ends."""


@contextmanager
def following(model: nn.Module, trained: Sequence[nn.Parameter]) -> Iterator[None]:
    """Enable autograd for these parameters only; restore everything afterwards."""
    before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    chosen = {id(p) for p in trained}
    try:
        for p, _, _ in before:
            p.grad = None
            p.requires_grad_(id(p) in chosen)
        with torch.enable_grad():
            yield
    finally:
        for p, required, gradient in before:
            p.requires_grad_(required)
            p.grad = gradient


def backward_cost(model: nn.Module, trained: Sequence[nn.Parameter], loss: Loss, batch: Any) -> float:
    """Seconds of a backward pass of one batch in forward passes, with what autograd adds to the forward pass.

    The least of ``REPEATS`` gradients less the least of as many forward passes without autograd, divided by these;
    taken in turns, after one of each that does not count. 0 or more.
    """
    with following(model, trained):

        def plain() -> None:
            with torch.no_grad():
                loss(model, batch)

        def gradient() -> None:
            value = loss(model, batch)
            assert isinstance(value, Tensor)
            torch.autograd.grad(value.float().mean(), list(trained), allow_unused=True)

        return max(0.0, _ratio(plain, gradient, trained[0].device) - 1)


@torch.no_grad()
def displaced_cost(replica: Replica, loss: Loss, batch: Any, examples: int) -> float:
    """Seconds of a pass that displaces each of a batch's examples along a direction of its own, in plain passes.

    Measured as ``backward_cost`` is; the signs are made for every pass.
    """
    way = PerExample(replica, Overlay(replica.model, replica.parts, replica.tensors))

    def displaced() -> None:
        with way.displaced(0, 0, range(examples), 1e-3):
            loss(replica.model, batch)

    return _ratio(lambda: loss(replica.model, batch), displaced, replica.tensors[0].device)


def _ratio(plain: Callable[[], object], other: Callable[[], object], device: torch.device) -> float:
    """Seconds of the other in those of the plain one: the least of each, in turns, after one that does not count."""
    seconds: tuple[list[float], list[float]] = [], []
    began = time.perf_counter()
    while len(seconds[1]) <= REPEATS and (len(seconds[1]) < 2 or time.perf_counter() - began < SECONDS):
        for found, work in zip(seconds, (plain, other), strict=True):
            start = _now(device)
            work()
            found.append(_now(device) - start)
    return min(seconds[1][1:]) / min(seconds[0][1:])


def _now(device: torch.device) -> float:
    """Seconds, once the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
