"""Reinforcement by any reward: a controller learns to balance a pole, at four sites whose carts differ.

    python examples/any_reward.py

The loss is minus the reward: the share of 60 steps that the pole stays up, by a controller that pushes left or right.
Nothing here has a gradient, neither the decision nor the fall. Scalars need only the value, so the objective may be a
simulator, a score by people, or the answer of a program. mu is large (0.1), so that some decisions change.
"""

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import scalarfl

STEPS, GRAVITY, PUSH, SECONDS = 60, 9.8, 10.0, 0.02


def balanced(policy: nn.Module, start: Tensor, length: Tensor) -> Tensor:
    """The share of the steps until each pole falls. start: float32[n, 4], length: half the pole's, float32[n]."""
    x, v, angle, turn = start.unbind(1)
    up = torch.ones(len(start))
    kept = torch.zeros(len(start))
    for _ in range(STEPS):
        state = torch.stack([x, v, angle, turn], dim=1)
        force = torch.where(policy(state)[:, 0] > 0, PUSH, -PUSH)
        sine, cosine = angle.sin(), angle.cos()
        push = (force + 0.1 * length * turn * turn * sine) / 1.1
        spin = (GRAVITY * sine - cosine * push) / (length * (4 / 3 - 0.1 * cosine * cosine / 1.1))
        pull = push - 0.1 * length * spin * cosine / 1.1
        x, v, angle, turn = x + SECONDS * v, v + SECONDS * pull, angle + SECONDS * turn, turn + SECONDS * spin
        up = up * ((angle.abs() < 0.21) & (x.abs() < 2.4)).float()
        kept += up / STEPS
        if not up.any():
            break
    return kept


def loss(policy: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Minus the mean reward."""
    return -balanced(policy, *batch).mean()


def main(rounds: int = 40) -> tuple[float, float]:
    """Train; returns the mean reward on poles of unseen lengths, before and after."""
    torch.manual_seed(0)
    policy = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    starts = (torch.rand(5, 128, 4) - 0.5) / 5
    lengths = torch.tensor([0.3, 0.45, 0.6, 0.75])
    sites = [TensorDataset(starts[i], lengths[i].expand(128)) for i in range(4)]
    unseen = starts[4], torch.linspace(0.3, 0.8, 128)
    run = scalarfl.simulate(
        policy, sites, loss, method="fzoo", lr=0.2, mu=0.1, perturbations=8, rounds=rounds, batch_size=16, sampled=2,
        evaluate=lambda model: scalarfl.Score(float(loss(model, unseen)), float(balanced(model, *unseen).mean()), 128),
        evaluate_every=max(1, rounds // 4),
    )  # fmt: skip
    rewards = [evaluation.accuracy or 0.0 for evaluation in run.evaluations]
    print(f"reward on unseen poles: {', '.join(f'{reward:.2f}' for reward in rewards)}")
    return rewards[0], rewards[-1]


if __name__ == "__main__":
    main()
