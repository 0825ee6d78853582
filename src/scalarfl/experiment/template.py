"""Recipes to start from, with the recommended method for what clients can do."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from scalarfl.experiment.recipe import Recipe, override, parse, to_toml
from scalarfl.experiment.sections import kind_of
from scalarfl.methods import Method
from scalarfl.model.zoo import built

For = Literal["training", "inference", "paper"]
"""What clients can do: take backward passes, or only run the model forward; or the published settings of HiSo."""

RECOMMENDED: dict[For, tuple[str, ...]] = {
    "training": (
        "method.name=decomfl",
        "method.slopes=training",
        "method.noise=hadamard",
        "method.perturbations=1000",
        "method.lr=auto",
        "federation.local_steps=5",
        "federation.rounds=200",
    ),
    "inference": (
        "method.name=decomfl",
        "method.directions=per-example",
        "method.perturbations=3",
        "method.lr=auto",
        "federation.batch_size=64",
        "federation.rounds=400",
    ),
    "paper": (),
}
"""Settings, found by measurement: docs/which-method.md has the figures."""
OF_A_LANGUAGE_MODEL: dict[For, tuple[str, ...]] = {
    "training": ("model.trainable=norms", "method.local_lr=0.02"),
    "inference": (
        "method.directions=shared",
        "method.perturbations=10",
        "federation.batch_size=16",
        "federation.rounds=1000",
    ),
    "paper": (),
}
"""Instead, or beside them, where the model is a pretrained one."""


def template(
    overrides: Sequence[str] = (), clients: For = "paper", suggest: Callable[[Recipe], float] | None = None
) -> str:
    """A commented, runnable recipe, with overrides such as ``model.name=./folder``.

    clients: what they can do; a baseline's recipe is the same for all. suggest: gives the learning rate for a recipe
    with a pretrained model that leaves it out. Raises InputError.
    """
    named: dict[str, Any] = {}
    for one in overrides:
        override(named, one)
    scratch = built(str(named.get("model", {}).get("name", "mlp")))
    scalar = issubclass(kind_of(named.get("method", {}).get("name", "hiso")), Method)
    recommended = [*RECOMMENDED[clients], *(() if scratch else OF_A_LANGUAGE_MODEL[clients])] if scalar else []
    tables: dict[str, Any] = {}
    for one in (*recommended, *overrides):
        override(tables, one)
    tables.setdefault("model", {}).setdefault("name", "mlp")
    tables.setdefault("task", {}).setdefault("name", "digits" if scratch else "sst2")
    method = tables.setdefault("method", {})
    if "lr" not in method and scratch:
        method["lr"] = 1e-2
    elif "lr" not in method and suggest is not None and scalar:
        method["lr"] = suggest(parse(tables))
    changed = ", ".join(one.partition("=")[0] for one in recommended) or "method.lr"
    return _INTRO.format(clients=clients, changed=changed) + to_toml(parse(tables), comments=True)


_INTRO = """\
# A recipe for scalarfl: `scalarfl run FILE.toml`. Only model.name and task.name are required. The other keys have
# their defaults, except what was set with -s and what suits the clients and the model (--for {clients}):
# {changed}.
# Keys behind a # are not set: an example follows. Change a key for a single run with -s section.key=value.

"""
