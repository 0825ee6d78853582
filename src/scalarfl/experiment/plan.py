"""Estimates of a recipe's cost without loading the model: parameters, memory, forward passes, bytes, time."""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from scalarfl import language
from scalarfl.errors import InputError
from scalarfl.experiment.prepare import check_names, lora, trainable
from scalarfl.experiment.recipe import Recipe
from scalarfl.experiment.traffic import planned_bytes
from scalarfl.language.batches import MOST
from scalarfl.language.own import paths
from scalarfl.ledger.accounting import peak_rss_bytes
from scalarfl.ledger.header import losses, losses_along
from scalarfl.model import selection, zoo as models
from scalarfl.model.activations import OVERHEAD
from scalarfl.model.frozen import DEFAULT
from scalarfl.model.partial import SLICE
from scalarfl.model.probe import SMALL
from scalarfl.registry import is_reference
from scalarfl.simulation import simulate
from scalarfl.tasks import TASKS


@dataclass(frozen=True)
class Plan:
    """All sizes in bytes, times in seconds."""

    parameters: int
    """Of the model."""
    dimension: int
    """d, those that are trained."""
    weights_bytes: int
    state_bytes: int
    """The method's vectors."""
    scratch_bytes: int
    """Perturbed weights, or with slopes = "training" the copy that is trained; the walk of several local steps."""
    gradient_bytes: int
    """With exact slopes the largest tensor's gradient; with training that of all trained weights and the optimizer's
    state; 0 where there is no backward pass."""
    activation_bytes: int
    """Estimate of what one forward pass holds beside the weights; with a backward pass, of what autograd keeps."""
    frozen_bytes: int
    """At most, what is kept in memory of what frozen layers make of the examples; 0 where none are split off."""
    frozen_example_bytes: int
    """At most, of that for one example, in memory or in the file."""
    process_bytes: int
    """What a process with the libraries and the data holds beside the model: measured on this very process."""
    client_bytes: int
    """Peak of a client, or of a simulation of all of them: the sum of the above."""
    server_bytes: int
    """Peak of a server, which has no model and loads no torch: 60 MB measured by `benchmarks.network`."""
    forward_passes_a_round: int
    forward_passes: int
    bytes_up_a_round: float
    """Serialized, all clients together; means over the run."""
    bytes_down_a_round: float
    bytes_up: float
    """Serialized, mean per client over the run, as in result.json."""
    bytes_down: float
    catch_up_coordinates: int
    """Coordinates of noise that one missed round costs a client."""
    seconds_a_round: float | None
    """Where a measured speed was given."""
    seconds: float | None
    catch_up_seconds: float | None
    """For one missed round."""


def plan(recipe: Recipe, forward_seconds: float | None = None, noise_per_second: float = 1e9) -> Plan:
    """Estimate the recipe's cost. Reads no weights and no data, only a hub model's configuration.

    forward_seconds: measured time of one batch's forward pass. noise_per_second: measured speed of the generator in
    coordinates (`scalarfl bench --only generator`). Raises InputError for a recipe that cannot be run.
    """
    check_names(recipe)
    for option, value in (("--forward", forward_seconds), ("--noise", noise_per_second)):
        if value is not None and not 0 <= value < math.inf:
            raise InputError(f"{option} {value}: expected a finite number, 0 or more.")
    federation, method = recipe.federation, recipe.method
    model, config = _skeleton(recipe)
    shapes = _trained(model, recipe)
    d = sum(shapes)
    weight = {"float32": 4, "bfloat16": 2, "float16": 2}[recipe.model.dtype]
    total = sum(parameter.numel() for parameter in model.parameters())
    masked = isinstance(trainable(recipe.model), selection.Sparse)
    whole = masked or d <= SMALL
    found_by = recipe.config.found_by
    scratch = gradient = 0
    if found_by == "training":
        scratch = weight * d
        gradient = weight * d + STATES[method.local_optimizer] * weight * d
    elif found_by == "exact":
        gradient = weight * max(shapes)
    else:
        scratch = weight * (d if whole else _largest_layer(model, recipe))
    if masked:
        scratch += (weight + 8) * d  # the compact values and their places
    if federation.local_steps > 1 and found_by != "training":
        scratch += 4 * d
    state = 4 * d * method.scalar_only.vectors
    activations = _activations(config, recipe, model) + (_kept(config, recipe, model) if gradient else 0)
    each = losses(method.perturbations, found_by)
    along = federation.sampled * losses_along(found_by) if method.lr == "auto" else 0  # the first round has no move
    passes = federation.sampled * each * federation.local_steps + along
    up, down = planned_bytes(recipe, d)
    process = _process(recipe) + _data(recipe)
    an_example = _frozen(config, recipe, model, weight)
    limit = 1_000_000 * (DEFAULT if recipe.model.frozen_cache is None else recipe.model.frozen_cache)
    drawn = federation.rounds * federation.sampled * federation.local_steps * federation.batch_size
    kept = min(limit, (an_example + OVERHEAD) * drawn) if an_example else 0
    own = method.directions == "per-example"
    per_step = method.perturbations * d * (federation.batch_size if own else 1)
    slots = federation.sampled if method.directions != "shared" else 1
    rows = 1 if found_by == "training" else federation.local_steps
    probed = 0 if own else rows * per_step * (slots if whole and not gradient else federation.sampled)
    passes_over_noise = 2 if method.scalar_only.curved else 1  # itself, and its square
    replayed = rows * per_step * slots * passes_over_noise
    seconds = None
    if forward_seconds is not None:
        seconds = passes * forward_seconds + (probed + replayed) / noise_per_second
    return Plan(
        parameters=total,
        dimension=d,
        weights_bytes=weight * total,
        state_bytes=state,
        scratch_bytes=scratch,
        gradient_bytes=gradient,
        activation_bytes=activations,
        frozen_bytes=kept,
        frozen_example_bytes=an_example,
        process_bytes=process,
        client_bytes=process + weight * total + state + scratch + gradient + activations + kept,
        server_bytes=SERVER_BYTES,
        forward_passes_a_round=passes,
        forward_passes=passes * federation.rounds - (along if federation.rounds else 0),
        bytes_up_a_round=up / max(1, federation.rounds),
        bytes_down_a_round=down / max(1, federation.rounds),
        bytes_up=up / federation.clients,
        bytes_down=down / federation.clients,
        catch_up_coordinates=replayed,
        seconds_a_round=seconds,
        seconds=None if seconds is None else seconds * federation.rounds,
        catch_up_seconds=None if forward_seconds is None else replayed / noise_per_second,
    )


SERVER_BYTES = 60_000_000
STATES = {"sgd": 0, "adam": 2, "adamw": 2}
"""Numbers that an optimizer of the clients keeps for each weight."""
KEPT = 8
"""Hidden states per layer that autograd keeps."""
LIBRARY_BUFFERS = 50_000_000  # what matrix libraries set aside as they meet new shapes; seen on CPUs, roughly
TEXT_IN_MEMORY = 10  # bytes that an example takes as text and tokens, for each byte of its file


def _process(recipe: Recipe) -> int:
    """This process's size, after loading a run's code and running it on a toy."""
    if not models.built(recipe.model.name):
        language.read_tokenizer(recipe.model.name, recipe.model.revision)
    toy = TensorDataset(torch.zeros(8, 64), torch.zeros(8, dtype=torch.int64))
    simulate(
        nn.Linear(64, 2),
        [toy],
        lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
        method=recipe.method.scalar_only,
        slopes=recipe.method.slopes,
        noise=recipe.method.noise,
        local_optimizer=recipe.method.local_optimizer,
        rounds=2,
        batch_size=4,
        progress=False,
    )
    return peak_rss_bytes() + (LIBRARY_BUFFERS if not models.built(recipe.model.name) else 0)


def _data(recipe: Recipe) -> int:
    """Bytes of the examples, by the size of their files; data from the hub are unknown and count as 0."""
    task = recipe.task
    if models.built(recipe.model.name):
        kind = TASKS.find(task.name)
        return 2 * 4 * kind.size * math.prod(kind.inputs)  # read, then as float32
    files = [*(paths(task.file) if task.file else []), *(paths(task.test_file) if task.test_file else [])]
    if task.data_dir is not None:
        files += [Path(task.data_dir) / name for name in language.BENCHMARKS[task.name].files]
    return TEXT_IN_MEMORY * sum(file.stat().st_size for file in files if file.is_file())


def suggested_lr(recipe: Recipe) -> float:
    """A cautious learning rate for a pretrained model and a scalar-only method: 1,000 / d, between 5e-6 and 1e-4.

    A head alone is given 1e-3: on MiniLM (770 parameters) 3e-3 learns, 3e-2 ruins it.

    The square of a step's length grows with d, the number of trained parameters. The published settings lie between
    2e-6 and 1e-5 for 125 million to 2.7 billion parameters; on MiniLM (10.8 million trained) 1e-4 to 2.5e-4 were best.
    Raises InputError.
    """
    check_names(recipe)
    if recipe.model.trainable == "head":
        return 1e-3
    d = sum(_trained(_skeleton(recipe)[0], recipe))
    return float(f"{min(1e-4, max(5e-6, 1e3 / d)):.0e}")


def _skeleton(recipe: Recipe) -> tuple[nn.Module, Any]:
    """The model without weights, and its configuration."""
    section = recipe.model
    if models.built(section.name):
        task = TASKS.find(recipe.task.name)
        with nullcontext() if is_reference(section.name) else torch.device("meta"):  # one's own may read a file
            return models.architecture(section.name, task.inputs, task.classes, section.hidden), None
    config = language.read_config(section.name, section.revision)
    head = language.head_of(config, section.head)
    classes = len(language.collect(recipe.task, examples=False).words)
    model = language.build(config, head, classes, lora(section))
    if section.trainable == "head" and head != "classifier" and classes:
        output = None if head == "sentences" else language.output_layer(model)
        language.class_head.add(model, output, [""] * classes)
    return model, config


def _trained(model: nn.Module, recipe: Recipe) -> list[int]:
    """Numbers of trained coordinates, per tensor."""
    wanted = trainable(recipe.model)
    if isinstance(wanted, selection.Sparse):
        return [selection.kept(parameter.numel(), wanted) for parameter in model.parameters()]
    return [part.parameter.numel() for part in selection.select(model, wanted)]


def _largest_layer(model: nn.Module, recipe: Recipe) -> int:
    """Weights that are perturbed at a time: a layer's; of an embedding the batch's tokens, of a large layer a slice."""
    tokens = recipe.federation.batch_size * recipe.task.max_length
    largest = 0
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        size = sum(parameter.numel() for parameter in own)
        if isinstance(module, nn.Embedding):
            size = min(size, tokens * module.embedding_dim)
        elif isinstance(module, nn.Linear) and size > 2 * SLICE:
            size = SLICE
        largest = max(largest, size)
    return largest


def _activations(config: Any, recipe: Recipe, model: nn.Module) -> int:
    """A forward pass's approximate peak: some hidden states, the MLP's two, and the logits."""
    federation, task = recipe.federation, recipe.task
    if config is None:
        return 4 * federation.batch_size * sum(p.shape[0] for p in model.parameters()) * 8
    tokens = max(federation.batch_size * task.max_length, MOST)
    hidden: int = config.hidden_size
    inner: int = getattr(config, "intermediate_size", None) or getattr(config, "ffn_dim", None) or 4 * hidden
    logits: int = 0
    benchmark = language.BENCHMARKS.get(task.name)
    if benchmark is None or not benchmark.words:
        logits = tokens * config.vocab_size
    weight = 4 if recipe.model.dtype == "float32" else 2
    return int(weight * tokens * (6 * hidden + 2 * inner) + 4 * 2 * logits)


def _kept(config: Any, recipe: Recipe, model: nn.Module) -> int:
    """What autograd keeps of a forward pass for the backward pass, beyond the pass's own peak: a rough estimate.

    Per layer of a language model its norms' and attention's inputs and outputs, and the MLP's before and after its
    activation; measured at OPT-125M by `benchmarks.exact_memory`.
    """
    if config is None:
        return _activations(config, recipe, model)
    tokens = recipe.federation.batch_size * recipe.task.max_length
    hidden: int = config.hidden_size
    inner: int = getattr(config, "intermediate_size", None) or getattr(config, "ffn_dim", None) or 4 * hidden
    weight = 4 if recipe.model.dtype == "float32" else 2
    return int(weight * config.num_hidden_layers * tokens * (KEPT * hidden + 2 * inner))


def _frozen(config: Any, recipe: Recipe, model: nn.Module, weight: int) -> int:
    """What is kept of one example at the first trained layer; 0 where the model is not split."""
    wanted = recipe.model.trainable
    if recipe.model.frozen_cache is None and not (isinstance(wanted, str) and wanted.startswith(("head", "last:"))):
        return 0
    if config is None:
        first = selection.select(model, trainable(recipe.model))[0].parameter
        return 4 * (first.shape[1] if first.ndim == 2 else math.prod(TASKS.find(recipe.task.name).inputs))
    return int(weight * config.hidden_size * (1 if wanted == "head" else recipe.task.max_length))
