"""A small language model with random weights and a file of made-up reviews, to try everything without a download.

    python examples/tiny_language_model.py tiny-model reviews.jsonl

The model is an ordinary Hugging Face folder (Llama, 41,000 parameters). It knows nothing before it is trained. Needs
the extra `llm`.
"""

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

GOOD = ["warm", "funny", "bright", "clever", "moving", "great"]
BAD = ["dull", "empty", "loud", "clumsy", "tired", "awful"]
PARTS = ["story", "cast", "music", "ending", "script", "picture"]


def reviews(count: int = 600, seed: int = 0) -> list[dict[str, str]]:
    """Made-up reviews, half of them positive: one word of each speaks for the other side."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        label, (own, other) = ("positive", (GOOD, BAD)) if number % 2 else ("negative", (BAD, GOOD))
        words = [draw.choice(own), draw.choice(own), draw.choice(other)]
        draw.shuffle(words)
        text = " , ".join(f"{word} {draw.choice(PARTS)}" for word in words)
        made.append({"text": text, "label": label})
    return made


def write_rows(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_model(folder: Path, texts: Sequence[str]) -> None:
    """A model that knows each word of the texts as one token, with random weights from a fixed seed."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<s>", "</s>", "<unk>", *sorted({word for text in texts for word in text.split()})]
    bare = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    bare.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(folder: Path, file: Path) -> None:
    """Write both."""
    rows = reviews()
    write_rows(file, rows)
    write_model(folder, [f"{row['text']} It was {row['label']}" for row in rows])
    print(f"{folder}: a small model with random weights. {file}: {len(rows)} made-up reviews.")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
