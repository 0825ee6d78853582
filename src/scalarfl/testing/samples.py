"""Small models, data and made-up rounds to try things on."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from scalarfl.ledger.codec import pack
from scalarfl.ledger.update import CurvedUpdate, Update
from scalarfl.methods import Method
from scalarfl.model.zoo import initialise
from scalarfl.protocol.client import Dataset
from scalarfl.tasks import Examples, Shard


def network(seed: int = 0, width: int = 7) -> nn.Module:
    """An MLP with tensors whose sizes are no multiples of 16."""
    model = nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 3))
    initialise(model, seed)
    return model


def examples(count: int = 60, seed: int = 0) -> Examples:
    """Five random inputs and one of three random labels each."""
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(count, 5)).astype(np.float32)
    return Examples(torch.from_numpy(inputs), torch.from_numpy(random.integers(0, 3, count)))


def shards(clients: int = 4, count: int = 60) -> list[Dataset]:
    """These examples, divided among clients."""
    whole = examples(count)
    return [Shard(whole, part) for part in np.array_split(np.arange(count), clients)]


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The mean loss of ``network`` on a batch of ``examples``."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """float32[B]: the same of each example."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def updates(
    count: int,
    *,
    local_steps: int = 1,
    directions: int = 3,
    slots: Sequence[int] = (0,),
    seed: int = 0,
    method: Method | None = None,
) -> list[Update]:
    """Made-up rounds, one of them empty; with second differences where the method learns from those."""
    kind = CurvedUpdate if method is not None and method.curved else Update
    random = np.random.default_rng(seed)
    result = []
    for round_ in range(count):
        scalars = random.normal(size=(local_steps, kind.kinds, len(slots) * directions)).astype(np.float32)
        empty = round_ == 2
        result.append(
            kind(
                round_,
                int(random.integers(0, 2**63)),
                1e-2,
                local_steps,
                [] if empty else list(slots),
                b"" if empty else pack(scalars),
            )
        )
    return result
