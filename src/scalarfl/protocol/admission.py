"""What a server refuses: a client whose handshake differs from its ledger, a cohort whose record would be too long."""

import math

from scalarfl.errors import InputError, ProtocolError
from scalarfl.ledger.codec import MAX_BYTES
from scalarfl.ledger.header import Header
from scalarfl.ledger.store import Ledger
from scalarfl.protocol.messages import PROTOCOL, Hello

_PARTS = {
    "seed": "seed",
    "aggregation": "aggregation",
    "batch_size": "batch size",
    "method": "method, method settings or privacy",
    "generator": "generator of directions",
    "base": "base model",
    "layout": "set of trainable parameters (names or shapes)",
}


def check(hello: Hello, contract: dict[str, bytes], ledger: Ledger) -> None:
    """Raise ProtocolError, which says what differs, unless the client agrees with this ledger.

    contract: the ledger's ``Header.contract()``.
    """
    who = f"client '{hello.client}'"
    if hello.protocol != PROTOCOL:
        raise ProtocolError(f"{who} speaks protocol {hello.protocol}, this server {PROTOCOL}.")
    for part, expected in contract.items():
        if getattr(hello, part) != expected:
            raise ProtocolError(f"{who} has another {_PARTS[part]} than this federation.")
    if hello.position > ledger.rounds:
        raise ProtocolError(f"{who} has applied {hello.position} rounds, the ledger holds {ledger.rounds}.")
    if hello.trail != ledger.trail_at(hello.position)[:8]:
        raise ProtocolError(f"{who} has applied other updates than this ledger's.")


LONGEST_INTEGER = 9  # bytes


def check_size(header: Header, sampled: int) -> None:
    """Raise InputError where a round's record could be longer than a message may be."""
    slots = sampled if header.directions != "shared" else 1
    size = slots * (4 * math.prod(header.shape) + LONGEST_INTEGER)
    if size > MAX_BYTES - 100:  # the other fields
        raise InputError(
            f"sampled = {sampled}, local_steps = {header.local_steps}, perturbations = {header.perturbations}: "
            f"a record would take {size} bytes, accepted are {MAX_BYTES}; lower one."
        )
