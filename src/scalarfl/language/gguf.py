"""Models in llama.cpp's GGUF files, quantised to 4 or 8 bits say: transformers loads and dequantises them."""

import copy
import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scalarfl.errors import InputError, install_hint

ENDING = ".gguf"


def is_one(name: str) -> bool:
    """Whether ``model.name`` is a GGUF file."""
    return name.lower().endswith(ENDING)


def place(name: str) -> tuple[str, dict[str, str]]:
    """What transformers' loaders take: a model's name; a GGUF file is given by its folder and as ``gguf_file``.

    Raises InputError where the file or the package that reads it is missing.
    """
    if not is_one(name):
        return name, {}
    if not Path(name).is_file():
        raise InputError(f"model.name = '{name}': no such file.")
    if any(find_spec(package) is None for package in ("gguf", "accelerate")):
        raise InputError(f"model.name = '{name}': GGUF files need gguf: {install_hint('llm')}.")
    return str(Path(name).parent), {"gguf_file": Path(name).name}


def config(transformers: Any, name: str) -> Any:
    """The model's configuration; such a file does not say its class, and is taken as a causal language model."""
    where, file = place(name)
    return copy.deepcopy(_config(transformers, where, file["gguf_file"], Path(name).stat().st_mtime_ns))


@lru_cache(maxsize=1)
def _config(transformers: Any, folder: str, file: str, _changed: int) -> Any:
    """It takes seconds: the tokenizer's words are in the same table."""
    found = transformers.AutoConfig.from_pretrained(folder, gguf_file=file)
    if not getattr(found, "architectures", None):
        causal = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        found.architectures = [causal[found.model_type]] if found.model_type in causal else None
    return found


@contextmanager
def silent() -> Iterator[None]:
    """Without transformers' bar of tensors, which its settings cannot switch off."""
    with redirect_stderr(io.StringIO()):
        yield


def forget(model: Any) -> None:
    """Let a dequantised model be an ordinary one, which can be saved."""
    model.hf_quantizer, model.is_quantized = None, False
    for part, key in ((model, "quantization_method"), (model.config, "quantization_config")):
        if hasattr(part, key):
            delattr(part, key)
