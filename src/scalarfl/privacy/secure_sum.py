"""Secure sums: the server learns what a round's clients add up to, and no client's own numbers.

The protocol of Bonawitz et al. (CCS 2017, "Practical Secure Aggregation for Privacy-Preserving Machine Learning",
figure 4 without its signatures), on integers modulo 2^64, for a server that follows it and is curious:

    x_u  = the client's numbers as integers, round(x GRID / bound)
    y_u  = x_u + PRG(b_u) + sum over v > u of PRG(k_uv) - sum over v < u of PRG(k_uv)         what the server sees

The seed b_u of a client's own mask is drawn anew every round; the seeds k_uv of pairs cancel in the sum. Of every
client whose y_u has arrived the others open b_u; of every client that was lost after it had shared its secrets, its
k_uv. Both are shared by Shamir's scheme, so that any ``threshold`` of the cohort can open them and fewer learn nothing.
Nobody opens both of one client: with a threshold above half, not even a server that asks half of the cohort for each
can have them.

Deviation: the paper agrees on new X25519 keys every round, m - 1 exponentiations a client, because what is opened of a
lost client is its private key. Here keys last as long as a client's process: k_uv is a hash of the pair's X25519 secret
and of the round, and what is opened is the key e_u under which u had deposited its k_uv of this round alone.

Masks are ChaCha20 streams, secret shares travel under ChaCha20-Poly1305. Everything drawn comes from the operating
system: no mask is ever replayed, since none is left in a sum.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from scalarfl.errors import InputError, ProtocolError, install_hint

GRID = 1 << 40
"""Steps from zero to the bound. The sum of 2^13 clients is exact in float64 too."""
PRIME = 65521
"""Of the field in which secrets are shared; the largest below 2^16, so that a share has as many bytes as its secret."""
WORDS, SEED = 16, 32
"""Elements of the field in a secret, and bytes."""
LARGEST_COHORT = 500
"""Clients of a secure sum: what one of them is sent then fits a message of 1 MiB, beside half of it of records."""

Ring = npt.NDArray[np.uint64]
"""Integers modulo 2^64."""
Shares = npt.NDArray[np.uint16]
"""Elements of the field of ``PRIME``."""


def threshold(cohort: int, minimum: int) -> int:
    """Clients of a cohort that must be left for a sum to be opened: more than two thirds, and the agreed minimum."""
    return max(minimum, 2 * cohort // 3 + 1)


def to_ring(numbers: npt.NDArray[np.floating], bound: float) -> Ring:
    """uint64[n] of finite numbers, cut to the bound and rounded to the nearest of ``GRID`` steps."""
    steps = np.rint(np.clip(numbers.astype(np.float64).reshape(-1) / bound, -1.0, 1.0) * GRID)
    return steps.astype(np.int64).view(np.uint64)


def mean(total: Ring, clients: int, bound: float) -> npt.NDArray[np.float32]:
    """float32[n]: the mean of so many clients' numbers. Raises ProtocolError for a sum that they cannot have."""
    steps = total.view(np.int64)
    beyond = np.abs(steps.astype(np.float64)) > float(clients * GRID)
    if beyond.any():
        raise ProtocolError(f"{int(beyond.sum())} of {steps.size} sums exceed {clients} times the bound of {bound:g}.")
    return (steps / (clients * GRID) * bound).astype(np.float32)


def split(secrets: Shares, points: int, needed: int) -> Shares:
    """uint16[points, k]: Shamir's shares of k elements, of which any ``needed`` give them back."""
    drawn = np.frombuffer(os.urandom(8 * (needed - 1) * secrets.size), dtype=np.uint64) % PRIME
    coefficients = np.concatenate([secrets[None].astype(np.uint64), drawn.reshape(needed - 1, secrets.size)])
    return _matmul(_powers(points, needed), coefficients)


def joined(shares: Shares, points: Sequence[int]) -> Shares:
    """uint16[k]: the secrets of which shares uint16[len(points), k] are known; a point is a share's place, from 0."""
    at = [point + 1 for point in points]
    weights = []
    for i in at:
        above = below = 1
        for j in at:
            if j != i:
                above, below = above * j % PRIME, below * (j - i) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return _matmul(np.array([weights], dtype=np.float64), shares).reshape(-1)


def _matmul(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> Shares:
    """The product in the field: exact in float64 for fewer than 2^21 terms."""
    return (left.astype(np.float64) @ right.astype(np.float64) % PRIME).astype("<u2")


@lru_cache(maxsize=64)
def _powers(points: int, needed: int) -> npt.NDArray[np.float64]:
    """float64[points, needed]: x^0, x^1, ... for x = 1 ... points, in the field."""
    found = np.ones((points, needed), dtype=np.float64)
    for power in range(1, needed):
        found[:, power] = found[:, power - 1] * np.arange(1, points + 1) % PRIME
    return found


def secret() -> Shares:
    """uint16[WORDS]: a new secret; its bytes are a key."""
    return (np.frombuffer(os.urandom(8 * WORDS), dtype=np.uint64) % PRIME).astype("<u2")


def stream(key: bytes, count: int) -> Ring:
    """uint64[count]: ChaCha20's key stream."""
    ciphers = _library().ciphers
    made = ciphers.Cipher(ciphers.algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    return np.frombuffer(made.update(bytes(8 * count)), dtype="<u8")


def _sealing(key: bytes) -> Any:
    return _library().ciphers.aead.ChaCha20Poly1305(key)


class _Pair(NamedTuple):
    """What two clients derive from their keys."""

    sealing: Any
    """Seals what goes to the other."""
    opening: Any
    """Opens what comes from it."""
    root: bytes
    """Of the seeds of their masks."""


class KeyPair:
    """A client's X25519 keys, for as long as its process lives."""

    def __init__(self) -> None:
        self._private = _library().X25519PrivateKey.generate()
        self.public: bytes = self._private.public_key().public_bytes_raw()
        """32 bytes."""
        self._pairs: dict[bytes, _Pair] = {}

    def pair(self, other: bytes) -> _Pair:
        """With another client, by its public key; computed once. Raises ProtocolError for what is no key."""
        if other not in self._pairs:
            try:
                common = self._private.exchange(_library().X25519PublicKey.from_public_bytes(other))
            except ValueError:
                raise ProtocolError("a public key of the cohort is none.") from None
            keys = self.public + other, other + self.public
            sealing, opening = (_hashed(common, b"seal" + both) for both in keys)
            self._pairs[other] = _Pair(_sealing(sealing), _sealing(opening), _hashed(common, b"mask" + min(keys)))
            if len(self._pairs) > 4 * LARGEST_COHORT:  # of clients that were restarted since
                self._pairs.pop(next(iter(self._pairs)))
        return self._pairs[other]


class Member:
    """One client in one round.

    keys: its own. cohort: the public keys of all. me: its place among them. minimum: the agreed least number of clients
    in a sum. context: what nobody may mistake for another round: it goes into every mask and seal.
    """

    def __init__(self, keys: KeyPair, cohort: Sequence[bytes], me: int, minimum: int, context: bytes) -> None:
        self._me = me
        self._context = context
        self._own, self._deposit = secret(), secret()  # b_u and e_u
        self._pairs = {v: keys.pair(other) for v, other in enumerate(cohort) if v != me}
        self._seeds = {v: _hashed(pair.root, context) for v, pair in self._pairs.items()}  # k_uv
        self._held: dict[int, bytes] = {}  # what the others have shared with this client
        self.needed = threshold(len(cohort), minimum)
        self.nonce = os.urandom(12)
        seeds = b"".join(self._seeds.get(v, bytes(SEED)) for v in range(len(cohort)))
        self.deposit: bytes = _sealing(self._deposit.tobytes()).encrypt(bytes(12), seeds, context)
        """The seeds of this client's pairs, sealed with e_u."""
        shares = split(np.concatenate([self._own, self._deposit]), len(cohort), self.needed)
        self._held[me] = shares[me].tobytes()
        self.sealed: list[bytes] = [
            b"" if v == me else self._pairs[v].sealing.encrypt(self.nonce, shares[v].tobytes(), context)
            for v in range(len(cohort))
        ]
        """Shares of b_u and e_u for each of the cohort, in its order; nothing for itself."""

    def masked(self, numbers: Ring, shared: Mapping[int, tuple[bytes, bytes]]) -> Ring:
        """y_u. shared: (nonce, sealed share) from everyone whose masks are to be in the sum, itself included.

        Raises ProtocolError if they are too few, or a share is not from its sender.
        """
        from cryptography.exceptions import InvalidTag

        _check(shared, range(len(self.sealed)), self._me, self.needed)
        try:
            for v, (nonce, sealed) in shared.items():
                if v != self._me:
                    self._held[v] = self._pairs[v].opening.decrypt(nonce, sealed, self._context)
        except (InvalidTag, ValueError):
            raise ProtocolError("a share in this round is not what its sender sealed.") from None
        total = numbers + stream(self._own.tobytes(), len(numbers))
        for v in shared:
            if v != self._me:
                total += _signed(self._me, v, self._seeds[v], len(numbers))
        return total

    def opened(self, counted: Sequence[int]) -> bytes:
        """Of each who shared, in order: this client's share of b_v if v counted, else of e_v; ``SEED`` bytes each.

        Raises ProtocolError if too few counted.
        """
        _check(counted, self._held, self._me, self.needed)
        return b"".join(held[:SEED] if v in counted else held[SEED:] for v, held in sorted(self._held.items()))


def unmasked(
    sums: Mapping[int, Ring], deposits: Mapping[int, bytes], opened: Mapping[int, bytes], needed: int, context: bytes
) -> Ring:
    """The sum of the clients' numbers, exactly.

    sums: y_u of those who count. deposits: of all who shared. opened: of ``needed`` clients or more, what they opened.
    Raises ProtocolError if what they opened does not fit.
    """
    from cryptography.exceptions import InvalidTag

    shared, points = sorted(deposits), sorted(opened)[:needed]
    given = np.stack([np.frombuffer(opened[point], dtype="<u2") for point in points])
    secrets = joined(given, points).reshape(len(shared), WORDS)
    count = len(next(iter(sums.values())))
    total = np.zeros(count, dtype=np.uint64)
    for u, found in zip(shared, secrets, strict=True):
        key = found.tobytes()
        if u in sums:
            total += sums[u] - stream(key, count)
            continue
        try:
            seeds = _sealing(key).decrypt(bytes(12), deposits[u], context)
        except InvalidTag:
            raise ProtocolError("what was opened of a lost client's masks does not fit its deposit.") from None
        for v in sums:
            total -= _signed(v, u, seeds[SEED * v : SEED * (v + 1)], count)
    return total


def _check(named: Mapping[int, Any] | Sequence[int], known: Any, me: int, needed: int) -> None:
    """Raise ProtocolError unless these are enough clients, all known, and this one among them."""
    if len(set(named)) < needed or me not in named or not all(v in known for v in named):
        raise ProtocolError(f"{len(set(named))} clients are to be added up; at least {needed} are agreed on.")


def _signed(u: int, v: int, seed: bytes, count: int) -> Ring:
    """What u adds for its pair with v: v adds the negative."""
    mask = stream(seed, count)
    return mask if u < v else np.zeros_like(mask) - mask


def _hashed(key: bytes, text: bytes) -> bytes:
    return hashlib.blake2b(text, key=key, digest_size=SEED, person=b"scalarfl sums").digest()


class _Library(NamedTuple):
    X25519PrivateKey: Any
    X25519PublicKey: Any
    ciphers: Any


def _library() -> _Library:
    global _loaded
    if _loaded is None:
        try:
            from cryptography.hazmat.primitives import ciphers
            from cryptography.hazmat.primitives.asymmetric import x25519
            from cryptography.hazmat.primitives.ciphers import aead, algorithms  # noqa: F401
        except ImportError:
            raise InputError(f"secure sums need cryptography: {install_hint('privacy')}.") from None
        _loaded = _Library(x25519.X25519PrivateKey, x25519.X25519PublicKey, ciphers)
    return _loaded


_loaded: _Library | None = None
