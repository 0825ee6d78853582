"""What every task must keep: ``TestMine = tasks.contract(Mine)``."""

from pathlib import Path

import numpy as np
import pytest
import torch

from scalarfl.model.digest import base_digest
from scalarfl.model.zoo import build
from scalarfl.simulation import simulate
from scalarfl.tasks import TASKS, ArrayTask, Shard, iid
from scalarfl.tasks.objective import Score, as_loss, as_losses


def contract(*tasks: type[ArrayTask], data_dir: Path | None = None) -> type:
    """A class of tests for pytest over these tasks; bind it to a name that begins with ``Test``.

    data_dir: the folder that all of them read.
    """
    given = [pytest.param(kind, data_dir, id=kind.name) for kind in tasks]
    return pytest.mark.parametrize(("kind", "data_dir"), given)(type("TestTasks", (_Contract,), {}))


class _Contract:
    def test_it_says_what_it_is(self, kind: type[ArrayTask], data_dir: Path | None) -> None:
        """Name, shape, classes and size, before any data are read; and the data are so."""
        assert not TASKS.fault(kind)
        task = kind.load(data_dir)
        assert isinstance(task, kind)
        assert len(task.train) + len(task.test) == kind.size
        for part in (task.train, task.test):
            assert len(part) > 0
            assert part.inputs.dtype == torch.float32
            assert tuple(part.inputs.shape) == (len(part), *kind.inputs)
            assert torch.isfinite(part.inputs).all()

    def test_the_same_examples_every_time(self, kind: type[ArrayTask], data_dir: Path | None) -> None:
        """All parties divide and draw them by index."""
        once, again = kind.load(data_dir), kind.load(data_dir)
        for part in ("train", "test"):
            one, other = getattr(once, part), getattr(again, part)
            assert torch.equal(one.inputs, other.inputs)
            assert torch.equal(one.labels, other.labels)

    def test_batches_are_examples_by_index(self, kind: type[ArrayTask], data_dir: Path | None) -> None:
        """In the order asked for; ``take`` and ``batch`` agree."""
        train = kind.load(data_dir).train
        indices = np.array([3, 0, 2])
        inputs, labels = train.batch(indices)
        taken = train.take(indices)
        assert torch.equal(taken.inputs, inputs)
        for place, index in enumerate(indices):
            one, label = train[int(index)]
            assert torch.equal(inputs[place], one)
            assert torch.equal(labels[place], label)
        classes = train.classes()
        assert classes is None or len(classes) == len(train)

    def test_the_loss_is_a_finite_mean_that_changes_nothing(self, kind: type[ArrayTask], data_dir: Path | None) -> None:
        """Of two halves' losses the mean is the whole's; it is the same when it is asked for again."""
        task = kind.load(data_dir)
        model = build("logistic", kind.inputs, kind.classes, seed=0)
        before = base_digest(model)
        indices = np.arange(min(32, len(task.train) // 2 * 2))
        with torch.no_grad():
            whole, left, right = (
                float(as_loss(task.loss(model, task.train.batch(part)))) for part in (indices, *np.split(indices, 2))
            )
            assert float(as_loss(task.loss(model, task.train.batch(indices)))) == whole
        assert np.isfinite(whole)
        assert whole == pytest.approx((left + right) / 2, rel=1e-4)
        assert base_digest(model) == before

    def test_the_losses_of_examples_are_their_own(self, kind: type[ArrayTask], data_dir: Path | None) -> None:
        """One for each, the same whatever else the batch holds; their mean is the loss."""
        task = kind.load(data_dir)
        model = build("logistic", kind.inputs, kind.classes, seed=0)
        indices = np.arange(min(16, len(task.train)))
        with torch.no_grad():
            batch = task.train.batch(indices)
            each = as_losses(task.losses(model, batch), len(indices))
            assert float(each.mean()) == pytest.approx(float(as_loss(task.loss(model, batch))), rel=1e-5)
            for index in (0, len(indices) - 1):
                alone = as_losses(task.losses(model, task.train.batch(indices[index : index + 1])), 1)
                assert float(alone) == pytest.approx(float(each[index]), rel=1e-4)

    def test_the_score_is_a_score(self, kind: type[ArrayTask], data_dir: Path | None) -> None:
        """Its metric between 0 and 1, of all the examples it was given; the same when it is asked for again."""
        task = kind.load(data_dir)
        model = build("logistic", kind.inputs, kind.classes, seed=0)
        part = task.test.take(range(min(100, len(task.test))))
        found = task.score(model, part)
        assert isinstance(found, Score)
        assert found == task.score(model, part)
        assert found.examples == len(part)
        assert np.isfinite(found.loss)
        assert found.accuracy is None or 0 <= found.accuracy <= 1

    def test_a_run_is_the_same_twice(self, kind: type[ArrayTask], data_dir: Path | None) -> None:
        """To the last bit, and it moves the model."""
        digests = []
        for rounds in (2, 2, 0):
            task = kind.load(data_dir)
            clients = [Shard(task.train, part) for part in iid(len(task.train), 3, seed=0)]
            model = build("logistic", kind.inputs, kind.classes, seed=0)
            digests.append(simulate(model, clients, task.loss, rounds=rounds, lr=1e-2, progress=False).digest)
        assert digests[0] == digests[1] != digests[2]
