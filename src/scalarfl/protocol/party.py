"""A client's whole life, without transport: it answers every message of the server."""

import logging

from scalarfl.errors import ProtocolError
from scalarfl.ledger.codec import claims
from scalarfl.model.snapshot_manager import SnapshotManager
from scalarfl.protocol.client import Client, Refused as Refused, Steps
from scalarfl.protocol.messages import REFUSED, SAY_HELLO, Measure, Welcome

log = logging.getLogger("scalarfl")


class Party:
    """One client over any transport: handshake, rounds, evaluations and failures.

    client: does the rounds. keeper: writes snapshots of its replica, if wanted.
    """

    def __init__(self, client: Client, keeper: SnapshotManager | None = None) -> None:
        self.client = client
        self.keeper = keeper
        self.rounds = 0
        """Rounds on the server's ledger at the last handshake."""

    @property
    def name(self) -> str:
        """The client's name."""
        return self.client.name

    def respond(self, message: bytes) -> bytes:
        """Answer a message of the server; empty if it needs no answer.

        A client that lacks records answers with another handshake, and one whose data or model fail reports it; neither
        ends the client. Raises Refused if the server does not admit it.
        """
        steps = self.steps(message)
        try:
            question = next(steps)
            while True:
                question = steps.send(self.client.probe.measure([question])[0])
        except StopIteration as done:
            reply: bytes = done.value
        except Refused:
            raise
        except ProtocolError as error:  # too far behind for this message: the handshake says how far
            log.info("%(reason)s", {"reason": str(error)})
            reply = self.client.hello()
        except Exception as error:  # the user's data or model: this round is lost, the client is not
            log.exception("the round failed here; the next one may not")
            return self.client.failed(message, error)
        if self.keeper is not None:
            self.keeper.consider()
        return reply

    def steps(self, message: bytes) -> Steps:
        """``respond`` as a generator, so that a simulation can answer the queries of a whole cohort together.

        Raises what the user's data or model raise, and ProtocolError if records are missing.
        """
        if message == SAY_HELLO:
            return self.client.hello()
        if message.startswith(REFUSED):
            raise Refused(f"the server refuses: {message[1:].decode(errors='replace')}")
        if claims(message, Welcome):
            try:
                self.rounds = self.client.welcomed(message)
            except ProtocolError as error:
                raise Refused(str(error)) from None
            return b""
        if claims(message, Measure):
            return self.client.measure(message)
        return (yield from self.client.steps(message))
