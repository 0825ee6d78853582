"""Where a language task's examples come from: a published benchmark, or your own files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from scalarfl.errors import InputError
from scalarfl.language.benchmarks import BENCHMARKS, Split
from scalarfl.language.own import PROMPT, Columns, Labels, label_names, paths, rows
from scalarfl.language.rows import Row
from scalarfl.noise.seeds import generator

SPLITS: tuple[Split, Split] = ("train", "test")
Indices = npt.NDArray[np.int64]


class Wanted(Protocol):
    """The recipe's task section."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def data_dir(self) -> str | None: ...  # noqa: D102
    @property
    def file(self) -> str | None: ...  # noqa: D102
    @property
    def test_file(self) -> str | None: ...  # noqa: D102
    @property
    def test_fraction(self) -> float: ...  # noqa: D102
    @property
    def labels(self) -> list[str] | None: ...  # noqa: D102
    @property
    def label_words(self) -> list[str] | None: ...  # noqa: D102
    @property
    def label_sentences(self) -> list[str] | None: ...  # noqa: D102
    @property
    def prompt(self) -> str | None: ...  # noqa: D102
    @property
    def columns(self) -> Mapping[Any, str] | None: ...  # noqa: D102
    @property
    def metric(self) -> str | None: ...  # noqa: D102


@dataclass(frozen=True)
class Source:
    """Examples as text, with their labels and words."""

    name: str
    train: list[Row]
    test: list[Row]
    prompt: str = ""
    words: tuple[str, ...] = ()
    """Label words, by label; none for generation."""
    sentences: tuple[str, ...] = ()
    metric: str = "accuracy"
    sites: dict[str, Indices] = field(default_factory=dict)
    """Training examples by client, if every client has its own file."""
    test_sites: dict[str, Indices] = field(default_factory=dict)


def collect(wanted: Wanted, *, examples: bool = True) -> Source:
    """Read the examples. Raises InputError that names key or file, and what is wrong.

    examples: whether they are wanted at all, or only how they are asked. One's own files are read anyway where they are
    given; a federation's server has none, and knows what ``task.labels`` says.
    """
    if wanted.name == "own":
        return _agreed(wanted) if wanted.file is None and not examples else _own(wanted)
    for key in ("file", "test_file", "labels", "prompt", "columns", "metric"):
        if getattr(wanted, key) is not None:
            raise InputError(f"task.{key}: only for task.name = 'own'; '{wanted.name}' defines its own.")
    benchmark = BENCHMARKS[wanted.name]
    data_dir = None if wanted.data_dir is None else Path(wanted.data_dir)
    if examples and data_dir is not None and not data_dir.is_dir():
        raise InputError(f"task.data_dir = '{data_dir}': no such folder.")
    train, test = (benchmark.rows(split, data_dir) if examples else [] for split in SPLITS)
    if examples and not (train and test):
        raise InputError(f"task.name = '{wanted.name}': found {len(train)} training and {len(test)} test examples.")
    words = _as_many("label_words", wanted.label_words, benchmark.words)
    return Source(
        wanted.name,
        train,
        test,
        benchmark.prompt,
        words,
        _as_many("label_sentences", wanted.label_sentences, benchmark.sentences or words),
        benchmark.metric,
    )


def _as_many(key: str, given: Sequence[str] | None, known: tuple[str, ...]) -> tuple[str, ...]:
    if given is None:
        return known
    if len(given) != len(known):
        raise InputError(f"task.{key}: {len(given)} given; the task has {len(known)} classes.")
    return tuple(given)


def _agreed(wanted: Wanted) -> Source:
    """What is known of an own task without examples: with labels a classification, else texts."""
    labels = tuple(wanted.labels or ())
    words = _as_many("label_words", wanted.label_words, labels)
    prompt = (wanted.prompt or PROMPT) if labels else ""
    sentences = _as_many("label_sentences", wanted.label_sentences, words)
    return Source("own", [], [], prompt, words, sentences, wanted.metric or "accuracy")


def _own(wanted: Wanted) -> Source:
    if wanted.file is None:
        raise InputError("task.file: this key is missing; task.name = 'own' needs a file (a client's: --data FILE).")
    if wanted.prompt is not None and "{text}" not in wanted.prompt:
        raise InputError(f"task.prompt = '{wanted.prompt}': it must contain {{text}}, the place of the example's text.")
    files = paths(wanted.file)
    tests = [] if wanted.test_file is None else paths(wanted.test_file)
    if len({path.stem for path in files}) < len(files):
        raise InputError(
            f"task.file = '{wanted.file}': two files have the same name; clients are named after their files."
        )
    columns = Columns(wanted.columns)
    labels = Labels(label_names([*files, *tests], columns) if wanted.labels is None else wanted.labels)
    kinds: dict[str, Path] = {}
    train: list[Row] = []
    test: list[Row] = []
    sites: dict[str, Indices] = {}
    test_sites: dict[str, Indices] = {}
    for path in files:
        kind, examples = rows(path, labels, wanted.prompt, columns)
        kinds.setdefault(kind, path)
        held = set() if tests else _held_out(path.stem, len(examples), wanted.test_fraction)
        begin, test_begin = len(train), len(test)
        train += [row for index, row in enumerate(examples) if index not in held]
        test += [examples[index] for index in sorted(held)]
        sites[path.stem] = np.arange(begin, len(train))
        test_sites[path.stem] = np.arange(test_begin, len(test))
    for path in tests:
        kind, examples = rows(path, labels, wanted.prompt, columns)
        kinds.setdefault(kind, path)
        test += examples
    if len(kinds) > 1:
        described = " but ".join(f"{path} {kind}" for kind, path in kinds.items())
        raise InputError(f"task.file: the files contain different kinds of examples: {described}.")
    if wanted.metric not in (None, "accuracy") and "completion" not in kinds:
        raise InputError(
            f"task.metric = '{wanted.metric}': only for prompts and completions; these are {next(iter(kinds))} rows."
        )
    several = len(files) > 1
    words: tuple[str, ...] = ()
    sentences: tuple[str, ...] = ()
    if "classification" in kinds:
        if len(labels.names) < 2:
            raise InputError(
                f"task.file: the only label is {labels.names}; a classification needs at least two classes."
            )
        words = _as_many("label_words", wanted.label_words, tuple(labels.names))
        sentences = _as_many("label_sentences", wanted.label_sentences, words)
    prompt = train[0].prompt if train else ""
    return Source(
        "own",
        train,
        test,
        prompt,
        words,
        sentences,
        wanted.metric or "accuracy",
        sites if several else {},
        test_sites if several and not tests else {},
    )


def _held_out(name: str, count: int, fraction: float) -> set[int]:
    """The examples of a file held out for evaluation, the same in every run. At least one stays for training."""
    kept = min(max(1, round(fraction * count)), count - 1)
    return {int(index) for index in generator(0, "held out", name).permutation(count)[:kept]}
