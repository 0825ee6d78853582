"""What a run cost: from its ledger bytes moved and forward passes, and this process's memory."""

import sys
from collections import Counter
from itertools import chain, repeat
from pathlib import Path

from scalarfl.ledger.header import FOLLOWED, losses, losses_along
from scalarfl.ledger.store import Ledger


def traffic(ledger: Ledger) -> dict[tuple[str, str], tuple[int, int]]:
    """(direction, purpose) -> bytes of (payload, serialized), all clients and rounds together."""
    total: dict[tuple[str, str], tuple[int, int]] = {}
    for _, audit in ledger.audits():
        for row in audit.traffic:
            key = (row.direction, row.purpose)
            payload, serialized = total.get(key, (0, 0))
            total[key] = (payload + row.payload, serialized + row.serialized)
    return total


def forward_passes(ledger: Ledger) -> int:
    """Forward passes of one batch for all rounds on record, over all clients that replied.

    A backward pass counts as two. With lr = "auto", the slope along the latest move counts as well.
    """
    h = ledger.header
    passes = sum(count * h.local_steps * losses(h.perturbations, way) for way, count in _replied(ledger).items())
    if h.extra:
        batches = h.local_steps if h.found_by == "training" else 1
        passes += sum(count * batches * losses_along(way) for way, count in _replied(ledger, following=True).items())
    return passes


def backward_passes(ledger: Ledger) -> int:
    """Backward passes of one batch for all rounds on record; each is counted as two in ``forward_passes``."""
    return sum(count for way, count in _replied(ledger).items() if way in FOLLOWED) * ledger.header.local_steps


def displaced_passes(ledger: Ledger) -> int:
    """Forward passes among ``forward_passes`` that displace each example along its own direction."""
    h = ledger.header
    if h.directions != "per-example":
        return 0
    sides = {"forward": 1, "central": 2}
    return sum(sides[way] * count for way, count in _replied(ledger).items()) * h.local_steps * h.perturbations


def final_lr(ledger: Ledger) -> float | None:
    """The learning rate of the last step with lr = "auto"; None with a given one, and without a step."""
    if ledger.header.lr == "given":
        return None
    last = range(ledger.rounds, 0, -1)
    steps = (update for end in last for update in ledger.updates(end - 1, end))
    return next((update.lr for update in steps if update.moved and update.lr > 0), None)


def _replied(ledger: Ledger, following: bool = False) -> Counter[str]:
    """Replies of all rounds on record, by how the client found its scalars.

    following: only of the rounds that follow a move.
    """
    replied: Counter[str] = Counter()
    counted = chain([False], (update.moved for update in ledger.updates())) if following else repeat(True)
    for (_, audit), counts in zip(ledger.audits("round"), counted, strict=False):
        if counts:
            clients = {rejection.client for rejection in audit.rejected} & set(audit.cohort)
            clients.update(participant.client for participant in audit.participants)
            replied.update((audit.oracles or {}).get(client, ledger.header.found_by) for client in clients)
    return replied


def unused(ledger: Ledger) -> int:
    """Consecutive rounds without a usable reply, up to the ledger's latest."""
    first = ledger.rounds
    while first and not next(ledger.updates(first - 1, first)).slots:
        first -= 1
    return ledger.rounds - first


def peak_rss_bytes() -> int:
    """The process's peak resident memory so far, bytes; 0 if the system does not tell (Windows)."""
    status = Path("/proc/self/status")
    if status.exists():  # not getrusage's: it counts what the parent held when it started this process
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
