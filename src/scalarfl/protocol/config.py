"""The keys of a federation and of a run, each declared once with its range, default and description.

``FederationConfig`` is what all parties must agree on. Together with the base model it determines the ledger's header,
whose digests the handshake compares. ``RunConfig`` contains one run's settings. Recipes and the keywords of
``simulate`` use these keys. This module does not import torch, which a server does not need.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self, TypedDict, TypeVar

from pydantic import AfterValidator, Field, PlainValidator, ValidationError, model_validator

from scalarfl.errors import InputError, nearest, refused
from scalarfl.ledger.header import FoundBy, Header
from scalarfl.noise.table import GENERATORS, Kind, Noise
from scalarfl.privacy.accountant import Promise
from scalarfl.protocol.aggregation import AGGREGATIONS, Aggregator, make_aggregator
from scalarfl.protocol.attacks import ATTACKS
from scalarfl.protocol.keys import LARGE, Keys, Privacy, SecureSum, evaluate_every, frozen_cache, patience, sampled
from scalarfl.protocol.own_directions import Directions, generator_of
from scalarfl.protocol.private import check_promise
from scalarfl.protocol.secure import check_secure_sum
from scalarfl.protocol.transforms import Transform, described_transforms, make_transforms

Slopes = Literal["difference", "exact", "training"]
"""How scalars are found, as users write it; ``FoundBy`` has the details."""
BY_LOSSES: Final = "difference"
Difference = Literal["forward", "central", "second"]
LocalOptimizer = Literal["sgd", "adam", "adamw"]


def _known(name: str) -> str:
    AGGREGATIONS.find(name)
    return name


def _attack(name: str) -> str:
    ATTACKS.find(name)
    return name


def _method(given: Any) -> Any:
    from scalarfl.protocol.arguments import a_method  # imports torch

    return a_method(given)


if TYPE_CHECKING:
    from scalarfl.methods import Method

    AMethod = Method
    AnAggregator = Aggregator
else:
    AMethod = Annotated[Any, PlainValidator(_method)]
    AnAggregator = Annotated[Any, PlainValidator(make_aggregator)]


def _picked(keys: Mapping[str, Any], federation: type[Keys], method: type[Keys]) -> dict[str, Any]:
    """The values of these keys of a recipe's two tables; a ledger is silent about some keys at their defaults."""
    tables = (("federation", federation), ("method", method))
    names = {f"{table}.{key}": key for table, fields in tables for key in fields.model_fields}
    return {key: keys[name] for name, key in names.items() if name in keys}


class AgreedFederation(SecureSum):
    """What parties agree on, of a recipe's table [federation]."""

    local_steps: int = Field(1, ge=1, lt=LARGE, description="tau, local steps per round")
    batch_size: int = Field(16, ge=1, lt=LARGE, description="examples in a client's batch")
    aggregation: Annotated[str, AfterValidator(_known)] = Field(
        "mean",
        description='"mean", "weighted" (by number of examples), "file.py:Rule"; against false scalars "nnm-trim", '
        '"trimmed-mean", "median", "clip" (to the running median norm)',
    )
    attackers: int = Field(
        0,
        ge=0,
        lt=LARGE,
        description="F, clients of a cohort that may send false scalars: what the aggregation is to withstand",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of every random draw")


class AgreedMethod(Keys):
    """What parties agree on, of a recipe's table [method]."""

    mu: float = Field(1e-3, gt=1e-30, lt=1e30, description="mu, perturbation size")
    perturbations: int = Field(5, ge=1, le=4096, description="P, directions per local step")
    directions: Directions = Field(
        "shared",
        description='"shared" by the cohort, or own ones for each client or example: "per-client", "per-example"',
    )
    slopes: Slopes = Field(
        BY_LOSSES,
        description='how clients find their scalars: by a "difference" of losses (forward passes only), "exact" (a '
        'backward pass), or by "training" (the projections of what local_steps steps of an optimizer did)',
    )
    difference: Difference | None = Field(
        None,
        examples=["central"],
        description='how clients measure: "forward" (P + 1 losses a step), "central" (2 P), "second" (2 P + 1, and two '
        "scalars a direction); left out: the method's own way",
    )
    transforms: list[str | dict[str, Any]] | None = Field(
        None,
        examples=[["sign"]],
        description='what clients do to their scalars before they send them, in order: "sign", or {name = "clip", '
        "norm = 1.0}; left out: the method's own way",
    )
    noise: Noise = Field(
        "normal", description='what directions are made of: "normal", or "hadamard" (orthogonal signs, faster)'
    )


class Agreed(AgreedMethod, AgreedFederation):
    """What parties agree on, whatever the method."""

    @classmethod
    def of(cls, method: Any, keys: Mapping[str, Any]) -> Self:
        """Of a method and a recipe's keys, named like ``method.mu``."""
        return cls.model_validate({"method": method} | _picked(keys, AgreedFederation, AgreedMethod))


class FederationConfig(Agreed):
    """What all parties of a federation must agree on, beside the base model and its trainable parameters.

    Raises InputError for conflicting settings.
    """

    method: AMethod = Field("hiso", validate_default=True, description="a scalar-only method or its name")
    aggregation: AnAggregator = Field(  # type: ignore[assignment]  # from Python it may be the rule itself
        "mean", validate_default=True, description=str(AgreedFederation.model_fields["aggregation"].description)
    )
    privacy: Privacy | None = Field(
        None,
        examples=[{"epsilon": 2.0, "clip": 1.0}],
        description="differential privacy: epsilon, delta, clip and unit of a recipe's table [privacy]; None: none",
    )

    @classmethod
    def of(cls, method: Any, keys: Mapping[str, Any]) -> Self:
        """Of a method and a recipe's keys, named like ``method.mu``."""
        private = {key.partition(".")[2]: value for key, value in keys.items() if key.startswith("privacy.")}
        given = {"method": method, "privacy": private or None} | _picked(keys, AgreedFederation, AgreedMethod)
        return cls.model_validate(given)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _ = self.found_by, self.pipeline, self.generator
        make_aggregator(self.aggregation, directions=self.directions)
        check_secure_sum(self.secure_sum, self.aggregation, self.directions, self.attackers)
        if self.privacy is not None:
            promise = Promise.of(self.privacy.model_dump())
            check_promise(promise, self.found_by, self.aggregation, self.secure_sum, self.directions)
        return self

    @property
    def found_by(self) -> FoundBy:
        """How clients find their scalars. Raises InputError if the method cannot learn from such scalars."""
        method, asked, own = self.method, self.difference, self.method.difference
        if self.perturbations < method.directions:
            raise InputError(
                f"perturbations = {self.perturbations}: '{method.name}' needs at least {method.directions} directions "
                "a step."
            )
        unlearnt = method.curved and asked not in (None, own)
        if unlearnt or (asked is not None and self.slopes != BY_LOSSES):
            reason = f"'{method.name}' learns from second differences" if unlearnt else f"slopes = '{self.slopes}'"
            raise InputError(f"difference = '{asked}': {reason}; leave the key out.")
        if self.slopes == BY_LOSSES:
            return asked or own
        if method.curved:
            raise InputError(f"slopes = '{self.slopes}': '{method.name}' learns from second differences of losses.")
        return self.slopes

    @property
    def generator(self) -> Kind:
        """What makes the directions. Raises InputError for what cannot be combined with those of examples."""
        return generator_of(self.directions, self.method, self.noise, self.slopes)

    @property
    def pipeline(self) -> tuple[Transform, ...]:
        """What clients do to their scalars. Raises InputError for a transform that there is not."""
        return make_transforms(self.method.transforms if self.transforms is None else self.transforms)

    def header(self, base: str, layout: str, dimension: int, lr: float | Literal["auto"] | None = None) -> Header:
        """The header of the federation's ledger. base, layout: digests of the base model and of what is trained.

        lr: the run's; parties agree on whether it is "auto", not on its value.
        """
        generator, table = GENERATORS[self.generator]
        same = {key: getattr(self, key) for key in Agreed.model_fields if key in Header.__struct_fields__}
        return Header(
            base=base,
            layout=layout,
            dimension=dimension,
            method=self.method.name,
            settings=self.method.model_dump(),
            found_by=self.found_by,
            lr="auto" if lr == "auto" else "given",
            generator=generator,
            table=table,
            privacy=None if self.privacy is None else self.privacy.model_dump(),
            **same
            | {"aggregation": self.aggregation.name, "transforms": described_transforms(self.pipeline)}
            | ({} if self.secure_sum else {"secure_bound": 0.0}),
        )


class RunFederation(Keys):
    """A run's settings in a recipe's table [federation]."""

    rounds: int = Field(1000, ge=0, lt=LARGE, description="R, number of rounds")
    attack: Annotated[str, AfterValidator(_attack)] | None = Field(
        None,
        examples=["alie"],
        description='what attackers of a simulation do: "sign-flip", "ipm", "boost", "alie", "alie-against", '
        '"gaussian", "mimic", "label-flip", "file.py:Attack"; left out: there are none',
    )


class RunMethod(Keys):
    """A run's settings in a recipe's table [method]."""

    lr: Annotated[float, Field(gt=0, lt=1e30)] | Literal["auto"] = Field(
        1e-3,
        description='eta, learning rate; by default 1e-5 in a recipe with a pretrained model; "auto": the run finds it,'
        " without a sweep",
    )
    lr_start: float | None = Field(
        None,
        gt=0,
        lt=1e30,
        examples=[1e-4],
        description='where lr = "auto" begins; left out: so low that the first step is a tenth of mu',
    )
    local_lr: float = Field(0.1, gt=0, description='learning rate of the clients\' optimizer, with slopes = "training"')
    local_optimizer: LocalOptimizer = Field("sgd", description='that optimizer: "sgd", "adam" or "adamw"')

    @property
    def first_lr(self) -> float | None:
        """The learning rate of the first round; None where ``lr = "auto"`` is to find that too."""
        return self.lr_start if self.lr == "auto" else self.lr

    @model_validator(mode="after")
    def _start_without_search(self) -> Self:
        if self.lr_start is not None and self.lr != "auto":
            raise InputError("lr_start: it is where lr = 'auto' begins; leave it out, or set lr = 'auto'.")
        return self


class RunConfig(RunMethod, RunFederation):
    """One run's settings. All but ``frozen_cache``, which changes no bit, are recorded on the ledger.

    A resumed run may change only ``rounds``.
    """

    sampled: int | None = sampled(None)
    """None: all clients."""
    evaluate_every: int = evaluate_every()
    patience: int = patience()
    frozen_cache: int | None = frozen_cache()

    @classmethod
    def of(cls, keys: Mapping[str, Any]) -> Self:
        """Out of a recipe's keys, named like ``method.lr``."""
        others = {"sampled": keys["federation.sampled"], "evaluate_every": keys["evaluation.every"]}
        others["patience"] = keys.get("evaluation.patience", 0)
        return cls.model_validate(others | _picked(keys, RunFederation, RunMethod))


class Keywords(TypedDict, total=False):
    """The keys of both configurations by type, for editors and type checkers; a test holds this against them."""

    method: "str | Method"
    local_steps: int
    batch_size: int
    aggregation: "str | Aggregator"
    attackers: int
    secure_sum: int
    secure_bound: float
    seed: int
    mu: float
    perturbations: int
    directions: Directions
    slopes: Slopes
    difference: Difference | None
    transforms: list[str | dict[str, Any]] | None
    noise: Noise
    privacy: "Privacy | Mapping[str, Any] | None"
    rounds: int
    attack: str | None
    lr: float | Literal["auto"]
    lr_start: float | None
    local_lr: float
    local_optimizer: LocalOptimizer
    sampled: int | None
    evaluate_every: int
    patience: int
    frozen_cache: int | None


KEYS = {**FederationConfig.model_fields, **RunConfig.model_fields}

Config = TypeVar("Config", FederationConfig, RunConfig)


def configured(
    config: FederationConfig | None, run: RunConfig | None, keywords: Keywords
) -> tuple[FederationConfig, RunConfig]:
    """Both configurations with these keys changed. Raises InputError that names the key and what is accepted."""
    for key in keywords.keys() - KEYS.keys():
        raise InputError(f"{key}: no such keyword; {nearest(key, [*KEYS, *OTHERS])}")
    return _changed(FederationConfig, config, dict(keywords)), _changed(RunConfig, run, dict(keywords))


OTHERS = ("trainable", "evaluate", "ledger", "resume", "callbacks", "progress", "order")
"""The other keywords of ``simulate``."""


def _changed(kind: type[Config], given: Config | None, keywords: dict[str, Any]) -> Config:
    before = {} if given is None else {key: getattr(given, key) for key in kind.model_fields}
    try:
        return kind.model_validate(before | {key: keywords[key] for key in kind.model_fields.keys() & keywords.keys()})
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        raise refused(key, keywords.get(key), first["msg"]) from None


def described() -> str:
    """The keys of both configurations with their defaults and sentences, for ``help(simulate)``."""
    return "\n".join(f"        {key}: {info.description} ({info.default!r})." for key, info in KEYS.items())
