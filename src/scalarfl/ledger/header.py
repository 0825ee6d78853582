"""The header of a ledger: what a federation's parties must agree on before the first round."""

import hashlib
from typing import Any, Literal

import msgspec

from scalarfl.noise.table import GENERATOR, TABLE_DIGEST

FORMAT = 2
READABLE = (1, 2)
"""Format 1, of version 0.1, has no settings and no batch size; such a ledger can be read but not resumed."""


FoundBy = Literal["forward", "central", "second", "exact", "training"]
"""How clients find a direction's scalar: by differences of P + 1 losses a step, of 2 P, or of 2 P + 1; exactly, by a
backward pass; or as the projection of the move over all local steps."""


FOLLOWED: tuple[FoundBy, ...] = ("exact", "training")
"""The ways that take backward passes."""


BACKWARD = 2
"""What a backward pass counts for in ``forward_passes``."""


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The federation's agreed settings. Its digest is the first link of both hash chains."""

    format: int = FORMAT
    generator: str = GENERATOR
    table: str = TABLE_DIGEST
    base: str
    """Digest of the base model (``model.digest``)."""
    layout: str
    """Digest of the trainable tensors' names and shapes."""
    dimension: int
    method: str
    settings: dict[str, Any]
    """The method's own settings."""
    mu: float
    perturbations: int
    local_steps: int
    directions: Literal["shared", "per-client", "per-example"]
    found_by: FoundBy = msgspec.field(default="forward", name="difference")
    lr: Literal["given", "auto"] = "given"
    """"auto": clients also measure the slope along the latest move, by which the server sets the learning rate."""
    aggregation: str
    attackers: int = 0
    """F, clients of a cohort that may send false scalars; what the aggregation is to withstand."""
    batch_size: int | None = None
    """Examples in a client's batch; None if clients need not agree on it, and in format 1."""
    secure_sum: int = 0
    """K: the server learns only sums of the scalars of at least so many clients; 0: it learns each client's."""
    secure_bound: float = 0.0
    """Largest magnitude of a scalar in such a sum."""
    transforms: list[dict[str, Any]] = []
    """What clients do to their scalars before they send them: names and settings, in order."""
    privacy: dict[str, Any] | None = None
    """What clients promise: epsilon, delta, clip and unit; None without differential privacy."""
    seed: int

    def encoded(self) -> bytes:
        """Canonical JSON: keys sorted; what is None, no attackers, no secure sum, no transforms and a given lr are left
        out."""
        content = msgspec.to_builtins(self)
        if not self.attackers:
            del content["attackers"]
        if not self.secure_sum:
            del content["secure_sum"], content["secure_bound"]
        if not self.transforms:
            del content["transforms"]
        for key in ("batch_size", "privacy"):
            if content[key] is None:
                del content[key]
        if self.lr == "given":
            del content["lr"]
        return msgspec.json.encode(content, order="sorted")

    @property
    def losses(self) -> int:
        """Forward passes of one batch that a client takes for a round."""
        return self.local_steps * losses(self.perturbations, self.found_by)

    @property
    def extra(self) -> int:
        """Scalars that a client sends beside the directions': the slope along the latest move, for lr = "auto"."""
        return 1 if self.lr == "auto" else 0

    @property
    def kinds(self) -> int:
        """Scalars that a client sends for a direction."""
        return 2 if self.found_by == "second" else 1

    @property
    def rows(self) -> int:
        """Scalars that a client sends for a direction and kind: one a local step, or one for all of them."""
        return 1 if self.found_by == "training" else self.local_steps

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the scalars that a client sends for a round: rows, kinds, directions.

        Of a direction for every example: the first P of them are the first example's, and so on.
        """
        own = (self.batch_size or 1) if self.directions == "per-example" else 1
        return self.rows, self.kinds, own * self.perturbations

    def digest(self) -> bytes:
        """SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.encoded()).digest()

    def contract(self) -> dict[str, bytes]:
        """The 8-byte digests of what client and server must agree on, by name, in the order they are compared.

        What other parts follow from comes first: a seed decides on the weights of a model from scratch, a base model
        on the layout.
        """
        limits = [self.attackers, *([self.secure_sum, self.secure_bound] if self.secure_sum else [])]
        parts = {
            "seed": self.seed,
            "aggregation": [self.aggregation, *limits] if any(limits) else self.aggregation,
            "batch_size": self.batch_size,
            "method": [
                self.method,
                self.settings,
                self.mu,
                self.perturbations,
                self.local_steps,
                self.directions,
                self.found_by,
                *([self.transforms] if self.transforms else []),
                *([{"lr": "auto"}] if self.lr == "auto" else []),
                *([] if self.privacy is None else [self.privacy]),
            ],
            "generator": [self.generator, self.table],
            "base": self.base,
            "layout": self.layout,
        }
        return {
            name: hashlib.sha256(msgspec.json.encode(part, order="sorted")).digest()[:8] for name, part in parts.items()
        }


def losses(perturbations: int, found_by: str) -> int:
    """Forward passes of one batch that a local step takes; a backward pass counts as ``BACKWARD``."""
    known = {"forward": perturbations + 1, "central": 2 * perturbations, "second": 2 * perturbations + 1}
    return known.get(found_by, 1 + BACKWARD)


def losses_along(found_by: str) -> int:
    """Forward passes that the slope along one more direction takes."""
    return {"forward": 1, "central": 2, "second": 2}.get(found_by, 0)
