"""What people give to `simulate`: taken as it is meant, or refused with a sentence."""

from collections.abc import Iterator, Mapping
from inspect import signature
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from scalarfl import FederationConfig, InputError, Method, Run, RunConfig, Score, simulate
from scalarfl.protocol.aggregation import Aggregator
from scalarfl.protocol.config import Keywords
from scalarfl.protocol.keys import Privacy
from support import cross_entropy, examples, network, shards

WHOLE = examples(40)


def run(clients: Any = None, loss: Any = cross_entropy, **changes: Any) -> Run:
    arguments = {"lr": 1e-2, "rounds": 3, "perturbations": 2, "batch_size": 4} | changes
    return simulate(network(), shards(2, 40) if clients is None else clients, loss, **arguments)


def halves() -> list[TensorDataset]:
    return [TensorDataset(WHOLE.inputs[part], WHOLE.labels[part]) for part in (slice(0, 20), slice(20, 40))]


class Hub(Dataset[Any]):
    """As Hugging Face's datasets: rows are dicts, `batch` takes a size, `__getitems__` takes indices."""

    def __init__(self, of: TensorDataset) -> None:
        self.of = of

    def __len__(self) -> int:
        return len(self.of)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return dict(zip(("x", "y"), self.of[index], strict=True))

    def __getitems__(self, indices: list[int]) -> list[dict[str, Tensor]]:
        return [self[index] for index in indices]

    def batch(self, batch_size: int) -> None:  # noqa: ARG002
        raise AssertionError("not the batches of a client")


def of_dict(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return cross_entropy(model, (batch["x"].float(), batch["y"]))


def test_data_in_every_form_give_the_same_run() -> None:
    digest = run().digest
    assert run(halves()).digest == digest
    assert run({f"client-{i:04d}": half for i, half in enumerate(halves())}).digest == digest
    assert run([[half[index] for index in range(20)] for half in halves()]).digest == digest
    assert run(iter(halves())).digest == digest
    assert run([DataLoader(half, batch_size=7, shuffle=True) for half in halves()]).digest == digest
    assert run([Hub(half) for half in halves()], of_dict).digest == digest
    assert run([DataLoader(Hub(half)) for half in halves()], of_dict).digest == digest


def test_a_hugging_face_dataset_is_a_client(tmp_path: Any) -> None:
    datasets = pytest.importorskip("datasets")
    tables = [
        datasets.Dataset.from_dict({"x": half.tensors[0].tolist(), "y": half.tensors[1].tolist()}).with_format("torch")
        for half in halves()
    ]
    assert run(tables, of_dict).digest == run().digest


def test_a_loaders_collate_fn_is_used() -> None:
    def backwards(rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        x, y = default_collate(rows)
        return x, 2 - y

    plain, other = run(halves()), run([DataLoader(half, collate_fn=backwards) for half in halves()])
    assert plain.digest != other.digest


def test_one_loss_an_example_counts_as_their_mean() -> None:
    def each(model: nn.Module, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    def mean(model: nn.Module, batch: Any) -> Tensor:
        return each(model, batch).double().mean()

    assert run(loss=each).digest == run(loss=mean).digest


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


class Output:
    loss = torch.zeros(())


HALF = halves()[0]


@pytest.mark.parametrize(
    ("clients", "says"),
    [
        (HALF, "found one TensorDataset; accepted is a list of datasets"),
        (DataLoader(HALF), "found one DataLoader"),
        (5, "found one int"),
        ("abc", "found one str"),
        ([], "none given"),
        ([[]], "'client-0000' has no training examples"),
        ([(HALF[index] for index in range(20))], "'client-0000' is a generator, which has no length or no index"),
        ([Stream()], "'client-0000' is a Stream, which has no length"),
        ([DataLoader(Stream())], "'client-0000' is a DataLoader, which has no length"),
        ([None], "'client-0000' is a NoneType"),
        ([{"x": 1}], "'client-0000' is a dict"),
        ([WHOLE.batch([0, 1])], "is a tuple of arrays; give torch.utils.data.TensorDataset"),
        ({1: HALF}, "the name 1 should be a non-empty string"),
        ([[torch.zeros(n) for n in range(1, 9)]], "cannot be read and put into a batch: RuntimeError: stack expects"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_are_refused(clients: Any, says: str) -> None:
    with pytest.raises(InputError) as error:
        run(clients)
    assert says in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"method": "fedavg"}, "method = 'fedavg': it sends whole models"),
        ({"method": "hizo"}, "method = 'hizo': no such method; did you mean 'hiz"),
        ({"method": 3}, "method = 3: no such method"),
        ({"lr": -1.0}, "lr = -1.0: it should be greater than 0"),
        ({"lr": "fast"}, "lr = 'fast': it should be a valid number"),
        ({"mu": float("nan")}, "mu = nan"),
        ({"rounds": 1e3}, "rounds = 1000.0: it should be a valid integer"),
        ({"rounds": -1}, "rounds = -1"),
        ({"batch_size": 0}, "batch_size = 0: it should be greater than or equal to 1"),
        ({"perturbations": "5"}, "perturbations = '5'"),
        ({"sampled": 3}, "sampled = 3: accepted is 1 to 2"),
        ({"seed": -1}, "seed = -1"),
        ({"aggregation": "mena"}, "aggregation = 'mena': no such aggregation; did you mean 'mean'?"),
        ({"directions": "own"}, "directions = 'own': it should be 'shared', 'per-client' or 'per-example'"),
        ({"sampled": 0}, "sampled = 0: it should be greater than or equal to 1"),
        ({"lrr": 0.1}, "lrr: no such keyword; did you mean 'lr'?"),
        ({"watch": print}, "watch: no such keyword; accepted: "),
        ({"evaluate": {"client-0000": 3}}, "evaluate of 'client-0000': found 3; accepted is a function"),
        ({"loss": None}, "loss: found None; accepted is a function"),
        ({"evaluate": 3}, "evaluate: found 3; accepted is a function"),
        ({"evaluate": {"nobody": lambda model: 0.0}}, "there is no client 'nobody'"),
        ({"loss": lambda model, batch: None}, "loss: it returned None; accepted is a number"),
        ({"loss": lambda model, batch: torch.zeros(0)}, "loss: it returned tensor([])"),
        ({"loss": lambda model, batch: Output()}, "loss: it returned a Output; return its `.loss`"),
        ({"evaluate": lambda model: None}, "evaluate: it returned None"),
        ({"evaluate": lambda model: (0.1, 0.9)}, "evaluate: it returned (0.1, 0.9)"),
    ],
)  # fmt: skip
def test_arguments_that_cannot_be_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as error:
        run(**changes)
    assert says in str(error.value)


def test_keywords_change_the_configurations_and_are_their_keys() -> None:
    """The typed keywords repeat names and types of the keys for editors: they must be the same."""
    keys = {**get_type_hints(FederationConfig), **get_type_hints(RunConfig)}
    wanted = {key: keys[key] for key in (*FederationConfig.model_fields, *RunConfig.model_fields)}
    found = get_type_hints(Keywords, localns={"Method": Method, "Aggregator": Aggregator})
    assert found.pop("method") == str | Method
    assert found.pop("aggregation") == str | Aggregator
    assert found.pop("privacy") == Privacy | Mapping[str, Any] | None
    others = ("method", "aggregation", "privacy")
    assert found == {key: kind for key, kind in wanted.items() if key not in others}
    config, start = FederationConfig(perturbations=2, batch_size=4), RunConfig(lr=1e-2, rounds=3)
    assert simulate(network(), shards(2, 40), cross_entropy, config, start).digest == run().digest
    assert simulate(network(), shards(2, 40), cross_entropy, config, start, lr=0.1).digest == run(lr=0.1).digest
    assert simulate.__doc__ is not None
    assert all(f"{key}: {info.description}" in simulate.__doc__ for key, info in RunConfig.model_fields.items())
    assert len(signature(simulate).parameters) <= 13  # a dozen, and the keywords


def test_a_model_that_is_none() -> None:
    with pytest.raises(InputError, match=r"accepted is a torch\.nn\.Module"):
        simulate("model", shards(2), cross_entropy)  # type: ignore[arg-type]


def test_numbers_of_numpy_and_tensors_are_numbers() -> None:
    found = run(
        lr=np.float64(1e-2), rounds=np.int64(3), loss=lambda model, batch: float(cross_entropy(model, batch)),
        evaluate=lambda model: torch.tensor([0.5]),
    )  # fmt: skip
    assert found.digest == run().digest
    assert found.evaluations[-1].loss == 0.5
    assert run(evaluate=lambda model: Score(0.1, 0.9)).accuracy == 0.9
