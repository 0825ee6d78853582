"""Tasks: data, loss and score, and how the data are divided among clients."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from scalarfl.errors import InputError, nearest, shown
from scalarfl.tasks import digits, idx
from scalarfl.tasks.base import Examples, Shard, Task
from scalarfl.tasks.partition import dirichlet, iid

TASKS: dict[str, Callable[[Path | None], Task]] = {
    "digits": digits.load,
    "fashion-mnist": partial(idx.load, "fashion-mnist"),
    "mnist": partial(idx.load, "mnist"),
}

__all__ = ["TASKS", "Examples", "Shard", "Task", "dirichlet", "iid", "load_task"]


def load_task(name: str, data_dir: Path | None = None) -> Task:
    """The task ``name``. Raises InputError where there is none or its data cannot be read."""
    if name not in TASKS:
        raise InputError(f"task.name = {shown(name)}: no such task; {nearest(name, list(TASKS))}")
    return TASKS[name](data_dir)
