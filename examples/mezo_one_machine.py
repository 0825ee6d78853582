"""A MeZO fine-tune on one machine: a federation of one client, with the memory of inference.

    python examples/mezo_one_machine.py MODEL DATA.jsonl OUT

MODEL: a folder or hub id of a language model; DATA: lines such as {"text": "...", "label": "positive"}. Without
arguments a tiny model and made-up reviews, in a folder of their own. The ledger of OUT holds a seed and one number a
step: it is the whole fine-tuned model, and any step can be exported from it. Needs the extra `llm`.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from tiny_language_model import main as write_both

from scalarfl.experiment import recipe as recipes, run


def main(model: str, data: Path, out: Path, steps: int = 500, lr: float = 1e-3) -> dict[str, Any]:
    """Fine-tune; returns the result. lr: for a pretrained model about 1e-6, with tens of thousands of steps."""
    recipe = recipes.parse(
        {
            "model": {"name": model},
            "task": {"name": "own", "file": str(data)},
            "federation": {"clients": 1, "sampled": 1, "rounds": steps, "batch_size": 16},
            "method": {"name": "mezo", "lr": lr, "perturbations": 1},
            "evaluation": {"every": max(1, steps // 5)},
        }
    )
    result = run.run(recipe, out)
    size = (out / run.LEDGER).stat().st_size
    print(f"loss {result['curve'][0][2]:.3f} -> {result['loss']:.3f}; the model is base + a ledger of {size:,} bytes")
    return result


if __name__ == "__main__":
    if len(sys.argv) == 4:
        main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            write_both(Path(scratch) / "model", Path(scratch) / "reviews.jsonl")
            main(str(Path(scratch) / "model"), Path(scratch) / "reviews.jsonl", Path(scratch) / "run")
