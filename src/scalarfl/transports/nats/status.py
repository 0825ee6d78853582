"""How a federation goes, as its server knows it: asked for on a subject, shown on a terminal, scraped by Prometheus."""

import contextlib
import math
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from nats.errors import NoRespondersError
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from scalarfl.errors import InputError
from scalarfl.experiment.report import thinned
from scalarfl.privacy.accountant import participations
from scalarfl.protocol.rounds import RoundLoop
from scalarfl.transports.nats.broker import TROUBLE, close, connect_once
from scalarfl.transports.nats.names import OBSERVER, Names, check_address
from scalarfl.units import duration, percent, size

if TYPE_CHECKING:
    from scalarfl.ledger.entries import Evaluation

RECENT = 100  # rounds over which the speed is taken


class Present(msgspec.Struct, frozen=True, kw_only=True):
    """A client that is there."""

    client: str
    lag: int
    """Rounds on record that it is not known to have applied; it applies them when it is next in a cohort."""
    rounds: int
    """Rounds that it took part in."""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """All that an operator asks for; bytes are serialized messages without the transport's share."""

    run: str
    round: int
    """Rounds on record."""
    rounds: int
    present: list[Present]
    known: int
    """Clients ever admitted."""
    metric: str = "accuracy"
    """Name of the task's metric."""
    accuracy: float | None = None
    loss: float | None = None
    """Of the latest evaluation by the clients, with ``accuracy`` the task's metric."""
    evaluated: int | None = None
    """Rounds on record at that evaluation."""
    bytes_up: int
    bytes_down: int
    rejected: int
    """Replies that did not count."""
    reopened: int
    """Rounds that this process retried for want of replies."""
    rounds_per_second: float | None = None
    seconds_left: float | None = None
    uptime: float
    """Seconds since this process began."""
    curve: list[tuple[int, float]] = []
    """(rounds, value) of the evaluations, the metric's or where there is none the loss's; at most ``POINTS``."""
    privacy: dict[str, Any] | None = None
    """What the clients promise (epsilon, delta, clip, unit), and ``planned``: rounds their noise is calibrated for."""


class Monitor:
    """Follows a server's ledger; each request reads the new entries."""

    def __init__(self, loop: RoundLoop, names: Names, metric: str = "accuracy") -> None:
        self.loop = loop
        self.names = names
        self.metric = metric
        self._began = time.monotonic()
        self._recent: deque[float] = deque(maxlen=RECENT + 1)
        self._bytes: Counter[str] = Counter()
        self._took_part: Counter[str] = Counter()
        self._rejected = 0
        self._read = 0  # entries of the ledger
        self._evaluation: Evaluation | None = None
        self._curve: list[tuple[int, float]] = []

    def closed(self) -> None:
        """A round was recorded just now."""
        self._recent.append(time.monotonic())

    def status(self, present: list[str]) -> Status:
        """How it goes now."""
        self._read_on()
        ledger = self.loop.server.ledger
        speed = None
        if len(self._recent) > 1:
            speed = (len(self._recent) - 1) / max(1e-9, self._recent[-1] - self._recent[0])
        evaluation = self._evaluation
        return Status(
            run=self.names.run,
            round=ledger.rounds,
            rounds=self.loop.policy.rounds,
            present=[Present(client=n, lag=self.loop.server.lag(n), rounds=self._took_part[n]) for n in present],
            known=len(self.loop.server.admitted),
            metric=self.metric,
            accuracy=None if evaluation is None else evaluation.accuracy,
            loss=None if evaluation is None else evaluation.loss,
            evaluated=None if evaluation is None else evaluation.round,
            bytes_up=self._bytes["up"],
            bytes_down=self._bytes["down"],
            rejected=self._rejected,
            reopened=self.loop.retried,
            rounds_per_second=speed,
            seconds_left=None if speed is None else (self.loop.policy.rounds - ledger.rounds) / speed,
            uptime=time.monotonic() - self._began,
            curve=self._curve,
            privacy=self._privacy(),
        )

    def _privacy(self) -> dict[str, Any] | None:
        header, settings = self.loop.server.ledger.header, self.loop.server.ledger.settings
        if header.privacy is None or settings is None:
            return None
        keys = [int(settings[f"federation.{key}"]) for key in ("rounds", "sampled", "clients")]
        return header.privacy | {"planned": participations(*keys)}

    def _read_on(self) -> None:
        ledger = self.loop.server.ledger
        if ledger.entries == self._read:
            return
        for _, audit in ledger.audits(after=self._read):
            for traffic in audit.traffic:
                self._bytes[traffic.direction] += traffic.serialized
            self._rejected += sum(rejection.count for rejection in audit.rejected)
        for _, audit in ledger.audits("round", after=self._read):
            self._took_part.update(participant.client for participant in audit.participants)
        self._read = ledger.entries
        evaluations = ledger.evaluations()
        self._evaluation = evaluations[-1] if evaluations else None
        rated = [(e.round, e.accuracy) for e in evaluations if e.accuracy is not None]
        self._curve = thinned(rated or [(e.round, e.loss) for e in evaluations if math.isfinite(e.loss)], POINTS)


async def ask(address: str, names: Names, connection: Mapping[str, Any]) -> Status:
    """The server's status. Raises InputError if no broker or no server answers."""
    check_address(address)
    try:
        async with contextlib.AsyncExitStack() as stack:
            link = await connect_once(address, connection, names.inbox(OBSERVER))
            stack.push_async_callback(close, link)
            answer = await link.request(names.status(OBSERVER), b"", timeout=5)
    except NoRespondersError:
        raise InputError(f"no server of the federation '{names.run}' is running at {address}. Check --run.") from None
    except TROUBLE as error:
        raise InputError(f"{address}: no answer: {error or type(error).__name__}.") from None
    return msgspec.json.decode(answer.data, type=Status)


def score(status: Status) -> str:
    """The latest evaluation in words."""
    if status.evaluated is None:
        return "not measured by the clients"
    loss = "no loss" if status.loss is None else f"loss {status.loss:.4f}"
    return loss if status.accuracy is None else f"{status.metric} {percent(status.accuracy)}, {loss}"


def shown(status: Status) -> RenderableType:
    """The status for a terminal."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    bar = Table.grid(padding=(0, 2))
    bar.add_row(f"{status.round:,} of {status.rounds:,}", ProgressBar(status.rounds, status.round, width=24))
    facts.add_row("round", bar)
    if status.rounds_per_second is not None and status.seconds_left is not None:
        left = f", {duration(status.seconds_left)} left" if status.seconds_left else ""
        facts.add_row("speed", f"{status.rounds_per_second:.2f} rounds per second{left}")
    facts.add_row("clients", f"{len(status.present)} present of {status.known} known")
    behind = max((one.lag for one in status.present), default=0)
    facts.add_row("lag", f"the slowest present client is {behind:,} rounds behind")
    if status.evaluated is not None:
        facts.add_row("evaluated", f"after {status.evaluated:,} rounds: {score(status)}")
    if len(status.curve) > 1:
        line = sparkline([value for _, value in status.curve[-WIDE:]])
        what = "loss" if status.accuracy is None else status.metric
        facts.add_row("curve", f"{line}  {what} since round {status.curve[-WIDE:][0][0]:,}")
    clients = max(1, status.known)
    for way, moved in (("up", status.bytes_up), ("down", status.bytes_down)):
        facts.add_row(f"bytes {way}", f"{size(moved / clients)} per client, {size(moved)} all clients")
    facts.add_row("refused", f"{status.rejected:,} replies; {status.reopened:,} rounds retried")
    planned = ""
    if status.privacy is not None:
        planned = f" of {status.privacy['planned']:,}"
        promise = "epsilon at most {epsilon:g} at delta {delta:g} for each {unit}"
        facts.add_row("privacy", promise.format(**status.privacy))
    present = Table("client", "rounds", "behind", box=None)
    for one in status.present[:SHOWN]:
        present.add_row(Text(one.client), f"{one.rounds:,}{planned}", f"{one.lag:,}")
    if len(status.present) > SHOWN:
        present.add_row(f"… and {len(status.present) - SHOWN} more", "", "")
    return Group(Text(status.run, style="bold"), facts, "", present)


def sparkline(values: Sequence[float]) -> str:
    """A line of blocks, from the lowest value to the highest.

    >>> sparkline([0.1, 0.5, 0.9])
    '▁▅█'
    """
    low, high = min(values), max(values)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((value - low) * scale)] for value in values)


BLOCKS = "▁▂▃▄▅▆▇█"
POINTS = 60
"""Evaluations in a status, at most."""
WIDE = 20
"""Evaluations in a sparkline, the latest ones."""
SHOWN = 20  # clients listed on a terminal
