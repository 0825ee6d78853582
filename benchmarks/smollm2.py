"""SmolLM2-135M learns SST-2 by scalars, beside FedAvg of the same weights.

    python -m benchmarks.smollm2 MODEL SST2 [CASE ...]

MODEL: the folder of SmolLM2-135M-Instruct; SST2: that of train.tsv and dev.tsv. The prompt is "Review: ... Sentiment:",
the label words are "negative" and "positive"; 6 clients of which 2 take part in a round, iid, batches of 16, one
seed, the first 400 rows of dev, whose standard error is 1.9 points. P is 1,024, along Hadamard's directions. Learning
rates find themselves, or were set by hand: those in the names, FedAvg's (that of its clients), and fzoo's. What has
been run is not run again.
"""

import csv
import json
import os
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from scalarfl.experiment import recipe as recipes
from scalarfl.experiment.prepare import prepare
from scalarfl.experiment.run import start, start_dense, summary
from scalarfl.protocol.callbacks import Progress

OUT = Path(__file__).parent / "results" / "smollm2.json"
DECOMFL = {"name": "decomfl", "noise": "hadamard"}
EXACT = DECOMFL | {"slopes": "exact"}
TRAINING = DECOMFL | {"slopes": "training"}
AUTO = {"perturbations": 1024, "lr": "auto"}
CASES: dict[str, tuple[str, int, int, dict[str, Any]]] = {
    "exact, norms": ("norms", 20, 1, EXACT | AUTO),
    "exact, norms, fzoo": ("norms", 20, 1, EXACT | {"name": "fzoo", "perturbations": 1024, "lr": 0.03}),
    "training, norms": ("norms", 20, 5, TRAINING | AUTO | {"local_lr": 0.02}),
    "exact, norms, lr = 0.01": ("norms", 20, 1, EXACT | {"perturbations": 1024, "lr": 0.01}),
    "exact, norms, lr = 0.015": ("norms", 20, 1, EXACT | {"perturbations": 1024, "lr": 0.015}),
    "training, norms, lr = 0.01": ("norms", 10, 5, TRAINING | {"perturbations": 1024, "lr": 0.01, "local_lr": 0.02}),
    "fedavg, norms": ("norms", 20, 5, {"name": "fedavg", "lr": 0.02}),
    "exact, last:1": ("last:1", 20, 1, EXACT | AUTO),
    "exact, lora": ("lora", 20, 1, EXACT | AUTO),
    "exact, all": ("all", 20, 1, EXACT | AUTO),
    "training, lora": ("lora", 20, 5, TRAINING | AUTO | {"local_lr": 0.02}),
    "fedavg, lora": ("lora", 20, 5, {"name": "fedavg", "lr": 0.02}),
}
"""Name: what is trained, rounds, local steps, the method."""


def prepared_rows(data: Path, folder: Path) -> tuple[Path, Path]:
    """Training rows and the first 400 of dev, in the columns of one's own data."""
    paths = []
    for split, most in (("train", 20_000), ("dev", 400)):
        with (data / f"{split}.tsv").open(encoding="utf-8", newline="") as file:
            table = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            rows = [
                {"text": row["sentence"].strip(), "label": ("negative", "positive")[int(row["label"])]}
                for row in islice(table, most)
            ]
        paths.append(folder / f"{split}.jsonl")
        paths[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths[0], paths[1]


def measure(model: str, data: Path, trainable: str, rounds: int, tau: int, method: dict[str, Any]) -> dict[str, Any]:
    """One run: accuracies, seconds, bytes."""
    with tempfile.TemporaryDirectory() as scratch:
        train, dev = prepared_rows(data, Path(scratch))
        recipe = recipes.parse(
            {
                "model": {"name": model, "trainable": trainable, "device": "cpu"},
                "task": {
                    "name": "own", "file": str(train), "test_file": str(dev), "labels": ["negative", "positive"],
                    "label_words": ["negative", "positive"], "prompt": "Review: {text}\nSentiment:",
                },
                "federation": {"clients": 6, "sampled": 2, "rounds": rounds, "local_steps": tau, "batch_size": 16},
                "method": method,
                "evaluation": {"every": 5},
            }
        )  # fmt: skip
        prepared = prepare(recipe)
    began, taken = time.perf_counter(), [0.0]

    def tick(progress: Progress) -> None:
        taken[0] = time.perf_counter() - began
        score = progress.evaluation and progress.evaluation.accuracy
        print(f"  round {progress.round}, {taken[0]:.0f} s: {score}", file=sys.stderr, flush=True)

    dense = method["name"].startswith("fed")
    finished = start_dense(prepared, callbacks=tick) if dense else start(prepared, callbacks=tick)
    result = summary(recipe.keys, finished, prepared.task.metric, None)
    return {
        "trained": finished.dimension,
        "curve": [[number, accuracy] for number, accuracy, _ in result["curve"]],
        "bytes up a client and round": result["payload_bytes_up"] * 6 / (2 * rounds),
        "seconds, with evaluations": taken[0],
        "forward passes": result["forward_passes"],
        "method": method,
        "rounds": rounds,
        "local steps": tau,
    }


def main() -> None:
    """Run what is missing, print and keep."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    model, data = sys.argv[1], Path(sys.argv[2])
    for name in sys.argv[3:] or CASES:
        found: dict[str, Any] = json.loads(OUT.read_text()) if OUT.exists() else {}
        if name not in found:
            found[name] = measure(model, data, *CASES[name])
            OUT.write_text(json.dumps(found, indent=1) + "\n")
        print(name, found[name]["curve"], flush=True)


if __name__ == "__main__":
    main()
