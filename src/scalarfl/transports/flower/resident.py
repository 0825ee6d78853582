"""A client kept between messages: its model, its data and its replica."""

import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from scalarfl.errors import InputError
from scalarfl.experiment import recipe as recipes
from scalarfl.experiment.build import build_client
from scalarfl.files import located
from scalarfl.model import snapshot
from scalarfl.model.snapshot_manager import SnapshotManager
from scalarfl.protocol.messages import SAY_HELLO, failure
from scalarfl.protocol.party import Party, Refused
from scalarfl.transports.flower.envelope import AFRESH, Ask

log = logging.getLogger("scalarfl")

NOTICED = 0.5
"""Loading times from this many seconds are logged."""


class Resident:
    """Answers one client's messages; a repeated message gets the same answer.

    folder: for snapshots. data: the client's own file, or None for its share of the task. settings: overrides of the
    recipe that hold here alone, such as ``model.device=cuda``. always: keep a snapshot of every round, because the
    process may not live to see the next.
    """

    def __init__(
        self, name: str, folder: Path, data: Path | None = None, settings: Sequence[str] = (), *, always: bool = False
    ) -> None:
        self.name = name
        self.folder = folder
        self.data = data
        self.settings = list(settings)
        self.always = always
        self._party: Party | None = None
        self._loaded: tuple[str, list[str]] | None = None  # federation and recipe of the client
        self._last: tuple[int, bytes, bytes] = (0, b"", b"")  # run, message and its answer

    def answer(self, ask: Ask) -> bytes:
        """The encoded answer to an encoded message; a Hello where something is missing that the server has to send."""
        if ask.message not in (SAY_HELLO, AFRESH) and self._last[:2] == (ask.run, ask.message):
            return self._last[2]
        try:
            reply = self._replied(self._ready(ask), ask)
        except (InputError, Refused) as error:
            log.error("%(reason)s", {"reason": str(error)})
            return failure(self.name, ask.message, error)
        self._last = ask.run, ask.message, reply
        return reply

    def _replied(self, party: Party, ask: Ask) -> bytes:
        known = self.folder / f"{ask.federation}.run"
        if ask.message in (SAY_HELLO, AFRESH) or not known.is_file() or known.read_text() != str(ask.run):
            # Rounds of another run may have other records: the server is to see first how far this replica is.
            known.write_text(str(ask.run))
            return party.respond(SAY_HELLO)
        if ask.welcome:
            party.respond(ask.welcome)
        return party.respond(ask.message)

    def end(self) -> None:
        """Write a last snapshot if it saves time."""
        if self._party is not None and self._party.keeper is not None:
            self._party.keeper.consider(ending=True)

    def _ready(self, ask: Ask) -> Party:
        """The client, loaded if it is not or is another federation's, and as far as the last snapshot."""
        wanted, path = (ask.federation, ask.recipe), self.folder / f"{ask.federation}.safetensors"
        if self._party is None or self._loaded != wanted or ask.message == AFRESH:
            began = time.perf_counter()
            self.folder.mkdir(parents=True, exist_ok=True)
            if ask.message == AFRESH:
                log.warning("the server's records differ from those this client applied: starting from the base model")
                path.unlink(missing_ok=True)
            recipe, spent = recipes.load(None, [*ask.recipe, *self.settings]), path.with_suffix(".privacy.sqlite")
            client = build_client(recipe, self.name, self.data, budget=spent)
            keeper = SnapshotManager(client.probe.replica, path, self.always)
            self._party = Party(client, keeper)
            if not self.always:
                keeper.begin(sys.maxsize)
            self._loaded = wanted
            self._took(time.perf_counter() - began)
        if self.always:  # another process may have answered meanwhile
            found, replica = snapshot.peek(path), self._party.client.probe.replica
            if found is not None and found.trail != replica.trail:
                snapshot.restore(found, replica)
        return self._party

    def _took(self, seconds: float) -> None:
        text = "model and data of '%(client)s' loaded in %(seconds).1f s"
        if self.always and seconds > NOTICED:
            text += ", for one message: `scalarfl flower worker %(client)s` beside the SuperNode would keep them"
        if not self.always or seconds > NOTICED:
            log.info(text, {"client": self.name, "seconds": seconds})


_alone: Resident | None = None


def alone(name: str, folder: Path, data: str | None) -> Resident:
    """The client in this very process, for a ClientApp without a worker: kept while the process lives."""
    global _alone
    if _alone is None or (_alone.name, _alone.folder) != (name, folder):
        _alone = Resident(name, folder, None if data is None else located(data), always=True)
    return _alone
