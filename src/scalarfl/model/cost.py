"""What a backward pass costs, measured on the machine at hand."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

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
    forward: list[float] = []
    both: list[float] = []
    began = time.perf_counter()
    with following(model, trained):
        while len(both) <= REPEATS and (len(both) < 2 or time.perf_counter() - began < SECONDS):
            start = _now(trained)
            with torch.no_grad():
                loss(model, batch)
            middle = _now(trained)
            value = loss(model, batch)
            assert isinstance(value, Tensor)
            torch.autograd.grad(value.float().mean(), list(trained), allow_unused=True)
            forward.append(middle - start)
            both.append(_now(trained) - middle)
    return max(0.0, min(both[1:]) / min(forward[1:]) - 1)


def _now(trained: Sequence[nn.Parameter]) -> float:
    """Seconds, once the device has done its work."""
    if trained[0].device.type == "cuda":
        torch.cuda.synchronize(trained[0].device)
    return time.perf_counter()
