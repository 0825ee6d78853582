"""How the server makes one vector of scalars out of the cohort's. A new rule is one file; see ``base.Aggregator``."""

import copy

from scalarfl.errors import InputError
from scalarfl.protocol.aggregation.base import (
    WEIGHT,
    Aggregator,
    Linear,
    Reply,
    Scalars,
    State,
    Weights,
    per_client,
    pooled,
    shared,
)
from scalarfl.protocol.aggregation.clip import Clip
from scalarfl.protocol.aggregation.means import Mean, Weighted
from scalarfl.protocol.aggregation.robust import Median, NnmTrim, TrimmedMean
from scalarfl.registry import Registry, fault_of_class

AGGREGATIONS: Registry[type[Aggregator]] = Registry(
    "federation.aggregation",
    "scalarfl.aggregations",
    {kind.name: kind for kind in (Mean, Weighted, Clip, Median, TrimmedMean, NnmTrim)},
    fault_of_class(Aggregator, ("name", "summary", "source")),
    lambda kind: kind.name,
)
"""By the name in recipes; ``find`` also takes references such as "file.py:Object"."""


def make_aggregator(
    given: str | Aggregator, *, directions: str = "shared", dense: bool = False, attackers: int = 0
) -> Aggregator:
    """The rule of this name. Raises InputError for one that does not go with the directions or with a baseline.

    given: a name, a reference, or the rule itself. dense: whether a baseline that sends tensors is to use it.
    attackers: clients of a cohort that may lie.
    """
    if isinstance(given, Aggregator):
        AGGREGATIONS.own_name(type(given), "aggregation")
    rule = given if isinstance(given, Aggregator) else AGGREGATIONS.find(given, key="aggregation")()
    if not isinstance(rule, Linear) and (dense or directions != "shared"):
        linear = ", ".join(name for name, kind in AGGREGATIONS.own.items() if issubclass(kind, Linear))
        because = "a baseline sends tensors" if dense else f'clients with directions = "{directions}" share none'
        raise InputError(
            f"aggregation = '{rule.name}': it compares scalars on shared directions, and {because}; accepted: {linear}."
        )
    if attackers != rule.attackers:
        rule = copy.copy(rule)  # what was given stays as it is
        rule.attackers = attackers
    return rule


def check_attackers(rule: Aggregator, attackers: int, sampled: int, *, attacked: bool = False) -> None:
    """Raise InputError unless the rule can withstand so many attackers in a cohort.

    attacked: whether a simulation attacks the rule, which may then be the mean: to show what happens.
    """
    if rule.needs_attackers and not attackers:
        raise InputError(
            f"aggregation = '{rule.name}': it removes nothing with attackers = 0; set federation.attackers to the "
            "number of clients of a cohort that may send false scalars."
        )
    if isinstance(rule, Linear):
        if attackers and not (attacked and isinstance(rule, Mean)):
            because = "one false reply moves it without bound"
            if not isinstance(rule, Mean):
                because = "a client's weight is what it claims"
            robust = ", ".join(name for name, kind in AGGREGATIONS.own.items() if not issubclass(kind, Linear))
            raise InputError(f"attackers = {attackers}: aggregation = '{rule.name}': {because}; accepted: {robust}.")
    elif 2 * attackers >= sampled:
        raise InputError(
            f"attackers = {attackers}: no rule withstands half of a cohort; accepted are at most "
            f"{(sampled - 1) // 2} of federation.sampled = {sampled}."
        )


__all__ = [
    "AGGREGATIONS",
    "WEIGHT",
    "Aggregator",
    "Clip",
    "Linear",
    "Mean",
    "Median",
    "NnmTrim",
    "Reply",
    "Scalars",
    "State",
    "TrimmedMean",
    "Weighted",
    "Weights",
    "check_attackers",
    "make_aggregator",
    "per_client",
    "pooled",
    "shared",
]
