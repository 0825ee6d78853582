"""Real architectures, random weights, made on the spot: whole and layered perturbation agree, tied weights too."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scalarfl import Probe, Replica, make_method
from scalarfl.messages import Update
from scalarfl.probe import Probing

pytestmark = pytest.mark.skipif(find_spec("transformers") is None, reason="needs transformers (the extra llm)")

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 130}


def opt() -> nn.Module:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(**SIZES, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=64)
    model: nn.Module = OPTForCausalLM(config)
    return model


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    model: nn.Module = LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=64, num_key_value_heads=2))
    return model


def qwen() -> nn.Module:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(**SIZES, intermediate_size=64, num_key_value_heads=2, tie_word_embeddings=True)
    model: nn.Module = Qwen2ForCausalLM(config)
    return model


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    model: nn.Module = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=130, n_positions=64))
    return model


def bert() -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    model: nn.Module = BertForMaskedLM(BertConfig(**SIZES, intermediate_size=64, max_position_embeddings=64))
    return model


def loss(model: nn.Module, tokens: Tensor) -> Tensor:
    logits = model(input_ids=tokens).logits
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [opt, llama, qwen, gpt2, bert])
def test_layered_perturbation_is_the_whole_one(kind: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    replica = Replica(kind().to(dtype), make_method("hiso"))
    replica.apply([Update(0, 3, 1e-2, 1, [0], b"\0\0\x80\x3f\0\0\0\xbf")])
    before = replica.digest()
    random = torch.Generator().manual_seed(1)
    questions = [
        Probing(7, 1e-2, 1e-2, walk, range(2), torch.randint(0, 128, (2, 12), generator=random))
        for walk in ((), (), ((0.1, -0.2),))
    ]
    whole, layered = Probe(replica, loss), Probe(replica, loss, small=0)
    assert layered.measure(questions) == whole.measure(questions)
    assert layered._layered, "the architecture should not need the whole copy"
    assert replica.digest() == before
    losses = whole.measure(questions)[0]
    assert len(set(losses)) == len(losses)


@pytest.mark.parametrize("kind", [opt, qwen, gpt2, bert])
def test_tied_weights_count_once(kind: Callable[[], nn.Module]) -> None:
    model = kind()
    replica = Replica(model, make_method("hiso"))
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    assert head.weight.data_ptr() == embedding.weight.data_ptr()
    assert sum(tensor.shape == (130, 32) for tensor in replica.tensors) == 1
    replica.apply([Update(0, 3, 1e-2, 1, [0], b"\0\0\x80\x3f\0\0\0\xbf")])
    assert head.weight.data_ptr() == embedding.weight.data_ptr() == replica.parameters[0].data_ptr()
