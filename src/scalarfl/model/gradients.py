"""Slopes by a backward pass instead of by differences, for clients with the memory to train.

A client still sends one scalar per direction, so messages, ledger, replay and methods stay the same:

- *exact* slopes, g_p = z_p . grad f(x): one forward and one backward pass give any number of them (CORE, arXiv
  2309.13307, with the directions of the method). The gradient of a layer is projected as soon as backward has it, and
  freed: no gradient of the model's size is ever held.
- *projected local training*, g_p = z_p . (x - x_tau) / local_lr, where x_tau is what a torch optimizer makes of x in
  tau steps (Ferret, arXiv 2409.06277, whose clients likewise send projections of their whole move). With SGD that is
  the sum of the slopes along the way.

Sums may differ in the last bit between devices: they are measurements, like losses.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scalarfl.errors import InputError
from scalarfl.ledger.update import Update
from scalarfl.model.cost import following
from scalarfl.model.heading import Heading
from scalarfl.model.overlay import Overlay
from scalarfl.model.replica import Replica, sliced
from scalarfl.noise.kernels import for_each_block
from scalarfl.tasks.objective import Loss, as_loss

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


class Local(NamedTuple):
    """How a client trains in projected local training."""

    lr: float = 0.1
    """The optimizer's learning rate; the projections are divided by it."""
    optimizer: str = "sgd"


class Training(NamedTuple):
    """A query for the projections of a whole move: tau local steps of an optimizer."""

    seed: int
    perturbations: range
    batches: tuple[Any, ...]
    """One a local step."""
    lr: float
    optimizer: str
    back: Update | None = None
    """As in ``LossQuery``."""


class Gradients:
    """Answers queries that need a backward pass; like the probe, it only reads x."""

    def __init__(self, replica: Replica, loss: Loss, overlay: Overlay) -> None:
        self.replica = replica
        self.loss = loss
        self.overlay = overlay

    def exact(
        self,
        weights: Sequence[Tensor],
        seed: int,
        step: int,
        perturbations: Sequence[int],
        batch: Any,
        heading: Heading | None = None,
    ) -> list[float]:
        """[f, g_1, ..., g_P] at ``weights``: the loss, and its slope along every direction, last the heading."""
        sums = np.zeros(len(perturbations) + (heading is not None), np.float64)

        def passed(index: int) -> Callable[[Tensor], None]:
            def hook(parameter: Tensor) -> None:
                assert parameter.grad is not None
                sums[:] += self._projected(index, parameter.grad, seed, step, perturbations, heading)
                parameter.grad = None

            return hook

        with following(self.replica.model, self.replica.parameters):
            hooks = [
                p.register_post_accumulate_grad_hook(passed(index))  # type: ignore[no-untyped-call]
                for index, p in enumerate(self.replica.parameters)
            ]
            try:
                with self.overlay.whole(weights):
                    loss = self._loss(batch)
                    loss.backward()  # type: ignore[no-untyped-call]
            finally:
                for hook in hooks:
                    hook.remove()
        return [float(loss.detach()), *sums.tolist()]

    def training(self, asked: Training) -> list[float]:
        """[f, g_1, ..., g_P]: the loss before the first step, and the projections of the move, divided by ``lr``.

        With ``back`` the projection on that heading comes last.
        """
        heading = None if asked.back is None else Heading(self.replica, asked.back)
        replica, start = self.replica, self.replica.tensors
        if any(part.places is not None for part in replica.parts):
            raise InputError("slopes = 'training': an optimizer would move masked weights too; use 'exact'.")
        there = [x.clone() for x in start]
        first = np.nan
        with following(replica.model, replica.parameters), self.overlay.whole(there):
            optimizer = OPTIMIZERS[asked.optimizer](replica.parameters, lr=asked.lr)  # type: ignore[call-arg]
            for number, batch in enumerate(asked.batches):
                optimizer.zero_grad()
                loss = self._loss(batch)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                if number == 0:
                    first = float(loss.detach())
        sums = np.zeros(len(asked.perturbations) + (heading is not None), np.float64)
        for index, (x, end) in enumerate(zip(start, there, strict=True)):
            moved = (x.float() - end.float()).div_(asked.lr)
            sums += self._projected(index, moved, asked.seed, 0, asked.perturbations, heading)
        return [first, *sums.tolist()]

    def _loss(self, batch: Any) -> Tensor:
        loss = as_loss(self.loss(self.replica.model, batch))
        if not isinstance(loss, Tensor) or not loss.requires_grad:
            raise InputError(
                "slopes by a backward pass need a loss that is a tensor with a gradient: compute it in torch, without "
                "no_grad and without detaching; or use slopes = 'difference'."
            )
        return loss.float()

    def _projected(
        self,
        index: int,
        gradient: Tensor,
        seed: int,
        step: int,
        perturbations: Sequence[int],
        heading: Heading | None,
    ) -> npt.NDArray[np.float64]:
        """z_p . gradient over the coordinates of one tensor, and the heading's last. Blocks are summed in order, on any
        number of threads."""
        replica = self.replica
        places, address = replica.parts[index].places, replica.layout.addresses[index]
        flat = gradient.detach().reshape(-1)
        flat = flat if places is None else flat[places]
        found: dict[int, npt.NDArray[np.float64]] = {}

        def work(_: int, part: slice) -> None:
            here = flat[part].float()
            further = [] if heading is None else [torch.dot(here.double(), heading.part(index, part).double()).item()]
            scale = replica.method.scale(sliced(replica.state[index], part))
            here = here if scale is None else here * scale
            slopes = replica.kernels.project(here, seed, step, address + part.start, perturbations)
            found[part.start] = np.concatenate([slopes, further])

        for_each_block([flat], work, stream=True)
        total = np.zeros(len(perturbations) + (heading is not None), np.float64)
        for start in sorted(found):
            total += found[start]
        return total
