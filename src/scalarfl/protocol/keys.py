"""Groups of keys as users write them, and the keys of secure sums. No torch here."""

from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator


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
        lt=2**31,
        description="K: the server learns only sums of the scalars of at least so many clients, not one client's own; "
        "0: it learns each client's",
    )
    secure_bound: float = Field(
        1000.0, gt=1e-30, lt=1e30, description="of a secure sum: larger scalars are cut to this magnitude"
    )
