"""What a run cost: from its ledger bytes moved and forward passes, and this process's memory."""

import sys
from collections import Counter
from pathlib import Path

from scalarfl.ledger.header import FOLLOWED, losses
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

    A backward pass counts as two.
    """
    h = ledger.header
    return sum(count * h.local_steps * losses(h.perturbations, way) for way, count in _replied(ledger).items())


def backward_passes(ledger: Ledger) -> int:
    """Backward passes of one batch for all rounds on record; each is counted as two in ``forward_passes``."""
    return sum(count for way, count in _replied(ledger).items() if way in FOLLOWED) * ledger.header.local_steps


def _replied(ledger: Ledger) -> Counter[str]:
    """Replies of all rounds on record, by how the client found its scalars."""
    replied: Counter[str] = Counter()
    for _, audit in ledger.audits("round"):
        clients = {rejection.client for rejection in audit.rejected} & set(audit.cohort)
        clients.update(participant.client for participant in audit.participants)
        replied.update((audit.oracles or {}).get(client, ledger.header.found_by) for client in clients)
    return replied


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
