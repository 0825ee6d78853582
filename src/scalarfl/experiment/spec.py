"""What a server must know of a federation: the ledger's header and the recipe. It needs neither model nor torch.

The header holds digests of the base model, so whoever makes the spec loads the model once: `scalarfl spec RECIPE FILE`,
or a process that the server starts and that ends before the first round.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from scalarfl.errors import InputError, UnexpectedError, explained, sentence, shown
from scalarfl.experiment import run_folder as folder
from scalarfl.ledger.header import FORMAT, Header
from scalarfl.ledger.store import Ledger
from scalarfl.protocol.aggregation import Aggregator, make_aggregator
from scalarfl.protocol.config import RunConfig
from scalarfl.registry import placed

NONE = "-"
"""Stands for a recipe's file where there is none."""
SUFFIX = ".json"
"""Of a spec's file; a recipe's is another."""


class FederationSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A federation as its server knows it."""

    header: Header
    name: str
    """By default the federation's name on a broker: the recipe's file without its suffix."""
    metric: str
    """Name of the task's metric."""
    recipe: str
    """With every key, as TOML."""
    settings: dict[str, Any]
    """Of the recipe, as the ledger records them."""

    @property
    def keys(self) -> dict[str, Any]:
        """The recipe's keys, named like ``method.lr``."""
        return folder.keys_of(self.recipe)

    @property
    def run(self) -> RunConfig:
        """What the run is started with."""
        return RunConfig.of(self.settings)

    @property
    def sampled(self) -> int:
        """Clients in a round's cohort."""
        return int(self.settings["federation.sampled"])

    @property
    def clients(self) -> int:
        """Number of clients."""
        return int(self.settings["federation.clients"])

    @property
    def evaluate_every(self) -> int:
        """Rounds between measurements by the clients; 0 where they measure nothing."""
        return self.run.evaluate_every if self.settings["evaluation.by"] == "clients" else 0

    @property
    def aggregator(self) -> Aggregator:
        """The aggregation. A file that is not where it was is looked for in the working directory."""
        return make_aggregator(placed(self.keys["federation.aggregation"], Path()))

    def opened(self, out: Path) -> Ledger:
        """The federation's ledger in a folder, begun or continued there, and beside it the recipe.

        The two are all that `scalarfl export` needs. Raises InputError if the folder has another federation's, and
        LedgerError where another process is writing it.
        """
        return folder.begin(out, self.header, self.settings, self.recipe)

    def write(self, path: Path) -> None:
        """Write the spec to a file, whole or not at all."""
        if path.suffix != SUFFIX:
            raise InputError(f"{path}: a spec's name should end in {SUFFIX}.")
        path.parent.mkdir(parents=True, exist_ok=True)
        folder.keep_sealed(path, msgspec.to_builtins(self))


def load(source: Path | None, overrides: Sequence[str] = ()) -> FederationSpec:
    """The spec in a file, or of a recipe (None: of the overrides alone), for which another process loads the model.

    Raises InputError for a file that is none or a recipe that cannot be, and VerificationError for an altered spec.
    """
    if source is None or source.suffix != SUFFIX:
        return _announced(source, overrides)
    if overrides:
        raise InputError(f"-s {overrides[0]}: {source} is complete. Change the recipe, then run `scalarfl spec` again.")
    content = folder.read_sealed(source, sealed=lambda content: "header" in content)
    try:
        content.pop(folder.CHECKSUM, None)
        spec = msgspec.convert(content, type=FederationSpec)
        if spec.header.format != FORMAT:
            raise InputError(f"{source}: for ledgers of format {spec.header.format}; this version writes {FORMAT}.")
        _ = spec.run, spec.keys, spec.clients, spec.evaluate_every
    except (msgspec.ValidationError, KeyError, ValueError) as error:
        raise InputError(f"{source}: not a federation's spec: {error}. `scalarfl spec` makes one.") from None
    return spec


def check_same(spec: FederationSpec, where: str, overrides: Sequence[str]) -> None:
    """Refuse a recipe's keys, as ``-s`` takes them, that differ from the spec's. Paths may differ.

    Raises InputError that names the key and both values.
    """
    for key, value in folder.keys_of("\n".join(overrides)).items():
        known = spec.keys.get(key)
        if known != value and not (isinstance(known, str) and Path(known).is_absolute()):
            raise InputError(f"{key} = {shown(value)}: {where} was made with {shown(known)}. Make the spec again.")


def _announced(recipe: Path | None, overrides: Sequence[str]) -> FederationSpec:
    # -P: Python would else run the working directory's files in place of the installed ones
    command = [sys.executable, "-P", "-m", "scalarfl.experiment.spec", str(recipe or NONE), *overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        if not lines:
            raise InputError(f"{recipe}: the process that loads the model was killed ({done.returncode}).")
        kind = UnexpectedError if done.returncode == UnexpectedError.exit_code else InputError
        raise kind(lines[-1].removeprefix("error: "))
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=FederationSpec)


def make(source: Path | None, overrides: Sequence[str] = ()) -> FederationSpec:
    """The spec of a recipe; loads the model, in this process. Raises InputError for a recipe that cannot be."""
    from scalarfl.experiment import recipe as recipes
    from scalarfl.experiment.prepare import load_model, trainable
    from scalarfl.language import BENCHMARKS
    from scalarfl.model import selection
    from scalarfl.model.digest import base_digest
    from scalarfl.noise.directions import Layout
    from scalarfl.tasks import TASKS

    recipe = recipes.load(source, overrides)
    if recipe.federation.attack is not None:
        raise InputError("federation.attack: only a simulation has attackers; leave it out.")
    if recipe.evaluation.patience and recipe.evaluation.by == "server":
        raise InputError(
            f"evaluation.patience = {recipe.evaluation.patience}: a server over a network measures nothing. Set "
            "evaluation.by = 'clients'."
        )
    model = load_model(recipe).model
    base = base_digest(model)
    parts = selection.select(model, trainable(recipe.model))
    layout = Layout.of([(part.name, part.values()) for part in parts])
    task = recipe.task.name
    return FederationSpec(
        header=recipe.config.header(base, layout.digest(), layout.dimension, recipe.method.lr),
        name="federation" if source is None else source.stem,
        metric=recipe.task.metric or "accuracy" if task == "own" else (BENCHMARKS.get(task) or TASKS.find(task)).metric,
        recipe=recipes.to_toml(recipe),
        settings=recipes.settings(recipe),
    )


def main(arguments: Sequence[str]) -> int:
    """Print the spec of RECIPE [SECTION.KEY=VALUE ...] as JSON, or why there is none; returns the exit code."""
    try:
        print(msgspec.json.encode(make(None if arguments[0] == NONE else Path(arguments[0]), arguments[1:])).decode())
    except Exception as error:
        told = explained(error)
        print(f"error: {sentence(told)}", file=sys.stderr)
        return told.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
