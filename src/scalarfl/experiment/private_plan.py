"""What [privacy] will cost a recipe's clients: the noise, how it compares with the clip, and how long it lasts."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scalarfl import language
from scalarfl.experiment.plan import plan
from scalarfl.experiment.prepare import divide, split
from scalarfl.experiment.recipe import Recipe
from scalarfl.model import zoo as models
from scalarfl.privacy.accountant import Promise, affordable, participations, spent, terms
from scalarfl.protocol.client import Dataset
from scalarfl.tasks import load_task


@dataclass(frozen=True)
class PrivatePlan:
    """Of the client with the fewest examples, whose noise is the largest."""

    epsilon: float
    delta: float
    unit: str
    examples: int
    """Training examples of that client."""
    rate: float
    """Probability with which an example is in a batch."""
    sigma: float
    """Noise multiplier: the noise's standard deviation over the sensitivity."""
    noise_to_clip: float
    """Standard deviation of the noise in one scalar of the client, over the clip, which bounds what it measures."""
    participations: int
    """Rounds that the noise is calibrated for."""
    epsilon_then: float
    """What these rounds cost, by the tighter accountant."""
    good_for: int
    """Rounds after which the client refuses."""


def planned(recipe: Recipe, forward: float | None, noise: float) -> dict[str, Any]:
    """``plan.plan`` as JSON, with ``privacy`` where the recipe has this table. Raises InputError."""
    private = private_plan(recipe)
    return asdict(plan(recipe, forward, noise)) | ({} if private is None else {"privacy": asdict(private)})


def private_plan(recipe: Recipe) -> PrivatePlan | None:
    """The plan; None without [privacy]. Counts the training examples, which are read for that. Raises InputError."""
    if recipe.privacy is None:
        return None
    promise, federation = Promise.of(recipe.privacy.model_dump()), recipe.federation
    fewest = min(len(own) for own in _shares(recipe))
    rows = recipe.config.header("", "", 0).rows
    rounds = participations(federation.rounds, federation.sampled, federation.clients)
    at = terms(promise, fewest, federation.batch_size, rows * rounds)
    by_example = promise.unit == "example"
    return PrivatePlan(
        epsilon=promise.epsilon,
        delta=promise.delta,
        unit=promise.unit,
        examples=fewest,
        rate=at.rate,
        sigma=at.sigma,
        noise_to_clip=at.sigma / (at.rate * fewest) if by_example else 2 * at.sigma,
        participations=rounds,
        epsilon_then=spent(at.sigma, at.rate, at.releases, promise.delta),
        good_for=affordable(promise, at) // rows,
    )


def _shares(recipe: Recipe) -> list[Dataset]:
    """Each client's training examples."""
    task = recipe.task
    if models.built(recipe.model.name):
        train = load_task(task.name, None if task.data_dir is None else Path(task.data_dir)).train
        return list(divide(recipe, train, split(recipe, len(train), {})[0]).values())
    source = language.collect(task)
    head: Any = None  # none is needed to count
    texts = language.Texts(source.train, head, 0)
    return list(divide(recipe, texts, split(recipe, len(texts), source.sites)[0]).values())
