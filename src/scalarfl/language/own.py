"""Your own data: JSONL, CSV, TSV or Parquet with text and label, prompt and completion, or chat messages."""

import glob
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from scalarfl.errors import InputError, nearest, shown
from scalarfl.language.rows import Place, Row, read

KINDS = {"classification": ("text", "label"), "completion": ("prompt", "completion"), "chat": ("messages",)}
PROMPT, PAIR_PROMPT = "{text}\nLabel:", "{text}\n{text_pair}\nLabel:"


class Columns(dict[str, str]):
    """What a file calls its columns, by our names; ours where ``task.columns`` says nothing."""

    def __init__(self, given: Mapping[str, str] | None = None) -> None:
        super().__init__(given or {})

    def __missing__(self, name: str) -> str:
        return name


class Labels:
    """The names of the classes, in their order."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)

    def index(self, place: Place, value: object, column: str = "label") -> int:
        """The class's number; unknown names are refused."""
        name = _label_name(value)
        if name not in self.names:
            place.refuse(f"'{column}' is {shown(value)}; accepted: {', '.join(self.names)} (task.labels).")
        return self.names.index(name)


def paths(pattern: str) -> list[Path]:
    """The files that a path or a pattern such as ``clients/*.jsonl`` names, sorted. Raises InputError for none."""
    found = [Path(name) for name in sorted(glob.glob(pattern))] if glob.has_magic(pattern) else [Path(pattern)]  # noqa: PTH207 (absolute)
    if not found:
        raise InputError(f"task.file = '{pattern}': no file matches.")
    return found


def rows(path: Path, labels: Labels, prompt: str | None, columns: Columns) -> tuple[str, list[Row]]:
    """The kind of a file's examples, and the examples. Raises InputError with file, line and reason for a bad row."""
    kind, found = "", []
    for place, record in read(path):
        kind = kind or _kind(path, record, columns)
        found.append(_row(kind, place, record, labels, prompt, columns))
    if not found:
        raise InputError(f"{path}: no examples.")
    return kind, found


def label_names(files: Iterable[Path], columns: Columns) -> list[str]:
    """All labels that occur in the files, sorted: numbers by value."""
    key = columns["label"]
    found = {_label_name(record[key]) for path in files for _, record in read(path) if key in record}
    return sorted(found, key=_order)


def _order(name: str) -> tuple[bool, int, str]:
    number = name.isdecimal() and len(name) < 20
    return not number, int(name) if number else 0, name


def _label_name(value: object) -> str:
    if isinstance(value, float) and value.is_integer():  # a column of numbers with a gap is read as float64
        value = int(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _kind(path: Path, record: dict[str, object], columns: Columns) -> str:
    for name, column in columns.items():
        if column not in record:
            raise InputError(
                f"{path}: has no column '{column}' (task.columns: {name}); {nearest(column, list(record))}"
            )
    kinds = {kind: [columns[name] for name in names] for kind, names in KINDS.items()}
    for kind, wanted in kinds.items():
        if all(column in record for column in wanted):
            return kind
    raise InputError(
        f"{path}: its columns are {', '.join(map(str, record))}; accepted: "
        + "; ".join(" and ".join(wanted) for wanted in kinds.values())
        + ". task.columns maps other names."
    )


def _row(
    kind: str, place: Place, record: dict[str, object], labels: Labels, prompt: str | None, columns: Columns
) -> Row:
    if kind == "chat":
        return Row(messages=_messages(place, record, columns["messages"]))
    if kind == "completion":
        asked, answer = place.text(record, columns["prompt"]), place.text(record, columns["completion"])
        if not answer.strip():
            place.refuse(f"'{columns['completion']}' is empty.")
        return Row(prompt=asked, parts=(asked,), answers=(answer,), in_a_line=False)
    column, pair = columns["label"], columns["text_pair"]
    text, label = place.text(record, columns["text"]), place.value(record, column)
    if not text.strip():
        place.refuse(f"'{columns['text']}' is empty.")
    whole = isinstance(label, float) and label.is_integer()
    if not (whole or isinstance(label, str | int | bool)) or label == "":
        place.refuse(f"'{column}' should be a name or a whole number, found {shown(label)}.")
    number = labels.index(place, label, column)
    if pair not in record:
        return Row(prompt=_filled(prompt or PROMPT, {"text": text}), parts=(text,), label=number)
    if prompt is not None and "{text_pair}" not in prompt:
        raise InputError(f"task.prompt = '{prompt}': it must contain {{text_pair}}, the place of the column '{pair}'.")
    parts = {"text": text, "text_pair": place.text(record, pair)}
    return Row(prompt=_filled(prompt or PAIR_PROMPT, parts), parts=tuple(parts.values()), label=number)


def _filled(prompt: str, parts: Mapping[str, str]) -> str:
    """The prompt with its parts in their places; a place's name within a part stays as it is."""
    return re.sub(r"\{(text|text_pair)\}", lambda found: parts.get(found[1], found[0]), prompt)


def _messages(place: Place, record: dict[str, object], column: str) -> tuple[dict[str, str], ...]:
    messages = place.value(record, column)
    if not isinstance(messages, list) or not messages:
        place.refuse(f"'{column}' should be a list of messages, found {shown(messages)}.")
    for message in messages:
        for key in ("role", "content"):
            place.text(message, key)
    if not any(message["role"] == "assistant" for message in messages):
        place.refuse("no message has the role 'assistant', so there is nothing to learn.")
    return tuple({"role": message["role"], "content": message["content"]} for message in messages)
