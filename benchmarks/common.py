"""What every benchmark shares: interleaved timing, the machine's description, results as JSON."""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def interleaved(contestants: Mapping[str, Callable[[], Any]], repeats: int = 7) -> dict[str, float]:
    """Median seconds of each contestant, all of them run in turn so that a busy moment hits them alike."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for contestant in contestants.values():  # warm up: compilation, first touch of memory
        contestant()
    for _ in range(repeats):
        for name, contestant in contestants.items():
            started = time.perf_counter()
            contestant()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(measured) for name, measured in times.items()}


def environment() -> dict[str, Any]:
    """Versions and machine."""
    return {
        "versions": {name: version(name) for name in ("scalarfl", "torch", "numpy", "numba")},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def save(name: str, results: Mapping[str, Any]) -> None:
    """Write results with the environment to benchmarks/results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"environment": environment(), **results}, indent=1) + "\n")
    print(f"written: {path.relative_to(RESULTS.parent.parent)}")
