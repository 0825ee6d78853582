"""The tables of a recipe and their keys; ``protocol.config`` declares those of a federation or a run."""

from typing import Annotated, Literal

from pydantic import Field

from scalarfl.baselines import BASELINES, Baseline
from scalarfl.errors import InputError
from scalarfl.methods import METHODS, Method, make_method
from scalarfl.protocol.config import (
    AgreedFederation,
    AgreedMethod,
    RunFederation,
    RunMethod,
)
from scalarfl.protocol.keys import LARGE, Keys, evaluate_every, frozen_cache, patience, sampled

PRETRAINED_LR = 1e-5
"""The learning rate of a scalar-only method for a pretrained model whose recipe leaves it out. The steps of such a
method grow with the number of parameters, and 1e-3 ruins a model of some millions within a few rounds."""


def kind_of(name: object) -> type[Method] | type[Baseline]:
    """The class that ``method.name`` names. Raises InputError."""
    return BASELINES[name] if isinstance(name, str) and name in BASELINES else METHODS.find(name, BASELINES)


class Mask(Keys):
    """A static sparse mask."""

    sparse: float = Field(gt=0, le=1, description="fraction of every tensor that is trained")
    of: Literal["largest", "smallest"] = Field("largest", description="which weights, by magnitude")


class ModelSection(Keys):
    """The model and its trainable parameters."""

    name: str = Field(
        description='"logistic", "mlp", "cnn", a Hugging Face hub id, the folder of a model, or "file.py:factory"'
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="type of the weights")
    trainable: (
        Literal["all", "norms", "lora", "head"]
        | Annotated[str, Field(pattern=r"^last:[1-9][0-9]{0,5}$")]
        | list[str]
        | Mask
    ) = Field(
        "all",
        description='"all", "norms" (biases and norms), "head", "last:2" (layers), "lora", a list of patterns of '
        "names, or {sparse = 0.001}",
    )
    frozen_cache: int | None = frozen_cache()
    head: Literal["auto", "causal", "masked", "classifier", "sentences"] = Field(
        "auto", description="how a pretrained model answers; auto: as it was saved"
    )
    lora_rank: int = Field(8, ge=1, lt=LARGE, description="rank of the adapters")
    lora_alpha: int = Field(16, ge=1, lt=LARGE, description="scale of the adapters: lora_alpha / lora_rank")
    lora_targets: list[str] | Literal["all-linear"] | None = Field(
        None,
        examples=[["q_proj", "v_proj"]],
        description='layers to adapt, or "all-linear"; default: peft\'s choice, or "all-linear" if it has none',
    )
    revision: str | None = Field(None, examples=["main"], description="branch, tag or commit of the model on the hub")
    device: str = Field("auto", description='"auto" (a GPU if available), "cpu", "cuda", "cuda:1"')
    hidden: list[Annotated[int, Field(ge=1, lt=2**24)]] | None = Field(
        None,
        examples=[[64]],
        description="widths of the MLP's hidden layers or channels of the CNN's stages; default: the model's",
    )


class TaskSection(Keys):
    """The task and its data."""

    name: str = Field(
        description='"digits" (needs no files), "mnist", "fashion-mnist", "file.py:Task"; for language models a '
        'benchmark or "own"'
    )
    data_dir: str | None = Field(
        None, examples=["data"], description="folder of the data files, relative to the recipe"
    )
    file: str | None = Field(
        None, examples=["clients/*.jsonl"], description='"own": a file, or a pattern for one file per client'
    )
    test_file: str | None = Field(
        None, examples=["test.jsonl"], description='"own": file to evaluate on; default: a part of the file(s)'
    )
    test_fraction: float = Field(0.1, gt=0, lt=1, description='"own" without test_file: the part to hold out')
    columns: dict[Literal["text", "text_pair", "label", "prompt", "completion", "messages"], str] | None = Field(
        None,
        examples=[{"text": "premise", "text_pair": "hypothesis", "label": "gold"}],
        description='"own": what the file calls its columns; default: by these names',
    )
    labels: list[str] | None = Field(
        None, examples=[["negative", "positive"]], description='"own": the classes in order; default: those that occur'
    )
    label_words: list[str] | None = Field(
        None, examples=[["terrible", "great"]], description="a language model's answer for each class"
    )
    label_sentences: list[str] | None = Field(
        None,
        examples=[["this is terrible .", "this is great ."]],
        description="a sentence encoder's label sentences",
    )
    prompt: str | None = Field(
        None,
        examples=["{text} It was"],
        description='"own" classification: the prompt, with {text} in it, and of pairs {text_pair}',
    )
    metric: Literal["accuracy", "exact_match", "f1"] | None = Field(
        None,
        examples=["f1"],
        description='"own" completions: "f1" or "exact_match" of generated answers, as in SQuAD; default: "accuracy", '
        "of classes or of an answer's tokens",
    )
    max_length: int = Field(64, ge=4, lt=LARGE, description="tokens of an example; longer prompts lose their beginning")
    train_examples: int = Field(0, ge=0, lt=LARGE, description="maximum number of training examples; 0: all")
    validation: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the training examples that no client trains on: the curve is measured on them, and the "
        "test examples once, at the end; 0: the curve is measured on the test examples",
    )


class Division(Keys):
    """The number of clients and the partition of the examples."""

    clients: int = Field(6, ge=1, lt=LARGE, description="M, number of clients")
    partition: Literal["iid", "dirichlet"] = Field("iid", description='"iid" or "dirichlet" (skewed by label)')
    alpha: float = Field(1.0, gt=0, description="concentration of the Dirichlet partition; smaller is more skewed")
    balanced: bool = Field(False, description="Dirichlet partition with clients of equal size")


class FederationSection(AgreedFederation, RunFederation, Division):
    """The clients and their rounds."""

    sampled: int = sampled(2)


class Named(Keys):
    """The method."""

    name: str = Field("hiso", description='a name listed by `scalarfl methods`, or "file.py:Method"')


class MethodSection(AgreedMethod, RunMethod, Named):
    """The keys that all methods share; the method's own keys are in the same table."""

    own: Method | Baseline = Field(default_factory=lambda: make_method("hiso"), exclude=True)

    @property
    def scalar_only(self) -> Method:
        """The scalar-only method. Raises InputError for a baseline, which sends whole models."""
        if isinstance(self.own, Baseline):
            raise InputError(f"method.name = '{self.name}': it is a baseline for `scalarfl run` and `compare` alone.")
        return self.own


class EvaluationSection(Keys):
    """Evaluations, on the test examples, or with task.validation on the held-out ones."""

    every: int = evaluate_every()
    patience: int = patience()
    by: Literal["server", "clients"] = Field("server", description='who evaluates; "clients": each on its examples')
    examples: int = Field(0, ge=0, lt=LARGE, description="maximum number of examples per evaluation; 0: all")
