"""Losses at x + (walk) + mu z, with x untouched.

The weights are never perturbed and restored: adding and subtracting loses bits. The perturbed weights are made in a
scratch buffer, and the model's parameters point there for as long as a loss is evaluated; x itself is only read.
"""

import logging
import math
from collections.abc import Hashable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from scalarfl.errors import InputError
from scalarfl.ledger.update import Update
from scalarfl.methods import LocalStep
from scalarfl.model.gradients import Gradients, Training
from scalarfl.model.heading import Heading
from scalarfl.model.overlay import Fill, Overlay
from scalarfl.model.per_example import KEY, PerExample
from scalarfl.model.replica import Replica, sliced
from scalarfl.noise.kernels import for_each_block
from scalarfl.tasks.objective import Loss, as_loss, as_losses

SMALL = 1 << 24
"""Models with up to this many trainable parameters are perturbed in one copy, shared by the cohort; larger ones layer
by layer, which needs no more memory than the largest layer."""
BACK = -1
"""Stands for the direction of the latest move, beside the numbers of a round's directions."""

FAR = 1e-2
"""How far weights are displaced, at least, to compare two ways to do so."""

K = TypeVar("K", bound=Hashable)

Walk = tuple[tuple[float, ...], ...]
"""A client between local steps: for each step done, the coefficients of its directions. Its position is
x_r - lr sum_k sum_p w_kp z_kp: a list of scalars, not a copy of the model."""


class LossQuery(NamedTuple):
    """One local step's losses to measure: at the client's position, and displaced by mu z_p for every direction p."""

    seed: int
    lr: float
    mu: float
    walk: Walk
    perturbations: range
    batch: Any
    bare: bool = False
    """Omit the loss at the position itself."""
    exact: bool = False
    """Return slopes by a backward pass instead of the displaced losses."""
    back: Update | None = None
    """A move whose direction (``Heading``) is one more direction, after the others."""
    examples: int = 0
    """If not 0: those of the batch, b, each of whose losses is wanted: every loss is then float64[b].

    Where each has directions of its own, the first ``len(perturbations) // batch size`` ones belong to the first
    example, and so on. Returned are the mean loss and the b losses at the position (unless bare), then b losses for
    each of ``passes``, and the mean loss along ``back``."""
    passes: int = 0
    """P, the directions of an example that has its own."""

    @property
    def points(self) -> tuple[int, ...]:
        """All directions, as numbers."""
        return (*self.perturbations, *(() if self.back is None else (BACK,)))


Question = LossQuery | Training


class Probe:
    """Measures losses around a replica's position.

    small: see ``SMALL``; neither way changes a bit of the losses.
    """

    def __init__(self, replica: Replica, loss: Loss, small: int = SMALL) -> None:
        self.replica = replica
        self.loss = loss
        self.evaluations = 0
        """Losses evaluated so far: forward passes of one batch."""
        self.passes = 0
        """Forward passes with a backward pass so far."""
        self.overlay = Overlay(replica.model, replica.parts, replica.tensors)
        masked = any(part.places is not None for part in replica.parts)
        self.gradients = Gradients(replica, loss, self.overlay)
        self.per_example = None if replica.kernels.factors is None else PerExample(replica, self.overlay)
        self._compared = False  # whether displaced outputs were held against displaced weights
        self._layered = replica.layout.dimension > small and not masked
        self._trusted = False  # whether the model was seen to use its weights inside their layers alone
        self._perturbed: list[Tensor] = []
        self._walked: list[Tensor] = []

    def measure(self, questions: Sequence[Question]) -> list[list[float]]:
        """Answer any mix of queries, in order: losses, or a loss and slopes (``Gradients``)."""
        if self.per_example is not None:
            return [self._of_examples(q) for q in questions if isinstance(q, LossQuery)]
        differences = [q for q in questions if isinstance(q, LossQuery) and not q.exact]
        losses = iter(self.losses(differences))
        return [self._followed(q) if isinstance(q, Training) or q.exact else next(losses) for q in questions]

    @torch.no_grad()
    def _of_examples(self, question: LossQuery) -> list[float]:
        """Answer a query for the losses of examples, each along directions of its own."""
        assert self.per_example is not None
        position = self._position(question)
        if not self._compared:
            self._compare(question, position)
            self._compared = True
        found = []
        with self.overlay.whole(self._as_weights(position)):
            if not question.bare:
                losses = self._losses(question)
                found = [float(losses.mean()), *losses.tolist()]
            for number in range(question.passes):
                with self._displaced(question, number, question.mu):
                    found += self._losses(question).tolist()
        self.evaluations += question.passes + (not question.bare)
        if question.back is not None:
            found += self._beside(position, question, BACK, [question])
        return found

    def _displaced(self, question: LossQuery, number: int, mu: float) -> AbstractContextManager[None]:
        """Displace every example along its own direction of this number."""
        assert self.per_example is not None
        own = question.perturbations[number :: question.passes][: question.examples]
        return self.per_example.displaced(question.seed, len(question.walk), own, mu)

    def _losses(self, question: LossQuery) -> Tensor:
        """float64[b]: the losses of the batch's examples."""
        return as_losses(self.loss(self.replica.model, question.batch), question.examples)

    def _compare(self, question: LossQuery, position: list[Tensor]) -> None:
        """Hold the first and the last example's losses against those at weights that are displaced themselves."""
        far = question._replace(mu=max(question.mu, FAR))
        with self.overlay.whole(self._as_weights(position)):
            at_x = self._losses(far)
            with self._displaced(far, 0, far.mu):
                own = self._losses(far)
        if not bool((at_x + own).isfinite().all()):
            return
        slack = 1e-4 if self.replica.tensors[0].dtype == torch.float32 else 5e-2
        for example in {0, question.examples - 1}:
            fill = self._filler(position, far, question.perturbations[example * question.passes])
            if self._layered:
                context = self.overlay.layered(fill)
            else:
                moved = [torch.empty_like(tensor) for tensor in self.replica.tensors]
                for index, tensor in enumerate(moved):
                    fill(index, tensor.view(-1), 0)
                context = self.overlay.whole(moved)
            with context:
                dense = float(self._losses(far)[example])
            before, found = float(at_x[example]), float(own[example])
            if not abs(found - dense) <= slack * max(1.0, abs(before)) + 0.05 * abs(dense - before):
                raise InputError(
                    f"{KEY}: beside a loss of {before:.6g}, example {example} of a batch has {found:.6g} along its own "
                    f"direction, and {dense:.6g} with weights displaced by it. The model mixes the examples of a "
                    "batch or uses a weight outside of its layer, or the loss gives them in another order. Use "
                    "directions = 'per-client'."
                )

    def _followed(self, question: Question) -> list[float]:
        """Answer a query that needs a backward pass."""
        self.passes += len(question.batches) if isinstance(question, Training) else 1
        if isinstance(question, Training):
            return self.gradients.training(question)
        with torch.no_grad():
            weights = self._as_weights(self._position(question))
        step, batch = len(question.walk), question.batch
        heading = None if question.back is None else Heading(self.replica, question.back)
        return self.gradients.exact(weights, question.seed, step, question.perturbations, batch, heading)

    @torch.no_grad()
    def losses(self, questions: Sequence[LossQuery]) -> list[list[float]]:
        """Each query's losses: at the client's position, unless it is bare, then in every direction.

        Clients with the same points (a cohort at its first local step, with shared directions) share each
        perturbed copy of the weights. Neither the order nor the other queries change a bit of a client's losses.
        """
        losses: list[dict[int | None, float]] = [{} for _ in questions]
        for members in _grouped((_standpoint(question), index) for index, question in enumerate(questions)).values():
            here = questions[members[0]]
            position = self._position(here)
            wanting = [index for index in members if not questions[index].bare]
            if wanting:
                with self.overlay.whole(self._as_weights(position)):
                    for index in wanting:
                        losses[index][None] = self._loss(questions[index])
            points = _grouped((p, index) for index in members for p in questions[index].points)
            for perturbation, askers in points.items():
                beside = self._beside(position, here, perturbation, [questions[index] for index in askers])
                for index, value in zip(askers, beside, strict=True):
                    losses[index][perturbation] = value
        return [
            [answers[p] for p in ((() if question.bare else (None,)) + question.points)]
            for question, answers in zip(questions, losses, strict=True)
        ]

    def _beside(
        self, position: list[Tensor], here: LossQuery, perturbation: int, asked: Sequence[LossQuery]
    ) -> list[float]:
        """The losses of several queries' batches at position + mu z."""
        if self._layered:
            fill = self._filler(position, here, perturbation)
            if not self._trusted:
                self._try_layers(fill, asked[0].batch)
        if self._layered:
            with self.overlay.layered(fill):
                return [self._loss(question) for question in asked]
        self._displace(position, here, perturbation)
        with self.overlay.whole(self._perturbed):
            return [self._loss(question) for question in asked]

    def _try_layers(self, fill: Fill, batch: Any) -> None:
        """Detect whether the model uses weights only inside their layers: their values outside then cannot matter."""
        answers = []
        for outside in (None, self.replica.tensors):
            try:
                with self.overlay.layered(fill, outside):
                    answers.append(float(as_loss(self.loss(self.replica.model, batch))))
            except (RuntimeError, ValueError, IndexError):
                answers.append(math.nan)
        if answers[0] == answers[1]:
            self._trusted = True
        elif not math.isnan(answers[1]):
            self._layered = False
            logging.getLogger("scalarfl").info(
                "the model uses weights outside of their layers: it is perturbed as a whole"
            )

    def _filler(self, position: list[Tensor], here: LossQuery, perturbation: int) -> Fill:
        """A function that writes any slice of the weights at position + mu z."""
        at: tuple[Any, ...] = (here.seed, len(here.walk), perturbation, here.mu)
        source: Replica | Heading = self.replica
        if perturbation == BACK and here.back is not None:
            source, at = Heading(self.replica, here.back), (here.mu,)

        def fill(index: int, out: Tensor, begin: int | Tensor) -> None:
            if isinstance(begin, Tensor):
                source.displace_rows(index, out, position[index], begin, *at)
            else:
                source.displace(index, out, position[index].view(-1), begin, *at)

        return fill

    def _displace(self, position: list[Tensor], here: LossQuery, perturbation: int) -> None:
        """Write all weights at position + mu z to the scratch copy."""
        if not self._perturbed:
            self._perturbed = [torch.empty_like(tensor) for tensor in self.replica.tensors]
        fill = self._filler(position, here, perturbation)
        for index, tensor in enumerate(self._perturbed):
            fill(index, tensor.view(-1), 0)

    def _position(self, question: LossQuery) -> list[Tensor]:
        """The client's position: x itself before its first local step, afterwards a scratch copy."""
        x = self.replica.tensors
        if not question.walk:
            return x
        if not self._walked:
            self._walked = [torch.empty_like(tensor, dtype=torch.float32) for tensor in x]
        kernels, method, addresses = self.replica.kernels, self.replica.method, self.replica.layout.addresses

        rows = [method.weights(row) for row in question.walk]

        def walk(index: int, part: slice) -> None:
            here = self._walked[index].view(-1)[part]
            here.copy_(x[index].view(-1)[part])
            state = sliced(self.replica.state[index], part)
            scale = method.scale(state)
            combined = torch.empty_like(here)
            for step, row in enumerate(rows):
                kernels.combine(
                    combined, question.seed, step, addresses[index] + part.start, question.perturbations, row
                )
                dx = combined if scale is None else combined * scale
                if not method.plain:
                    move = LocalStep(dx, row, step, step + 1)
                    state = method.learn(state, move)
                    dx = method.step(state, move)
                here -= dx * question.lr

        for_each_block(x, walk)
        return self._walked

    def _as_weights(self, position: list[Tensor]) -> list[Tensor]:
        """The position in the model's dtypes; a walk is kept in float32."""
        return [here.to(x.dtype) for here, x in zip(position, self.replica.tensors, strict=True)]

    def _loss(self, question: LossQuery) -> Any:
        self.evaluations += 1
        if question.examples and self.per_example is None:
            return self._losses(question).cpu().numpy()
        return float(as_loss(self.loss(self.replica.model, question.batch)))


def _standpoint(question: LossQuery) -> Hashable:
    """A key that is equal for queries at the same position."""
    return (question.seed, question.mu, question.walk and (question.lr, question.walk, question.perturbations))


def _grouped(pairs: Iterable[tuple[K, int]]) -> dict[K, list[int]]:
    """The indices of each key, keys in order of first appearance."""
    groups: dict[K, list[int]] = {}
    for key, index in pairs:
        groups.setdefault(key, []).append(index)
    return groups
