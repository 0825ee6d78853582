"""The study in docs/study: comparisons of methods by the rules of `scalarfl compare`.

    python -m benchmarks.study                         # everything; what has been run is not run again
    python -m benchmarks.study --workers 1 cnn-8 tau-5  # some of it, one run at a time
    python -m benchmarks.study --inside exact-5         # one run at a time in one process: no start-up of seconds each

A learning rate is chosen on validation examples with two seeds; five others are reported, on the test examples.
Runs lie in runs/study/NAME; summaries and plots are copied to docs/study/NAME, the verdicts to docs/study/README.md.
docs/study/0.1 holds what version 0.1 measured, by weaker rules.
"""

import argparse
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from scalarfl.experiment.compare import compare, markdown, summarise
from scalarfl.experiment.compare.cells import Bench, Cell, Contender, Watcher
from scalarfl.experiment.compare.intervals import middle
from scalarfl.experiment.compare.page import write
from scalarfl.experiment.compare.sweep import Grid
from scalarfl.experiment.compare.table import verdicts
from scalarfl.experiment.run import run

ROOT = Path(__file__).parent.parent
RUNS, DOCS = ROOT / "runs" / "study", ROOT / "docs" / "study"
BEGIN, END = "<!-- verdicts: written by benchmarks/study.py -->\n", "<!-- end of verdicts -->\n"
SCALAR = ["decomfl", "hiso", "hiso-scalar", "hiso-frozen", "momentum", "meazo", "fzoo"]
DENSE = ["fedavg", "fedadam", "fedyogi", "fedadagrad", "fedzo"]
FASHION = [
    'task.name="fashion-mnist"', "federation.partition=\"dirichlet\"", "federation.batch_size=64",
    "evaluation.every=25", "method.lr=3e-3", "task.validation=0.04",
]  # fmt: skip
PER_CLIENT = "decomfl:directions=per-client"
WITHOUT_SPREAD = [kind for kind in SCALAR if kind != "fzoo"]
"""Of one direction there is no spread to divide by."""
LOW = (0.3, 0.4, 0.5, 0.6)


class Part(NamedTuple):
    """One comparison."""

    what: str
    overrides: list[str]
    methods: list[str]
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    tune_seeds: tuple[int, ...] = (1000, 1001)
    lrs: tuple[float, ...] | Grid = "fine"
    levels: tuple[float, ...] = (0.4, 0.5, 0.6, 0.65)
    """Accuracies; the rounds to each are listed."""


def _part(what: str, clients: int, sampled: int, p: int, rounds: int, *more: str) -> tuple[str, list[str]]:
    own = [f"federation.clients={clients}", f"federation.sampled={sampled}", f"method.perturbations={p}"]
    return what, [*FASHION, 'model.name="cnn"', *own, f"federation.rounds={rounds}", *more]


PARTS: dict[str, Part] = {
    "distinct": Part(
        *_part("Per-client directions: 32 clients, cohorts of 2 and 8, P = 1", 32, 2, 1, 600),
        [f"{kind}:federation.sampled={m}" for m in (2, 8) for kind in ("decomfl", PER_CLIENT)],
        lrs="auto",
    ),
    "distinct-32": Part(
        *_part("Per-client directions: all of 32 clients in every round, P = 1", 32, 32, 1, 300),
        ["decomfl", PER_CLIENT, "meazo:directions=per-client"],
        lrs="auto",
    ),
    "distinct-p-5": Part(
        *_part("Per-client directions: 32 clients, cohorts of 8, P = 5", 32, 8, 5, 300),
        ["decomfl", PER_CLIENT],
        lrs="auto",
    ),
    "cnn-8": Part(
        *_part("8 clients, 2 sampled, P = 10, Dirichlet 1, batches of 16", 8, 2, 10, 300, "federation.batch_size=16"),
        ["decomfl", "hiso", "hiso-scalar", "meazo", "fzoo", "fedavg"],
        lrs="auto",
    ),
    "cnn-8-all": Part(*_part("CNN, 8 clients, 2 sampled, P = 10, Dirichlet 1", 8, 2, 10, 600), SCALAR + DENSE),
    "same-lr": Part(
        *_part("The same learning rate for all", 8, 2, 10, 600), ["decomfl", "hiso", "hiso-scalar"], lrs=(3e-3,)
    ),
    "logistic": Part(
        *_part("Logistic regression, 8 clients, 2 sampled, P = 5, Dirichlet 1", 8, 2, 5, 600, 'model.name="logistic"'),
        ["decomfl", "hiso", "hiso-scalar", "meazo", "fzoo", "fedavg"],
    ),
    "own-logistic-8": Part(
        *_part("Per-client directions: logistic regression, cohorts of 8 of 32 clients, P = 1", 32, 8, 1, 600,
               'model.name="logistic"'),
        ["decomfl", PER_CLIENT],
        lrs="auto",
    ),
    "own-logistic-32": Part(
        *_part("Per-client directions: logistic regression, all of 32 clients, P = 1", 32, 32, 1, 300,
               'model.name="logistic"'),
        ["decomfl", PER_CLIENT],
        lrs="auto",
    ),
    "p-1": Part(*_part("8 clients, 2 sampled, P = 1, Dirichlet 1", 8, 2, 1, 600), WITHOUT_SPREAD, levels=LOW),
    "hizoo": Part(
        *_part("Measured curvature: 8 clients, 2 sampled, Dirichlet 1, P = 5, 11 losses a step", 8, 2, 5, 600),
        ["hizoo:alpha=1e-6", "hizoo:alpha=1e-3", "hizoo:alpha=0.03", "mezo"],
        lrs="auto",
    ),
    "iid": Part(
        *_part("8 clients, 2 sampled, P = 5, iid", 8, 2, 5, 600, 'federation.partition="iid"'),
        ["decomfl", "hiso", "hiso-scalar", "meazo", "fzoo", "fedavg"],
    ),
    "p-5": Part(*_part("8 clients, 2 sampled, P = 5, Dirichlet 1", 8, 2, 5, 600), SCALAR, levels=LOW),
    "tau-5": Part(
        *_part("64 clients, 4 sampled, P = 5, five local steps, Dirichlet 0.1", 64, 4, 5, 200,
               "federation.local_steps=5", "federation.alpha=0.1"),
        ["decomfl", "hiso", "hiso-scalar", "meazo", "fedavg"], levels=LOW,
    ),
}  # fmt: skip

EXACT_LRS = {5: 3e-3, 50: 2e-2, 500: 5e-2, 1000: 6e-2, 4096: 1e-1}
"""Of each P, where the sweep begins."""
for _p, _lr in EXACT_LRS.items():
    for _model, _name in (("cnn", f"exact-{_p}"), ("logistic", f"exact-logistic-{_p}")):
        PARTS[_name] = Part(
            *_part(f"Exact slopes: {_model}, 8 clients, 2 sampled, Hadamard directions, P = {_p:,}, Dirichlet 1",
                   8, 2, _p, 200, f'model.name="{_model}"', "method.slopes=exact", "method.noise=hadamard",
                   f"method.lr={_lr}"),
            ["decomfl", "hiso", "hiso-scalar"], lrs="auto", levels=LOW,
        )  # fmt: skip
PARTS["exact-600"] = PARTS["exact-1000"]._replace(
    what=PARTS["exact-1000"].what.replace("Exact slopes", "Exact slopes, 600 rounds"),
    overrides=[*PARTS["exact-1000"].overrides, "federation.rounds=600"],
    methods=["decomfl"],
    levels=(0.6, 0.7, 0.75, 0.8),
)  # fmt: skip
for _name in ("logistic", "own-logistic-8", "cnn-8", "tau-5", "iid"):
    _part_of = PARTS[_name]
    _kinds = ["decomfl", "hiso"] if _name == "logistic" else ["decomfl"]
    if _name.startswith("own"):
        _kinds = [PER_CLIENT]
    PARTS[f"noise-{_name}"] = _part_of._replace(
        what=f"Hadamard against normal directions. {_part_of.what}",
        methods=[text for kind in _kinds for text in (kind, f"{kind}:noise=hadamard")],
        lrs="auto",
    )


def main() -> None:
    """Run what is named, or everything."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs side by side")
    parser.add_argument("--inside", action="store_true", help="one run after another, in this process")
    parser.add_argument("--pages", action="store_true", help="run nothing: write the pages again from kept figures")
    given = parser.parse_args()
    unknown = [name for name in given.parts if name not in PARTS]
    if unknown:
        parser.error(f"no such part: {unknown[0]}; there are {', '.join(PARTS)}")
    for name in given.parts or PARTS:
        part = PARTS[name]
        if given.pages:
            if (DOCS / name / "compare.json").exists():
                publish(name, json.loads((DOCS / name / "compare.json").read_text()))
            continue
        print(f"{name}: {part.what}", flush=True)
        out = RUNS / name
        contenders = [Contender(text) for text in part.methods]
        found = compare(
            ROOT / "recipes" / "fashion-mnist.toml", part.overrides, contenders, part.seeds, part.tune_seeds, part.lrs,
            out, given.workers, Plainly(), Inside if given.inside else Bench,
        )  # fmt: skip
        keep(name, summarise(found, out), out)
    between(DOCS / "README.md", BEGIN, headlines(), END)


def between(path: Path, begin: str, text: str, end: str) -> None:
    """Put a text between two marks of a page."""
    before, _, rest = path.read_text().partition(begin)
    _, _, after = rest.partition(end)
    path.write_text(before + begin + text + end + after)


def keep(name: str, summary: dict[str, Any], out: Path) -> None:
    """Write the summary and its page, and copy what belongs into the documentation."""
    (out / "compare.json").write_text(json.dumps(summary) + "\n")
    kept = DOCS / name
    kept.mkdir(parents=True, exist_ok=True)
    shutil.copy(out / "compare.json", kept)
    publish(name, summary)


def publish(name: str, summary: dict[str, Any]) -> None:
    """Write a part's tables and pictures into the documentation."""
    part, kept = PARTS[name], DOCS / name
    (kept / "compare.md").write_text(f"{part.what}.\n\n{markdown(summary)}\n{reached(summary, part.levels)}")
    write(kept).unlink()


def headlines() -> str:
    """What the parts that have been run show, sentence by sentence."""
    lines = []
    for name, part in PARTS.items():
        path = DOCS / name / "compare.json"
        if path.exists():
            lines.append(f"\n**{part.what}** ([tables]({name}/compare.md)):\n")
            summary = json.loads(path.read_text())
            lines += [f"- {text}" for text in verdicts(summary) or alone(summary)]
    return "\n".join([*lines, ""]) + "\n" if lines else "\nNo part has been run by these rules yet.\n\n"


def alone(summary: dict[str, Any]) -> Iterator[str]:
    """A sentence for each method of a part without a reference."""
    for one in summary["methods"]:
        test = one["test"]
        yield (
            f"{one['method']}: {100 * test['mean']:.1f} ± {100 * test['deviation']:.1f} % test accuracy "
            f"(mean and standard deviation of {len(test['values'])} seeds)."
        )


def reached(summary: dict[str, Any], levels: Sequence[float]) -> str:
    """A table of the rounds to fixed validation accuracies: of each seed, and the median; "never" is infinity."""
    lines = ['Rounds to a validation accuracy, seed by seed, and the median ("never" counts as infinity):', ""]
    lines += [f"| | {' | '.join(f'{100 * level:g} %' for level in levels)} |", f"|---|{'---:|' * len(levels)}"]
    for one in summary["methods"]:
        cells = []
        for level in levels:
            at = [next((r for r, accuracy, _ in curve if accuracy >= level), None) for curve in one["curves"]]
            found = middle(at)
            each = ", ".join("never" if r is None else str(r) for r in at)
            cells.append(f"{each}: **{'never' if found is None else f'{found:g}'}**")
        lines.append(f"| {one['method']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


class Inside(Bench):
    """Runs cells one after another in this process, with one thread."""

    def run(self, cells: Iterable[Cell], watcher: Watcher) -> dict[Cell, dict[str, Any]]:
        torch.set_num_threads(1)
        found = {}
        for cell in cells:
            earlier = self.finished(cell)
            found[cell] = earlier or run(self.load(cell), cell.folder(self.out), resume=True)
            watcher.done(cell, found[cell])
        return found


class Plainly:
    """A line for each finished run."""

    def done(self, cell: Cell, result: dict[str, Any]) -> None:
        print(f"  {cell.contender.text}, lr {cell.lr:g}, seed {cell.seed}: {result['test_accuracy']}", flush=True)

    def working(self, at_work: Mapping[Cell, str], left: int) -> None: ...


if __name__ == "__main__":
    main()
