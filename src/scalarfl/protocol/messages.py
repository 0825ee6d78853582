"""What crosses the network, and nothing else does: small versioned messages in MessagePack, validated on receipt.

No message's size depends on the model's. Two sizes are told apart everywhere: *payload*, the gradient scalars (4
bytes each) and the seeds (8 bytes each) that the algorithm itself needs; and *serialized*, the length of the encoded
message.
"""

from typing import Annotated

import msgspec

from scalarfl.errors import ProtocolError
from scalarfl.ledger.codec import Count, Name, Seed, Short, claims, decode, encode
from scalarfl.ledger.header import FoundBy

PROTOCOL = 2
"""Version of the message schema; a party with another version is refused at the handshake."""
SAY_HELLO = b"?"
"""To a client that the server's process has not admitted, or that may lack records: answer with a Hello."""
REFUSED = b"!"
"""First byte of the answer to a Hello that is refused; the reason follows, in words."""


class Hello(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=2):
    """A client's first words: who it is, what it holds and how far it has come."""

    protocol: int
    client: Name
    seed: Short
    """First 8 bytes of each digest that must agree, as the six that follow; see ``ledger.Header.contract``."""
    aggregation: Short
    batch_size: Short
    method: Short
    generator: Short
    base: Short
    layout: Short
    position: Count
    """Rounds the client's replica has applied."""
    trail: Short
    """First 8 bytes of the chain over the updates it has applied."""


class HelloOtherwise(Hello, frozen=True, tag=12):
    """Of a client that finds its scalars otherwise than the header says."""

    found_by: FoundBy


class Welcome(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=3):
    """The server's answer to a Hello that agrees with its ledger."""

    protocol: int
    rounds: Count
    """Rounds on the ledger so far."""


class RoundTask(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=4):
    """What a client of the cohort is asked: the records it lacks, then one round of probing."""

    round: Count
    seed: Seed
    lr: float
    slot: Count
    """Its slot in the cohort; always 0 with shared directions."""
    updates: list[msgspec.Raw]
    """Encoded Updates that the client lacks, oldest first; where they are too many for one message, the first ones."""


class RoundReply(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=5):
    """A client's contribution: 4 * local_steps * P bytes of scalars, whatever the model's size."""

    client: Name
    round: Count
    examples: Count
    """Size of the client's training set, for aggregation by number of examples."""
    scalars: bytes
    """float32, little endian, [local_steps, kinds, P]; ``Header.kinds`` scalars a direction. With lr = "auto" one more:
    the slope along the latest move, 0 where there is none."""


class Measure(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=6):
    """A request to measure the model after ``round`` rounds on the client's own examples."""

    round: Count
    updates: list[msgspec.Raw]
    """As in RoundTask."""


class Measured(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=7):
    """What a client measured: two numbers, on how many examples, and which replica it measured."""

    client: Name
    round: Count
    examples: Count
    loss: float
    accuracy: float | None
    digest: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    """The replica's digest."""


class Failed(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=8):
    """Instead of a reply: the client failed, so that the server does not wait for it."""

    client: Name
    round: Count
    reason: Annotated[str, msgspec.Meta(max_length=200)]
    """The kind of error alone: what it says may hold data."""


class Records(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=10):
    """A part of the ledger, for a party that catches up: as many records as one message should hold."""

    rounds: Count
    """Rounds on the ledger by now."""
    updates: list[msgspec.Raw]
    """Encoded Updates, oldest first, from the round that was asked for; none where the asker lacks none."""


def failure(client: str, message: bytes, error: Exception) -> bytes:
    """An encoded Failed, in answer to a RoundTask or Measure that could not be done."""
    try:
        round_ = (decode(message, Measure) if claims(message, Measure) else decode(message, RoundTask)).round
    except ProtocolError:
        round_ = 0  # whatever was asked, it was no round
    return encode(Failed(client, round_, type(error).__name__[:200]))
