"""What crosses the network, and nothing else does: small versioned messages in MessagePack, validated on receipt.

No message's size depends on the model's. Two sizes are told apart everywhere: *payload*, the gradient scalars (4
bytes each) and the seeds (8 bytes each) that the algorithm itself needs; and *serialized*, the length of the encoded
message.
"""

from typing import Annotated, Any

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


Cohort = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
"""Of a secure sum: a digest of the federation, the round, and the names and keys of those who were asked."""
Key = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Proof = Annotated[bytes, msgspec.Meta(max_length=4096)]


class Peer(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One client of a secure sum's cohort."""

    name: Name
    key: Key
    """X25519, public."""
    proof: Proof
    """That the key is this client's, for those who can check it; empty where there is none, or where it was sent."""


class SecureHello(Hello, frozen=True, tag=13):
    """In a federation with secure sums: with the public key that the others seal with."""

    found_by: FoundBy | None
    """As in HelloOtherwise; None if as the header says."""
    key: Key
    proof: Proof


class SecureTask(RoundTask, frozen=True, tag=14):
    """The first leg of a secure sum: measure, keep the scalars, and share the secrets of a mask."""

    peers: list[Peer]
    """The cohort, in order; a client's place in it is its number in this round."""


class Shares(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=15):
    """A client has measured: what the others need in case it is lost, sealed for each of them."""

    client: Name
    round: Count
    cohort: Cohort
    nonce: bytes
    sealed: list[bytes]
    """For each of the cohort, in order; empty if the client has nothing usable for this round."""
    deposit: bytes


class Shared(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=16):
    """The second leg: add these clients' masks, and send the masked scalars."""

    round: Count
    cohort: Cohort
    shares: list[tuple[Count, bytes, bytes]]
    """Number, nonce and sealed share for this client, of everyone who has measured."""


class Masked(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=17):
    """A client's masked scalars: uniformly random to whoever lacks the masks."""

    client: Name
    round: Count
    cohort: Cohort
    sums: bytes
    """uint64, little endian, [local_steps, kinds, P]."""


class Counted(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=18):
    """The last leg: open these clients' own masks, and the pair masks of those that were lost."""

    round: Count
    cohort: Cohort
    counted: list[Count]
    """Numbers of those whose masked scalars arrived."""


class Opened(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=19):
    """A client's shares of what is to be opened."""

    client: Name
    round: Count
    cohort: Cohort
    shares: bytes
    """32 bytes for each who had measured, in order."""


def failure(client: str, message: bytes, error: Exception) -> bytes:
    """An encoded Failed, in answer to a task that could not be done."""
    kinds: tuple[Any, ...] = (Measure, Shared, Counted)
    try:
        asked = decode(message, next((kind for kind in kinds if claims(message, kind)), RoundTask))
        round_ = asked.round
    except ProtocolError:
        round_ = 0  # whatever was asked, it was no round
    return encode(Failed(client, round_, type(error).__name__[:200]))
