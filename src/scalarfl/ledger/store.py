"""The ledger is the model: one append-only, hash-chained entry per round, on disk before any client is told.

SQLite in WAL mode with full synchronisation. The format is described in docs/ledger.md precisely enough to
reimplement it. Two chains run through it:

- the *trail*, over the encoded updates only: every replica can compute it from the updates it received;
- the *head*, over everything: updates, audits (who took part, what was rejected and why, bytes) and evaluations.
"""

import hashlib
import sqlite3
import weakref
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import islice, takewhile
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import msgspec
from filelock import FileLock

from scalarfl.errors import InputError, LedgerError, ProtocolError, VerificationError, shown
from scalarfl.ledger import chain, database
from scalarfl.ledger.codec import decode, encode
from scalarfl.ledger.entries import Audit, Evaluation
from scalarfl.ledger.header import FORMAT, READABLE, Header
from scalarfl.ledger.settings import Settings, check_same, decoded, encoded
from scalarfl.ledger.update import BATCH_BYTES, BATCH_RECORDS, Update


class Ledger:
    """An open ledger. ``Ledger.create`` and ``Ledger.open`` make one; use it as a context manager or close it;
    one that is dropped is closed.

    One process writes at a time, ensured by a lock file; any number may read.
    """

    def __init__(self, connection: sqlite3.Connection, lock: FileLock | None = None, path: Path | None = None) -> None:
        self._db = connection
        weakref.finalize(self, database.close, connection)
        self._lock = lock
        self.path = path
        self.header, genesis = self._read_header()
        self.rounds = 0
        """Rounds on record."""
        self.trail = genesis
        self.head = genesis
        self.entries = 0
        """Settings, rounds and evaluations on record."""
        self.settings: dict[str, Any] | None = None
        """The settings of the last start; None in a ledger of format 1."""
        self._payloads = [0]  # cumulative, by rounds
        self._sizes = [0]  # cumulative, by rounds
        self._trails = [self.trail]  # by rounds
        self._places: list[int] = []  # the entry of each round
        self._evaluations: list[Evaluation] = []
        try:
            self._check_chain()
        except sqlite3.DatabaseError as error:
            raise VerificationError(f"the ledger's database is damaged: {error}.") from None

    @classmethod
    def create(cls, path: Path | str | None, header: Header, settings: Settings | None = None) -> "Ledger":
        """Create a ledger at ``path``, or in memory if it is None. Raises LedgerError if one already exists.

        settings: the run's settings, for the first entry.
        """

        def fill(db: sqlite3.Connection) -> None:
            genesis = header.digest()
            db.execute("INSERT INTO header VALUES (?, ?)", (header.encoded(), genesis))
            if settings is not None:
                body = encoded(settings)
                row = (1, "settings", 0, body, b"", chain.head(genesis, "settings", 0, body, b""))
                db.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)", row)

        if path is not None:
            return cls(*database.create(Path(path), fill), Path(path))
        db = sqlite3.connect(":memory:")
        database.populate(db, fill)
        return cls(db)

    @classmethod
    def resume(cls, path: Path | str | None, header: Header, settings: Settings) -> "Ledger":
        """Open the ledger to continue a run, or create it.

        All settings must equal the record, except the number of rounds, which may grow. Raises InputError, naming the
        first key that differs and both values; LedgerError like ``open``, and for a ledger of format 1.
        """
        if path is None or not Path(path).exists():
            return cls.create(path, header, settings)
        path = Path(path)
        ledger = cls.open(path, write=True)
        try:
            if ledger.header.format != FORMAT or ledger.settings is None:
                raise LedgerError(
                    f"{path}: cannot resume: version 0.1 wrote this ledger, without the run's settings. It can be "
                    "verified and exported."
                )
            changed = check_same(path, ledger.settings, settings, ledger.rounds)
            if changed and header.privacy is not None:
                raise InputError(
                    f"{path}: cannot resume a private run with another number of rounds: the noise is calibrated for "
                    "the rounds it began with."
                )
            for field, name in zip(Header.__struct_fields__, Header.__struct_encode_fields__, strict=True):
                found, wanted = getattr(ledger.header, field), getattr(header, field)
                if found != wanted:
                    if name == "base":
                        raise InputError(
                            f"{path}: cannot resume: the model is not the one that the run began with. A run changes "
                            "the model in place: build or load the base model again, then resume."
                        )
                    raise InputError(
                        f"{path}: cannot resume: {name} is {shown(wanted)} now, the run on record has {shown(found)}."
                    )
            if changed:
                ledger._append("settings", ledger.rounds, encoded(settings), b"")
                ledger.settings = dict(settings)
        except BaseException:
            ledger.close()
            raise
        return ledger

    @classmethod
    def open(cls, path: Path | str, *, write: bool = False) -> "Ledger":
        """Open an existing ledger after checking its whole chain.

        Raises LedgerError if it cannot be opened and VerificationError, naming the entry, if it was altered.
        """
        path = Path(path)
        if not path.is_file():
            raise LedgerError(f"{path}: there is no ledger here.")
        lock = database.lock(path) if write else None
        try:
            db = database.connect(path, write=write)
            try:
                return cls(db, lock, path)
            except BaseException:
                db.close()
                raise
        except BaseException:
            if lock is not None:
                lock.release()
            raise

    def append(self, update: Update, audit: Audit) -> None:
        """Append a round durably. When this returns, the round survives any crash and may be announced."""
        if update.round != self.rounds:
            raise LedgerError(f"round {update.round} cannot follow {self.rounds} recorded rounds.")
        body = encode(update)
        self._append("round", update.round, body, audit.encoded())
        self._extend(update, body)

    def append_evaluation(self, evaluation: Evaluation, audit: Audit | None = None) -> None:
        """Append an evaluation durably, with its audit if clients evaluated."""
        packed = b"" if audit is None else audit.encoded()
        if evaluation.round != self.rounds:
            raise LedgerError(f"an evaluation after {evaluation.round} rounds, but {self.rounds} are recorded.")
        self._append("evaluation", evaluation.round, evaluation.encoded(), packed)
        self._evaluations.append(evaluation)

    def updates(self, since: int = 0, until: int | None = None) -> Iterator[Update]:
        """The updates of rounds ``since`` to ``until - 1``, in order."""
        for body in self.encoded_updates(since, until):
            yield decode(body, Update)

    def encoded_updates(self, since: int = 0, until: int | None = None) -> list[bytes]:
        """The same, encoded. Raises VerificationError if some cannot be read."""
        until = self.rounds if until is None else until
        if since >= until:
            return []
        if until > self.rounds:
            raise LedgerError(f"{self.path}: rounds up to {until} requested, the ledger has {self.rounds}.")
        rows = self._db.execute(  # by entry: the key that the chain was checked by
            "SELECT body FROM entries WHERE id BETWEEN ? AND ? AND kind = 'round' ORDER BY id",
            (self._places[since], self._places[until - 1]),
        ).fetchall()
        if len(rows) != until - since:
            raise VerificationError(
                f"{self.path}: {len(rows)} of the rounds {since} to {until - 1} can be read; the file was damaged."
            )
        return [body for (body,) in rows]

    def batch(self, since: int) -> list[bytes]:
        """The encoded updates from round ``since`` that fit into one catch-up message; none beyond the end."""
        return self.encoded_updates(since, self.reach(since))

    def reach(self, since: int) -> int:
        """The end of the batch that begins at round ``since``, limited by a message's bytes and records."""
        since = min(since, self.rounds)
        until = bisect_right(self._sizes, self._sizes[since] + BATCH_BYTES) - 1
        return min(self.rounds, max(since + 1, min(until, since + BATCH_RECORDS)))

    def audits(self, kind: Literal["round", "evaluation"] | None = None, after: int = 0) -> Iterator[tuple[int, Audit]]:
        """(round, audit) of every round and of every evaluation that clients made, in order; or of one kind only.

        after: skip this many entries of any kind.
        """
        rows = self._db.execute(
            "SELECT round, audit FROM entries "
            "WHERE kind = ifnull(?, kind) AND length(audit) > 0 AND id > ? ORDER BY id",
            (kind, after),
        )
        for number, audit in rows:
            try:
                yield number, msgspec.msgpack.decode(audit, type=Audit)
            except msgspec.MsgspecError as error:
                raise VerificationError(f"{self.path}: the audit of round {number} is invalid: {error}.") from None

    def evaluations(self, rounds: int | None = None) -> list[Evaluation]:
        """All evaluations in order, or those after ``rounds`` rounds."""
        if rounds is None:
            return list(self._evaluations)
        begin = bisect_left(self._evaluations, rounds, key=lambda evaluation: evaluation.round)
        return list(takewhile(lambda evaluation: evaluation.round == rounds, islice(self._evaluations, begin, None)))

    def passed(self, head: object) -> bool:
        """Whether some entry has this head, in hexadecimal."""
        try:
            wanted = bytes.fromhex(head) if isinstance(head, str) else b""
        except ValueError:
            return False
        return self._db.execute("SELECT 1 FROM entries WHERE head = ?", (wanted,)).fetchone() is not None

    def payload(self, since: int, until: int) -> int:
        """Bytes of payload in the updates of rounds ``since`` to ``until - 1``."""
        return self._payloads[until] - self._payloads[since]

    def serialized(self, since: int, until: int) -> int:
        """Bytes of the encoded updates of rounds ``since`` to ``until - 1``."""
        return self._sizes[until] - self._sizes[since]

    def trail_at(self, rounds: int) -> bytes:
        """The trail after the first ``rounds`` updates."""
        return self._trails[rounds]

    def close(self) -> None:
        """Close the database and release the writer's lock."""
        self._db.close()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, kind: str, number: int, body: bytes, audit: bytes) -> None:
        head = chain.head(self.head, kind, number, body, audit)
        try:
            with self._db:
                self._db.execute(
                    "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)",
                    (self.entries + 1, kind, number, body, audit, head),
                )
        except sqlite3.Error as error:
            raise LedgerError(f"{self.path}: cannot write round {number}: {error}; nothing of it was kept.") from None
        self.head = head
        self.entries += 1

    def _extend(self, update: Update, body: bytes) -> None:
        self.trail = chain.link(self.trail, body)
        self._trails.append(self.trail)
        self._payloads.append(self._payloads[-1] + update.payload)
        self._sizes.append(self._sizes[-1] + len(body))
        self._places.append(self.entries)
        self.rounds += 1

    def _read_header(self) -> tuple[Header, bytes]:
        try:
            rows = self._db.execute("SELECT content, digest FROM header").fetchall()
        except sqlite3.DatabaseError as error:
            raise VerificationError(f"{self.path}: not a readable ledger: {error}.") from None
        if len(rows) != 1:
            raise VerificationError(f"{self.path}: a ledger has one header, found {len(rows)}.")
        content, digest = rows[0]
        if not isinstance(content, bytes) or hashlib.sha256(content).digest() != digest:
            raise VerificationError("the ledger's header was altered: its digest does not match.")
        try:
            version = msgspec.json.decode(content).get("format")
            if version not in READABLE:
                raise LedgerError(f"{self.path}: ledger format {version}, this version reads formats 1 and 2.")
            return msgspec.json.decode(content, type=Header), digest
        except msgspec.MsgspecError as error:
            raise LedgerError(f"{self.path}: the header does not fit its format: {error}.") from None

    def _check_chain(self) -> None:
        rows = self._db.execute("SELECT id, kind, round, body, audit, head FROM entries ORDER BY id")
        for expected, row in enumerate(rows, start=1):
            number, kind, round_, body, audit, head = row
            where = f"ledger entry {number} ({kind} {round_})"
            if number != expected:
                raise VerificationError(f"ledger entry {expected} is missing: entry {number} follows {expected - 1}.")
            try:
                good = chain.head(self.head, kind, round_, body, audit) == head
            except (AttributeError, TypeError, OverflowError):
                good = False
            if not good:
                raise VerificationError(f"{where} was altered: the chain breaks there.")
            self.head, self.entries = head, expected
            try:
                self._take(kind, round_, body)
            except (ProtocolError, msgspec.MsgspecError, ValueError) as error:
                raise VerificationError(f"{where}: {error}") from None

    def _take(self, kind: str, number: int, body: bytes) -> None:
        """Read an entry whose link is valid. Raises ValueError or its decoder's error if the content is invalid."""
        if number != self.rounds:
            raise ValueError(f"expected round {self.rounds}.")
        if kind == "round":
            update = decode(body, Update)
            if update.round != number:
                raise ValueError(f"it holds round {update.round}.")
            self._extend(update, body)
        elif kind == "evaluation":
            evaluation = msgspec.msgpack.decode(body, type=Evaluation)
            if evaluation.round != number:
                raise ValueError(f"it holds an evaluation after {evaluation.round} rounds.")
            self._evaluations.append(evaluation)
        elif kind == "settings":
            self.settings = decoded(body)
        else:
            raise ValueError("unknown kind of entry.")
