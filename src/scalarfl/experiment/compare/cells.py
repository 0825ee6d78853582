"""One cell of a comparison: a method at a learning rate with a seed. Each is an ordinary run in its own folder."""

import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from scalarfl.baselines import BASELINES
from scalarfl.errors import InputError
from scalarfl.experiment import recipe as recipes, run
from scalarfl.experiment.recipe import Recipe
from scalarfl.experiment.sections import kind_of
from scalarfl.methods import METHODS
from scalarfl.protocol.callbacks import Rate
from scalarfl.registry import is_reference
from scalarfl.units import rate


class Watcher(Protocol):
    """Follows a comparison's progress, in the thread that runs it."""

    def done(self, cell: "Cell", result: dict[str, Any]) -> None:
        """A cell's result is available, new or from an earlier run."""

    def working(self, at_work: Mapping["Cell", str], left: int) -> None:
        """Every second: the active cells, each with its latest line of progress, and how many runs are left."""


@dataclass(frozen=True)
class Contender:
    """A method, with settings that differ from the recipe's: ``decomfl:directions=per-client:perturbations=1``.

    A key without a section is one of ``[method]``.
    """

    text: str

    def __post_init__(self) -> None:
        if not is_reference(self.name):  # whose file is relative to the recipe, which is read before a run starts
            kind_of(self.name)  # refuses an unknown name
        if any(setting.startswith("method.name=") for setting in self.settings[1:]):
            raise InputError(f"--methods {self.text}: expected the method's name first, exactly once.")

    @property
    def name(self) -> str:
        """The method's."""
        first, _, rest = self.text.partition(":")
        reference = f"{first}:{rest.partition(':')[0]}"
        known = first in BASELINES or first in METHODS
        return reference if is_reference(reference) and not known else first

    @property
    def settings(self) -> list[str]:
        """The settings as arguments of ``-s``."""
        return [f"method.name={self.name}", *(_keyed(part) for part in self.text[len(self.name) :].split(":")[1:])]

    @property
    def folder(self) -> str:
        """A name for its folder."""
        return "".join(letter if letter.isalnum() or letter in "-_=." else "+" for letter in self.text)


def _keyed(part: str) -> str:
    key, equals, value = part.partition("=")
    if not equals:
        raise InputError(f"--methods: '{part}': expected KEY=VALUE.")
    return f"{key if '.' in key else f'method.{key}'}={value}"


@dataclass(frozen=True)
class Cell:
    """A run of a comparison."""

    contender: Contender
    lr: Rate
    seed: int

    def overrides(self, common: Sequence[str]) -> list[str]:
        """All overrides of the recipe."""
        return [*common, *self.contender.settings, f"method.lr={self.lr!r}", f"federation.seed={self.seed}"]

    def folder(self, out: Path) -> Path:
        """The run's folder."""
        return out / self.contender.folder / f"lr-{rate(self.lr)}" / f"seed-{self.seed}"


@dataclass
class Bench:
    """Runs cells in parallel, each in a process with one thread; skips cells that have been run."""

    recipe: Path
    common: Sequence[str]
    out: Path
    workers: int

    def load(self, cell: Cell) -> Recipe:
        """The cell's recipe. Raises InputError if it is invalid."""
        return recipes.load(self.recipe, cell.overrides(self.common))

    def base(self, contender: Contender) -> Recipe:
        """The contender's recipe with its own learning rate. Raises InputError if it is invalid."""
        return recipes.load(self.recipe, [*self.common, *contender.settings])

    def finished(self, cell: Cell) -> dict[str, Any] | None:
        """The result of an earlier run of this cell; the run refuses a folder that contains another."""
        folder = cell.folder(self.out)
        if not (folder / run.RECIPE).exists() or run.load_recipe(folder) != self.load(cell):
            return None
        return run.load_result(folder)

    def run(self, cells: Iterable[Cell], watcher: Watcher) -> dict[Cell, dict[str, Any]]:
        """Results of all cells. Raises InputError with the message of an invalid run.

        When interrupted, it asks the active runs to stop, which loses none of their rounds.
        """
        found: dict[Cell, dict[str, Any]] = {}
        missing = []
        cells = list(cells)
        for cell in cells:
            self.load(cell)  # refuses all of it before anything is run
        for cell in cells:
            earlier = self.finished(cell)
            if earlier is None:
                missing.append(cell)
            else:
                found[cell] = earlier
                watcher.done(cell, earlier)
        processes: set[subprocess.Popen[str]] = set()
        at_work: dict[Cell, str] = {}
        stopping = threading.Event()

        def work(cell: Cell) -> dict[str, Any]:
            if stopping.is_set():
                raise KeyboardInterrupt
            settings = [word for text in cell.overrides(self.common) for word in ("-s", text)]
            folder = cell.folder(self.out)
            folder.mkdir(parents=True, exist_ok=True)
            # -P: Python would else run the working directory's files in place of the installed ones
            command = [sys.executable, "-P", "-m", "scalarfl", "--threads", "1", "run", str(self.recipe), *settings]
            process = subprocess.Popen(
                [*command, "--out", str(folder), "--resume", "--json"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            processes.add(process)
            lines = [""]
            assert process.stderr is not None
            with process.stderr as stream:
                for line in stream:
                    lines.append(line.rstrip())
                    at_work[cell] = lines[-1]
            code = process.wait()
            processes.discard(process)
            at_work.pop(cell, None)
            result = None if code else run.load_result(folder)
            if result is None:
                refusals = [line for line in lines if line.startswith("error: ")] or lines
                raise InputError(f"{folder}: {refusals[-1].removeprefix('error: ')}")
            return result

        with ThreadPoolExecutor(self.workers) as pool:
            futures = {pool.submit(work, cell): cell for cell in missing}
            try:
                left = set(futures)
                while left:
                    ready, left = wait(left, timeout=1, return_when=FIRST_COMPLETED)
                    for future in ready:
                        found[futures[future]] = future.result()
                        watcher.done(futures[future], future.result())
                    watcher.working(dict(at_work), len(left))
            except BaseException:
                stopping.set()
                for future in futures:
                    future.cancel()
                for process in list(processes):
                    process.terminate()
                raise
        return found
