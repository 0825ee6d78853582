"""Groups of keys as users write them: privacy's, secure sums', and those that go by two names. No torch here."""

from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from scalarfl.privacy.accountant import Unit

LARGE = 2**31
"""Upper bound of every number in a configuration except the seed."""


class Keys(BaseModel):
    """A group of keys. Unknown keys are refused; values are not converted, except numpy's numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {key: value.item() if isinstance(value, np.generic) else value for key, value in given.items()}


class SecureSum(Keys):
    """Secure sums, where they are wanted (docs/secure-sum.md)."""

    secure_sum: int = Field(
        0,
        ge=0,
        lt=LARGE,
        description="K: the server learns only sums of the scalars of at least so many clients, not one client's own; "
        "0: it learns each client's",
    )
    secure_bound: float = Field(
        1000.0, gt=1e-30, lt=1e30, description="of a secure sum: larger scalars are cut to this magnitude"
    )


class Privacy(Keys):
    """Differential privacy, where it is wanted: what every client promises, and how (docs/privacy.md)."""

    epsilon: float = Field(
        gt=0, le=1000, examples=[2.0], description="largest privacy loss of a client's examples over the whole run"
    )
    delta: float = Field(1e-5, gt=0, lt=0.5, description="probability with which epsilon may fail; below 1 / examples")
    clip: float = Field(
        gt=1e-30,
        lt=1e30,
        examples=[1.0],
        description="C, largest norm of an example's slopes; larger ones are shortened",
    )
    unit: Unit = Field(
        "example", description='what is protected: one "example" of a client, or all that a "client" has'
    )


def sampled(default: int | None) -> Any:
    """The key ``sampled``, whose default differs: all clients from Python, two in a recipe."""
    return Field(default, ge=1, lt=LARGE, description="m, clients in a round's cohort")


def evaluate_every() -> Any:
    """The key ``evaluate_every``, which is ``evaluation.every`` in a recipe."""
    return Field(25, ge=1, lt=LARGE, description="rounds between evaluations; there is one more at the end")


def patience() -> Any:
    """The key ``patience``, which is ``evaluation.patience`` in a recipe."""
    return Field(
        0,
        ge=0,
        lt=LARGE,
        description="evaluations in a row without a better score after which a run ends early; 0: never",
    )


def frozen_cache() -> Any:
    """The key ``frozen_cache``, which is ``model.frozen_cache`` in a recipe."""
    return Field(
        None,
        ge=0,
        lt=LARGE,
        examples=[1024],
        description="MB of memory for the activations of frozen layers, computed once per example (more goes to a "
        'file); 0: recomputed every time; left out: 1024 with "head" and "last:N", else the model is not split',
    )
