"""The dense baselines: their settings, what their clients send and their server's step.

A round is that of Reddi et al. (arXiv 2003.00295, Algorithm 2): every client of the cohort starts at x, takes its local
steps and sends what it has moved by; the mean of that is the server optimiser's gradient. The optimisers are torch's
own, Yogi is pytorch_optimizer's; the local training is ours (``baselines.dense``).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from scalarfl.errors import InputError, install_hint


class Upload(NamedTuple):
    """What arrives of a client's move."""

    move: list[Tensor]
    """float32, shaped like the trained tensors: what the server takes the mean of."""
    size: int
    """Bytes up, without framing."""
    memory: list[Tensor]
    """What the client keeps until it takes part again; empty if nothing."""


class Baseline(BaseModel, ABC):
    """A dense method's settings: ``method.lr`` is the clients' learning rate, these are the rest."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    name: ClassVar[str]
    """The name in recipes."""
    summary: ClassVar[str]
    """One line for ``scalarfl methods``."""
    source: ClassVar[str]
    first_order: ClassVar[bool] = True
    """Whether clients take gradients; else they probe, as scalar-only methods do."""

    costs: ClassVar[str]
    """What clients send and keep, for ``scalarfl methods``."""
    forwarded: ClassVar[bool] = False
    """Whether a client is sent the uploads of the rounds it missed, where they are smaller than the model."""

    server_lr: float = Field(1.0, gt=0, description="learning rate of the server's optimiser")

    @abstractmethod
    def optimizer(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """The server's optimiser of these parameters, whose ``grad`` is minus the clients' mean move."""

    @abstractmethod
    def upload(self, move: list[Tensor], memory: list[Tensor], random: np.random.Generator) -> Upload:
        """What a client sends of its move x - x_i.

        memory: what it kept when it last took part, empty at first. random: its own draws in this round.
        """


class Whole(Baseline):
    """Clients send their whole move."""

    costs: ClassVar[str] = "sends whole models"

    def upload(self, move: list[Tensor], memory: list[Tensor], random: np.random.Generator) -> Upload:  # noqa: ARG002
        """The move itself, 4 bytes a parameter."""
        return Upload(move, sum(tensor.nbytes for tensor in move), [])


class FedAvg(Whole):
    """The mean of the clients' models: x <- x - server_lr (x - mean_i x_i)."""

    name: ClassVar[str] = "fedavg"
    summary: ClassVar[str] = "baseline: local SGD, whole models up and down, averaged"
    source: ClassVar[str] = "arXiv 1602.05629"

    def optimizer(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """Plain SGD; with server_lr = 1 the mean itself."""
        return torch.optim.SGD(parameters, lr=self.server_lr)


class FedZO(FedAvg):
    """FedAvg with local zeroth-order steps: x_i <- x_i - lr (1/P) sum_p g_p u_p, u drawn by each client for itself.

    Deviation from the paper: normal directions instead of the unit sphere's; the two differ by a factor in lr.
    """

    name: ClassVar[str] = "fedzo"
    summary: ClassVar[str] = "baseline: local zeroth-order steps, whole models up and down"
    source: ClassVar[str] = "arXiv 2201.09531"
    first_order: ClassVar[bool] = False


class _Adaptive(Whole):
    """What FedAdam and FedYogi share."""

    server_lr: float = Field(1e-2, gt=0, description="learning rate of the server's optimiser")
    beta1: float = Field(0.9, ge=0, lt=1, description="weight of the past in the first moment")
    beta2: float = Field(0.99, ge=0, lt=1, description="weight of the past in the second moment")
    tau: float = Field(1e-3, gt=0, description="added to the root of the second moment")


class FedAdam(_Adaptive):
    """Adam on the clients' mean move. Deviation from the paper: torch's Adam corrects for the start."""

    name: ClassVar[str] = "fedadam"
    summary: ClassVar[str] = "baseline: local SGD, whole models, Adam at the server"
    source: ClassVar[str] = "arXiv 2003.00295"

    def optimizer(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """torch.optim.Adam."""
        return torch.optim.Adam(parameters, lr=self.server_lr, betas=(self.beta1, self.beta2), eps=self.tau)


class FedYogi(_Adaptive):
    """Yogi on the clients' mean move.

    Deviations from the paper: the library corrects for the start, as Adam does; and both moments begin at 1e-6, where
    the paper's first moment begins at 0 and its second at tau^2 or more (1e-6 at the default tau).
    """

    name: ClassVar[str] = "fedyogi"
    summary: ClassVar[str] = "baseline: local SGD, whole models, Yogi at the server"
    source: ClassVar[str] = "arXiv 2003.00295"

    def optimizer(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """pytorch_optimizer's Yogi. Raises InputError if it is not installed."""
        try:
            from pytorch_optimizer import Yogi
        except ImportError:
            raise InputError(f"'fedyogi' needs pytorch_optimizer: {install_hint('baselines')}.") from None
        made: torch.optim.Optimizer = Yogi(
            list(parameters), lr=self.server_lr, betas=(self.beta1, self.beta2), eps=self.tau
        )
        return made


class FedAdagrad(Whole):
    """Adagrad on the clients' mean move."""

    name: ClassVar[str] = "fedadagrad"
    summary: ClassVar[str] = "baseline: local SGD, whole models, Adagrad at the server"
    source: ClassVar[str] = "arXiv 2003.00295"

    server_lr: float = Field(1e-2, gt=0, description="learning rate of the server's optimiser")
    tau: float = Field(1e-3, gt=0, description="added to the root of the sum of squares")

    def optimizer(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """torch.optim.Adagrad."""
        return torch.optim.Adagrad(parameters, lr=self.server_lr, eps=self.tau)
