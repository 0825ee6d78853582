"""Examples in tokens, and batches of them: cut into pieces of similar length, so that little padding is computed."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

SEPARATELY = 48
"""Overhead of a separate piece on a CPU, in tokens; on a GPU a batch stays in one piece."""


MOST = 1 << 10
"""Maximum padded tokens per piece, which bounds a forward pass's memory. A longer example is a piece of its own."""


class Encoded(NamedTuple):
    """One example in tokens."""

    tokens: list[int]
    at: list[int]
    """Positions whose outputs count; none if the model gives one output per example."""
    labels: list[int]
    """Their targets: the class, or the next tokens. Without any, the example is ignored."""
    cut: bool = False
    """Whether a part of the example did not fit into the head's ``max_length``."""


class Piece(NamedTuple):
    """Some examples of similar length, padded to the longest of them."""

    inputs: dict[str, Tensor]
    """input_ids and attention_mask, int64[b, t]."""
    positions: Tensor
    """bool[b, t]: which outputs count."""
    labels: Tensor
    """int64[count], in the order of ``positions``."""

    def rows(self) -> dict[str, Tensor]:
        """All but the labels, by name: an example in each row."""
        return {**self.inputs, "positions": self.positions}

    def counts(self) -> Tensor:
        """int64[b]: how many of the labels are each example's."""
        counts = self.positions.sum(1)  # without any position, the model gives one output for each example
        return counts if self.positions.any() else torch.full_like(counts, len(self.labels) // len(counts))

    @classmethod
    def of(cls, rows: Mapping[str, Tensor]) -> "Piece":
        """The piece with these rows, without labels."""
        inputs = dict(rows)
        return cls(inputs, inputs.pop("positions"), torch.empty(0, dtype=torch.int64))

    def beside(self, model: nn.Module) -> "Piece":
        """The piece on the model's device."""
        device = next(model.parameters()).device
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return Piece(inputs, self.positions.to(device), self.labels.to(device))


def collate(examples: Sequence[Encoded], pad: int) -> Piece:
    """One piece, padded at the right with the token ``pad``."""
    longest = max(len(example.tokens) for example in examples)
    tokens = torch.full((len(examples), longest), pad)
    mask = torch.zeros((len(examples), longest), dtype=torch.int64)
    positions = torch.zeros((len(examples), longest), dtype=torch.bool)
    for row, example in enumerate(examples):
        tokens[row, : len(example.tokens)] = torch.tensor(example.tokens)
        mask[row, : len(example.tokens)] = 1
        positions[row, example.at] = True
    labels = torch.tensor([label for example in examples for label in example.labels], dtype=torch.int64)
    return Piece({"input_ids": tokens, "attention_mask": mask}, positions, labels)


def pieces(examples: Sequence[Encoded], pad: int, separately: int = SEPARATELY, most: int = MOST) -> list[Piece]:
    """The examples in the cheapest pieces: padded tokens, plus ``separately`` for each piece.

    most: padded tokens in a piece; see ``MOST``.
    """
    ordered = sorted(examples, key=lambda example: len(example.tokens))
    lengths = [len(example.tokens) for example in ordered]
    best: list[tuple[float, int]] = [(0.0, 0)]  # least cost of the first so many, and where their last piece begins
    for end in range(1, len(ordered) + 1):
        longest = lengths[end - 1]
        begins = range(max(0, min(end - 1, end - most // longest)), end)
        best.append(min((best[begin][0] + (end - begin) * longest + separately, begin) for begin in begins))
    cuts = [len(ordered)]
    while cuts[-1]:
        cuts.append(best[cuts[-1]][1])
    return [collate(ordered[begin:end], pad) for end, begin in pairwise(cuts)][::-1]
