"""Pretrained models from the Hugging Face hub or a local folder, made deterministic."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from scalarfl.errors import InputError, install_hint, note, shown
from scalarfl.files import located, read_json
from scalarfl.language import gguf
from scalarfl.language.heads import output_layer
from scalarfl.model.partial import adopt
from scalarfl.model.zoo import initialise_modules

HeadName = Literal["auto", "causal", "masked", "classifier", "sentences"]

_ENDINGS: dict[str, HeadName] = {
    "ForCausalLM": "causal",
    "LMHeadModel": "causal",
    "ForMaskedLM": "masked",
    "ForSequenceClassification": "classifier",
    "Model": "sentences",
}
_AUTO = {
    "causal": "AutoModelForCausalLM",
    "masked": "AutoModelForMaskedLM",
    "classifier": "AutoModelForSequenceClassification",
    "sentences": "AutoModel",
}
ALL_LINEAR: Literal["all-linear"] = "all-linear"
"""Adapters in every linear layer but the output layer."""
_NO_CODE = {"trust_remote_code": False}
"""A model's folder may ask to run its own Python code: refused, without a prompt at the terminal."""
WEIGHTS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (arXiv 2106.09685), by peft."""

    rank: int = 8
    alpha: int = 16
    targets: list[str] | Literal["all-linear"] | None = None
    """Names of the layers to adapt; None for peft's choice for the architecture, or every linear layer without one."""


def read_config(name: str, revision: str | None = None) -> Any:
    """The model's configuration: a small file. Raises InputError if there is no such model."""
    if gguf.is_one(name):
        with _sentences(name), quiet():
            return gguf.config(_transformers(), name)
    with _sentences(name):
        return _transformers().AutoConfig.from_pretrained(adapters_base(name) or name, revision=revision, **_NO_CODE)


def read_tokenizer(name: str, revision: str | None = None) -> Any:
    """The model's tokenizer."""
    where, file = gguf.place(name)
    with _sentences(name):
        tokenizer = _transformers().AutoTokenizer.from_pretrained(where, revision=revision, **file, **_NO_CODE)
    # Our max_length is the one that counts: no warning where a text exceeds the model's before it is cut.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def adapters_base(name: str) -> str | None:
    """The base model of a folder of adapters; None for any other model."""
    path = Path(name) / "adapter_config.json"
    if not path.is_file():
        return None
    content = read_json(path)
    base = content.get("base_model_name_or_path") if isinstance(content, dict) else None
    if not isinstance(base, str) or not base or located(base) == located(name):
        raise InputError(f"{path}: 'base_model_name_or_path' should name the adapters' base model.")
    return base


def head_of(config: Any, wanted: HeadName) -> HeadName:
    """The requested head, or the one the model was saved with. Raises InputError if there is none."""
    listed = getattr(config, "architectures", None)
    architecture = str(listed[0]) if isinstance(listed, list) and listed else ""
    saved = next((head for ending, head in _ENDINGS.items() if architecture.endswith(ending)), None)
    if getattr(config, "is_encoder_decoder", False) and "classifier" not in (wanted, saved):
        raise InputError(
            f"model.name: {shown(architecture)} is a sequence-to-sequence model, and no head asks one except "
            "'classifier'. Use a causal or masked model, or scalarfl.simulate with a loss of your own."
        )
    if wanted != "auto":
        return wanted
    if saved is not None:
        return saved
    raise InputError(
        f"model.head: the model was saved as {shown(architecture)}; say which of 'causal', 'masked', 'classifier' "
        "and 'sentences' it should be used as."
    )


def load(
    name: str,
    head: HeadName,
    *,
    classes: int = 0,
    dtype: str = "float32",
    device: str = "cpu",
    seed: int = 0,
    lora: Lora | None = None,
    revision: str | None = None,
) -> nn.Module:
    """The model with its weights, in eval mode, on ``device``.

    classes: of a ``classifier`` whose own layer does not fit or is missing; it is drawn from ``seed`` then, portably.
    Raises InputError if the model cannot be found or has no such head.
    """
    base = adapters_base(name)
    if base is not None:
        with _sentences(base):
            import peft

            on = load(base, head, classes=classes, dtype=dtype, device=device, seed=seed)
            with _tactful():
                adapted_model: nn.Module = peft.PeftModel.from_pretrained(on, name)
            return adapted_model.requires_grad_(
                True
            ).eval()  # peft freezes; what is trained is model.trainable's affair
    config = read_config(name, revision)
    head = head_of(config, head)
    auto = getattr(_transformers(), _AUTO[head])
    more: dict[str, Any] = {}
    if head == "classifier":
        config.num_labels = classes
        more["ignore_mismatched_sizes"] = True
        if config.pad_token_id is None:
            config.pad_token_id = padding(read_tokenizer(name, revision))
    where, file = gguf.place(name)
    with _sentences(name), quiet(), gguf.silent() if file else nullcontext():
        model, report = auto.from_pretrained(
            where,
            config=config,
            dtype=WEIGHTS[dtype],
            revision=revision,
            output_loading_info=True,
            **file,
            **_NO_CODE,
            **more,
        )
    if file:
        gguf.forget(model)
    _settle(model, head, report, seed)
    model = model.to(device).eval()
    return model if lora is None else adapted(model, head, lora, seed)


def build(config: Any, head: HeadName, classes: int = 0, lora: Lora | None = None) -> nn.Module:
    """The model without weights, on the meta device, for names and shapes."""
    auto = getattr(_transformers(), _AUTO[head])
    if head == "classifier":
        config.num_labels = classes
    with _sentences(str(config.name_or_path)), torch.device("meta"), quiet():
        model: nn.Module = auto.from_config(config, **_NO_CODE)
    return model if lora is None else adapted(model, head, lora, 0)


def padding(tokenizer: Any) -> int:
    """The token to pad with; masked out, so any will do."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def _settle(model: nn.Module, head: HeadName, report: Any, seed: int) -> None:
    """Draw weights that the checkpoint lacks from ``seed``, or refuse it; prepare the output layer."""
    missing = {str(name) for name in report["missing_keys"]}
    missing |= {str(name[0]) for name in report.get("mismatched_keys", ())}
    tied = {id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False) if name not in missing}
    lacking = sorted(
        name for name, parameter in model.named_parameters() if name in missing and id(parameter) not in tied
    )
    if lacking and head == "sentences":
        lacking = [name for name in lacking if "pooler" not in name]  # not used
    if lacking and head != "classifier":
        raise InputError(
            f"model.name: the checkpoint has no {lacking[0]}, so it cannot be used with model.head = '{head}'; "
            "leave model.head out to use it as it was saved."
        )
    initialise_modules(model, {name.rpartition(".")[0] for name in missing}, seed)
    if head in ("causal", "masked"):
        layer = output_layer(model)
        if layer is not None:
            adopt(layer)


def adapted(model: nn.Module, head: HeadName, lora: Lora, seed: int) -> nn.Module:
    """The model with low-rank adapters; A drawn from ``seed`` portably, B zero."""
    try:
        import peft
    except ImportError:
        raise InputError(f"model.trainable = 'lora' needs peft: {install_hint('llm')}.") from None
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        target_modules=lora.targets or _usual_targets(peft, model),
        task_type="SEQ_CLS" if head == "classifier" else None,  # the classes' layer is trained and saved, too
    )
    try:
        with _tactful():
            wrapped: Any = peft.get_peft_model(model, config)
    except ValueError as error:
        raise InputError(f"model.lora_targets: {str(error).splitlines()[0]}") from None
    if next(model.parameters()).device.type != "meta":
        initialise_modules(wrapped, {name for name, _ in wrapped.named_modules() if ".lora_A." in name}, seed)
    return wrapped.eval()  # type: ignore[no-any-return]


def _usual_targets(peft: Any, model: Any) -> list[str] | str:
    """peft's default layers for the architecture; every linear layer if it has none."""
    known = peft.utils.constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.config.model_type, ())
    if {name.rpartition(".")[2] for name, _ in model.named_modules()}.isdisjoint(known):
        note(f"model.lora_targets: peft has no default for {type(model).__name__}, so '{ALL_LINEAR}' is used.")
        return ALL_LINEAR
    return list(known)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise InputError(f"model.name: pretrained models need transformers: {install_hint('llm')}.") from None
    return transformers


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the library's bars and reports; our messages say what matters."""
    logging = _transformers().utils.logging
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _tactful() -> Iterator[None]:
    """Without peft's warnings: it asks transformers in a way that newer versions call deprecated, it settles by itself
    that GPT-2's layers are stored the other way round, and it prepares for experts that are not adapted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message="fan_in_fan_out")
        warnings.filterwarnings("ignore", message=r"The following \w+_pattern keys")
        yield


@contextmanager
def _sentences(name: str) -> Iterator[None]:
    """Turn the library's long errors into one sentence."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the libraries below raise many kinds: of files cut short, wrong sizes, unknown types
        if "trust_remote_code" in str(error):
            raise InputError(f"model.name = '{name}': it contains its own code, which scalarfl does not run.") from None
        where = "there is no such folder here, and the hub has no such model or cannot be reached"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160] if Path(name).is_dir() else where
        raise InputError(f"model.name = '{name}': cannot be loaded: {reason}.") from None
