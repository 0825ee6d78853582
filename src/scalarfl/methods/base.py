"""What a scalar-only method is: an initial state and up to four pure functions.

Any rule fits whose next state is a deterministic function of seeds, transmitted scalars and shared state (arXiv
2506.02370, section 3). A method never sees a whole model: it is given the state of some coordinates, any slice of
any tensor, and must treat every coordinate alike and alone. That is what lets replay carry a block of coordinates
through many rounds while it sits in cache, on any number of threads, with the same bits.
"""

from collections.abc import Sequence
from inspect import get_annotations
from itertools import combinations
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from scalarfl.errors import InputError

Difference = Literal["forward", "central", "second"]

State = dict[str, Tensor]
"""A method's state for some coordinates: float32 tensors of the coordinates' shape, or of shape () where one number
serves all coordinates."""


def square_root(x: Tensor) -> Tensor:
    """The correctly rounded float32 square root of a float32 tensor.

    ``torch.sqrt`` is not: on CPUs with MKL it goes through a vector library that misses the last bit for one value in
    six. NumPy's is. Elsewhere it is taken in float64 and rounded once: a float32 number's root is never so close to the
    middle between two float32 numbers that a small error in float64 could matter.
    """
    if x.device.type == "cpu":
        root = torch.empty_like(x)
        np.sqrt(x.numpy(), out=root.numpy())
        return root
    return torch.sqrt(x.double()).float()


class LocalStep(NamedTuple):
    """One local step of a round, as a method learns from it."""

    dx: Tensor
    """float32, the coordinates' Dx = sum_p c_p z_p with the coefficients c; the parameters move by -lr * dx."""
    coefficients: Sequence[float]
    """What ``Method.weigh`` made of gbar_p / P for every direction, each a float32 value: all that a rule on scalars
    alone needs."""
    step: int
    """Index of the local step, 0 to ``local_steps - 1``."""
    local_steps: int
    curvature: Tensor | None = None
    """float32, (1/P) sum_p cbar_p u_p^2, where c_p is the loss's second difference along z_p; None unless the method is
    ``curved``."""


class Fused(NamedTuple):
    """Kernels that do at once what a method's functions do one after another, with the same bits.

    By their names in ``kernels.Kernels``; a device may lack them. None: there is no such kernel.
    """

    vector: str = ""
    """The vector of the state that they work on."""
    displace: str | None = None
    """x + mu z: stands in for ``scale``."""
    carry: str | None = None
    """Replay: stands in for ``scale``, ``learn`` and ``step``. Gets ``Method.constants``."""


class Method(BaseModel):
    """A scalar-only update rule, a pydantic model: its fields are the validated settings, its methods pure functions.

    The framework draws the noise u, aggregates the scalars and moves the parameters. A step of a round is

        c   = weigh(gbar / P)               the weights of the directions
        Dx  = sum_p c_p s u_p               s = scale(state), of the state that the round began with
        state <- learn(state, Dx, c)
        x  <- x - lr step(state, Dx, c)

    and a method overrides what differs from plain zeroth-order SGD. A *preconditioner* (``HiSo``) is ``scale`` with
    ``init`` and ``learn``; a *step rule* (``Fzoo``, ``Momentum``) is ``step``, with ``init`` and ``learn`` where it has
    state. These call ``super()`` and add to what it returns, so that a class with two parents is both::

        class HiSoFzoo(Fzoo, HiSo):
            name: ClassVar[str] = "hiso-fzoo"

    All arithmetic is float32 with separate products and sums: never ``add(alpha=)``, ``addcmul``, ``lerp``, ``rsqrt``
    or ``torch.sqrt``, which round differently from device to device.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    name: ClassVar[str]
    """The name in recipes."""
    summary: ClassVar[str]
    """One line for ``scalarfl methods``."""
    source: ClassVar[str]
    """Where the rule was published."""
    vectors: ClassVar[int] = 0
    """Number of float32 vectors of length d that the state takes. Two parents that have some add up: say so."""

    difference: ClassVar[Difference] = "forward"
    """How clients measure along a direction, where the recipe does not say: "forward", (f(x + mu z) - f(x)) / mu, takes
    P + 1 losses a step; "central", (f(x + mu z) - f(x - mu z)) / (2 mu), takes 2 P; "second" is central, and the second
    difference (f(x + mu z) + f(x - mu z) - 2 f(x)) / mu^2 besides: 2 P + 1 losses, two scalars a direction."""
    directions: ClassVar[int] = 1
    """Directions a local step that it needs at least."""
    transforms: ClassVar[tuple[str, ...]] = ()
    """What clients do to their scalars before sending, where the recipe does not say (``protocol.transforms``)."""
    fused: ClassVar[Fused] = Fused()
    """Kernels of its own. A subclass keeps those whose functions it does not override."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Refuse a setting that two parents declare, each with its own meaning."""
        own = get_annotations(cls)
        for one, other in combinations([parent for parent in cls.__bases__ if issubclass(parent, Method)], 2):
            for key in one.model_fields.keys() & other.model_fields.keys() - own.keys():
                if repr(one.model_fields[key]) != repr(other.model_fields[key]):
                    raise InputError(
                        f"{cls.__name__}: '{key}' is a setting of {one.__name__} and of {other.__name__}; declare it "
                        f"in {cls.__name__} to serve both."
                    )

    def init(self, like: Tensor) -> State:
        """The state before the first round, for coordinates shaped and placed like ``like``. By default none."""
        return {}

    def weigh(self, coefficients: Sequence[float]) -> Sequence[float]:
        """The weights of the directions of one local step, from gbar_p / P; as many, finite. By default unchanged.

        Sign, clip and rank rules go here. A client in mid-round weighs its own scalars, g_p / P.
        """
        return coefficients

    def scale(self, state: State) -> Tensor | None:
        """s in z = s * u, broadcastable to the coordinates; None if z = u, the default. Called once a round."""
        return None

    def learn(self, state: State, move: LocalStep) -> State:
        """The state after one local step; called for every step of a round, in order. By default unchanged.

        The directions of a round are all scaled by the state the round began with. The tensors of ``state`` must not be
        changed in place.
        """
        return state

    def step(self, state: State, move: LocalStep) -> Tensor:
        """What the parameters move along: x <- x - lr * step. By default Dx itself.

        Called after ``learn``, with the state that has learnt from this very move. A client in mid-round lets a copy of
        the state learn from its own scalars.
        """
        return move.dx

    def constants(self) -> dict[str, Any] | None:
        """What the kernel ``fused.carry`` needs to know beside the scalars; None if it cannot do these settings."""
        return {}

    def kernel(self, kind: Literal["displace", "carry"]) -> str | None:
        """The name of the kernel that may stand in for this method's functions; None if one is overridden."""
        own = type(self)
        owner = next(parent for parent in own.__mro__ if "fused" in vars(parent))
        functions = ("scale",) if kind == "displace" else ("scale", "learn", "step")
        if any(getattr(own, name) is not getattr(owner, name) for name in functions):
            return None
        return self.fused.displace if kind == "displace" else self.fused.carry

    def weights(self, coefficients: Sequence[float]) -> tuple[float, ...]:
        """What ``weigh`` makes of a step's coefficients, as everything that follows uses them: float32 values."""
        if type(self).weigh is Method.weigh:
            return tuple(coefficients)
        return tuple(np.asarray(self.weigh(coefficients), dtype=np.float32).tolist())

    @classmethod
    def unscaled(cls) -> bool:
        """Whether z = u, in all coordinates."""
        return cls.scale is Method.scale

    @property
    def curved(self) -> bool:
        """Whether the rule learns from ``LocalStep.curvature``. Such a rule moves along Dx itself: it is ``plain``."""
        return self.difference == "second"

    @property
    def plain(self) -> bool:
        """Whether the parameters move along Dx itself."""
        return type(self).step is Method.step
