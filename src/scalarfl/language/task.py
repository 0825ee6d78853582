"""A task for a language model: rows in tokens, the loss over what counts, and the score."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from scalarfl.errors import InputError
from scalarfl.language.answers import exact_match, f1
from scalarfl.language.batches import SEPARATELY, Encoded, Piece, pieces
from scalarfl.language.heads import Causal, Head
from scalarfl.language.rows import Row
from scalarfl.model.frozen import Rows, through
from scalarfl.model.per_example import portion
from scalarfl.tasks.objective import Score

ANSWER_TOKENS = 50
"""Maximum tokens of a generated answer."""
GENERATED_AT_ONCE = 16
LOOKED_AT = 2_000
"""Number of examples tokenized before a run to check their length; takes less than a second."""
ONE_PIECE = 1 << 40  # a cost of a separate piece that none is worth


class Texts:
    """Examples of a language task, each encoded once, on first use."""

    def __init__(self, rows: Sequence[Row], head: Head, pad: int, separately: int = SEPARATELY) -> None:
        self.rows = rows
        self.head = head
        self._pad = pad
        self._separately = separately
        self._encoded: list[Encoded | None] = [None] * len(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: npt.NDArray[np.int64] | Sequence[int]) -> list[Piece]:
        """The examples at ``indices``, in pieces of similar length."""
        return pieces([self._example(int(index)) for index in indices], self._pad, self._separately)

    def take(self, indices: npt.NDArray[np.int64] | Sequence[int]) -> "Texts":
        """The examples at ``indices`` alone."""
        taken = Texts([self.rows[int(index)] for index in indices], self.head, self._pad, self._separately)
        taken._encoded = [self._encoded[int(index)] for index in indices]
        return taken

    def classes(self) -> npt.NDArray[np.int64] | None:
        """The labels; None for generation."""
        labels = [row.label for row in self.rows]
        return None if None in labels else np.asarray(labels, dtype=np.int64)

    def check(self, what: str) -> list[str]:
        """Warnings about examples that ``task.max_length`` truncates, from at most ``LOOKED_AT`` of them.

        what: a word for these examples, such as "training". Raises InputError if no example has any answer left.
        """
        count = len(self)
        looked = [self._example(index * count // min(count, LOOKED_AT)) for index in range(min(count, LOOKED_AT))]
        cut = sum(example.cut for example in looked)
        mute = sum(not example.labels for example in looked)
        of = f"of {count:,}" if len(looked) == count else f"of the {len(looked):,} checked, out of {count:,},"
        limit = f"task.max_length = {self.head.max_length} tokens"
        if looked and mute == len(looked):
            raise InputError(
                f"{limit}: no {what} example has an answer token that fits; raise it, or shorten the answers."
            )
        found = []
        if cut:
            found.append(
                f"{cut:,} {what} examples {of} are longer than {limit} and were truncated. Raise it to use them whole."
            )
        if mute:
            found.append(f"{mute:,} {what} examples {of} have no answer token within {limit} and are ignored.")
        return found

    def _example(self, index: int) -> Encoded:
        found = self._encoded[index]
        if found is None:
            found = self._encoded[index] = self.head.encode(self.rows[index])
        return found


@dataclass(frozen=True)
class TextTask:
    """A task bound to a model's tokenizer and head."""

    name: str
    train: Texts
    test: Texts
    head: Head
    metric: str

    def loss(self, model: nn.Module, batch: Sequence[Piece]) -> Tensor:
        """Mean cross entropy over the answers: one of the label words, or each of an answer's tokens. float32."""
        return self._total(model, batch)[0] / max(1, sum(len(piece.labels) for piece in batch))

    def losses(self, model: nn.Module, batch: Sequence[Piece]) -> Tensor:
        """float32[B]: each example's loss, the mean over its own answer's tokens, 0 where none is left of the answer.

        In the order of the pieces' rows, which is by length. Of classes the mean is ``loss``, to rounding; of longer
        answers it is not: ``loss`` weighs every token alike, this every example, which no other example changes.
        """
        found, begin = list[Tensor](), 0
        for piece in batch:
            counts = piece.counts()
            with portion(model, begin, len(counts)):
                each = functional.cross_entropy(*self._outputs(model, piece), reduction="none")
            begin, counts = begin + len(counts), counts.to(each.device)
            rows = torch.repeat_interleave(torch.arange(len(counts), device=each.device), counts)
            found.append(each.new_zeros(len(counts)).index_add(0, rows, each) / counts.clamp(min=1))
        return torch.cat(found)

    @torch.no_grad()
    def score(self, model: nn.Module, test: Texts) -> Score:
        """Mean cross entropy, and the task's metric on all of ``test``; every metric there is in ``metrics``."""
        batch = test.batch(range(len(test)))
        total, right = self._total(model, batch)
        count = max(1, sum(len(piece.labels) for piece in batch))
        metrics = {"accuracy": right / count} if self.metric == "accuracy" else self._generated(model, test)
        return Score(float(total) / count, metrics[self.metric], len(test), metrics)

    @torch.no_grad()
    def chosen(self, model: nn.Module, texts: Texts, index: int) -> int:
        """The class that the model gives an example of a classification."""
        (piece,) = texts.batch([index])
        return int(self._outputs(model, piece)[0].argmax())

    def _total(self, model: nn.Module, batch: Sequence[Piece]) -> tuple[Tensor, int]:
        """Sum of the cross entropies, and how many of the outputs were right."""
        losses, right = [], 0
        for piece in batch:
            logits, labels = self._outputs(model, piece)
            losses.append(functional.cross_entropy(logits, labels, reduction="sum"))
            right += int((logits.argmax(-1) == labels).sum())
        return torch.stack(losses).sum(), right

    def _outputs(self, model: nn.Module, piece: Piece) -> tuple[Tensor, Tensor]:
        """float32[count, k] and int64[count]: the logits of all outputs that count, and the labels."""
        logits: Tensor = through(model, lambda rows: self._logits(model, rows), piece.rows())
        return logits, piece.labels.to(logits.device)

    def _logits(self, model: nn.Module, rows: Rows) -> Tensor:
        """The head's logits for a piece, or for one example of it."""
        return self.head.logits(model, Piece.of(rows).beside(model))

    def _generated(self, model: nn.Module, test: Texts) -> dict[str, float]:
        """F1 and exact match of greedily decoded answers."""
        found = generate(model, self.head, test.rows)
        pairs = [(answer, row.answers) for answer, row in zip(found, test.rows, strict=True)]
        return {
            "f1": float(np.mean([f1(answer, accepted) for answer, accepted in pairs])),
            "exact_match": float(np.mean([exact_match(answer, accepted) for answer, accepted in pairs])),
        }


def generate(model: Any, head: Head, rows: Sequence[Row]) -> list[str]:
    """The model's answers, decoded greedily, each to the end of its line or, of your own, of the text.

    Prompts of similar length are answered together.
    """
    assert isinstance(head, Causal)
    prompts = [head.prompt(row, ANSWER_TOKENS) for row in rows]
    order = sorted(range(len(rows)), key=lambda index: len(prompts[index]))
    answers = [""] * len(rows)
    for begin in range(0, len(order), GENERATED_AT_ONCE):
        members = order[begin : begin + GENERATED_AT_ONCE]
        ends = head.ends if rows[members[0]].in_a_line else head.text_end
        found = _generated(model, head, [prompts[index] for index in members], ends)
        for index, text in zip(members, found, strict=True):
            answers[index] = text.strip().split("\n")[0].strip() if rows[index].in_a_line else text.strip()
    return answers


@torch.no_grad()
def _generated(model: Any, head: Causal, prompts: Sequence[list[int]], ends: list[int]) -> list[str]:
    """What follows the prompts, which are padded at the left."""
    tokenizer, longest = head.tokenizer, max(map(len, prompts))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else head.ends[0]
    tokens = torch.full((len(prompts), longest), pad)
    mask = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    device = next(model.parameters()).device
    out = model.generate(
        input_ids=tokens.to(device),
        attention_mask=mask.to(device),
        max_new_tokens=ANSWER_TOKENS,
        do_sample=False,
        num_beams=1,
        pad_token_id=pad,
        eos_token_id=ends or None,
    )
    texts: list[str] = tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)
    return texts
