"""A tiny Llama in a GGUF file, quantised to 4 bits, as ``tiny`` makes folders."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tiny


def write(path: Path) -> Path:
    """Two layers, random weights, and ``tiny``'s tokenizer."""
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    tokenizer = tiny.tokenizer()
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    words = [word for word, _ in sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])]
    file: Any = GGUFWriter(str(path), "llama")
    for key, value in {
        "context_length": 256, "embedding_length": 32, "block_count": 2, "feed_forward_length": 64, "head_count": 4,
        "head_count_kv": 2, "layer_norm_rms_eps": 1e-5, "rope_freq_base": 1e4, "rope_dimension_count": 8,
        "vocab_size": len(words), "tokenizer_model": "gpt2", "token_list": words,
        "token_types": [3 if word[:1] + word[-1:] == "<>" else 1 for word in words],
        "token_merges": [" ".join(pair) for pair in merges],
        "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "unk_token_id": 3,
    }.items():  # fmt: skip
        getattr(file, f"add_{key}")(value)
    random = torch.Generator().manual_seed(0)
    four_bits = GGMLQuantizationType.Q4_1

    def weights(name: str, *shape: int) -> None:
        if len(shape) == 1:
            file.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
            return
        drawn = (torch.randn(shape, generator=random) * 0.2).numpy()
        file.add_tensor(f"{name}.weight", quants.quantize(drawn, four_bits), raw_dtype=four_bits)

    weights("token_embd", len(words), 32)
    weights("output_norm", 32)
    for layer in range(2):
        for name, shape in {
            "attn_norm": (32,), "ffn_norm": (32,), "attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32),
            "attn_output": (32, 32), "ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64),
        }.items():  # fmt: skip
            weights(f"blk.{layer}.{name}", *shape)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path
