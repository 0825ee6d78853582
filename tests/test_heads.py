"""Heads ask for the right logits: compared with the model's own, taken whole."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch.nn import functional

import tiny
from scalarfl import InputError, Probe, Replica, language, make_method
from scalarfl.language.batches import Encoded, collate, pieces
from scalarfl.language.heads import Causal, Classifier, Head, Masked, Sentences, label_tokens
from scalarfl.language.rows import Row
from scalarfl.language.task import Texts, TextTask, generate
from scalarfl.model.partial import PartialLinear
from scalarfl.model.probe import LossQuery

pytestmark = pytest.mark.skipif(find_spec("transformers") is None, reason="needs transformers (the extra llm)")

ROWS = [
    Row(prompt=f"the {noun} is {word} . It was", parts=(f"the {noun} is {word} .",), label=index % 2)
    for index, (noun, word) in enumerate([("film", "good"), ("plot", "very very bad"), ("story and plot", "dull")])
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("models")
    found = {}
    for kind in tiny.MODELS:
        head = {"bert": "masked", "encoder": "sentences", "classifier": "classifier"}.get(kind, "causal")
        found[kind] = language.load(str(tiny.save(kind, folder / kind)), head, classes=2)  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("kind", ["opt", "llama", "qwen", "gpt2", "phi"])
def test_a_causal_model_is_asked_for_label_words_after_the_prompt(kind: str, models: Any, tokenizer: Any) -> None:
    head, model = Causal(tokenizer, 64, ("terrible", "great"), "{text} It was"), models[kind]
    batch = pieces([head.encode(row) for row in ROWS], pad=1, separately=0)
    assert len(batch) == 2  # two lengths
    whole = collate([head.encode(row) for row in ROWS], pad=1)
    words = [tokenizer(f" {word}")["input_ids"][1] for word in ("terrible", "great")]
    for row, (index, asked) in zip(ROWS, enumerate(head.logits(model, whole)), strict=True):
        tokens = tokenizer(row.prompt, return_tensors="pt")
        with torch.no_grad():
            mine = model(input_ids=tokens["input_ids"]).logits[0, -1, words]
        torch.testing.assert_close(asked, mine, rtol=1e-4, atol=1e-5)
        assert int(whole.labels[index]) == row.label


@pytest.mark.parametrize("kind", ["opt", "qwen"])
def test_completions_are_scored_over_the_answers_tokens_alone(kind: str, models: Any, tokenizer: Any) -> None:
    head, model = Causal(tokenizer, 64, (), ""), models[kind]
    rows = [Row(prompt="Question : who ?", answers=("paris one",)), Row(prompt="x", answers=("red",), in_a_line=False)]
    task = TextTask("own", Texts(rows, head, 1), Texts(rows, head, 1), head, "accuracy")
    total = count = 0.0
    for row in rows:
        begin = tokenizer(row.prompt)["input_ids"]
        ending = "\n" if row.in_a_line else "</s>"
        both = tokenizer(f"{row.prompt} {row.answers[0]}{ending}")["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([both])).logits[0]
        answer = torch.tensor(both[len(begin) :])
        total += float(functional.cross_entropy(logits[len(begin) - 1 : -1], answer, reduction="sum"))
        count += len(answer)
    with torch.no_grad():
        assert float(task.loss(model, task.train.batch([0, 1]))) == pytest.approx(total / count, rel=1e-5)


def test_a_masked_model_fills_the_blank(models: Any, tokenizer: Any) -> None:
    head, model = Masked(tokenizer, 64, ("terrible", "great")), models["bert"]
    piece = collate([head.encode(row) for row in ROWS], pad=1)
    text = tokenizer(f"{ROWS[1].prompt} <mask> .", return_tensors="pt")["input_ids"]
    words = [tokenizer(f" {word}")["input_ids"][1] for word in ("terrible", "great")]
    with torch.no_grad():
        mine = model(input_ids=text).logits[0][text[0] == tokenizer.mask_token_id][0, words]
        torch.testing.assert_close(head.logits(model, piece)[1], mine, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="no mask token"):
        Masked(type("T", (), {"mask_token": None})(), 64, ("a", "b"))


def test_an_encoder_compares_with_label_sentences(models: Any, tokenizer: Any) -> None:
    head, model = Sentences(tokenizer, 64, ("the film is bad .", "the film is good .")), models["encoder"]
    head.anchor(model, 1, Path("/nowhere"))
    with torch.no_grad():
        logits = head.logits(model, collate([head.encode(row) for row in ROWS], pad=1))
    assert logits.shape == (3, 2)
    assert float(logits.abs().max()) <= 20.001
    assert float(logits[0, 1]) == pytest.approx(20, abs=1e-3)  # it is the label sentence itself


def test_a_classifier_is_asked_as_it_is(models: Any, tokenizer: Any) -> None:
    head, model = Classifier(tokenizer, 64), models["classifier"]
    with torch.no_grad():
        logits = head.logits(model, collate([head.encode(row) for row in ROWS], pad=1))
        mine = model(input_ids=tokenizer(ROWS[2].parts[0], return_tensors="pt")["input_ids"]).logits
    torch.testing.assert_close(logits[2:], mine, rtol=1e-4, atol=1e-5)


def test_long_prompts_lose_their_beginning(tokenizer: Any) -> None:
    head = Causal(tokenizer, 12, ("No", "Yes"), "{text}\n")
    encoded = head.encode(Row(prompt="bad " * 40 + "is it good ?\n", label=1))
    assert len(encoded.tokens) == 12
    assert encoded.tokens[0] == tokenizer.bos_token_id
    assert tokenizer.decode(encoded.tokens).endswith("is it good ?\n")
    masked = Masked(tokenizer, 12, ("No", "Yes")).encode(Row(prompt="bad " * 40 + "good", label=1))
    assert len(masked.tokens) == 12
    assert masked.tokens[masked.at[0]] == tokenizer.mask_token_id
    own = Causal(tokenizer, 12, (), "").encode(Row(prompt="bad " * 40 + "good ?", answers=("red blue",)))
    assert len(own.tokens) == 12
    assert tokenizer.decode(own.labels) == " red blue\n"


def test_conversations_count_what_the_assistant_says(tokenizer: Any) -> None:
    messages = (
        {"role": "user", "content": "good ?"},
        {"role": "assistant", "content": "very good"},
        {"role": "user", "content": "bad ?"},
        {"role": "assistant", "content": "not bad"},
    )
    encoded = Causal(tokenizer, 200, (), "").encode(Row(messages=messages))
    said = tokenizer.decode(encoded.labels)
    assert "very good" in said
    assert "not bad" in said
    assert "?" not in said
    assert encoded.labels == [encoded.tokens[place + 1] for place in encoded.at]


def test_a_long_conversation_loses_its_beginning(tokenizer: Any) -> None:
    messages = ({"role": "user", "content": "bad " * 50}, {"role": "assistant", "content": "very good"})
    encoded = Causal(tokenizer, 20, (), "").encode(Row(messages=messages))
    assert len(encoded.tokens) == 20
    assert "very good" in tokenizer.decode(encoded.labels)


def test_a_conversation_whose_answer_is_out_of_reach_keeps_the_answer(tokenizer: Any) -> None:
    messages = (
        {"role": "user", "content": "good ?"},
        {"role": "assistant", "content": "very good"},
        {"role": "user", "content": "bad " * 50},
    )
    encoded = Causal(tokenizer, 20, (), "").encode(Row(messages=messages))
    assert len(encoded.tokens) <= 20
    assert encoded.cut
    assert "very good" in tokenizer.decode(encoded.labels)
    assert "bad" not in tokenizer.decode(encoded.tokens)


def test_examples_that_do_not_fit_are_counted(tokenizer: Any, models: Any) -> None:
    long, short = "bad " * 40, "good"
    source = language.Source("t", [], [], "{text} It was", ("bad", "good"), ("it is bad", "it is good"))
    rows = [Row(prompt=f"{text} It was", parts=(text,), label=0) for text in (long, short, short)]
    for name in ("causal", "masked", "classifier", "sentences"):
        texts = Texts(rows, language.make_head(name, tokenizer, source, 12), 1)
        (warning,) = texts.check("test")
        assert warning.startswith("1 test examples of 3 are longer than task.max_length = 12 tokens and were truncated")
        assert not texts.take([1, 2]).check("test")
    head = Causal(tokenizer, 12, (), "")
    answers = [Row(prompt="x", answers=(long,)), Row(prompt=long, answers=("good",)), Row(prompt="x", answers=("red",))]
    assert Texts(answers, head, 1).check("training")[0].startswith("2 training examples of 3 ")


@pytest.mark.parametrize("kind", ["opt", "bert", "encoder", "classifier"])
def test_the_losses_of_examples_do_not_depend_on_the_batch(kind: str, models: Any, tokenizer: Any) -> None:
    words, model = ("terrible", "great"), models[kind]
    heads: dict[str, Head] = {
        "opt": Causal(tokenizer, 64, words, "{text} It was"),
        "bert": Masked(tokenizer, 64, words),
        "encoder": Sentences(tokenizer, 64, ("the film is bad .", "the film is good .")),
        "classifier": Classifier(tokenizer, 64),
    }
    head = heads[kind]
    if isinstance(head, Sentences):
        head.anchor(model, 1, Path("/nowhere"))
    texts = Texts(ROWS, head, 1, 0)
    task = TextTask("own", texts, texts, head, "accuracy")
    order = sorted(range(3), key=lambda index: len(head.encode(ROWS[index]).tokens))  # as the pieces have them
    with torch.no_grad():
        batch = texts.batch(range(3))
        each = task.losses(model, batch)
        alone = torch.stack([task.loss(model, texts.batch([index])) for index in order])
        assert float(each.mean()) == pytest.approx(float(task.loss(model, batch)), rel=1e-5)
    assert len(batch) > 1
    torch.testing.assert_close(each, alone, rtol=1e-4, atol=1e-5)


def test_examples_without_an_answer_count_for_nothing(models: Any) -> None:
    taciturn = tiny.tokenizer()
    taciturn.chat_template = "{% for m in messages %}{% if m['content'] != '-' %}" + tiny.TEMPLATE.split("%}", 1)[
        1
    ].replace("{% endfor %}", "{% endif %}{% endfor %}", 1)
    head, model = Causal(taciturn, 20, (), ""), models["opt"]
    mute, sound = (
        Row(messages=({"role": "user", "content": "good ?"}, {"role": "assistant", "content": answer}))
        for answer in ("-", "very good")
    )
    both, alone = Texts([mute, sound], head, 1), Texts([sound], head, 1)
    task = TextTask("own", both, both, head, "accuracy")
    (warning,) = both.check("training")
    assert warning == (
        "1 training examples of 2 have no answer token within task.max_length = 20 tokens and are ignored."
    )
    with torch.no_grad():
        loss = float(task.loss(model, both.batch([0, 1])))
        assert loss == pytest.approx(float(task.loss(model, alone.batch([0]))), rel=1e-5)
        assert float(task.loss(model, both.batch([0]))) == 0
        assert sorted(task.losses(model, both.batch([0, 1])).tolist()) == pytest.approx([0, loss], rel=1e-5)
    assert task.score(model, both).loss == pytest.approx(loss, rel=1e-5)
    with pytest.raises(InputError, match=r"task.max_length = 20 tokens: no test example has an answer token"):
        Texts([mute, mute], head, 1).check("test")


def test_a_tokenizer_without_a_template_is_named(tokenizer: Any) -> None:
    bare = tiny.tokenizer()
    bare.chat_template = None
    with pytest.raises(InputError, match="cannot write a conversation"):
        Causal(bare, 20, (), "").encode(Row(messages=({"role": "assistant", "content": "good"},)))


def test_heads_that_classify_need_classes(tokenizer: Any) -> None:
    source = language.Source("own", [], [])
    with pytest.raises(InputError, match=r"model.head = 'masked': a classification head, but 'own' has no classes"):
        language.make_head("masked", tokenizer, source, 20)


def test_label_words_must_differ_in_their_first_token(tokenizer: Any) -> None:
    with pytest.raises(InputError, match="begin with the same token"):
        label_tokens(tokenizer, "x", ("good one", "good two"))
    with pytest.raises(InputError, match="two or more"):
        label_tokens(tokenizer, "x", ("good",))


@pytest.mark.parametrize("kind", ["opt", "llama", "qwen", "gpt2"])
def test_generation_is_greedy_and_ends_with_the_line(kind: str, models: Any, tokenizer: Any) -> None:
    head, model = Causal(tokenizer, 120, (), ""), models[kind]
    rows = [Row(prompt=f"Question : is {'it ' * index}?\nAnswer:", answers=("x",)) for index in range(1, 4)]
    found = generate(model, head, rows)
    for row, answer in zip(rows, found, strict=True):
        tokens = tokenizer(row.prompt)["input_ids"]
        mine: list[int] = []
        with torch.no_grad():
            while len(mine) < 50 and (not mine or mine[-1] not in head.ends):
                mine.append(int(model(input_ids=torch.tensor([tokens + mine])).logits[0, -1].argmax()))
        assert answer == tokenizer.decode(mine, skip_special_tokens=True).strip().split("\n")[0].strip()
    assert all("\n" not in answer for answer in found)
    right = [Row(prompt=row.prompt, answers=(answer or "the",)) for row, answer in zip(rows, found, strict=True)]
    task = TextTask("squad", Texts(right, head, 1), Texts(right, head, 1), head, "f1")
    score = task.score(model, task.test)
    assert score.accuracy == 1
    assert score.metrics == {"f1": 1, "exact_match": 1}


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=20),
    separately=st.sampled_from([0, 10, 48, 10**9]),
    most=st.sampled_from([40, 200, 10**6]),
)
def test_pieces_hold_every_example_once(lengths: list[int], separately: int, most: int) -> None:
    examples = [Encoded([7] * length, [length - 1], [index]) for index, length in enumerate(lengths)]
    found = pieces(examples, 0, separately, most)
    assert sorted(int(label) for piece in found for label in piece.labels) == list(range(len(lengths)))
    for piece in found:
        tokens, mask = piece.inputs["input_ids"], piece.inputs["attention_mask"]
        assert int((tokens != 0).sum()) == int(mask.sum())
        assert tokens.numel() <= most or len(tokens) == 1
        assert [int(row.nonzero()[0]) + 1 for row in piece.positions] == [int(row.sum()) for row in mask]
    if separately == 10**9 and most == 10**6:
        assert len(found) == 1


@pytest.mark.parametrize("words", [("terrible", "great"), ()])
@pytest.mark.parametrize("kind", ["opt", "llama", "phi", "bert"])
def test_partial_layers_are_perturbed_as_the_whole_is(
    kind: str, words: tuple[str, ...], models: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of the output layer for label words, slices of it for whole answers: layer by layer as in one piece."""
    if kind == "bert" and not words:
        pytest.skip("a masked model has label words")
    head = Masked(tokenizer, 64, words) if kind == "bert" else Causal(tokenizer, 64, words, "x")
    rows = ROWS if words else [Row(prompt="x is", answers=("good",)), Row(prompt="the", answers=("film",))]
    task = TextTask("x", Texts(rows, head, 1), Texts(rows, head, 1), head, "accuracy")
    replica = Replica(models[kind], make_method("hiso"))
    before = replica.digest()
    batch = task.train.batch(np.arange(len(rows)))
    question = LossQuery(7, 1e-2, 1e-2, (), range(3), batch)
    whole = Probe(replica, task.loss).measure([question])
    monkeypatch.setattr("scalarfl.model.overlay.SLICE", 1000)
    monkeypatch.setattr("scalarfl.model.partial.SLICE", 1000)
    layered = Probe(replica, task.loss, small=0)
    np.testing.assert_allclose(layered.measure([question]), whole, rtol=2e-6)
    assert layered._layered
    assert replica.digest() == before
    adopted = [module for module in replica.model.modules() if isinstance(module, PartialLinear)]
    assert adopted
    assert all(module.supply is None and not module.compact for module in adopted)
