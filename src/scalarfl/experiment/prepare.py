"""From a recipe to its objects: the task, the model, the clients with their data."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from scalarfl import language
from scalarfl.errors import InputError, nearest, shown
from scalarfl.experiment.recipe import Recipe
from scalarfl.experiment.sections import Mask, ModelSection
from scalarfl.language import Head, HeadName, Lora, Sentences, Source, Texts
from scalarfl.model import frozen, selection, zoo as models
from scalarfl.noise.seeds import generator
from scalarfl.protocol.aggregation import pooled
from scalarfl.protocol.client import Dataset
from scalarfl.tasks import TASKS, ExampleSet, Shard, Task, dirichlet, first, iid, load_task
from scalarfl.tasks.objective import Loss, Score

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Judged:
    """Examples to evaluate models on."""

    examples: ExampleSet
    shares: dict[str, ExampleSet]
    """Each client's own of them, where clients measure; else none."""

    def score(self, task: Task, model: nn.Module, among: Collection[str] = ()) -> Score:
        """Of the model as it is now: on all examples, or on the clients' shares, pooled.

        among: the clients that measured; where none of them has a share, all count.
        """
        if not self.shares:
            return task.score(model, self.examples)
        counted = [share for name, share in self.shares.items() if name in among] or self.shares.values()
        scores = [task.score(model, share) for share in counted]
        examples = [score.examples for score in scores]
        loss, accuracy, _ = pooled(examples, [score.loss for score in scores], [score.accuracy for score in scores])
        return Score(loss, accuracy, sum(examples), {} if accuracy is None else {task.metric: accuracy})


@dataclass(frozen=True)
class Prepared:
    """A recipe's objects, loaded and built."""

    recipe: Recipe
    task: Task
    model: nn.Module
    clients: dict[str, Dataset]
    test: Judged
    """The test examples."""
    validation: Judged | None
    """Training examples that no client trains on; None if the recipe holds none out."""

    @property
    def loss(self) -> Loss:
        """The clients' loss: of batches, or of their examples where each is clipped or has directions of its own."""
        private = self.recipe.privacy
        by_example = private.unit == "example" if private else self.recipe.config.directions == "per-example"
        return self.task.losses if by_example else self.task.loss

    @property
    def trainable(self) -> selection.Trainable:
        """The trainable parameters."""
        return trainable(self.recipe.model)

    @property
    def judged(self) -> Judged:
        """The curve's examples: validation examples, or without them the test examples."""
        return self.test if self.validation is None else self.validation

    def check(self) -> list[str]:
        """Warnings about the examples, found before a run starts. Raises InputError if there is nothing to train on."""
        train = first(self.task.train, self.recipe.task.train_examples)
        sets = {"training": train, "test": self.test.examples}
        return [warning for what, texts in sets.items() if isinstance(texts, Texts) for warning in texts.check(what)]

    def measure(self, among: Collection[str] = ()) -> Score:
        """Evaluate the current model on the curve's examples; among: as for ``Judged.score``."""
        return self.judged.score(self.task, self.model, among)

    def measure_test(self) -> Score:
        """Evaluate the current model on the test examples."""
        return self.test.score(self.task, self.model)


def check_names(recipe: Recipe) -> None:
    """Raise InputError unless the task exists and fits the model."""
    name, texts = recipe.task.name, [*language.BENCHMARKS, "own"]
    arrays = name not in texts and TASKS.find(name, texts) is not None
    if models.built(recipe.model.name):
        if not arrays:
            raise InputError(f"task.name = '{name}': needs a language model. Set model.name to a hub id or a folder.")
        if recipe.model.trainable == "lora":
            raise InputError("model.trainable = 'lora': only for pretrained models; accepted here: 'all', 'norms', ….")
        if recipe.model.dtype != "float32":
            raise InputError(f"model.dtype = '{recipe.model.dtype}': models from scratch are float32.")
    elif arrays:
        raise InputError(
            f"model.name = {shown(recipe.model.name)}: '{name}' needs a model from scratch; "
            f"{nearest(recipe.model.name, list(models.FROM_SCRATCH))}"
        )


def trainable(section: ModelSection) -> selection.Trainable:
    """The recipe's trainable parameters, as ``Replica`` takes them."""
    if isinstance(section.trainable, Mask):
        return selection.Sparse(section.trainable.sparse, section.trainable.of)
    return section.trainable


def lora(section: ModelSection) -> Lora | None:
    """The adapters that the recipe asks for."""
    return Lora(section.lora_rank, section.lora_alpha, section.lora_targets) if section.trainable == "lora" else None


def device(section: ModelSection) -> str:
    """The model's device. Raises InputError if it is unavailable."""
    if section.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.empty(0, device=section.device).is_meta:
            raise RuntimeError("it does not store data.")
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"model.device = '{section.device}': {str(error).splitlines()[0]}") from None
    return section.device


@dataclass(frozen=True)
class Loaded:
    """A recipe's model and its head."""

    model: nn.Module
    tokenizer: Any = None
    head_name: HeadName = "auto"
    head: Head | None = None


def load_model(recipe: Recipe, source: Source | None = None) -> Loaded:
    """The recipe's base model, without the examples. Raises InputError.

    source: the task's examples where they have been read already; else what the model must know of them (the number of
    classes, the label sentences) is found without reading a benchmark's files.
    """
    check_names(recipe)
    section = recipe.model
    where = device(section)
    if models.built(section.name):
        task = TASKS.find(recipe.task.name)
        model = models.build(section.name, task.inputs, task.classes, recipe.federation.seed, section.hidden)
        return Loaded(model.to(where))
    source = language.collect(recipe.task, examples=False) if source is None else source
    name = language.head_of(language.read_config(section.name, section.revision), section.head)
    model = language.load(
        section.name,
        name,
        classes=len(source.words),
        dtype=section.dtype,
        device=where,
        seed=recipe.federation.seed,
        lora=lora(section),
        revision=section.revision,
    )
    tokenizer = language.read_tokenizer(section.name, section.revision)
    return Loaded(model, tokenizer, name, _head(recipe, name, model, tokenizer, source))


def _head(recipe: Recipe, name: HeadName, model: nn.Module, tokenizer: Any, source: Source) -> Head:
    head = language.make_head(name, tokenizer, source, recipe.task.max_length)
    folder = Path(recipe.model.name)
    if isinstance(head, Sentences):
        head.anchor(model, language.padding(tokenizer), folder)
    head.classify(model, folder, recipe.model.trainable == "head")
    return head


def prepare(recipe: Recipe, base: Loaded | None = None) -> Prepared:
    """Load the data, divide them among the clients, build the model. Raises InputError; writes nothing.

    base: the base model where it is loaded already; it may have been loaded for another task.
    """
    check_names(recipe)
    sites: dict[str, Indices] = {}
    test_sites: dict[str, Indices] = {}
    if models.built(recipe.model.name):
        data_dir = recipe.task.data_dir
        task: Task = load_task(recipe.task.name, None if data_dir is None else Path(data_dir))
        loaded = base or load_model(recipe)
    else:
        language.read_config(recipe.model.name, recipe.model.revision)  # refuses what is no model before data are read
        source = language.collect(recipe.task)
        sites, test_sites = source.sites, source.test_sites
        loaded = base or load_model(recipe, source)
        head = loaded.head if base is None else _head(recipe, loaded.head_name, loaded.model, loaded.tokenizer, source)
        assert head is not None
        on_gpu = next(loaded.model.parameters()).device.type != "cpu"
        whole = on_gpu or recipe.model.trainable == "head"  # a head alone has nothing to compute for each token
        task = language.make_task(source, head, language.padding(loaded.tokenizer), in_one_piece=whole)
    selection.select(loaded.model, trainable(recipe.model))  # refuse a bad choice before anything is written
    by_calls = not isinstance(task, language.TextTask)  # a task of texts says itself which examples it asks about
    frozen.attach(loaded.model, trainable(recipe.model), recipe.model.frozen_cache, calls=by_calls)
    kept, held_out = split(recipe, len(task.train), sites)
    clients = divide(recipe, task.train, kept)
    test = _judged(recipe, task.test, list(clients), test_sites)
    validation = None
    if held_out:
        rows = np.concatenate(list(held_out.values()))
        ends = np.cumsum([len(own) for own in held_out.values()])
        own_rows = zip(held_out, np.split(np.arange(len(rows)), ends[:-1]), strict=True)
        validation = _judged(recipe, task.train.take(rows), list(clients), dict(own_rows) if sites else {})
    return Prepared(recipe, task, loaded.model, clients, test, validation)


def split(recipe: Recipe, examples: int, sites: dict[str, Indices]) -> tuple[dict[str, Indices], dict[str, Indices]]:
    """Which training examples are trained on, and which are held out for validation: by site, "" for one pool of all.

    The choice is the same in every run, whatever the seed; a pool keeps one example of each kind.
    """
    limit, share = recipe.task.train_examples or None, recipe.task.validation
    pools = {name: own[:limit] for name, own in (sites or {"": np.arange(examples)}).items()}
    if share == 0:
        return pools, {}
    kept, held_out = {}, {}
    for name, own in pools.items():
        if len(own) < 2:
            raise InputError(f"task.validation = {share}: {len(own)} training example cannot be split{_of(name)}.")
        count = min(max(1, round(share * len(own))), len(own) - 1)
        chosen = np.zeros(len(own), dtype=np.bool_)
        chosen[generator(0, "validation", name).permutation(len(own))[:count]] = True
        kept[name], held_out[name] = own[~chosen], own[chosen]
    return kept, held_out


def _of(name: str) -> str:
    return f" (client '{name}')" if name else ""


def _judged(recipe: Recipe, rows: ExampleSet, clients: list[str], sites: dict[str, Indices]) -> Judged:
    """The examples of an evaluation; where clients measure each has those of its own files, or a share of all."""
    limit = recipe.evaluation.examples
    examples = first(rows, limit)
    if recipe.evaluation.by == "server":
        return Judged(examples, {})
    if sites:
        return Judged(examples, {name: rows.take(own[: limit or None]) for name, own in sites.items()})
    if len(examples) < len(clients):
        raise InputError(
            f"evaluation.by = 'clients': {len(examples)} evaluation examples cannot be divided among {len(clients)} "
            "clients."
        )
    parts = iid(len(examples), len(clients), recipe.federation.seed)
    return Judged(examples, {name: examples.take(part) for name, part in zip(clients, parts, strict=True)})


def divide(recipe: Recipe, train: ExampleSet, pools: dict[str, Indices]) -> dict[str, Dataset]:
    """The clients' shares of the training examples, by client name.

    pools: the examples to train on; by client where it is given whose are whose, else under "", to be divided as the
    recipe says.
    """
    federation = recipe.federation
    if "" not in pools:
        if federation.clients != len(pools):
            raise InputError(
                f"federation.clients = {federation.clients}: task.file names {len(pools)} files, one a client; "
                f"set it to {len(pools)}."
            )
        return {name: Shard(train, own) for name, own in pools.items()}
    pool = pools[""]
    if federation.partition == "iid":
        parts = iid(len(pool), federation.clients, federation.seed)
    else:
        labels = train.classes()
        if labels is None:
            raise InputError(
                f"federation.partition = 'dirichlet': '{recipe.task.name}' has no classes to partition by; use 'iid'."
            )
        parts = dirichlet(labels[pool], federation.clients, federation.alpha, federation.seed, federation.balanced)
    return {f"client-{index:04d}": Shard(train, pool[part]) for index, part in enumerate(parts)}
