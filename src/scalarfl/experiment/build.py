"""A party's client, from the federation's recipe, a name, and the party's data."""

from pathlib import Path
from typing import Any

from scalarfl.errors import InputError, warn
from scalarfl.experiment.prepare import prepare
from scalarfl.experiment.recipe import Recipe
from scalarfl.files import located
from scalarfl.model.gradients import Local
from scalarfl.model.probe import Probe
from scalarfl.model.replica import Replica
from scalarfl.protocol import private
from scalarfl.protocol.client import Client
from scalarfl.protocol.config import Slopes
from scalarfl.protocol.private_client import make_client
from scalarfl.protocol.secure_client import Identity


def build_client(
    recipe: Recipe,
    name: str,
    data: Path | None = None,
    slopes: Slopes | None = None,
    identity: Identity | None = None,
    budget: Path | None = None,
) -> Client:
    """The client ``name``, its replica at the beginning.

    data: the client's own file; else its share of the task, where ``name`` is one of the simulation's clients.
    slopes: how this client finds its scalars, where that is not what the recipe says. identity: proves its key to the
    others in secure sums. budget: file of its privacy budget, which a recipe with [privacy] needs.
    Raises InputError for a recipe, a name or data that cannot be.
    """
    if data is not None:
        task = recipe.task.model_copy(update={"name": "own", "file": str(located(data)), "data_dir": None})
        alone = recipe.federation.model_copy(update={"clients": 1, "sampled": 1, "partition": "iid"})
        prepared = prepare(recipe.model_copy(update={"task": task, "federation": alone}))
        (own,) = prepared.clients.values()
    else:
        prepared = prepare(recipe)
        if name not in prepared.clients:
            raise InputError(
                f"client '{name}': not a client of the recipe ({', '.join(sorted(prepared.clients)[:3])}, …). "
                "Use one of these names, or give the client its own data file."
            )
        own = prepared.clients[name]
    for warning in prepared.check():
        warn(warning)
    local = Local(recipe.method.local_lr, recipe.method.local_optimizer)
    replica = Replica(prepared.model, recipe.method.scalar_only, prepared.trainable, noise=recipe.config.generator)
    made = recipe.config.header(replica.base, replica.layout.digest(), replica.layout.dimension, recipe.method.lr)
    replica.begin(made.digest())
    share = prepared.judged.examples if data is not None else prepared.judged.shares.get(name)
    measure = None
    if recipe.evaluation.by == "clients" and share is not None:

        def measure(model: Any) -> Any:
            return prepared.task.score(model, share)

    if recipe.privacy is not None and budget is None:
        raise InputError("[privacy]: a client needs a folder, in which its budget is kept.")
    f, probe = recipe.federation, Probe(replica, prepared.loss)
    allowed = private.budget(made, len(own), f.rounds, f.sampled, f.clients, budget)
    return make_client(name, own, probe, made, f.batch_size, measure, local, slopes, identity=identity, budget=allowed)
