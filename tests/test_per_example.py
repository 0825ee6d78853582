"""A direction for every example: the generator, each kind of layer, the protocol around them, and what is refused."""

import copy
from collections.abc import Callable
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import families
import tiny
from scalarfl import InputError, Ledger, Probe, Replica, VerificationError, make_method, simulate
from scalarfl.experiment import recipe as recipes, run as runs, run_folder as folder
from scalarfl.experiment.verify import verify
from scalarfl.language.heads import Causal, Masked, Sentences
from scalarfl.language.rows import Row
from scalarfl.language.task import Texts, TextTask
from scalarfl.ledger.codec import unpack
from scalarfl.model.heading import Heading
from scalarfl.model.probe import LossQuery
from scalarfl.model.selection import Sparse, Trainable
from scalarfl.noise import rank_one
from scalarfl.noise.directions import Layout
from scalarfl.noise.kernels import rank_one as compiled
from scalarfl.noise.seeds import generator
from scalarfl.tasks import Examples
from support import network, score, shards, updates

CPU = torch.device("cpu")


def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]).float(), batch[1], reduction="none")


# The generator


def test_signs_are_those_of_the_page() -> None:
    """A vector of 9 and a matrix [3, 130]: s in one and two blocks, r in one, none for the vector."""
    made = rank_one.RankOne(Layout(("a", "b"), ((9,), (3, 130))))
    assert made.blocks == [(0, 1), (1, 3)]
    r, s = made.factors(1, 2026, 1, [5], CPU)
    none, own = made.factors(0, 2026, 1, [5], CPU)
    assert none is None
    assert r is not None
    found = ["".join("+" if one > 0 else "-" for one in signs[0, :16]) for signs in (own, s, r)]
    assert found == ["++-+--+++", "---+++++++++-++-", "+--"]
    assert s.shape == (1, 130)


shapes = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 400)), st.tuples(st.integers(1, 140), st.integers(1, 40)),
        st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 90)), st.just(()),
    ),
    min_size=1, max_size=4,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(shapes, st.integers(0, 2**64 - 1), st.integers(0, 3), st.integers(1, 70), st.data())
def test_the_kernel_has_the_reference_s_bits_and_both_are_sums_of_products(
    sizes: list[tuple[int, ...]], seed: int, step: int, count: int, data: st.DataObject
) -> None:
    layout = Layout(tuple(map(str, range(len(sizes)))), tuple(sizes))
    reference, kernel = rank_one.RankOne(layout), compiled.RankOne(layout)
    index = data.draw(st.integers(0, len(sizes) - 1))
    begin = data.draw(st.integers(0, layout.sizes[index] - 1))
    length = data.draw(st.integers(1, layout.sizes[index] - begin))
    directions = list(range(begin, begin + count))
    c = np.random.default_rng(count).normal(size=count).astype(np.float32)
    one, other, address = torch.empty(length), torch.empty(length), layout.addresses[index] + begin
    for squared in (False, True):
        arguments = (seed, step, address, directions, c.tolist(), squared)
        reference.combine(one, *arguments)
        kernel.combine(other, *arguments)
        assert torch.equal(one, other)
    assert torch.allclose(one, torch.full_like(one, float(c.astype(np.float64).sum())), atol=1e-4)
    reference.combine(one, seed, step, address, directions, c.tolist())
    (r, s), again = (
        reference.factors(index, seed, step, directions, CPU),
        kernel.factors(index, seed, step, directions, CPU),
    )
    assert torch.equal(s, again[1])
    assert (r is None) == (again[0] is None)
    z = s if r is None else (r.unsqueeze(2) * s.unsqueeze(1)).flatten(1)
    assert bool((z.abs() == 1).all())
    dense = (torch.from_numpy(c).double().unsqueeze(1) * z.double()).sum(0)[begin : begin + length]
    assert torch.allclose(one.double(), dense, atol=1e-4)
    gradient = torch.randn(length, generator=torch.Generator().manual_seed(1))
    products = z.double()[:, begin : begin + length] @ gradient.double()
    assert np.allclose(kernel.project(gradient, seed, step, address, directions), products.numpy(), atol=1e-4)


def test_directions_of_examples_are_uncorrelated() -> None:
    """E[vec z vec z^T] = I: over 4,000 directions no two coordinates of a matrix go together."""
    r, s = compiled.RankOne(Layout(("w",), ((4, 6),))).factors(0, 3, 0, range(4000), CPU)
    assert r is not None
    z = (r.unsqueeze(2) * s.unsqueeze(1)).flatten(1).double()
    assert float((z.T @ z / 4000 - torch.eye(24)).abs().max()) < 5 / 4000**0.5


# The layers


class Turned(nn.Module):
    """transformers' Conv1D."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 5) / 3), nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


Turned.__name__ = "Conv1D"


class RMSNorm(nn.Module):
    """As Gemma has it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6) / 5)

    def forward(self, x: Tensor) -> Tensor:
        return (1 + self.weight) * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class Words(nn.Module):
    """Tokens and positions (which all examples share), scaled, and an output layer tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(11, 6), nn.Embedding(4, 6)
        self.out = nn.Linear(6, 11, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = 1.5 * self.embed(tokens) + self.places(torch.arange(tokens.shape[1]).unsqueeze(0))
        made: Tensor = self.out(torch.tanh(hidden)).mean(1)
        return made


def flat(*layers: nn.Module, width: int) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, 3))


def settled(norm: nn.Module) -> nn.Module:
    for name, tensor in [*norm.named_parameters(), *norm.named_buffers()]:
        if tensor.is_floating_point():
            tensor.data = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(len(name))) + 0.5
    return norm


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3, bias=False)), (6,)),
    "linear of tokens": (lambda: flat(nn.Linear(6, 4), nn.Tanh(), width=20), (5, 6)),
    "linear of joined rows": (lambda: nn.Sequential(nn.Flatten(0, 1), nn.Linear(6, 2), nn.Unflatten(0, (7, 5)),
                                                    nn.Flatten(), nn.Linear(10, 3)), (5, 6)),
    "conv1d": (lambda: flat(nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), nn.Tanh(), width=30), (4, 9)),
    "conv2d": (lambda: flat(nn.Conv2d(2, 4, 3, padding="same", dilation=2), nn.Tanh(), width=100), (2, 5, 5)),
    "depthwise": (lambda: flat(nn.Conv2d(4, 8, (2, 3), groups=4, bias=False), nn.Tanh(), width=96), (4, 5, 5)),
    "layer norm": (lambda: flat(settled(nn.LayerNorm(6)), width=30), (5, 6)),
    "layer norm of two": (lambda: flat(settled(nn.LayerNorm((5, 6))), width=30), (5, 6)),
    "rms norm": (lambda: flat(RMSNorm(), settled(nn.RMSNorm(6)), width=30), (5, 6)),
    "batch norm": (lambda: flat(settled(nn.BatchNorm2d(3)), settled(nn.GroupNorm(1, 3)), width=12), (3, 2, 2)),
    "conv1d of transformers": (lambda: flat(Turned(), nn.Tanh(), width=25), (5, 6)),
}  # fmt: skip


def example_by_example(
    replica: Replica, asked: LossQuery, loss: Callable[[nn.Module, Any], Tensor], *, double: bool = True
) -> list[list[float]]:
    """[passes][examples]: each loss at weights that were displaced themselves, in float64, by torch alone."""
    found = []
    for number in range(asked.passes):
        row = []
        for example in range(asked.examples):
            model = copy.deepcopy(replica.model)
            model = model.double() if double else model
            named = dict(model.named_parameters())
            for index, part in enumerate(replica.parts):
                z = torch.empty(part.parameter.numel())
                direction = asked.perturbations[example * asked.passes + number]
                replica.displace(index, z, torch.zeros_like(z), 0, asked.seed, len(asked.walk), direction, 1.0)
                named[part.name].data += asked.mu * z.view_as(part.parameter).to(named[part.name].dtype)
            with torch.no_grad():
                row.append(float(loss(model, asked.batch)[example]))
        found.append(row)
    return found


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_s_outputs_move_as_if_its_weights_had(layer: str) -> None:
    torch.manual_seed(0)
    make, size = LAYERS[layer]
    replica = Replica(make(), make_method("decomfl"), noise="rank-one")
    before = replica.digest()
    batch = (torch.randn(7, *size), torch.randint(0, 3, (7,)))
    asked = LossQuery(9, 0.1, 0.05, (), range(28, 28 + 14), batch, examples=7, passes=2)

    def doubled(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(model(batch[0].double()), batch[1], reduction="none")

    probe, dense = Probe(replica, losses), example_by_example(replica, asked, doubled)
    mean, *found = probe.measure([asked])[0]
    assert found[7:] == pytest.approx(list(chain(*dense)), rel=2e-5, abs=2e-5)
    assert found[:7] == pytest.approx(losses(replica.model, batch).tolist(), rel=1e-6)
    assert mean == pytest.approx(np.mean(found[:7]))
    assert probe.measure([asked._replace(bare=True)])[0] == found[7:]
    assert probe.evaluations == 5
    assert replica.digest() == before
    assert not any(module._forward_hooks for module in replica.model.modules())


def test_a_weight_used_twice_and_a_table_that_examples_share() -> None:
    torch.manual_seed(0)
    replica = Replica(Words(), make_method("decomfl"), noise="rank-one")
    batch = (torch.randint(0, 11, (5, 4)), torch.randint(0, 11, (5,)))
    asked = LossQuery(9, 0.1, 0.05, (), range(5), batch, examples=5, passes=1)
    dense = example_by_example(replica, asked, losses)
    assert Probe(replica, losses).measure([asked])[0][6:] == pytest.approx(dense[0], rel=2e-5)


def test_a_walk_is_followed_and_a_number_scales_directions() -> None:
    replica = Replica(network(), make_method("hiso-scalar"), noise="rank-one")
    for state in replica.state:
        state["hessian"].fill_(4.0)
    batch = (torch.randn(3, 5), torch.tensor([0, 1, 2]))
    asked = LossQuery(9, 0.5, 0.1, ((0.3, -0.2, 0.1),), range(3), batch, examples=3, passes=1)
    at = copy.deepcopy(replica)
    for index, x in enumerate(at.tensors):
        for q, c in enumerate(asked.walk[0]):
            replica.displace(index, x.view(-1), x.view(-1).clone(), 0, 9, 0, q, -0.5 * c)
        at.parts[index].put(x)
    assert Probe(replica, losses).measure([asked])[0][4:] == pytest.approx(
        example_by_example(at, asked, losses, double=False)[0], rel=1e-5
    )


@pytest.mark.skipif(find_spec("transformers") is None, reason="needs the extra llm")
@pytest.mark.parametrize(
    ("family", "head", "trainable"),
    [
        ("gpt2", "words", "all"), ("llama", "words", "all"), ("opt", "answers", "all"), ("bert", "masked", "all"),
        ("gemma", "answers", "norms"), ("qwen2", "classes", "head"), ("bert", "sentences", "last:1"),
    ],
)  # fmt: skip
def test_language_models_in_pieces(family: str, head: str, trainable: Trainable) -> None:
    """Prompts of several lengths in pieces, some outputs of a partial output layer, a head of its own."""
    tokenizer = tiny.tokenizer()
    torch.manual_seed(0)
    model = families.make(family, len(tokenizer))
    words = ("terrible", "great")
    label_words = Causal(tokenizer, 64, words, "{text} It was")
    heads = {"words": label_words, "classes": label_words, "answers": Causal(tokenizer, 64, (), "")}
    sentences = ("the film is bad .", "the film is good .")
    heads |= {"masked": Masked(tokenizer, 64, words), "sentences": Sentences(tokenizer, 64, sentences)}  # type: ignore[dict-item]
    asking: Any = heads[head]
    if head == "sentences":
        model = model.base_model
        asking.anchor(model, 1, Path("/nowhere"))
    if head == "classes":
        asking.classify(model, Path("/nowhere"), wanted=True)
    texts = ["the film is good .", "bad", "this plot is not very good and it is dull", "fine actors"]
    rows = [
        Row(prompt=text, parts=(text,), answers=("very good" if n % 2 else "no",), label=n % 2)
        for n, text in enumerate(texts)
    ]
    data = Texts(rows, asking, 1, 0)
    task = TextTask("own", data, data, asking, "accuracy")
    batch = data.batch(range(4))
    assert len(batch) > 1
    replica = Replica(model, make_method("decomfl"), trainable, noise="rank-one")
    asked = LossQuery(4, 0.1, 0.02, (), range(4), batch, examples=4, passes=1)
    found = Probe(replica, task.losses).measure([asked])[0]
    dense = example_by_example(replica, asked, task.losses, double=False)[0]
    assert found[5:] == pytest.approx(dense, rel=2e-4, abs=2e-4)
    assert max(abs(one - other) for one, other in zip(found[1:5], found[5:], strict=True)) > 1e-3


def test_half_precision_goes_the_same_way() -> None:
    torch.manual_seed(0)
    batch = (torch.randn(6, 5), torch.randint(0, 3, (6,)))
    moves = []
    for dtype in (torch.float32, torch.bfloat16):
        replica = Replica(network().to(dtype), make_method("decomfl"), noise="rank-one")
        own = (batch[0].to(dtype), batch[1])
        asked = LossQuery(4, 0.1, 0.05, (), range(6), own, examples=6, passes=1)
        _, *found = Probe(replica, losses).measure([asked])[0]
        moves.append(np.array(found[6:]) - found[:6])
    one, other = moves
    assert float(one @ other) > 0.99 * float(np.linalg.norm(one) * np.linalg.norm(other))


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the largest tensor that an operation makes; another name of a weight's memory is none."""

    def __init__(self, weights: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weights = weights
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else [made]:
            if isinstance(one, Tensor) and one.untyped_storage().data_ptr() not in self.weights:
                self.numel = max(self.numel, one.numel())
        return made


def test_it_takes_no_more_memory_than_inference() -> None:
    """No tensor nearly as large as the weights is made, and none is kept for a backward pass."""
    model = nn.Sequential(nn.Embedding(20_000, 64), nn.Flatten(), nn.Linear(256, 4_000), nn.Tanh(), nn.Linear(4_000, 3))
    replica = Replica(model, make_method("decomfl"), noise="rank-one")
    probe = Probe(replica, losses)
    batch = (torch.randint(0, 20_000, (3, 4)), torch.tensor([0, 1, 2]))
    asked = LossQuery(4, 0.1, 1e-3, (), range(6), batch, examples=3, passes=2)
    probe.measure([asked])  # compares with displaced weights, once
    with Largest({tensor.untyped_storage().data_ptr() for tensor in replica.tensors}) as seen:
        probe.measure([asked])
    assert 0 < seen.numel <= 3 * 20_000  # the signs of the embedding's rows
    assert not any(parameter.grad is not None for parameter in model.parameters())


# The protocol


def small(**keywords: Any) -> Any:
    given: dict[str, Any] = {
        "directions": "per-example",
        "method": "decomfl",
        "perturbations": 2,
        "batch_size": 4,
        "lr": 0.05,
    }
    given |= {"rounds": 6, "sampled": 2, "evaluate": score, "progress": False} | keywords
    return simulate(network(), given.pop("clients", shards()), given.pop("loss", losses), **given)


@pytest.mark.parametrize("difference", ["forward", "central"])
def test_a_record_has_every_example_s_slopes(difference: str, tmp_path: Path) -> None:
    """And the replica moves by their mean along the examples' directions: by torch alone, from the record."""
    tiny_client = Examples(torch.randn(3, 5, generator=torch.Generator().manual_seed(3)), torch.tensor([0, 1, 2]))
    clients = {"large": shards()[0], "small": tiny_client}  # the small one fills no batch of 4
    path = tmp_path / "l.sqlite"
    run = small(rounds=1, clients=clients, difference=difference, ledger=path, mu=1e-2)
    with Ledger.open(path) as ledger:
        (update,) = ledger.updates()
        participants = next(ledger.audits("round"))[1].participants
        assert ledger.header.generator == "philox4x32-10/rank-one/1"
    scalars = unpack(update.scalars).reshape(2, 4, 2)  # clients, examples, directions
    slot = {participant.client: participant.slot for participant in participants}
    assert (scalars[slot["small"], 3] == 0).all()
    assert (scalars[slot["small"], :3] != 0).all()
    assert update.perturbations == (*range(8), *range(8, 16))
    fresh = Replica(network(), make_method("decomfl"), noise="rank-one")
    for x, start, index in zip(run.replica.tensors, fresh.tensors, range(4), strict=True):
        expected = start.double().view(-1).clone()
        for q, scalar in zip(update.perturbations, scalars.reshape(-1), strict=True):
            z = torch.empty(start.numel())
            fresh.displace(index, z, torch.zeros_like(z), 0, update.seed, 0, q, 1.0)
            expected -= 0.05 * float(scalar) / 16 * z.double()
        assert torch.allclose(x.double().view(-1), expected, atol=1e-6)
    # the small client's slopes, from losses at displaced weights; a third more, since they are three of four
    own = range(8 * slot["small"], 8 * slot["small"] + 8)
    found = []
    rows = generator(0, "batch", "small", 0, 0).choice(3, 3, replace=False)  # its first batch
    for place, row in enumerate(rows):
        one = (tiny_client.inputs[row : row + 1], tiny_client.labels[row : row + 1])
        for p in range(2):
            values = []
            for mu in (1e-2, 0.0 if difference == "forward" else -1e-2):
                model = copy.deepcopy(fresh.model).double()
                for number, parameter in enumerate(model.parameters()):
                    z = torch.empty(parameter.numel())
                    fresh.displace(number, z, torch.zeros_like(z), 0, update.seed, 0, own[2 * place + p], 1.0)
                    parameter.data += mu * z.view_as(parameter).double()
                with torch.no_grad():
                    values.append(float(losses_64(model, one)))
            found.append((values[0] - values[1]) / (1e-2 if difference == "forward" else 2e-2) * 4 / 3)
    assert scalars[slot["small"], :3].reshape(-1) == pytest.approx(np.array(found), rel=2e-3, abs=2e-4)


def losses_64(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0].double()), batch[1])


@pytest.mark.parametrize("method", ["decomfl", "hiso-scalar", "momentum", "meazo", "fzoo", "feedsign", "mezo"])
def test_every_method_that_can_learns_and_is_replayed(method: str, tmp_path: Path) -> None:
    """Several local steps, weights by examples, resumed in the middle, replayed at once and one at a time, on any
    number of threads: the same bits."""
    keys = {"method": method, "local_steps": 2, "aggregation": "weighted"}
    run = small(**keys, ledger=tmp_path / "whole.sqlite")
    assert run.digest != small(**keys, rounds=0).digest
    assert small(**keys, order=lambda names: names[::-1]).digest == run.digest
    part = small(**keys, rounds=3, ledger=tmp_path / "part.sqlite")
    assert part.rounds == 3
    assert small(**keys, ledger=tmp_path / "part.sqlite", resume=True).digest == run.digest
    threads = torch.get_num_threads()
    with Ledger.open(tmp_path / "whole.sqlite") as ledger:
        for number, size in ((1, 6), (3, 1)):
            torch.set_num_threads(number)
            try:
                replica = Replica(network(), make_method(method), noise="rank-one")
                replica.begin(ledger.header.digest())
                for begin in range(0, 6, size):
                    replica.apply(list(ledger.updates(begin, begin + size)))
                assert replica.digest() == run.digest
            finally:
                torch.set_num_threads(threads)


@pytest.mark.parametrize("difference", ["forward", "central"])
def test_a_learning_rate_that_finds_itself(difference: str, tmp_path: Path) -> None:
    """The slope along the latest move is measured too; every pass but the comparison's is counted."""
    calls = 0

    def counted(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        nonlocal calls
        calls += 1
        return losses(model, batch)

    keys = {"lr": "auto", "difference": difference, "local_steps": 2, "loss": counted}
    run = small(**keys, ledger=tmp_path / "whole.sqlite")
    assert calls == run.forward_passes + 4
    assert run.displaced_passes == 6 * 2 * 2 * (2 if difference == "forward" else 4)
    small(**keys, rounds=3, ledger=tmp_path / "part.sqlite")
    assert small(**keys, ledger=tmp_path / "part.sqlite", resume=True).digest == run.digest
    with Ledger.open(tmp_path / "whole.sqlite") as ledger:
        assert len({update.lr for update in ledger.updates()}) > 3
        replica = Replica(network(), make_method("decomfl"), noise="rank-one")
        replica.begin(ledger.header.digest())
        replica.apply(list(ledger.updates()))
    assert replica.digest() == run.digest


def test_the_slope_along_the_latest_move_is_the_batch_s() -> None:
    replica = Replica(network(), make_method("decomfl"), noise="rank-one")
    (latest,) = updates(1, directions=6)
    batch = (torch.randn(4, 5), torch.tensor([0, 1, 2, 0]))
    asked = LossQuery(4, 0.1, 1e-2, (), range(8), batch, back=latest, examples=4, passes=2)
    (found,) = Probe(replica, losses).measure([asked])
    assert len(found) == 1 + 4 + 2 * 4 + 1
    moved = copy.deepcopy(replica.model)
    heading = Heading(replica, latest)
    for index, parameter in enumerate(moved.parameters()):
        parameter.data += 1e-2 * heading.part(index, slice(0, parameter.numel())).view_as(parameter)
    assert found[-1] == pytest.approx(float(losses(moved, batch).detach().mean()), abs=1e-6)
    assert found[-1] != pytest.approx(found[0], abs=1e-5)


def test_displaced_passes_count_as_what_they_cost(tmp_path: Path) -> None:
    """Measured once for a result, which keeps it; verified as what the measurement gives."""
    made = ["model.name=mlp", "model.hidden=[8]", "task.name=digits", "federation.rounds=3", "method.name=decomfl"]
    own = ["method.directions=per-example", "method.perturbations=2"]
    recipe = recipes.load(None, [*made, *own])
    result = runs.run(recipe, tmp_path / "run")
    cost = result["displaced_cost"]
    assert cost > 0
    assert result["forward_passes"] == 3 * 2 * 3
    assert result["forward_equivalents"] == pytest.approx(3 * 2 * (1 + 2 * cost))
    assert runs.run(recipe, tmp_path / "run", resume=True)["displaced_cost"] == cost
    assert "displaced_cost" in " ".join(verify(tmp_path / "run").unconfirmed)
    for key, value in {"forward_equivalents": 18.5, "displaced_cost": -1.0}.items():
        (tmp_path / "run" / "result.json").unlink()
        content = {k: v for k, v in result.items() if k != "checksum"} | {key: value}
        folder.keep_result(tmp_path / "run", content)
        with pytest.raises(VerificationError, match=key):
            verify(tmp_path / "run")


def test_large_tensors_have_the_same_bits_on_every_number_of_threads() -> None:
    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(300, 400), nn.Embedding(2000, 40)

    digests, before = set(), torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        replica = Replica(Large(), make_method("decomfl"), noise="rank-one")
        replica.apply(updates(3, directions=70))
        digests.add(replica.digest())
    torch.set_num_threads(before)
    assert len(digests) == 1


# What is refused


class Mixing(nn.Module):
    """Examples are compared with their batch's mean."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.one(x)
        made: Tensor = self.other(hidden - hidden.mean(0))
        return made


class Behind(Mixing):
    """A weight is used behind its layer's back too."""

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.other(torch.tanh(self.one(x)) + functional.linear(x, self.one.weight))
        return made


class Free(Mixing):
    """A parameter without a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(3))


def backwards(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return losses(model, batch).flip(0)


@pytest.mark.parametrize("model", [Mixing, Behind, network])
def test_what_is_not_an_example_s_own_is_found_out(model: Callable[[], nn.Module]) -> None:
    loss = backwards if model is network else losses
    with pytest.raises(InputError, match=r"mixes the examples of a batch or uses a weight outside .* in another order"):
        simulate(model(), shards(), loss, method="decomfl", directions="per-example", rounds=1, progress=False)


def test_layers_without_a_way_are_refused_by_name() -> None:
    refused = {"layer 'rnn' \\(GRU\\)": nn.Sequential(), "the model itself has trained parameters \\(shift\\)": Free()}
    refused["layer 'rnn' \\(GRU\\)"].add_module("rnn", nn.GRU(5, 3))
    for says, model in refused.items():
        replica = Replica(model, make_method("decomfl"), noise="rank-one")
        with pytest.raises(InputError, match=f"per-example': {says}.*Leave it out of model.trainable"):
            Probe(replica, losses)
    masked = Replica(network(), make_method("decomfl"), Sparse(0.5), noise="rank-one")
    with pytest.raises(InputError, match="a sparse mask leaves no rank-one directions"):
        Probe(masked, losses)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"method": "hiso"}, "'hiso' scales every coordinate of a direction by itself. Use 'decomfl'"),
        ({"method": "hiso-frozen"}, "'hiso-frozen' scales every coordinate"),
        ({"method": "hizoo"}, "'hizoo' learns from second differences"),
        ({"noise": "hadamard"}, "noise = 'hadamard': directions = 'per-example' has signs of its own"),
        ({"slopes": "exact"}, "slopes = 'exact': directions = 'per-example' measures differences"),
        ({"aggregation": "clip"}, '"per-example" share none; accepted: mean, weighted'),
        ({"loss": lambda model, batch: losses(model, batch).mean()}, "the losses of 4 examples are wanted"),
    ],
)
def test_what_cannot_be_combined_says_so(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        small(**keys)
