"""What a server could learn from one client's scalars: how much of its gradient, and of the example behind it.

    python examples/what_scalars_reveal.py

A client of a logistic regression (650 parameters) trains on a single image of a digit. The server knows the seed, hence
the directions; each scalar is the gradient's projection on one of them. With k scalars it solves k linear equations by
least squares. As many scalars as parameters give the gradient, and this gradient gives the image, pixel by pixel. The
same again with differential privacy, epsilon = 8 for this one round: see docs/privacy.md.
"""

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

from scalarfl.ledger.codec import decode, encode, unpack
from scalarfl.ledger.header import Header
from scalarfl.methods import DeComFL
from scalarfl.model.probe import Probe
from scalarfl.model.replica import Replica
from scalarfl.model.zoo import build
from scalarfl.noise.directions import Layout, noise
from scalarfl.noise.seeds import derive
from scalarfl.protocol.messages import RoundReply, RoundTask
from scalarfl.protocol.private import budget
from scalarfl.protocol.private_client import make_client
from scalarfl.tasks import load_task

SEED = derive(0, "directions", 0)
"""Of the first round's directions, in a run whose seed is 0; a client answers to no other."""


def main(private: bool = False) -> dict[int, tuple[float, float]]:
    """Scalars seen -> (cosine of the true and the guessed gradient, correlation of the true and the guessed image)."""
    print("with differential privacy:" if private else "without differential privacy:")
    images, labels = load_task("digits").train.batch(np.array([3]))
    model = build("logistic", (1, 8, 8), 10, seed=0)
    found = {}
    for scalars in (1, 5, 50, 200, 400, 650):
        reply = answered(model, TensorDataset(images, labels), scalars, private)
        guess = solved(model, unpack(decode(reply, RoundReply).scalars))
        weight, bias = guess[:640].reshape(10, 64), guess[640:]
        image = weight[bias.abs().argmax()] / bias[bias.abs().argmax()]  # of a linear layer: d/dW = d/db x
        true = torch.cat([g.flatten() for g in gradient(model, images, labels)])
        cosine = float(nn.functional.cosine_similarity(true, guess, dim=0))
        pixels = float(torch.corrcoef(torch.stack([images.flatten(), image]))[0, 1])
        found[scalars] = cosine, pixels
        print(f"{scalars:4d} scalars: cosine of the gradient {cosine:5.2f}, correlation of the image {pixels:5.2f}")
    return found


def answered(model: nn.Module, data: TensorDataset, perturbations: int, private: bool) -> bytes:
    """The client's real reply to a round with so many directions."""

    def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none" if private else "mean")

    replica = Replica(model, DeComFL())
    header = Header(
        base=replica.base, layout=replica.layout.digest(), dimension=650, method="decomfl", settings={}, mu=1e-3,
        perturbations=perturbations, local_steps=1, directions="shared", aggregation="mean", seed=0,
        privacy={"epsilon": 8.0, "delta": 1e-5, "clip": 1.0, "unit": "example"} if private else None,
    )  # fmt: skip
    allowed = budget(header, len(data), rounds=1, sampled=1, clients=1, path=None)
    client = make_client("somebody", data, Probe(replica, loss), header, batch_size=1, budget=allowed)
    return client.answer(encode(RoundTask(0, SEED, 0.1, 0, [])))


def solved(model: nn.Module, scalars: np.ndarray) -> torch.Tensor:
    """The shortest gradient that gives these projections."""
    layout = Layout.of(model.named_parameters())
    rows = [
        torch.cat([noise(SEED, 0, p, at, size) for at, size in zip(layout.addresses, layout.sizes, strict=True)])
        for p in range(len(scalars))
    ]
    return torch.linalg.lstsq(torch.stack(rows), torch.from_numpy(scalars)[:, None], driver="gelsd").solution[:, 0]


def gradient(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The true one."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return torch.autograd.grad(nn.functional.cross_entropy(model(images), labels), list(model.parameters()))


if __name__ == "__main__":
    main()
    main(private=True)
