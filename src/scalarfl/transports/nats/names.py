"""Subjects of one federation on a broker, who may use them, and which brokers may be spoken to in the clear.

A party's name is the last part of every subject that it publishes to. With kits the broker's permissions hold each
party to its own name. They do not check the subject that an answer is to be sent to, which the asker chooses. So the
server answers only where that party alone may listen (``Names.is_inbox``).
"""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from scalarfl.errors import InputError, shown

HERE_EVERY = 1.0
"""Seconds between a client's heartbeats, by which the server knows who is present."""
ABSENT_AFTER = 10.0
"""Seconds without a heartbeat after which a client counts as gone."""
OBSERVER, SERVER = "observer", "server"
RESERVED = {"authority", "broker", OBSERVER, SERVER}
"""Names that no client may have."""
_WORD = re.compile(r"[A-Za-z0-9_-]{1,60}")


@dataclass(frozen=True)
class Names:
    """The subjects of the federation ``run``."""

    run: str

    def __post_init__(self) -> None:
        if not _WORD.fullmatch(self.run):
            raise InputError(f"--run {shown(self.run)}: {ACCEPTED}.")

    @property
    def done(self) -> str:
        """Where the server says that the last round is on record."""
        return f"scalarfl.{self.run}.done"

    def status(self, asker: str) -> str:
        """Where a party asks for the server's status."""
        return f"scalarfl.{self.run}.status.{asker}"

    def records(self, asker: str) -> str:
        """Where a party asks for the records that it lacks."""
        return f"scalarfl.{self.run}.records.{asker}"

    def hello(self, client: str) -> str:
        """Where a client opens its handshake."""
        return f"scalarfl.{self.run}.hello.{client}"

    def here(self, client: str) -> str:
        """Where a client sends its heartbeats."""
        return f"scalarfl.{self.run}.here.{client}"

    def task(self, client: str) -> str:
        """Where a client receives tasks."""
        return f"scalarfl.{self.run}.task.{client}"

    def reply(self, client: str) -> str:
        """Where a client replies to tasks."""
        return f"scalarfl.{self.run}.reply.{client}"

    def inbox(self, party: str) -> str:
        """Prefix of the subjects on which a party, and no other, receives answers."""
        return f"scalarfl.{self.run}.inbox.{party}"

    def is_inbox(self, party: str, subject: str) -> bool:
        """Whether an answer to the party may be sent to this subject."""
        own = self.inbox(party) + "."
        return subject.startswith(own) and _TOKENS.fullmatch(subject, len(own)) is not None


ACCEPTED = "accepted are 1 to 60 letters a-z, A-Z, digits, '-' and '_'"
_TOKENS = re.compile(r"[A-Za-z0-9_-]{1,60}(\.[A-Za-z0-9_-]{1,60}){0,3}")


def party_of(subject: str) -> str:
    """The party's name in a subject that it published to."""
    return subject.rsplit(".", 1)[1]


def check_client(name: str) -> str:
    """The name, if a client can have it. Raises InputError."""
    if not _WORD.fullmatch(name):
        raise InputError(f"--name {shown(name)}: {ACCEPTED}.")
    if name.lower() in RESERVED:
        raise InputError(f"--name {name}: this name is reserved; choose another.")
    return name


def check_address(address: str) -> str:
    """The broker's address. Raises InputError for one beyond this machine that is not encrypted."""
    expected = f"--nats {shown(address)}: accepted: nats://HOST:PORT on this machine, tls://HOST:PORT, wss://HOST."
    try:
        parts = urlsplit(address)
        known = parts.scheme in ("nats", "tls", "wss")
        sound = known and bool(parts.hostname) and parts.port != 0 and address.isprintable()
    except ValueError:  # a port that is no number, brackets that do not close
        raise InputError(expected) from None
    if not sound:
        raise InputError(expected)
    if parts.scheme == "nats" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise InputError(f"--nats {address}: plain nats:// is accepted only on this machine; use tls://HOST:PORT.")
    return address
