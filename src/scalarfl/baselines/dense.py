"""The round of the baselines, on the same data, cohorts and batches as the scalar-only methods."""

import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scalarfl.baselines import Baseline
from scalarfl.errors import InputError
from scalarfl.ledger.entries import Evaluation
from scalarfl.ledger.header import BACKWARD
from scalarfl.model.cost import following
from scalarfl.model.digest import digest_tensors
from scalarfl.model.selection import Trainable, select
from scalarfl.noise.directions import Layout
from scalarfl.noise.kernels import best
from scalarfl.noise.seeds import derive, generator
from scalarfl.protocol.aggregation import Linear, make_aggregator
from scalarfl.protocol.callbacks import Callbacks
from scalarfl.protocol.client import Dataset, drawn
from scalarfl.protocol.config import Agreed, RunConfig
from scalarfl.protocol.sampling import cohort
from scalarfl.protocol.schedule import Policy, Rounds, Work
from scalarfl.tasks.objective import Evaluate, Loss, as_score


class DenseConfig(Agreed):
    """``FederationConfig`` of a dense baseline; the keys of directions and slopes mean nothing to it."""

    method: Baseline


@dataclass
class DenseRun:
    """A finished run; the fields are those of ``simulation.Run``."""

    model: nn.Module
    dimension: int
    evaluations: list[Evaluation]
    rounds: int
    head: None
    """There is no ledger."""
    seconds: float
    diverged: bool
    digest: str
    traffic: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    forward_passes: int = 0
    """A backward pass counts as two."""
    backward_passes: int = 0
    """Those of ``forward_passes`` that are backward passes, each counted once here."""
    displaced_passes: int = 0
    """None; see ``simulation.Run``."""
    lr_final: None = None
    """A baseline's learning rate is given."""
    warnings: list[str] = field(default_factory=list)


def train(
    model: nn.Module,
    clients: Mapping[str, Dataset],
    loss: Loss,
    config: DenseConfig,
    run: RunConfig,
    trainable: Trainable = "all",
    evaluate: Evaluate | None = None,
    checkpoint: Path | None = None,
    callbacks: Callbacks = None,
) -> DenseRun:
    """Train ``model``, in place. checkpoint: file to resume from, written at every evaluation.

    The sizes counted are those of the float32 tensors alone, without any framing. Raises InputError for a model or
    loss that cannot be trained so.
    """
    return _Training(model, clients, loss, config, run, trainable, evaluate, checkpoint, callbacks).train()


class _Training(Rounds):
    """Rounds of a dense baseline; one without a finite mean loss ends it."""

    rounds: int = 0
    unused: int = 0
    lr: float = math.nan

    def __init__(
        self,
        model: nn.Module,
        clients: Mapping[str, Dataset],
        loss: Loss,
        config: DenseConfig,
        run: RunConfig,
        trainable: Trainable,
        evaluate: Evaluate | None,
        checkpoint: Path | None,
        callbacks: Callbacks,
    ) -> None:
        every = run.evaluate_every if evaluate is not None else 0
        super().__init__(Policy(run.rounds, evaluate_every=every, patience=run.patience, diverged_after=1), callbacks)
        self.model = model.eval()
        self.clients = dict(clients)
        self.loss = loss
        self.config = config
        self.sampled = len(clients) if run.sampled is None else run.sampled
        self.evaluate = evaluate
        self.checkpoint = checkpoint
        parts = select(model, trainable)
        if any(part.places is not None for part in parts):
            raise InputError("model.trainable: baselines send whole tensors and do not support a sparse mask.")
        for part in parts:
            if part.parameter.dtype != torch.float32:
                raise InputError(
                    f"model.dtype: '{part.name}' is {part.parameter.dtype}; baselines train float32 weights."
                )
        self.parameters = [part.parameter for part in parts]
        self.names = [part.name for part in parts]
        self.layout = Layout.of([(part.name, part.parameter) for part in parts])
        self.kernels = best(self.parameters[0].device)
        self.optimizer = config.method.optimizer(self.parameters)
        self.x = [parameter.detach().clone() for parameter in self.parameters]
        if run.lr == "auto":
            raise InputError("lr = 'auto': baselines send no scalars that could control it; give a number.")
        self.lr = run.lr
        self.participations = 0
        self.kept: dict[str, list[Tensor]] = {}
        """What clients keep between two rounds they take part in, by name."""
        self.seen: dict[str, int] = {}
        """Bytes of all uploads before a client last took part."""
        self.began = time.perf_counter()
        """Of all processes together, had they been one."""

    @property
    def known(self) -> int:
        """All clients."""
        return len(self.clients)

    def train(self) -> DenseRun:
        """Train from the checkpoint to the last round; afterwards restore ``requires_grad``."""
        self._restore()
        with following(self.model, self.parameters):
            self.run()
        s = self.config
        return DenseRun(
            model=self.model,
            dimension=self.layout.dimension,
            evaluations=self.evaluations,
            rounds=self.rounds,
            head=None,
            seconds=time.perf_counter() - self.began,
            diverged=self.diverged,
            digest=self._digest(),
            traffic={("up", "round"): (self.bytes_up,) * 2, ("down", "round"): (self.bytes_down,) * 2},
            forward_passes=self.participations * self._passes(),
            backward_passes=self.participations * s.local_steps if s.method.first_order else 0,
            warnings=self.warnings,
        )

    def _down(self, name: str) -> int:
        """Bytes that a client is sent before it trains: the model, or the uploads that it lacks if they are fewer."""
        whole, since = 4 * self.layout.dimension, self.seen.get(name, 0)
        self.seen[name] = self.bytes_up
        return min(whole, self.bytes_up - since) if self.config.method.forwarded else whole

    def _passes(self) -> int:
        steps = self.config.local_steps
        return steps * (1 + BACKWARD if self.config.method.first_order else self.config.perturbations + 1)

    def _round(self) -> Work[float | None]:
        """One round; returns the mean loss at x."""
        yield from ()  # nothing to wait for: all clients are here
        s = self.config
        asked = cohort(sorted(self.clients), self.sampled, s.seed, self.rounds)
        rule = make_aggregator(s.aggregation, dense=True)
        assert isinstance(rule, Linear)
        weights = rule.weights([len(self.clients[name]) for name in asked])
        moved = [torch.zeros_like(x) for x in self.x]
        losses, sent = [], 0
        for name, weight in zip(asked, weights, strict=True):
            self.bytes_down += self._down(name)
            losses.append(self._first_order(name) if s.method.first_order else self._zeroth_order(name))
            with torch.no_grad():
                own = [x - parameter for x, parameter in zip(self.x, self.parameters, strict=True)]
                random = generator(s.seed, "compression", name, self.rounds)
                upload = s.method.upload(own, self.kept.get(name, []), random)
                for total, part, x, parameter in zip(moved, upload.move, self.x, self.parameters, strict=True):
                    total += part * float(weight)
                    parameter.copy_(x)
            sent += upload.size
            if upload.memory:
                self.kept[name] = upload.memory
        for parameter, gradient in zip(self.parameters, moved, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.x = [parameter.detach().clone() for parameter in self.parameters]
        self.participations += len(asked)
        self.rounds += 1
        self.bytes_up += sent
        mean = math.fsum(losses) / len(losses)
        self.unused = 0 if math.isfinite(mean) else self.unused + 1
        return mean

    def _batch(self, name: str, step: int) -> Any:
        return drawn(self.clients[name], self.config.batch_size, self.config.seed, name, self.rounds, step)

    def _first_order(self, name: str) -> float:
        """Local SGD; returns the loss before the first step."""
        first = math.nan
        for step in range(self.config.local_steps):
            with torch.enable_grad():
                value = self.loss(self.model, self._batch(name, step))
                if not isinstance(value, Tensor) or not value.requires_grad:
                    raise InputError(
                        "the loss has no gradient: a first-order baseline cannot train on it; try 'fedzo'."
                    )
                gradients = torch.autograd.grad(value, self.parameters, allow_unused=True)
            first = float(value.detach()) if step == 0 else first
            with torch.no_grad():
                for parameter, gradient in zip(self.parameters, gradients, strict=True):
                    if gradient is not None:
                        parameter.sub_(gradient, alpha=self.lr)
        return first

    @torch.no_grad()
    def _zeroth_order(self, name: str) -> float:
        """Local steps along directions of the client's own; returns the loss before the first step."""
        s = self.config
        seed = derive(s.seed, "fedzo", name, self.rounds)
        first = math.nan
        for step in range(s.local_steps):
            batch = self._batch(name, step)
            here = [parameter.detach().clone() for parameter in self.parameters]
            at_x = float(self.loss(self.model, batch))
            first = at_x if step == 0 else first
            scalars = []
            for p in range(s.perturbations):
                for parameter, x, address in self._flat(here):
                    self.kernels.displace(parameter, x, None, seed, step, address, p, s.mu)
                scalars.append((float(self.loss(self.model, batch)) - at_x) / s.mu / s.perturbations)
            for parameter, x, address in self._flat(here):
                self.kernels.combine(parameter, seed, step, address, tuple(range(s.perturbations)), tuple(scalars))
                parameter.copy_(x - parameter * self.lr)
        return first

    def _flat(self, here: list[Tensor]) -> list[tuple[Tensor, Tensor, int]]:
        pairs = zip(self.parameters, here, self.layout.addresses, strict=True)
        return [(parameter.data.view(-1), x.view(-1), address) for parameter, x, address in pairs]

    def _digest(self) -> str:
        return digest_tensors(zip(self.names, self.x, strict=True))

    @torch.no_grad()
    def _scored(self) -> Evaluation:
        assert self.evaluate is not None
        score = as_score(self.evaluate(self.model))
        digest = bytes.fromhex(self._digest())
        return Evaluation(self.rounds, score.accuracy, float(score.loss), score.examples, digest)

    def _evaluation(self) -> Work[Evaluation]:
        """Measure the model and write the checkpoint."""
        yield from ()
        found = self._scored()
        if self.checkpoint is not None:
            self._keep([*self.evaluations, found])
        return found

    def _keep(self, evaluations: list[Evaluation]) -> None:
        assert self.checkpoint is not None
        curve = [[e.round, e.accuracy, e.loss, e.examples, e.digest.hex()] for e in evaluations]
        facts = {"round": self.rounds, "participations": self.participations, "curve": curve}
        facts |= {"up": self.bytes_up, "down": self.bytes_down, "kept": self.kept, "seen": self.seen}
        facts["seconds"] = time.perf_counter() - self.began
        beside = self.checkpoint.with_suffix(".new")
        torch.save({"x": self.x, "optimizer": self.optimizer.state_dict()} | facts, beside)
        beside.replace(self.checkpoint)

    def _restore(self) -> None:
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about pickles, which are refused
                kept = torch.load(self.checkpoint, weights_only=True)
            if not all(type(kept[key]) is int for key in ("round", "participations")):
                raise ValueError("its round is not a number")
            self.optimizer.load_state_dict(kept["optimizer"])
            self.x = kept["x"]
            with torch.no_grad():
                for parameter, x in zip(self.parameters, self.x, strict=True):
                    if parameter.shape != x.shape:
                        raise ValueError(f"a tensor of shape {tuple(x.shape)}, expected {tuple(parameter.shape)}")
                    parameter.copy_(x)
            self.rounds, self.participations = kept["round"], kept["participations"]
            whole = 4 * self.layout.dimension * self.participations  # of a checkpoint that does not count them
            self.bytes_up, self.bytes_down = kept.get("up", whole), kept.get("down", whole)
            self.kept, self.seen = kept.get("kept", {}), kept.get("seen", {})
            self.began -= kept["seconds"]
            self.evaluations = [Evaluation(r, a, v, n, bytes.fromhex(d)) for r, a, v, n, d in kept["curve"]]
            sound = [e.digest.hex() for e in self.evaluations[-1:]] == [self._digest()]
        except Exception as error:  # cut short, no archive, other objects: torch raises many kinds
            reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
            raise InputError(f"{self.checkpoint}: damaged: {reason}. Remove it to start again.") from None
        if not sound:
            raise InputError(
                f"{self.checkpoint}: damaged: its digest does not match its content. Remove it to start again."
            )
