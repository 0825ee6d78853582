"""Data: partitions that lose nothing, files that are checked, models that start from a portable seed."""

import gzip
import struct
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from scalarfl import InputError, dirichlet, iid, load_task
from scalarfl.model.digest import base_digest
from scalarfl.model.zoo import build
from scalarfl.tasks import TASKS, idx
from scalarfl.testing.tasks import contract

TestDigits = contract(TASKS["digits"])
FASHION = Path(idx.FOLDERS["fashion-mnist"])
sizes = st.integers(1, 20)


def check_partition(parts: list[np.ndarray], count: int, clients: int) -> None:
    assert len(parts) == clients
    assert sorted(np.concatenate(parts).tolist()) == list(range(count))
    assert min(map(len, parts)) >= 1


@settings(max_examples=60, deadline=None)
@given(sizes, st.integers(0, 300), st.integers(0, 2**63))
def test_iid_gives_every_example_to_exactly_one_client(clients: int, more: int, seed: int) -> None:
    count = clients + more
    parts = iid(count, clients, seed)
    check_partition(parts, count, clients)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@settings(max_examples=100, deadline=None)
@given(sizes, st.integers(0, 300), st.integers(1, 12), st.floats(1e-3, 1e3), st.integers(0, 2**63), st.booleans())
def test_dirichlet_gives_every_example_to_exactly_one_client(
    clients: int, more: int, classes: int, alpha: float, seed: int, balanced: bool
) -> None:
    count = clients + more
    labels = np.random.default_rng(seed).integers(0, classes, count)
    parts = dirichlet(labels, clients, alpha, seed, balanced)
    check_partition(parts, count, clients)
    if balanced:
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert all(
        np.array_equal(a, b) for a, b in zip(parts, dirichlet(labels, clients, alpha, seed, balanced), strict=True)
    )


@pytest.mark.parametrize("balanced", [False, True])
def test_a_smaller_alpha_is_more_skewed(balanced: bool) -> None:
    labels = np.arange(6000) % 10

    def classes_seen(alpha: float) -> float:
        parts = dirichlet(labels, 20, alpha, 0, balanced)
        shares = [np.bincount(labels[part], minlength=10) / len(part) for part in parts]
        return float(np.mean([1 / (share**2).sum() for share in shares]))  # effective number of classes

    assert classes_seen(0.05) < 3 < classes_seen(1) < 8 < classes_seen(100)


def test_partitions_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="accepted is 1 to 3"):
        iid(3, 4, 0)
    with pytest.raises(InputError, match=r"federation\.alpha"):
        dirichlet([0, 1], 2, 0, 0)


def test_digits_are_split_once_and_for_all() -> None:
    task = load_task("digits")
    assert (len(task.train), len(task.test)) == (1400, 397)
    assert (tuple(task.train.inputs.shape[1:]), int(task.train.labels.max()) + 1) == (
        TASKS["digits"].inputs,
        TASKS["digits"].classes,
    )
    assert 0 <= float(task.train.inputs.min()) < float(task.train.inputs.max()) == 1
    assert torch.equal(task.test.labels, load_task("digits").test.labels)
    assert torch.bincount(task.test.labels).min() > 25
    with pytest.raises(InputError, match="is part of scalarfl; omit the key"):
        load_task("digits", Path())


def test_digits_are_the_bits_that_ledgers_were_made_with() -> None:
    task = load_task("digits")
    parts = [part.inputs.numpy().tobytes() + part.labels.numpy().tobytes() for part in (task.train, task.test)]
    assert [sha256(part).hexdigest()[:16] for part in parts] == ["1d6c7a6539c15277", "5f7204c526cc2b6a"]


def write_idx(path: Path, array: np.ndarray) -> None:
    data = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def folder(path: Path, suffix: str = "") -> Path:
    random = np.random.default_rng(0)
    for part, count in (("train", 30), ("t10k", 10)):
        write_idx(path / f"{part}-images-idx3-ubyte{suffix}", random.integers(0, 256, (count, 28, 28)))
        write_idx(path / f"{part}-labels-idx1-ubyte{suffix}", np.arange(count) % 10)
    return path


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_idx_files_are_read_plain_and_gzipped(tmp_path: Path, suffix: str, name: str) -> None:
    task = load_task(name, folder(tmp_path, suffix))
    assert (len(task.train), len(task.test), task.train.inputs.shape[1:]) == (30, 10, (1, 28, 28))
    assert task.train.labels.tolist() == [i % 10 for i in range(30)]


def spoil(path: Path, change: str) -> None:
    if change == "missing":
        path.unlink()
    elif change == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    elif change == "not idx":
        path.write_bytes(b"hello, I am no image")
    elif change == "empty":
        path.write_bytes(b"")
    elif change == "not gzip":
        path.rename(path.with_name(path.name + ".gz"))
    elif change == "a label of 200":
        write_idx(path.parent / "train-labels-idx1-ubyte", np.full(30, 200))
    elif change == "fewer labels":
        write_idx(path.parent / "train-labels-idx1-ubyte", np.zeros(29))
    elif change == "no examples":
        write_idx(path, np.zeros((0, 28, 28)))
        write_idx(path.parent / "train-labels-idx1-ubyte", np.zeros(0))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("missing", "neither train-images-idx3-ubyte nor train-images-idx3-ubyte.gz"),
        ("truncated", "its header promises 23520 bytes of data, 23519 are there"),
        ("not idx", "not an IDX file"),
        ("empty", "not an IDX file"),
        ("not gzip", "cannot be read"),
        ("a label of 200", "a train label is 200"),
        ("fewer labels", "30 train images but 29 labels"),
        ("no examples", "0 train images"),
    ],
)
def test_damaged_data_files_are_refused(tmp_path: Path, change: str, says: str) -> None:
    spoil(folder(tmp_path) / "train-images-idx3-ubyte", change)
    with pytest.raises(InputError) as error:
        load_task("mnist", tmp_path)
    assert says in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_a_missing_folder_is_named() -> None:
    with pytest.raises(InputError, match="no such folder"):
        load_task("mnist", Path("/nowhere/at/all"))


@pytest.mark.skipif(not FASHION.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_debian_s_fashion_mnist_is_found_by_itself() -> None:
    task = load_task("fashion-mnist")
    assert (len(task.train), len(task.test)) == (60_000, 10_000)
    assert abs(float(task.train.inputs.mean())) < 0.01
    assert abs(float(task.train.inputs.std()) - 1) < 0.01


@pytest.mark.parametrize(
    ("name", "shape", "dimension"),
    [("logistic", (1, 8, 8), 650), ("mlp", (1, 8, 8), 4810), ("cnn", (1, 28, 28), 9098)],
)
def test_models_start_from_a_seed(name: str, shape: tuple[int, ...], dimension: int) -> None:
    model = build(name, shape, 10, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == dimension
    assert base_digest(model) == base_digest(build(name, shape, 10, seed=0))
    assert base_digest(model) != base_digest(build(name, shape, 10, seed=1))
    assert model(torch.zeros(2, *shape)).shape == (2, 10)
    weight = next(model.parameters()).detach()
    bound = weight[0].numel() ** -0.5
    assert float(weight.abs().max()) <= bound
    assert abs(float(weight.mean())) < 0.3 * bound
    assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.2)


def test_a_model_s_first_weights_are_the_same_on_every_machine() -> None:
    """The digest in docs/generator.md: if this changes, old ledgers of models from scratch cannot be replayed."""
    assert base_digest(build("mlp", (1, 8, 8), 10, seed=0)) == EXPECTED


EXPECTED = "a6b744ce548104cd1397957d216dda1a1ff669d892e08b84301eacb5ddd8e858"


def test_a_loss_of_one_s_own_gives_the_losses_of_examples_or_is_refused() -> None:
    class Squares(type(TASKS["digits"].load())):  # type: ignore[misc]
        def loss(self, model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            squares: torch.Tensor = model(batch[0]).square().sum(1)
            return squares

    class Mean(Squares):
        def loss(self, model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            return super().loss(model, batch).mean()

    digits = TASKS["digits"].load()
    model, batch = build("logistic", digits.inputs, digits.classes, seed=0), digits.train.batch([1, 2])
    each = Squares(digits.train, digits.test).losses(model, batch)
    assert torch.equal(each, model(batch[0]).square().sum(1))
    with pytest.raises(InputError, match="Return one number for each example, not their mean"):
        Mean(digits.train, digits.test).losses(model, batch)
