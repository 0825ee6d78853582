"""Forty phones train the last layer of a network that is on all of them already.

    python examples/phones_head.py

The network came with the phone, trained by its maker on the digits 0 to 4 alone. Each phone has 25 images of all ten
digits. Only the last layer is trained (``trainable="head"``): the frozen layers below it are computed once per image,
and a round costs a matrix product. A phone takes part in one round of eight, and in it sends 10 numbers.
"""

import torch
from torch import nn
from torch.utils.data import TensorDataset

import scalarfl


def shipped(images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    """The network as the maker trained it, on the digits 0 to 4."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    known = labels < 5
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[known]), labels[known]).backward()
        optimizer.step()
    return model


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The mean cross entropy."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def main(rounds: int = 400) -> tuple[float, float]:
    """Train; returns the accuracy on the test images before and after."""
    task = scalarfl.load_task("digits")
    images, labels, test = task.train.inputs, task.train.labels, (task.test.inputs, task.test.labels)
    phones = [TensorDataset(images[400 + i :: 40], labels[400 + i :: 40]) for i in range(40)]

    def score(model: nn.Module) -> scalarfl.Score:
        right = (model(test[0]).argmax(1) == test[1]).float().mean()
        return scalarfl.Score(float(loss(model, test)), float(right), len(test[1]))

    run = scalarfl.simulate(
        shipped(images[:400], labels[:400]), phones, loss, trainable="head", method="hiso", lr=3e-2, perturbations=10,
        rounds=rounds, sampled=5, evaluate=score, evaluate_every=max(1, rounds // 4),
    )  # fmt: skip
    scores = [evaluation.accuracy or 0.0 for evaluation in run.evaluations]
    print(f"{run.dimension} parameters trained: {', '.join(f'{one:.1%}' for one in scores)} of the test digits")
    print(f"a phone sent {run.traffic['up', 'round'][1] / len(phones):,.0f} bytes in all")
    return scores[0], scores[-1]


if __name__ == "__main__":
    main()
