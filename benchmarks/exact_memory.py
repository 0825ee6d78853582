"""Peak memory of a client that takes a backward pass, at OPT-125M: `python -m benchmarks.exact_memory`.

Random weights of OPT-125M's shape, float32, all trained, next-token loss on 8 x 64 tokens, one CPU thread, each way in
a process of its own. Compared with weights + activations + the largest layer's gradient, where activations are the
bytes that autograd keeps between the forward and the backward pass, each storage counted once.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from scalarfl.bench import rounds
from scalarfl.ledger.accounting import peak_rss_bytes
from scalarfl.methods import make_method
from scalarfl.model.cost import following
from scalarfl.model.gradients import Training
from scalarfl.model.probe import LossQuery, Probe
from scalarfl.model.replica import Replica

OUT = Path(__file__).parent / "results" / "exact_memory.json"
WAYS = ("inference", "exact", "training", "whole gradient")
TOKENS = torch.zeros(8, 64, dtype=torch.int64) + torch.arange(64)
BATCH = (TOKENS, TOKENS)
DIRECTIONS = 64


def saved(model: torch.nn.Module) -> int:
    """Bytes that autograd keeps for the backward pass, without the weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with following(model, list(model.parameters())), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = rounds.next_token_loss(model, BATCH)  # the graph, and all it keeps, lives as long as the loss
        total = sum(kept.values())
        del loss
    return total


def work(way: str, model: torch.nn.Module) -> None:
    """Two rounds of one client."""
    if way == "inference":
        with torch.no_grad():
            for _ in range(2):
                float(rounds.next_token_loss(model, BATCH))
        return
    if way == "whole gradient":
        with following(model, list(model.parameters())):
            for _ in range(2):
                model.zero_grad()
                rounds.next_token_loss(model, BATCH).backward()  # type: ignore[no-untyped-call]
        return
    replica = Replica(model, make_method("decomfl"), noise="hadamard")
    probe = Probe(replica, rounds.next_token_loss)
    for seed in range(2):
        if way == "exact":
            probe.measure([LossQuery(seed, 1e-6, 1e-3, (), range(DIRECTIONS), BATCH, exact=True)])
        else:
            probe.measure([Training(seed, range(DIRECTIONS), (BATCH, BATCH), 1e-3, "sgd")])


def measure(way: str) -> dict[str, int]:
    """One way's peak beyond the process with its code loaded and exercised on a toy, in bytes."""
    torch.set_num_threads(1)
    work(way, rounds.opt(2, 64, 512).eval())
    before = peak_rss_bytes()
    model = rounds.opt(12, 768, 50272).eval()
    work(way, model)
    found = {"peak": peak_rss_bytes() - before}
    sizes = [p.numel() * 4 for p in model.parameters()]
    found |= {"weights": sum(sizes), "largest gradient": max(sizes), "activations": saved(model)}
    return found


def main() -> None:
    """Measure every way and print the table."""
    found: dict[str, Any] = {}
    for way in WAYS:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.exact_memory", way], check=True, capture_output=True, text=True
        )
        found[way] = json.loads(done.stdout.splitlines()[-1])
        print(way, found[way], file=sys.stderr, flush=True)
    OUT.write_text(json.dumps(found, indent=1) + "\n")
    one = found["exact"]
    bound = one["weights"] + one["activations"] + one["largest gradient"]
    print("| client | peak, MB | of weights + activations + largest gradient |\n|---|---:|---:|")
    for way, each in found.items():
        print(f"| {way} | {each['peak'] / 1e6:,.0f} | {each['peak'] / bound:.2f} |")
    parts = ", ".join(f"{name} {one[name] / 1e6:,.0f} MB" for name in ("weights", "activations", "largest gradient"))
    print(f"{parts}: {bound / 1e6:,.0f} MB together")


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1]))) if sys.argv[1:] else main()
