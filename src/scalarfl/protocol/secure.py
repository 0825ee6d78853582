"""Secure sums in a federation: what they can be combined with, and what both sides compute. No torch here."""

import hashlib
import math
from collections.abc import Sequence

from scalarfl.errors import InputError
from scalarfl.ledger.codec import encode
from scalarfl.ledger.header import Header
from scalarfl.privacy.secure_sum import LARGEST_COHORT, SEED
from scalarfl.protocol.aggregation import Aggregator, Mean
from scalarfl.protocol.messages import (
    Counted,
    Masked,
    Opened,
    Peer,
    RoundReply,
    RoundTask,
    SecureTask,
    Shared,
    Shares,
)

FEWEST = 3
"""Clients in a secure sum: of two, each learns the other's scalars from their sum."""
NONCE, TAG = 12, 16
"""Bytes of a nonce, and of what sealing adds."""
SEALED = 2 * SEED + TAG
"""Bytes of a sealed share."""
BESIDE_SCALARS = 1024
"""Bytes of a reply that are not scalars, at most."""


def check_secure_sum(minimum: int, aggregation: Aggregator, directions: str, attackers: int) -> None:
    """Raise InputError, with the reason, where the server would need every client's own scalars."""
    if not minimum:
        return
    given = f"secure_sum = {minimum}"
    if minimum < FEWEST:
        raise InputError(
            f"{given}: of a sum of two, each of them learns the other's scalars; accepted are 0 (no secure sum) or at "
            f"least {FEWEST}."
        )
    if directions != "shared":
        raise InputError(f"{given}: scalars on own directions have no sum. Use directions = 'shared'.")
    if type(aggregation) is not Mean:
        raise InputError(
            f"{given}: aggregation = '{aggregation.name}' needs each client's scalars or number of examples, which the "
            "server does not learn; accepted: mean."
        )
    if attackers:
        raise InputError(
            f"{given}: attackers = {attackers}: no rule withstands false scalars that nobody sees. Leave one of them "
            "out."
        )


def check_cohort(minimum: int, sampled: int, lr: float | str) -> None:
    """Raise InputError for a run in which there can be no secure sum."""
    if minimum and lr == "auto":
        raise InputError(
            f"secure_sum = {minimum}: lr = 'auto' needs each client's slope along the latest step. Give a number."
        )
    if minimum and not minimum <= sampled <= LARGEST_COHORT:
        raise InputError(
            f"secure_sum = {minimum}: accepted are cohorts of {minimum} to {LARGEST_COHORT} clients, "
            f"federation.sampled is {sampled}."
        )


def cohort_digest(header: Header, round_: int, peers: Sequence[Peer]) -> bytes:
    """32 bytes: what all masks and seals of a round are bound to."""
    parts = [
        header.digest(),
        str(round_).encode(),
        *(part for peer in peers for part in (peer.name.encode(), peer.key)),
    ]
    return hashlib.sha256(b"".join(len(part).to_bytes(4, "little") + part for part in parts)).digest()


def legs(header: Header, client: str, sampled: int) -> tuple[int, int]:
    """Bytes (up, down) that a secure sum adds to a client's round."""
    context, round_, count = bytes(32), 1000, 8 * math.prod(header.shape)
    deposit, sealed = bytes(SEED * sampled + TAG), [b"", *[bytes(SEALED)] * (sampled - 1)]
    up = [
        Shares(client, round_, context, bytes(NONCE), sealed, deposit),
        Masked(client, round_, context, bytes(count)),
        Opened(client, round_, context, bytes(SEED * sampled)),
    ]
    down = [
        SecureTask(round_, 2**63, 1e-3, 0, [], [Peer(client, context, b"")] * sampled),
        Shared(round_, context, [(number, bytes(NONCE), one) for number, one in enumerate(sealed)]),
        Counted(round_, context, list(range(sampled))),
    ]
    plain = RoundReply(client, round_, 1000, bytes(count // 2)), RoundTask(round_, 2**63, 1e-3, 0, [])
    sizes = [sum(len(encode(message)) for message in messages) for messages in (up, down)]
    return sizes[0] - len(encode(plain[0])), sizes[1] - len(encode(plain[1]))


def longest_reply(header: Header, sampled: int) -> int:
    """Bytes of a client's longest reply."""
    scalars = math.prod(header.shape)
    if not header.secure_sum:
        return 4 * (scalars + header.extra) + BESIDE_SCALARS
    return max(8 * scalars, 128 * sampled) + BESIDE_SCALARS
