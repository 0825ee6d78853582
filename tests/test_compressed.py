"""The rivals of scalars: FedAvg with compressed updates. Known answers, bytes both ways, error memory."""

from pathlib import Path

import numpy as np
import pytest
import torch

from scalarfl import InputError
from scalarfl.baselines import BASELINES
from scalarfl.baselines.compressed import Compressed, FedAvgInt8, FedAvgLowRank, FedAvgSigns, FedAvgTopK
from scalarfl.baselines.dense import train
from scalarfl.experiment import recipe as recipes
from scalarfl.protocol.client import drawn
from scalarfl.protocol.config import RunConfig
from scalarfl.protocol.sampling import cohort
from support import cross_entropy, network, score
from test_baselines import NAMED, settings, trained

KINDS = [kind for kind in BASELINES.values() if issubclass(kind, Compressed)]
MOVE = [torch.tensor([[3.0, -1.0, 0.0], [0.5, -4.0, 2.0]]), torch.tensor([-2.5, 0.25])]


def random() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.mark.parametrize("kind", KINDS)
def test_contract_what_is_not_sent_is_kept_and_sent_next_time(kind: type[Compressed]) -> None:
    first = kind().upload(MOVE, [], random())
    assert [part.shape for part in first.move] == [part.shape for part in MOVE]
    assert first.size <= 4 * 8
    second = kind().upload(MOVE, first.memory, random())
    if kind.feedback:
        for part, one, two, left in zip(MOVE, first.move, second.move, second.memory, strict=True):
            assert torch.allclose(one + two + left, 2 * part, atol=1e-6)
    else:
        assert not first.memory
        assert not second.memory


def test_top_k_is_of_the_whole_model() -> None:
    sent, size = FedAvgTopK(bytes_up=15).compress(MOVE, random())  # one byte for an index below 8, four for a value
    assert size == 15
    assert sent[0].tolist() == [[3, 0, 0], [0, -4, 0]]
    assert sent[1].tolist() == [-2.5, 0]
    assert FedAvgTopK(fraction=0.25).compress(MOVE, random())[1] == 2 * 5
    assert FedAvgTopK(bytes_up=400).kept(9098) == (66, 6)
    assert FedAvgTopK(bytes_up=400).kept(65_536) == (66, 6)
    assert FedAvgTopK(bytes_up=400).kept(65_537) == (57, 7)
    assert FedAvgTopK(bytes_up=8).kept(10**7) == (1, 7)
    assert FedAvgTopK(fraction=1.0).kept(10) == (10, 5)


def test_signs_are_scaled_by_the_mean_magnitude_of_their_tensor() -> None:
    sent, size = FedAvgSigns().compress(MOVE, random())
    assert sent[0].tolist() == [[1.75, -1.75, 1.75], [1.75, -1.75, 1.75]]
    assert sent[1].tolist() == [-1.375, 1.375]
    assert size == 1 + 4 + 1 + 4


def test_low_rank_is_the_best_of_its_rank() -> None:
    """Against the singular value decomposition; a kernel of a convolution is a matrix, a bias goes whole."""
    draws = np.random.default_rng(0).standard_normal
    left, right = np.linalg.qr(draws((12, 3)))[0], np.linalg.qr(draws((20, 3)))[0]
    matrix = torch.from_numpy((left * [9.0, 2.0, 0.1]) @ right.T).float()
    kernel, bias = matrix.view(12, 5, 2, 2), torch.arange(3.0)
    for rank in (1, 2):
        (found, whole), size = FedAvgLowRank(rank=rank).compress([kernel, bias], random())
        u, s, v = torch.linalg.svd(matrix)
        assert torch.allclose(found.view(12, 20), u[:, :rank] * s[:rank] @ v[:rank], atol=2e-3)
        assert torch.equal(whole, bias)
        assert size == 4 * rank * (12 + 20) + 4 * 3


def test_int8_rounds_without_bias() -> None:
    draws = random()
    many = [FedAvgInt8().compress(MOVE, draws) for _ in range(2000)]
    assert {size for _, size in many} == {8 + 2 * 4}
    for index, tensor in enumerate(MOVE):
        sent = torch.stack([parts[index] for parts, _ in many])
        step = float(tensor.abs().max()) / 127
        assert float((sent - tensor).abs().max()) <= step * 1.001
        assert torch.allclose(sent.mean(0), tensor, atol=0.06 * step)
    assert FedAvgInt8().compress([torch.zeros(3)], random())[0][0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_what_diverged_raises_nothing(kind: type[Compressed]) -> None:
    for bad in (float("nan"), float("inf")):
        kind().upload([part * bad for part in MOVE], [], random())


def test_error_memory_lies_at_each_client_and_waits_for_its_turn() -> None:
    """Two rounds by hand: the second move of a client that took part before comes with what it kept."""
    method = FedAvgTopK(bytes_up=60, server_lr=0.5)
    config, _ = settings("fedavg-topk", local_steps=1)
    config = config.model_copy(update={"method": method})
    rounds = 6
    found = train(
        network(), NAMED, cross_entropy, config, RunConfig(lr=0.1, rounds=rounds, sampled=2), "all", score, None
    )
    model, kept = network(), {name: [torch.zeros_like(p) for p in network().parameters()] for name in NAMED}
    for round_ in range(rounds):
        total = [torch.zeros_like(p) for p in model.parameters()]
        for name in cohort(sorted(NAMED), 2, config.seed, round_):
            loss = cross_entropy(model, drawn(NAMED[name], config.batch_size, config.seed, name, round_, 0))
            slopes = torch.autograd.grad(loss, list(model.parameters()))
            wanted = [0.1 * g + e for g, e in zip(slopes, kept[name], strict=True)]
            sent, _ = method.compress(wanted, random())
            kept[name] = [w - s for w, s in zip(wanted, sent, strict=True)]
            total = [t + s / 2 for t, s in zip(total, sent, strict=True)]
        with torch.no_grad():
            for parameter, step in zip(model.parameters(), total, strict=True):
                parameter.sub_(step, alpha=0.5)
    for mine, theirs in zip(found.model.parameters(), model.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_both_ways(kind: type[Compressed]) -> None:
    """Up what is compressed; down what the clients of the missed rounds sent, or the model where that is smaller."""
    found, (config, run) = trained(kind.name), settings(kind.name)
    d = found.dimension
    each = kind().upload([p.detach() for p in network().parameters()], [], random()).size
    seen, down = dict.fromkeys(NAMED, 0), 0
    for round_ in range(run.rounds):
        for name in cohort(sorted(NAMED), 2, config.seed, round_):
            down += min(4 * d, each * 2 * (round_ - seen[name]))
            seen[name] = round_
    assert found.traffic == {("up", "round"): (each * 12,) * 2, ("down", "round"): (down,) * 2}
    assert each < 4 * d


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_from_a_checkpoint_with_the_same_bits_and_bytes(kind: type[Compressed], tmp_path: Path) -> None:
    straight = trained(kind.name)
    trained(kind.name, tmp_path / "kept.pt", rounds=4)
    resumed = trained(kind.name, tmp_path / "kept.pt")
    assert (resumed.digest, resumed.traffic) == (straight.digest, straight.traffic)


def test_its_keys_are_a_recipe_s() -> None:
    recipe = recipes.load(None, ["model.name=mlp", "task.name=digits", "method.name=fedavg-topk"])
    assert recipe.keys["method.fraction"] == 0.01
    with pytest.raises(InputError, match=r"method\.bytes_up"):
        recipes.load(None, ["model.name=mlp", "task.name=digits", "method.name=fedavg-topk", "method.bytes_up=3"])
