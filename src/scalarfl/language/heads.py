"""How a pretrained model answers: from rows to tokens, from tokens to the few logits that count.

A head changes nothing in the model: it is part of the objective, and the model stays an ordinary one.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from scalarfl.errors import InputError, shown
from scalarfl.language import class_head as classes
from scalarfl.language.batches import Encoded, Piece, collate
from scalarfl.language.rows import Message, Row
from scalarfl.model.partial import adopt, answer_logits, only

ANCHORS = "label_embeddings.safetensors"
"""File beside an exported encoder: the base model's embeddings of its label sentences."""


class Head(ABC):
    """How a model is asked for an answer."""

    labels: tuple[str, ...] = ()
    """The label words or sentences that a layer for the classes begins with; none where the model has its own."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length

    @abstractmethod
    def encode(self, row: Row) -> Encoded:
        """The example in tokens, at most ``max_length`` of them."""

    @abstractmethod
    def logits(self, model: nn.Module, piece: Piece) -> Tensor:
        """float32[count, classes or vocabulary]."""

    def classify(self, model: nn.Module, folder: Path, wanted: bool) -> None:
        """Give the model a layer for the classes where one is wanted, or where the model's folder has one.

        Raises InputError where the model cannot have one, or has one for other labels.
        """
        there = classes.saved_labels(folder) == list(self.labels)
        made = classes.class_head(model)
        if made is not None and made.labels != self.labels:
            raise InputError(
                f"task: the model's head answers {shown(made.labels)}, the task asks for {shown(self.labels)}."
            )
        if made is None and self.labels and (wanted or there):
            made = self._layer(model)
            if there:
                classes.load(made, folder)

    def _layer(self, model: nn.Module) -> classes.ClassHead:
        """A new layer for the classes."""
        raise NotImplementedError

    def _label(self, row: Row) -> int:
        if row.label is None:
            raise InputError(
                "model.head: a classification head needs labels, and the task's examples have none; use 'causal'."
            )
        return row.label


class Causal(Head):
    """A causal language model that continues the prompt: with a label word, with an answer, or in a conversation."""

    def __init__(self, tokenizer: Any, max_length: int, words: Sequence[str], prompt: str) -> None:
        super().__init__(tokenizer, max_length)
        self._rows = None
        self.labels = tuple(words)
        if words:
            before = "\n" if prompt.endswith("\n") else "x"
            self._rows = label_tokens(tokenizer, before, words)
        opening = tokenizer("x")["input_ids"]
        bare = tokenizer("x", add_special_tokens=False)["input_ids"]
        self._line = _after(tokenizer, "x", "x\n")[:1]
        self.text_end: list[int] = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        self.ends: list[int] = self._line + self.text_end
        """Tokens that end a generated answer: the end of the line, the end of the text."""
        # Such as a BOS token; what some tokenizers put at the end is left out.
        self._begin: list[int] = opening[: opening.index(bare[0])]

    def encode(self, row: Row) -> Encoded:
        """Prompts that are too long lose their beginning, because the question is at the end."""
        if row.messages:
            return self._conversation(row)
        prompt = self._begin + self._bare(row.prompt)
        if self._rows is not None:
            kept = self._cut(prompt, self.max_length)
            return Encoded(kept, [len(kept) - 1], [self._label(row)], len(kept) < len(prompt))
        answer = continuation(self.tokenizer, row.prompt[-1:] or "x", row.answers[0])
        answer += self._line if row.in_a_line else self.text_end
        cut = len(prompt) + len(answer) > self.max_length
        answer = answer[: self.max_length - 1]
        kept = self._cut(prompt, self.max_length - len(answer))
        return Encoded(kept + answer, list(range(len(kept) - 1, len(kept) + len(answer) - 1)), answer, cut)

    def prompt(self, row: Row, room: int) -> list[int]:
        """The prompt alone, with room for ``room`` tokens to come."""
        return self._cut(self._begin + self._bare(row.prompt), max(1, self.max_length - room))

    def logits(self, model: nn.Module, piece: Piece) -> Tensor:
        """At the answer's positions only, and for the label words only."""
        rows = None if self._rows is None else self._rows.to(piece.positions.device)
        with only(output_layer(model), piece.positions, rows, classes.class_head(model)) as partial:
            out = model(**piece.inputs, use_cache=False).logits
        return answer_logits(out, partial, piece.positions, rows)

    def _layer(self, model: nn.Module) -> classes.ClassHead:
        return _for_words(model, self._rows, self.labels)

    def _bare(self, text: str) -> list[int]:
        tokens: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokens

    def _cut(self, tokens: list[int], length: int) -> list[int]:
        if len(tokens) <= length:
            return tokens
        begin = self._begin[: length - 1]
        return begin + tokens[len(tokens) - (length - len(begin)) :]

    def _conversation(self, row: Row) -> Encoded:
        """The whole conversation in the template; only the assistant's tokens count.

        A conversation that is too long loses its beginning or, if that would leave none of the assistant's words, the
        part after the last of these.
        """
        messages = list(row.messages)
        whole, spans = self._written(messages, ask=False), []
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                before, after = (
                    self._written(messages[:index], ask=True),
                    self._written(messages[: index + 1], ask=False),
                )
                if not after.startswith(before):
                    before = self._written(messages[:index], ask=False)
                spans.append((len(before), len(after)))
        found = self.tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        tokens, offsets = found["input_ids"], found["offset_mapping"]
        said = [
            place
            for place in range(1, len(tokens))
            if any(offsets[place][0] < end and start < offsets[place][1] for start, end in spans)
        ]
        end = len(tokens)
        if said and said[-1] <= end - self.max_length:
            end = said[-1] + 1
        begin = max(0, end - self.max_length)
        kept = [place for place in said if begin < place < end]
        at, labels = [place - 1 - begin for place in kept], [tokens[place] for place in kept]
        return Encoded(tokens[begin:end], at, labels, end - begin < len(tokens))

    def _written(self, messages: Sequence[Message], ask: bool) -> str:
        """The conversation in the tokenizer's template; with ``ask``, up to where the assistant begins to speak."""
        if not messages and not ask:
            return ""
        try:
            text: str = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask)
        except Exception as error:  # there is no template, or it refuses the conversation
            raise InputError(
                f"task.file: the tokenizer cannot write a conversation that begins {shown(messages[:1])}: "
                f"{str(error).splitlines()[0][:200]}"
            ) from None
        return text


class Masked(Head):
    """A masked language model that fills the blank after the prompt with a label word."""

    def __init__(self, tokenizer: Any, max_length: int, words: Sequence[str]) -> None:
        super().__init__(tokenizer, max_length)
        if tokenizer.mask_token is None:
            raise InputError("model.head = 'masked': the model's tokenizer has no mask token.")
        self._rows = label_tokens(tokenizer, "x", words)
        self.labels = tuple(words)
        self._tail = tokenizer(f"x {tokenizer.mask_token} .")["input_ids"]
        bare = tokenizer("x", add_special_tokens=False)["input_ids"]
        at = next(place for place in range(len(self._tail)) if self._tail[place] == bare[0])
        self._begin, self._tail = self._tail[:at], self._tail[at + len(bare) :]

    def encode(self, row: Row) -> Encoded:
        """Prompt, blank, full stop; a prompt that is too long loses its beginning."""
        room = self.max_length - len(self._begin) - len(self._tail)
        tokens = self.tokenizer(row.prompt.rstrip(), add_special_tokens=False)["input_ids"]
        cut = len(tokens) > room
        tokens = [*self._begin, *tokens[max(0, len(tokens) - room) :], *self._tail]
        blank = len(tokens) - len(self._tail) + self._tail.index(self.tokenizer.mask_token_id)
        return Encoded(tokens, [blank], [self._label(row)], cut)

    def logits(self, model: nn.Module, piece: Piece) -> Tensor:
        """At the blank only, for the label words only."""
        rows = self._rows.to(piece.positions.device)
        with only(output_layer(model), piece.positions, rows, classes.class_head(model)) as partial:
            out = model(**piece.inputs).logits
        return answer_logits(out, partial, piece.positions, rows)

    def _layer(self, model: nn.Module) -> classes.ClassHead:
        return _for_words(model, self._rows, self.labels)


class Classifier(Head):
    """A model with its own classification layer."""

    def encode(self, row: Row) -> Encoded:
        """The bare inputs: one, or a pair; more are joined into the second."""
        first, rest = row.parts[0], " ".join(row.parts[1:])
        found = self.tokenizer(first, rest or None, truncation=True, max_length=self.max_length)
        return Encoded(found["input_ids"], [], [self._label(row)], _truncated(found))

    def logits(self, model: nn.Module, piece: Piece) -> Tensor:
        """The classes' logits, float32[b, classes]."""
        logits: Tensor = model(**piece.inputs).logits
        return logits.float()


class Sentences(Head):
    """An encoder of sentences: 20 times the cosine between the input's embedding and each label sentence's.

    The label sentences are embedded once, by the base model, and frozen.
    """

    def __init__(self, tokenizer: Any, max_length: int, sentences: Sequence[str]) -> None:
        super().__init__(tokenizer, max_length)
        self.sentences = self.labels = tuple(sentences)
        self.anchors: Tensor | None = None
        """float32[classes, width], of length 1."""

    def anchor(self, model: nn.Module, pad: int, folder: Path) -> None:
        """Embed the label sentences with the current model, or read the embeddings from its folder."""
        if (folder / ANCHORS).is_file():
            from safetensors import SafetensorError, safe_open

            try:
                with safe_open(folder / ANCHORS, framework="pt") as file:
                    if json.loads((file.metadata() or {}).get("sentences", "null")) == list(self.sentences):
                        self.anchors = file.get_tensor("anchors").to(next(model.parameters()).device)
                        return
            except (SafetensorError, OSError, ValueError) as error:
                raise InputError(f"{folder / ANCHORS}: cannot be read: {error}.") from None
        encoded = [self._encode(sentence, 0) for sentence in self.sentences]
        with torch.no_grad():
            self.anchors = self._embed(model, collate(encoded, pad).beside(model))

    def encode(self, row: Row) -> Encoded:
        """The bare inputs, joined."""
        return self._encode(" ".join(row.parts), self._label(row))

    def _encode(self, text: str, label: int) -> Encoded:
        found = self.tokenizer(text, truncation=True, max_length=self.max_length)
        return Encoded(found["input_ids"], [], [label], _truncated(found))

    def logits(self, model: nn.Module, piece: Piece) -> Tensor:
        """float32[b, classes]."""
        assert self.anchors is not None
        embedded = 20 * self._embed(model, piece)
        own = classes.class_head(model)
        return embedded @ self.anchors.T if own is None else own(embedded).float()

    def _layer(self, model: nn.Module) -> classes.ClassHead:
        """It moves the label sentences' embeddings, and begins with no move: the same bits on every machine."""
        made = classes.add(model, None, self.labels)
        made.anchors = self.anchors
        return made

    def _embed(self, model: nn.Module, piece: Piece) -> Tensor:
        hidden = model(**piece.inputs).last_hidden_state.float()
        mask = piece.inputs["attention_mask"].unsqueeze(-1).float()
        return functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def _for_words(model: nn.Module, rows: Tensor | None, words: Sequence[str]) -> classes.ClassHead:
    """A layer that begins as the output layer's rows for the label words."""
    layer = output_layer(model)
    made = classes.add(model, layer or nn.Identity(), words)
    assert isinstance(layer, nn.Linear)
    assert rows is not None
    adopt(layer)
    classes.begin_with(made, layer, rows)
    return made


def _truncated(found: Any) -> bool:
    """Whether a tokenizer truncated the text; a slow tokenizer does not report it."""
    return any(one.overflowing for one in found.encodings or ())


def output_layer(model: nn.Module) -> nn.Module | None:
    """The layer that gives the vocabulary's logits."""
    found: nn.Module | None = model.get_output_embeddings()  # type: ignore[operator]
    return found


def continuation(tokenizer: Any, before: str, text: str) -> list[int]:
    """The tokens of ``text`` after ``before``, with a space in between unless ``before`` ends in one.

    Tokenizers write the beginning of a text and its continuation differently, so both are encoded together.
    """
    return _after(tokenizer, before, before + ("" if before[-1].isspace() else " ") + text)


def _after(tokenizer: Any, before: str, whole: str) -> list[int]:
    """The tokens of ``whole`` that come after those of ``before``, with which it begins."""
    context = tokenizer(before, add_special_tokens=False)["input_ids"]
    both: list[int] = tokenizer(whole, add_special_tokens=False)["input_ids"]
    return both[len(context) :] if both[: len(context)] == context else both


def label_tokens(tokenizer: Any, before: str, words: Sequence[str]) -> Tensor:
    """The first token of each label word, int64[classes]. Raises InputError if two are the same."""
    if len(words) < 2:
        raise InputError(f"task.label_words = {list(words)}: accepted are two or more.")
    first: dict[int, str] = {}
    for word in words:
        tokens = continuation(tokenizer, before, word)
        if not tokens or tokens[0] == tokenizer.unk_token_id:
            raise InputError(f"task.label_words: the tokenizer does not know '{word}'; choose another word.")
        if tokens[0] in first:
            raise InputError(
                f"task.label_words: '{first[tokens[0]]}' and '{word}' begin with the same token; choose other words."
            )
        first[tokens[0]] = word
    return torch.tensor(list(first))
