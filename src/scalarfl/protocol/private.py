"""Differential privacy in a federation: what cannot be promised, and a client's budget. No torch here."""

from collections import Counter
from pathlib import Path

from scalarfl.errors import InputError, ProtocolError
from scalarfl.ledger.codec import claims, decode
from scalarfl.ledger.header import FoundBy, Header
from scalarfl.ledger.store import Ledger
from scalarfl.privacy.accountant import Promise, participations, terms
from scalarfl.privacy.budget import Budget
from scalarfl.protocol.aggregation import Aggregator, Linear, Mean
from scalarfl.protocol.messages import Failed

SPENT = "BudgetSpent"
"""Reason of the failure that a client reports whose budget is spent: the server asks it no more."""
HIDDEN = "failed"
"""Reason of any other failure of a private client: the kind of an error may depend on an example."""


def check_promise(
    promise: Promise, found_by: FoundBy, aggregation: Aggregator, secure_sum: int, directions: str
) -> None:
    """Raise InputError, with the reason, for a configuration for which the promise would not be true."""
    if directions == "per-example":
        raise InputError(
            "privacy: directions = 'per-example' sends every example's own slopes; there is no sum to noise."
        )
    if secure_sum:
        raise InputError(
            f"privacy: not together with secure_sum = {secure_sum}. With privacy each client's own noise protects its "
            "scalars from the server; leave one of them out."
        )
    if found_by == "second":
        raise InputError("privacy: second differences are not covered. Use a method that learns from slopes alone.")
    if promise.unit == "example" and found_by in ("exact", "training"):
        raise InputError(
            f"privacy.unit = 'example': slopes = '{found_by}' gives one slope for a whole batch"
            + (", of steps that mix the examples. " if found_by == "training" else ". ")
            + "Use slopes = 'difference', which gives each example's, or privacy.unit = 'client'."
        )
    if isinstance(aggregation, Linear) and not isinstance(aggregation, Mean):
        raise InputError(
            f"aggregation = '{aggregation.name}': it weights clients by their numbers of examples, which private "
            "clients do not send. Use 'mean'."
        )


def check_evaluation(private: bool, by_clients: bool) -> None:
    """Raise InputError where private clients should evaluate."""
    if private and by_clients:
        raise InputError(
            "privacy: evaluations by clients are not covered: losses and accuracies of their examples would be sent "
            "without noise. Evaluate at the server, or not at all."
        )


def is_spent(message: bytes) -> bool:
    """Whether a reply that does not count says that the client's budget is spent."""
    try:
        return claims(message, Failed) and decode(message, Failed).reason == SPENT
    except ProtocolError:
        return False


def participated(ledger: Ledger) -> Counter[str]:
    """Rounds on record for which each client was asked, and may have released something."""
    return Counter(client for _, audit in ledger.audits("round") for client in audit.cohort)


def budget(
    header: Header, examples: int, rounds: int, sampled: int, clients: int, path: Path | None, done: int = 0
) -> Budget | None:
    """A client's budget by the header's promise; None without one.

    examples: the client's. rounds, sampled, clients: of the run; the noise is calibrated for the rounds that such a
    client is likely to take part in. path: file of the budget; None in a simulation, where ``done`` is the number of
    rounds that the client was asked for already.
    """
    if header.privacy is None:
        return None
    promise = Promise.of(header.privacy)
    if promise.unit == "example" and promise.delta * examples >= 1:
        raise InputError(
            f"privacy.delta = {promise.delta:g}: with {examples:,} examples that allows one of them to be published. "
            f"Use a delta well below {1 / examples:.1g}."
        )
    planned = header.rows * participations(rounds, sampled, clients)
    at = terms(promise, examples, header.batch_size or 1, planned)
    return Budget(promise, at, header.digest(), path, header.rows * done)
