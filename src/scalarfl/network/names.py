"""Subjects and stream of one federation on a broker, and which brokers may be spoken to in the clear."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from scalarfl.errors import InputError, shown

HERE_EVERY = 1.0
"""Seconds between a client's signs of life: that is how the server knows who is present."""
ABSENT_AFTER = 10.0
"""Seconds without one after which a client counts as gone."""
SAY_HELLO = b"?"
"""What a client is sent that the server's process does not know: it should say hello again."""
REFUSED = b"!"
"""First byte of an answer to a hello that is a refusal, in words."""


@dataclass(frozen=True)
class Names:
    """What everything is called for the federation ``run``."""

    run: str

    def __post_init__(self) -> None:
        if not self.run or not all(letter.isalnum() or letter in "-_" for letter in self.run):
            raise InputError(f"--run {shown(self.run)}: accepted are letters, digits, '-' and '_'.")

    @property
    def stream(self) -> str:
        """The durable stream of records, one message a round: message n is round n - 1."""
        return f"scalarfl_{self.run}"

    @property
    def records(self) -> str:
        """Where the server publishes records."""
        return f"scalarfl.{self.run}.records"

    @property
    def done(self) -> str:
        """Where the server says that the last round is on record."""
        return f"scalarfl.{self.run}.done"

    @property
    def status(self) -> str:
        """Where the server is asked how it goes."""
        return f"scalarfl.{self.run}.status"

    def hello(self, client: str) -> str:
        """Where a client says hello and is answered."""
        return f"scalarfl.{self.run}.hello.{client}"

    def here(self, client: str) -> str:
        """Where a client gives signs of life."""
        return f"scalarfl.{self.run}.here.{client}"

    def task(self, client: str) -> str:
        """Where a client is asked."""
        return f"scalarfl.{self.run}.task.{client}"

    def reply(self, client: str) -> str:
        """Where a client replies."""
        return f"scalarfl.{self.run}.reply.{client}"


def client_of(subject: str) -> str:
    """The client in a subject; the broker's permissions vouch for it."""
    return subject.rsplit(".", 1)[1]


def check_client(name: str) -> str:
    """The name, if it can stand in a subject. Raises InputError."""
    if not name or not all(letter.isalnum() or letter in "-_" for letter in name):
        raise InputError(f"--name {shown(name)}: accepted are letters, digits, '-' and '_'.")
    return name


def check_address(address: str) -> str:
    """The broker's address. Raises InputError for one beyond this machine that is not encrypted."""
    parts = urlsplit(address)
    if parts.scheme not in ("nats", "tls") or not parts.hostname:
        raise InputError(f"--nats {shown(address)}: accepted is nats://HOST:PORT on this machine, or tls://HOST:PORT.")
    if parts.scheme == "nats" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise InputError(f"--nats {address}: beyond this machine only tls://HOST:PORT is spoken.")
    return address
