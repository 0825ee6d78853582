"""What malicious clients of a simulation do: they know every honest reply of the round, and send others.

They stand behind the transport, so the server treats them like all clients. Over a network there is nothing to
simulate: docs/threat-model.md.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import msgspec
import numpy as np
import numpy.typing as npt

from scalarfl.errors import InputError
from scalarfl.ledger.codec import claims, decode, encode, pack, unpack
from scalarfl.ledger.header import Header
from scalarfl.noise.seeds import generator
from scalarfl.protocol.messages import RoundReply
from scalarfl.registry import Registry, fault_of_class

Honest = npt.NDArray[np.float64]
"""float64[h, rows, kinds, P]: what the h honest clients of the cohort sent, in the order of their names."""
Vector = npt.NDArray[Any]
"""[rows, kinds, P]: one client's scalars."""


class Attack(ABC):
    """What each attacker sends: a pure function, made without arguments so that its name says all."""

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for lists."""
    source: ClassVar[str]
    """Where it was published."""

    @abstractmethod
    def scalars(self, honest: Honest, own: Vector, random: np.random.Generator) -> Vector:
        """What the attacker sends instead of ``own``, the scalars that it found. random: its own in this round."""

    def batch(self, batch: Any, classes: int) -> Any:  # noqa: ARG002
        """The batch that the attacker trains on instead of this one. classes: largest label in all data, plus one."""
        return batch

    poisons: ClassVar[bool] = False
    """Whether ``batch`` changes anything."""


class SignFlip(Attack):
    """Minus the honest mean."""

    name: ClassVar[str] = "sign-flip"
    summary: ClassVar[str] = "minus the honest clients' mean"
    source: ClassVar[str] = "arXiv 2006.09365; byzfl's SignFlipping"
    factor: ClassVar[float] = 1.0

    def scalars(self, honest: Honest, own: Vector, random: np.random.Generator) -> Vector:  # noqa: ARG002
        """-factor mean(g)."""
        false: Vector = -self.factor * honest.mean(axis=0)
        return false


class InnerProduct(SignFlip):
    """Inner-product manipulation: minus twice the honest mean, byzfl's default factor."""

    name: ClassVar[str] = "ipm"
    summary: ClassVar[str] = "minus twice the honest clients' mean"
    source: ClassVar[str] = "arXiv 1903.03936; byzfl's InnerProductManipulation with its default tau = 2"
    factor: ClassVar[float] = 2.0


class Boost(SignFlip):
    """Inner-product manipulation without restraint: it destroys a mean, and a robust rule sees it at once."""

    name: ClassVar[str] = "boost"
    summary: ClassVar[str] = "minus a hundred times the honest clients' mean"
    source: ClassVar[str] = "arXiv 1903.03936, with tau = 100"
    factor: ClassVar[float] = 100.0


class Little(Attack):
    """A little is enough: beside the honest mean, within what honest clients differ by."""

    name: ClassVar[str] = "alie"
    summary: ClassVar[str] = "a little is enough: the honest mean plus 1.5 standard deviations"
    source: ClassVar[str] = "arXiv 1902.06156; byzfl's ALittleIsEnough with its default tau = 1.5"

    def scalars(self, honest: Honest, own: Vector, random: np.random.Generator) -> Vector:  # noqa: ARG002
        """mean(g) + 1.5 std(g), every scalar apart."""
        false: Vector = honest.mean(axis=0) + 1.5 * deviation(honest)
        return false


class LittleAgainst(Attack):
    """A little is enough, with the sign that hurts: every scalar is moved against its mean.

    Directions are random, so plus 1.5 standard deviations on every one of them is a random move of the model; against
    the mean's sign it is a move uphill.
    """

    name: ClassVar[str] = "alie-against"
    summary: ClassVar[str] = "the honest mean less 1.5 standard deviations of its sign"
    source: ClassVar[str] = "arXiv 1902.06156, with the sign chosen for scalars"

    def scalars(self, honest: Honest, own: Vector, random: np.random.Generator) -> Vector:  # noqa: ARG002
        """mean(g) - 1.5 sign(mean(g)) std(g), every scalar apart."""
        mean = honest.mean(axis=0)
        false: Vector = mean - 1.5 * np.sign(mean) * deviation(honest)
        return false


class Gaussian(Attack):
    """Normal noise of ten times the honest scalars' size (byzfl's has standard deviation 1, whatever they are)."""

    name: ClassVar[str] = "gaussian"
    summary: ClassVar[str] = "normal noise, ten times as large as the honest scalars"
    source: ClassVar[str] = "arXiv 1703.02757; byzfl's Gaussian"

    def scalars(self, honest: Honest, own: Vector, random: np.random.Generator) -> Vector:
        """N(0, (10 rms(g))^2), of each kind apart."""
        size = np.sqrt(np.square(honest).mean(axis=(0, 1, 3)))
        false: Vector = 10 * size[:, None] * random.standard_normal(own.shape)
        return false


class Mimic(Attack):
    """All attackers send what the first honest client sends: where data differ, it counts far too much."""

    name: ClassVar[str] = "mimic"
    summary: ClassVar[str] = "what the first honest client sends"
    source: ClassVar[str] = "arXiv 2006.09365; byzfl's Mimic with its default epsilon = 0"

    def scalars(self, honest: Honest, own: Vector, random: np.random.Generator) -> Vector:  # noqa: ARG002
        """g_1."""
        first: Vector = honest[0]
        return first


class LabelFlip(Attack):
    """Honest work on false data: of C classes, label c becomes C - 1 - c."""

    name: ClassVar[str] = "label-flip"
    summary: ClassVar[str] = "honest work on data whose labels are reversed"
    source: ClassVar[str] = "arXiv 2012.10333; byzfl's client with LabelFlipping"
    poisons: ClassVar[bool] = True

    def scalars(self, honest: Honest, own: Vector, random: np.random.Generator) -> Vector:  # noqa: ARG002
        """What it found on the flipped labels."""
        return own

    def batch(self, batch: Any, classes: int) -> Any:
        """The inputs, with other labels."""
        inputs, labels = batch
        return inputs, classes - 1 - labels


def deviation(honest: Honest) -> npt.NDArray[np.float64]:
    """float64[rows, kinds, P]: the standard deviation between the honest clients (of one client: 0)."""
    if len(honest) < 2:
        return np.zeros(honest.shape[1:])
    found: npt.NDArray[np.float64] = honest.std(axis=0, ddof=1)
    return found


ATTACKS: Registry[type[Attack]] = Registry(
    "federation.attack",
    "scalarfl.attacks",
    {kind.name: kind for kind in (SignFlip, InnerProduct, Boost, Little, LittleAgainst, Gaussian, Mimic, LabelFlip)},
    fault_of_class(Attack, ("name", "summary", "source")),
    lambda kind: kind.name,
)
"""By the name in recipes; ``find`` also takes references such as "file.py:Object"."""


class Attackers:
    """The attacking clients of a simulation: the same share of all clients as ``attackers`` is of a cohort, the last.

    names: of all clients. sampled: clients of a cohort.
    """

    def __init__(self, attack: str, names: Collection[str], sampled: int, header: Header) -> None:
        self.attack = ATTACKS.find(attack, key="attack")()
        self.header = header
        count = header.attackers * len(names) // sampled
        if not count:
            raise InputError(
                f"attack = '{attack}': attackers = {header.attackers} of federation.sampled = {sampled} makes none of "
                f"the {len(names)} clients an attacker; set federation.attackers."
            )
        self.names = frozenset(sorted(names)[len(names) - count :])

    def poisoned(self, clients: Mapping[str, Any]) -> dict[str, Any]:
        """The clients' data, of which the attackers' are false if the attack is on data.

        Raises InputError for batches that are no pair of inputs and integer labels.
        """
        if not self.attack.poisons:
            return dict(clients)
        classes = 1 + max(_largest_label(self.attack.name, name, data) for name, data in clients.items())
        return {
            name: _Poisoned(data, self.attack, classes) if name in self.names else data
            for name, data in clients.items()
        }

    def falsified(self, replies: Mapping[str, bytes]) -> dict[str, bytes]:
        """The replies of a cohort, the attackers' in place of what they found; with no honest one they stay."""
        sent = {name: decode(reply, RoundReply) for name, reply in replies.items() if claims(reply, RoundReply)}
        size = math.prod(self.header.shape)
        values = {name: unpack(reply.scalars) for name, reply in sent.items()}
        found = {name: own[:size].reshape(self.header.shape) for name, own in values.items()}
        honest = [found[name] for name in sorted(found.keys() - self.names) if np.isfinite(found[name]).all()]
        falsified = dict(replies)
        if honest:
            known = np.stack(honest).astype(np.float64)
            for name in sorted(found.keys() & self.names):
                random = generator(self.header.seed, "attack", name, sent[name].round)
                false = np.asarray(self.attack.scalars(known, found[name], random), dtype=np.float32)
                falsified[name] = encode(
                    msgspec.structs.replace(sent[name], scalars=pack(false) + pack(-values[name][size:]))
                )
        return falsified


class _Poisoned:
    """An attacker's data."""

    def __init__(self, data: Any, attack: Attack, classes: int) -> None:
        self.data = data
        self.attack = attack
        self.classes = classes

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return self.data[index]

    def batch(self, indices: npt.NDArray[np.int64]) -> Any:
        """The examples at ``indices``, falsified."""
        return self.attack.batch(self.data.batch(indices), self.classes)


def _largest_label(attack: str, name: str, data: Any) -> int:
    batch = data.batch(np.arange(len(data)))
    try:
        _, labels = batch
        if labels.is_floating_point():
            raise TypeError("labels are not integers")
        return int(labels.max())
    except (TypeError, ValueError, AttributeError):
        raise InputError(
            f"attack = '{attack}': a batch of '{name}' is no pair of inputs and integer labels; choose another attack."
        ) from None
