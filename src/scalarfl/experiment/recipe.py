"""The recipe: one TOML file with model, task, federation, method and evaluation. Typed, every key documented."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

from pydantic import ValidationError, model_validator

from scalarfl.baselines import Baseline
from scalarfl.errors import InputError, nearest, refused, shown
from scalarfl.experiment.sections import (
    PRETRAINED_LR,
    EvaluationSection,
    FederationSection,
    Mask,
    MethodSection,
    ModelSection,
    TaskSection,
    kind_of,
)
from scalarfl.files import located, parse_toml, read_text
from scalarfl.ledger.codec import MAX_BYTES
from scalarfl.ledger.settings import FOLDER, PLACES
from scalarfl.methods import Method, make
from scalarfl.model.zoo import built
from scalarfl.protocol.aggregation import check_attackers, make_aggregator
from scalarfl.protocol.config import FederationConfig, RunConfig
from scalarfl.protocol.keys import Keys, Privacy, SecureSum
from scalarfl.protocol.private import check_evaluation
from scalarfl.protocol.secure import check_cohort
from scalarfl.registry import is_reference, placed, portable


class Recipe(Keys):
    """A whole recipe."""

    model: ModelSection
    task: TaskSection
    federation: FederationSection = FederationSection()
    method: MethodSection = MethodSection()
    evaluation: EvaluationSection = EvaluationSection()
    privacy: Privacy | None = None

    @property
    def config(self) -> FederationConfig:
        """What the parties agree on. Raises InputError for a baseline, and where settings do not go together."""
        return FederationConfig.of(self.method.scalar_only, self.keys)

    @property
    def run(self) -> RunConfig:
        """What a run of it is started with."""
        return RunConfig.of(self.keys)

    @property
    def keys(self) -> dict[str, Any]:
        """Every key, a method's own among them, as JSON, by its name such as ``method.lr``."""
        tables = {name: getattr(self, name) for name in type(self).model_fields if getattr(self, name) is not None}
        found = {
            f"{name}.{key}": value
            for name, part in tables.items()
            for key, value in part.model_dump(mode="json").items()
        }
        return found | {f"method.{key}": value for key, value in self.method.own.model_dump(mode="json").items()}

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        if self.federation.sampled > self.federation.clients:
            raise ValueError(
                f"federation.sampled = {self.federation.sampled}: accepted is at most federation.clients = "
                f"{self.federation.clients}"
            )
        federation = self.federation
        rule = make_aggregator(federation.aggregation)
        if isinstance(self.method.own, Method):
            attacked = federation.attack is not None
            check_attackers(rule, federation.attackers, federation.sampled, attacked=attacked)
            check_cohort(federation.secure_sum, federation.sampled, self.method.lr)
            slots = federation.sampled if self.method.directions != "shared" else 1
            examples = federation.batch_size if self.method.directions == "per-example" else 1
            scalars = slots * federation.local_steps * self.method.perturbations * examples
            if 8 * scalars > MAX_BYTES:  # there may be two scalars a direction
                raise ValueError(
                    f"federation.local_steps and method.perturbations give {scalars:,} scalars a round: accepted are "
                    f"at most {MAX_BYTES // 8:,}, which fit a message"
                )
            check_evaluation(self.privacy is not None, self.evaluation.by == "clients")
            return self
        make_aggregator(rule, dense=True)
        for key in ("attackers", "attack", "secure_sum"):
            if getattr(federation, key):
                raise ValueError(f"federation.{key}: baselines send whole models; leave it out")
        if self.method.lr == "auto":
            raise ValueError("method.lr = 'auto': baselines send no scalars that could control it; give a number")
        if self.privacy is not None:
            raise ValueError(f"[privacy]: '{self.method.name}' sends whole models, which this table does not cover")
        if isinstance(self.model.trainable, Mask):
            raise ValueError("model.trainable: baselines send whole tensors and do not support a sparse mask")
        if self.model.dtype != "float32":
            raise ValueError(f"model.dtype = '{self.model.dtype}': baselines train float32 weights")
        return self


def load(path: Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """Load a TOML recipe with overrides such as ``method.lr=3e-3``; relative paths become absolute.

    path: None for a recipe made only of overrides.
    Raises InputError that names the key, what was found and what is accepted.
    """
    tables = {} if path is None else _read(path)
    for one in sorted(overrides, key=lambda text: not text.strip().startswith(("method.name", "task.name"))):
        override(tables, one)  # names first: a method's own settings, and a task's, are those that come with it
    start = Path() if path is None else path.parent
    for section, key in REFERENCES:
        table = tables.get(section)
        if isinstance(table, dict) and isinstance(table.get(key), str):
            table[key] = placed(table[key], start)
    return absolute(parse(tables), start)


REFERENCES = (
    ("model", "name"),
    ("task", "name"),
    ("federation", "aggregation"),
    ("federation", "attack"),
    ("method", "name"),
)
"""Keys that may name an object in a module or a file."""


def _read(path: Path) -> dict[str, Any]:
    try:
        return parse_toml(read_text(path, "the recipe"))
    except ValueError as error:
        raise InputError(f"{path}: not valid TOML: {error}.") from None


def absolute(recipe: Recipe, start: Path = Path()) -> Recipe:
    """The recipe with absolute paths; relative ones start at this folder, or here."""

    def from_start(text: str) -> str:
        return str(located(text, start))

    given = {key: getattr(recipe.task, key) for key in ("data_dir", "file", "test_file")}
    task = recipe.task.model_copy(update={key: from_start(text) for key, text in given.items() if text is not None})
    model = recipe.model
    if is_path(model.name, start):
        model = model.model_copy(update={"name": from_start(model.name)})
    return recipe.model_copy(update={"task": task, "model": model})


def is_path(name: str, start: Path = Path()) -> bool:
    """Whether ``model.name`` is a folder or a GGUF file, and no hub id."""
    found = located(name, start) if name else start
    return name.startswith((".", "/", "~")) or bool(name and (found.is_dir() or name.lower().endswith(".gguf")))


def parse(tables: dict[str, Any]) -> Recipe:
    """The recipe in TOML's tables. Raises InputError like ``load``."""
    tables = {name: dict(table) if isinstance(table, dict) else table for name, table in tables.items()}
    for name, table in tables.items():
        for key, value in table.items() if isinstance(table, dict) else ():
            if any(letter == "\0" or "\ud800" <= letter <= "\udfff" for text in _texts(value) for letter in text):
                raise InputError(f"{name}.{key} = {shown(value)}: it should be text without NUL, in UTF-8.")
    method = tables.get("method", {})
    if isinstance(method, dict):
        common = {key: method.pop(key) for key in list(method) if key in MethodSection.model_fields and key != "own"}
        kind = kind_of(common.get("name", "hiso"))
        model = tables.get("model", {})
        if issubclass(kind, Method) and isinstance(model, dict) and not built(str(model.get("name", "mlp"))):
            common.setdefault("lr", PRETRAINED_LR)
        known = [key for key in MethodSection.model_fields if key != "own"]
        for key in method:
            if key not in kind.model_fields:
                _unknown(f"method.{key}", key, [*known, *kind.model_fields])
        tables["method"] = common | {"own": make(kind, method)}
    try:
        return Recipe.model_validate(tables)
    except ValidationError as error:
        _refuse(error, tables)


def _texts(value: object) -> Iterator[str]:
    """All strings in a value of TOML."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value:
            yield from _texts(part if isinstance(value, list) else value[part])


def _refuse(error: ValidationError, tables: dict[str, Any]) -> NoReturn:
    """Turn pydantic's first error into a sentence."""
    first = error.errors()[0]
    where = [str(part) for part in first["loc"] if not (isinstance(part, str) and ("[" in part or part == "list"))]
    key = ".".join(where[:2])
    if first["type"] == "extra_forbidden":
        sections = Recipe.model_fields
        if len(where) == 1:
            _unknown(f"[{key}]", key, list(sections), "section")
        _unknown(key, where[1], [name for name in table_of(where[0]).model_fields if name != "own"])
    if first["type"] == "missing":
        if where[0] == "privacy":
            raise InputError(f"{key}: this key is missing; [privacy] needs epsilon and clip.")
        raise InputError(f"{key}: this key is missing; every recipe needs [model] name and [task] name.")
    if first["type"] == "value_error" and not key:
        raise InputError(f"{first['ctx']['error']}.")
    found = tables.get(where[0])
    found = found.get(where[1]) if isinstance(found, dict) and len(where) > 1 else found
    raise refused(key, found, first["msg"])


def _unknown(where: str, key: str, known: list[str], what: str = "key") -> NoReturn:
    raise InputError(f"{where}: no such {what}; {nearest(key, known)}")


def override(tables: dict[str, Any], text: str) -> None:
    """Apply ``section.key=value``; the value is TOML, or a bare word for a string."""
    name, equals, value = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and section and key) or "." in key:
        raise InputError(f"-s {text}: accepted is section.key=value, for example -s method.lr=3e-3.")
    if section not in Recipe.model_fields:
        _unknown(f"-s {text}", section, list(Recipe.model_fields), "section")
    try:
        (parsed,) = parse_toml(f"v = {value.strip()}").values()
    except ValueError:  # no TOML, or several keys
        parsed = value.strip()
    table = tables.setdefault(section, {})
    if not isinstance(table, dict):
        raise InputError(f"[{section}] should be a table, found {shown(table)}.")
    if (section, key) == ("method", "name") and table.get("name", "hiso") != parsed:
        for own in table.keys() - MethodSection.model_fields.keys():  # settings of the method that it was
            del table[own]
    if (section, key) == ("task", "name") and table.get("name", parsed) != parsed:
        for about in _OF_ONE_TASK & table.keys():  # what was said of the task that it was
            del table[about]
    table[key] = parsed


_OF_ONE_TASK = {
    *("file", "test_file", "test_fraction", "columns", "labels"),
    *("label_words", "label_sentences", "prompt", "metric"),
}


UNUSED = {
    "method.transforms": None,
    "method.lr_start": None,
    "federation.attackers": 0,
    "federation.attack": None,
    **{f"federation.{key}": info.default for key, info in SecureSum.model_fields.items()},
    "evaluation.patience": 0,
    "task.columns": None,
    "task.metric": None,
}
"""Keys that a ledger leaves out at these values."""


def settings(recipe: Recipe) -> dict[str, Any]:
    """A recipe's settings for the ledger: every key, named like ``method.lr``, except machine-specific ones."""
    found = recipe.keys
    if Path(recipe.model.name).is_absolute() and not is_reference(recipe.model.name):
        found["model.name"] = FOLDER
    found |= {key: portable(found[key]) for key in map(".".join, REFERENCES) if found[key] is not None}
    found = {key: value for key, value in found.items() if key not in UNUSED or value != UNUSED[key]}
    return {key: value for key, value in found.items() if key not in PLACES}


def to_toml(recipe: Recipe, *, comments: bool = False) -> str:
    """The recipe as TOML, every key spelled out; with ``comments``, each key explained."""
    return "\n".join(_lines(recipe, comments)) + "\n"


def _lines(recipe: Recipe, comments: bool) -> Iterator[str]:
    for name in Recipe.model_fields:
        section, table = getattr(recipe, name), table_of(name)
        if section is None and not comments:
            continue
        head = f"# [{name}]" if section is None else f"[{name}]"
        yield head + (f"  # {(table.__doc__ or '').splitlines()[0]}" if comments else "")
        for part in [section, section.own] if isinstance(section, MethodSection) else [section]:
            for key, info in (table if part is None else type(part)).model_fields.items():
                value = getattr(part, key, None)
                if isinstance(value, Method | Baseline):
                    continue
                example = (info.examples or [info.get_default() or "..."])[0]
                line = f"{key} = {_value(value)}" if value is not None else f"# {key} = {_value(example)}"
                if value is not None or comments:
                    yield f"{line:<32} # {info.description}" if comments else line
        yield ""


def table_of(name: str) -> type[Keys]:
    """The class of a recipe's table, whether or not it may be left out."""
    annotation = Recipe.model_fields[name].annotation
    return next(
        kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type) and issubclass(kind, Keys)
    )


def _value(value: object) -> str:
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, Mask):
        return f'{{ sparse = {value.sparse!r}, of = "{value.of}" }}'
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_value(one)}' for key, one in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value, ensure_ascii=False)


def described() -> Iterator[tuple[str, str, str]]:
    """(key, default as TOML or "", meaning) of every key of a recipe; a method's own are in ``scalarfl methods``."""
    for name in Recipe.model_fields:
        for key, info in table_of(name).model_fields.items():
            if key != "own":
                default = "" if info.is_required() or info.default is None else _value(info.default)
                yield f"{name}.{key}", default, info.description or ""
