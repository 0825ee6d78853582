"""A client's budget: what it has released and spent, and its latest reply, durable before that is sent."""

import hashlib
import sqlite3
from pathlib import Path

from scalarfl.errors import InputError, ScalarflError
from scalarfl.privacy.accountant import Promise, Terms, spent
from scalarfl.privacy.mechanism import Mechanism


class BudgetSpent(ScalarflError):
    """The client's next reply would cost more than its budget allows."""


class Budget:
    """What one client has promised, spent and last released.

    A reply is stored together with its cost, in one transaction, before anyone sees it. Whatever is killed afterwards,
    the same task gets the same bytes, and no task gets noise twice.

    path: a SQLite file; in memory if None, for simulations, whose releases are on the ledger. federation: digest of
    the ledger's header. releases: those that a ledger already holds, if there is no file. A file goes on with its own
    terms: the noise that a client began with.

    Raises InputError if the file is another federation's, or of another number of examples.
    """

    def __init__(
        self, promise: Promise, terms: Terms, federation: bytes, path: Path | None = None, releases: int = 0
    ) -> None:
        self.promise = promise
        self.terms = terms
        self.path = path
        self.releases = releases
        """Releases so far."""
        self._key, self._reply = b"", b""
        self._db = None if path is None else self._opened(path, federation)

    @property
    def mechanism(self) -> Mechanism:
        """What makes the releases."""
        return Mechanism(self.promise.clip, self.terms.scale(self.promise.unit))

    @property
    def epsilon(self) -> float:
        """What all releases so far cost, at the promise's delta."""
        return self._epsilon(self.releases)

    def known(self, task: bytes) -> bytes | None:
        """The reply to this very task, if it was the last one answered."""
        return self._reply if self._key == _key(task) else None

    def check(self, releases: int) -> None:
        """Raise BudgetSpent unless so many more releases stay within the promise."""
        after = self.releases + releases
        if after <= self.terms.releases:  # calibrated for them
            return
        if self._epsilon(after) > self.promise.epsilon:
            raise BudgetSpent(
                f"the privacy budget is spent: {self.releases} releases cost epsilon = {self.epsilon:.3f}, and "
                f"{releases} more would exceed {self.promise.epsilon:g}."
            )

    def keep(self, task: bytes, reply: bytes, releases: int) -> None:
        """Store the reply to a task and its cost; durable when this returns. Raises InputError if it cannot be."""
        self.check(releases)
        if self._db is not None:
            try:
                with self._db:
                    written = self._db.execute(
                        "UPDATE budget SET releases = ?, task = ?, reply = ? WHERE releases = ?",
                        (self.releases + releases, _key(task), reply, self.releases),
                    )
                    if written.rowcount != 1:
                        raise InputError(f"{self.path}: another process uses this client's budget. Stop one of them.")
            except sqlite3.Error as error:
                reason = f"the privacy budget cannot be written: {error}; nothing is sent"
                raise InputError(f"{self.path}: {reason}.") from None
        self.releases += releases
        self._key, self._reply = _key(task), reply

    def close(self) -> None:
        """Close the file."""
        if self._db is not None:
            self._db.close()

    def _epsilon(self, releases: int) -> float:
        return spent(self.terms.sigma, self.terms.rate, releases, self.promise.delta)

    def _opened(self, path: Path, federation: bytes) -> sqlite3.Connection:
        path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(path, check_same_thread=False)
        try:
            db.execute("PRAGMA synchronous = FULL")
            with db:
                db.execute(
                    "CREATE TABLE IF NOT EXISTS budget (id INTEGER PRIMARY KEY CHECK (id = 1), federation BLOB, "
                    "rate REAL, sigma REAL, planned INTEGER, releases INTEGER, task BLOB, reply BLOB)"
                )
                first = (1, federation, *self.terms, self.releases, b"", b"")
                db.execute("INSERT OR IGNORE INTO budget VALUES (?, ?, ?, ?, ?, ?, ?, ?)", first)
            found, *terms, self.releases, self._key, self._reply = db.execute(
                "SELECT federation, rate, sigma, planned, releases, task, reply FROM budget"
            ).fetchone()
        except (sqlite3.Error, TypeError) as error:
            db.close()
            raise InputError(f"{path}: not a readable privacy budget: {error}.") from None
        recorded = Terms(*terms)
        if found != federation or recorded.rate != self.terms.rate:
            db.close()
            what = "for another federation" if found != federation else "for another number of examples"
            raise InputError(
                f"{path}: a privacy budget {what}. Choose another folder for this federation; what both spend adds up."
            )
        self.terms = recorded
        return db


def _key(task: bytes) -> bytes:
    return hashlib.sha256(task).digest()
