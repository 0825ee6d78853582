"""Benchmarks in their published forms, one's own files, and what is refused with file, line and reason."""

import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scalarfl import InputError
from scalarfl.language import BENCHMARKS, collect
from scalarfl.language.answers import exact_match, f1

NLI = {"premise": "It rains.", "hypothesis": "It is wet."}
WSC = {"text": "Mark told Pete lies. He was angry.", "label": True}
WIC = {"word": "bank", "sentence1": "The bank is closed.", "sentence2": "He sat by the bank.", "label": False}
MULTIRC = {
    "passage": {
        "text": "Ann has a dog. It is red.",
        "questions": [
            {"question": "Who?", "answers": [{"text": "Ann", "label": 1}, {"text": "Bob", "label": 0}]},
            {"question": "What colour?", "answers": [{"text": "red", "label": 1}]},
        ],
    }
}
SQUAD = {
    "data": [
        {
            "title": "Rome",
            "paragraphs": [
                {
                    "context": "Rome is old.",
                    "qas": [
                        {
                            "question": "What is old?",
                            "answers": [{"text": "Rome"}, {"text": "Rome"}, {"text": "The city"}],
                        },
                        {"question": "Is it?", "answers": [{"text": "old"}]},
                    ],
                }
            ],
        }
    ]
}
DROP = {
    "nfl_1": {
        "passage": "He threw 3 passes in May.",
        "qa_pairs": [
            {
                "question": "How many?",
                "answer": {"number": "3", "date": {}, "spans": []},
                "validated_answers": [{"number": "", "date": {}, "spans": ["three", "3 passes"]}],
            },
            {
                "question": "When?",
                "answer": {"number": "", "date": {"day": "", "month": "May", "year": "1990"}, "spans": []},
            },
        ],
    }
}

# Task -> (contents of the training file, first prompt, label or answers, number of examples)
PUBLISHED: dict[str, tuple[str, str, Any, int]] = {
    "sst2": ('sentence\tlabel\na "fine film\t1\nbad\t0\n', 'a "fine film It was', 1, 2),
    "qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\tWhat is it?\tWhat is this?\t1\n",
        "What is it?\nWhat is this?\nDo these two questions ask the same? Yes or No?\n",
        1,
        1,
    ),
    "rte": (
        json.dumps(NLI | {"label": "not_entailment", "idx": 0}),
        'It rains.\nDoes this mean that "It is wet." is true? Yes or No?\n',
        1,
        1,
    ),
    "cb": (
        json.dumps(NLI | {"label": "neutral"}),
        'Suppose It rains. Can we infer that "It is wet."? Yes, No, or Maybe?\n',
        2,
        1,
    ),
    "boolq": (
        json.dumps({"passage": "Rome is old.", "question": "is rome old", "label": True}),
        "Rome is old. is rome old?\n",
        1,
        1,
    ),
    "wsc": (
        json.dumps(WSC | {"target": {"span1_text": "Mark", "span2_text": "He", "span1_index": 0, "span2_index": 4}}),
        f'{WSC["text"]}\nIn the previous sentence, does the pronoun "He" refer to Mark? Yes or No?\n',
        1,
        1,
    ),
    "wic": (
        json.dumps(WIC),
        'Does the word "bank" have the same meaning in these two sentences? Yes, No?\nThe bank is closed.\n'
        "He sat by the bank.\n",
        0,
        1,
    ),
    "multirc": (
        json.dumps(MULTIRC),
        'Ann has a dog. It is red.\nQuestion: Who?\nI found this answer "Ann". Is that correct? Yes or No?\n',
        1,
        3,
    ),
    "squad": (
        json.dumps(SQUAD),
        "Title: Rome\nContext: Rome is old.\nQuestion: What is old?\nAnswer:",
        ("Rome", "The city"),
        2,
    ),
    "drop": (
        json.dumps(DROP),
        "Passage: He threw 3 passes in May.\nQuestion: How many?\nAnswer:",
        ("3", "three, 3 passes"),
        2,
    ),
}

# The same first example as the hub gives it.
HUB: dict[str, dict[str, Any]] = {
    "sst2": {"sentence": 'a "fine film', "label": 1, "idx": 0},
    "qqp": {"question1": "What is it?", "question2": "What is this?", "label": 1, "idx": 0},
    "rte": NLI | {"label": 1, "idx": 0},
    "cb": NLI | {"label": 2, "idx": 0},
    "boolq": {"passage": "Rome is old.", "question": "is rome old", "label": 1, "idx": 0},
    "wsc": {"text": WSC["text"], "span1_text": "Mark", "span2_text": "He", "label": 1, "idx": 0},
    "wic": WIC | {"label": 0, "idx": 0},
    "multirc": {
        "paragraph": "Ann has a dog. It is red.", "question": "Who?", "answer": "Ann", "label": 1, "idx": {"answer": 0}
    },
    "squad": {
        "title": "Rome", "context": "Rome is old.", "question": "What is old?",
        "answers": {"text": ["Rome", "Rome", "The city"], "answer_start": [0, 0, 0]},
    },
    "drop": {
        "passage": "He threw 3 passes in May.", "question": "How many?",
        "answers_spans": {"spans": ["3", "3"], "types": ["number", "number"]},
    },
}  # fmt: skip


def wanted(name: str = "own", **changes: Any) -> Any:
    keys = ("data_dir", "file", "test_file", "columns", "labels", "label_words", "label_sentences", "prompt", "metric")
    return SimpleNamespace(**(dict.fromkeys(keys) | {"name": name, "test_fraction": 0.25} | changes))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_are_read_as_they_are_published(name: str, tmp_path: Path) -> None:
    content, prompt, answer, count = PUBLISHED[name]
    for file in BENCHMARKS[name].files:
        (tmp_path / file).write_text(content)
    source = collect(wanted(name, data_dir=str(tmp_path)))
    assert len(source.train) == len(source.test) == count
    row = source.train[0]
    assert row.prompt == prompt
    assert (row.answers if source.metric == "f1" else row.label) == answer
    assert bool(source.words) == (source.metric == "accuracy")


@pytest.mark.skipif(find_spec("datasets") is None, reason="needs datasets (the extra llm)")
@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_hubs_records_give_the_same_examples(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load_dataset(path: str, configuration: str | None = None, split: str = "") -> Any:
        asked.append((path, configuration, split))
        return datasets.Dataset.from_list([HUB[name]])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    row = collect(wanted(name)).train[0]
    _, prompt, answer, _ = PUBLISHED[name]
    assert row.prompt == prompt
    if name == "drop":
        answer = ("3",)
    assert (row.answers or row.label) == answer
    assert asked == [(*BENCHMARKS[name].hub, "train"), (*BENCHMARKS[name].hub, "validation")]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("sst2", "sentence\tlabel\nfine\n", "train.tsv, line 2: 1 columns, but the first line names 2"),
        ("sst2", "sentence\tlabel\nfine\tmaybe\n", "'label' is 'maybe'; accepted: negative, positive, or 0 to 1"),
        ("sst2", "text\tlabel\nfine\t1\n", "line 2: there is no 'sentence'"),
        ("sst2", "", "empty; the first line"),
        ("cb", '{"premise": "x"\n', "train.jsonl, line 1: not valid JSON"),
        ("cb", json.dumps(NLI | {"label": 3}), "line 1: 'label' is 3"),
        ("cb", json.dumps({"premise": 3, "hypothesis": "x", "label": 0}), "'premise' should be text, found 3"),
        ("cb", "[1]", "should be one JSON object"),
        ("squad", "{", "not valid JSON"),
        ("squad", "3", "expected SQuAD 1.1 in its published format"),
        ("squad", json.dumps({"data": [{"title": "x"}]}), "there is no 'context'"),
    ],
)  # fmt: skip
def test_bad_benchmark_files_are_refused(name: str, content: str, says: str, tmp_path: Path) -> None:
    for file in BENCHMARKS[name].files:
        (tmp_path / file).write_text(content)
    with pytest.raises(InputError) as error:
        collect(wanted(name, data_dir=str(tmp_path)))
    assert says in str(error.value)


def test_missing_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        collect(wanted("sst2", data_dir="/nowhere"))
    with pytest.raises(InputError, match=r"no train.tsv there, which should hold SST-2 \(GLUE\)"):
        collect(wanted("sst2", data_dir=str(tmp_path)))
    with pytest.raises(InputError, match=r"task.file: only for task.name = 'own'"):
        collect(wanted("sst2", file="x"))


def test_datasets_published_as_scripts_are_read_as_the_hub_converted_them(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def load_dataset(path: str, *_: Any, data_files: str = "", split: str) -> Any:
        if path != "parquet":
            raise RuntimeError("Dataset scripts are no longer supported, but found super_glue.py")
        assert data_files.startswith("hf://datasets/aps/super_glue@refs%2Fconvert%2Fparquet/cb/")
        assert split == "train"
        return datasets.Dataset.from_list([HUB["cb"]])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert collect(wanted("cb")).test[0].label == 2


def test_without_a_hub_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(InputError, match=r"cannot be loaded from the hub \(ConnectionError: no route\); give a folder"):
        collect(wanted("cb"))


TEXTS = [{"text": f"text {index}", "label": ["good", "bad"][index % 2]} for index in range(8)]


def put(path: Path, records: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(records), path)
    elif path.suffix == ".csv":
        columns = list(records[0])
        lines = [",".join(columns), *(",".join(f'"{row[column]}"' for column in columns) for row in records)]
        path.write_text("\n".join(lines) + "\n")
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_ones_own_texts(suffix: str, tmp_path: Path) -> None:
    path = put(tmp_path / f"mine{suffix}", TEXTS)
    source = collect(wanted(file=str(path), prompt="{text} It was"))
    assert (len(source.train), len(source.test), source.words) == (6, 2, ("bad", "good"))
    assert source.sites == {}
    texts = {(row.parts[0], row.label) for row in [*source.train, *source.test]}
    assert texts == {(record["text"], int(record["label"] == "good")) for record in TEXTS}
    assert source.train[0].prompt == f"{source.train[0].parts[0]} It was"
    again = collect(wanted(file=str(path), prompt="{text} It was"))
    assert again.test == source.test


PAIRS = [{"a": f"one {n}", "b": "two {text}", "gold": n % 2} for n in range(8)]
NAMES = {"text": "a", "text_pair": "b", "label": "gold"}


def test_columns_of_other_names_and_pairs_of_texts(tmp_path: Path) -> None:
    path = put(tmp_path / "mine.jsonl", PAIRS)
    source = collect(wanted(file=str(path), columns=NAMES, prompt="{text} / {text_pair}?"))
    row = source.train[0]
    assert (row.parts[1], row.prompt) == ("two {text}", f"{row.parts[0]} / two {{text}}?")
    assert source.words == ("0", "1")
    plain = collect(wanted(file=str(path), columns=NAMES)).train[0]
    assert plain.prompt == f"{plain.parts[0]}\ntwo {{text}}\nLabel:"
    ours = put(tmp_path / "ours.jsonl", [{"text": "x", "text_pair": "y", "label": n % 2} for n in range(4)])
    assert collect(wanted(file=str(ours))).train[0].parts == ("x", "y")
    asked = put(tmp_path / "asked.jsonl", [{"q": "x", "a": "y"}] * 4)
    source = collect(wanted(file=str(asked), columns={"prompt": "q", "completion": "a"}, metric="f1"))
    assert (source.train[0].answers, source.metric) == (("y",), "f1")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"columns": NAMES | {"label": "golf"}}, r"has no column 'golf' \(task.columns: label\); did you mean 'gold'"),
        ({"columns": NAMES, "prompt": "{text}?"}, r"it must contain \{text_pair\}, the place of the column 'b'"),
        ({"columns": NAMES, "metric": "f1"}, "task.metric = 'f1': only for prompts and completions"),
        ({"columns": NAMES, "labels": ["0", "2"]}, "'gold' is 1; accepted: 0, 2"),
        ({}, "its columns are a, b, gold; accepted: .* task.columns maps other names"),
    ],
)
def test_columns_that_do_not_fit_are_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = put(tmp_path / "mine.jsonl", PAIRS)
    with pytest.raises(InputError, match=says):
        collect(wanted(file=str(path), **changes))


def test_labels_may_be_true_and_false(tmp_path: Path) -> None:
    path = put(tmp_path / "mine.jsonl", [{"text": "x", "label": bool(index % 2)} for index in range(8)])
    source = collect(wanted(file=str(path)))
    assert source.words == ("false", "true")
    assert {row.label for row in [*source.train, *source.test]} == {0, 1}


def test_one_file_a_client(tmp_path: Path) -> None:
    for name in "cab":
        put(tmp_path / "clients" / f"{name}.jsonl", TEXTS[: 4 if name == "a" else 8])
    source = collect(wanted(file=str(tmp_path / "clients" / "*.jsonl")))
    assert {name: len(own) for name, own in source.sites.items()} == {"a": 3, "b": 6, "c": 6}
    assert {name: len(own) for name, own in source.test_sites.items()} == {"a": 1, "b": 2, "c": 2}
    held = collect(wanted(file=str(tmp_path / "clients" / "*.jsonl"), test_file=str(tmp_path / "clients" / "a.jsonl")))
    assert (len(held.train), len(held.test), held.test_sites) == (20, 4, {})


def test_completions_and_conversations(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", [{"prompt": "Say hello.", "completion": "Hello!"}] * 4)
    row = collect(wanted(file=str(path))).train[0]
    assert (row.prompt, row.answers, row.label) == ("Say hello.", ("Hello!",), None)
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    path = put(tmp_path / "b.jsonl", [{"messages": messages}] * 4)
    assert collect(wanted(file=str(path))).train[0].messages == tuple(messages)


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ([*TEXTS, {"text": "x"}], "line 9: there is no 'label'"),
        ([*TEXTS, {"text": " ", "label": "good"}], "line 9: 'text' is empty"),
        ([*TEXTS, {"text": 7, "label": "good"}], "line 9: 'text' should be text, found 7"),
        ([*TEXTS, {"text": "x", "label": 1.5}], "line 9: 'label' should be a name or a whole number, found 1.5"),
        ([*TEXTS, {"text": "x", "label": None}], "line 9: 'label' should be"),
        ([{"prompt": "x", "completion": "  "}], "line 1: 'completion' is empty"),
        ([{"messages": []}], "should be a list of messages"),
        ([{"messages": [{"role": "user", "content": "x"}]}], "no message has the role 'assistant'"),
        ([{"messages": [{"role": "assistant"}]}], "there is no 'content'"),
        ([{"input": "x"}], "its columns are input; accepted: text and label; prompt and completion; messages"),
        ([{"text": "x", "label": "one"}] * 3, "the only label is ['one']"),
    ],
)  # fmt: skip
def test_bad_rows_are_refused_with_file_line_and_reason(records: list[Any], says: str, tmp_path: Path) -> None:
    path = put(tmp_path / "mine.jsonl", records)
    with pytest.raises(InputError) as error:
        collect(wanted(file=str(path)))
    assert says in str(error.value)
    assert "mine.jsonl" in str(error.value) or "task." in str(error.value)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    for name, content, says in [
        ("a.txt", b"x", "unknown file type; accepted: .jsonl"),
        ("b.jsonl", b"\xff\xfe", "not text in UTF-8"),
        ("c.csv", b'text,label\n"open,1\n', "line 2"),
        ("d.jsonl", b"\n\n", "no examples"),
        ("e.parquet", b"PAR0", "Parquet"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError) as error:
            collect(wanted(file=str(tmp_path / name)))
        assert says in str(error.value), name
    with pytest.raises(InputError, match="no file matches"):
        collect(wanted(file=str(tmp_path / "*.json")))
    with pytest.raises(InputError, match="no such file"):
        collect(wanted(file=str(tmp_path / "z.jsonl")))
    with pytest.raises(InputError, match="needs a file"):
        collect(wanted())
    path = put(tmp_path / "mine.jsonl", TEXTS)
    with pytest.raises(InputError, match="must contain"):
        collect(wanted(file=str(path), prompt="It was"))
    with pytest.raises(InputError, match=r"accepted: good \(task.labels\)"):
        collect(wanted(file=str(path), labels=["good"]))
    with pytest.raises(InputError, match="1 given; the task has 2 classes"):
        collect(wanted(file=str(path), label_words=["x"]))
    put(tmp_path / "other.jsonl", [{"prompt": "x", "completion": "y"}] * 3)
    with pytest.raises(InputError, match="different kinds of examples"):
        collect(wanted(file=str(tmp_path / "*r*.jsonl"), test_file=str(path)))


def test_answers_as_squad_counts_them() -> None:
    assert exact_match("The Eiffel Tower!", ["eiffel tower"]) == 1
    assert exact_match("the tower", ["eiffel tower"]) == 0
    assert f1("the tower", ["eiffel tower"]) == pytest.approx(2 / 3)
    assert f1("in a b", ["b in", "x"]) == 1
    assert f1("", ["x"]) == 0 == f1("y", ["x"])
    assert f1("the", ["a"]) == 1  # nothing is left of either
