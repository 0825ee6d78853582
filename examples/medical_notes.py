"""Medical notes of three hospitals: which patient is urgent? The notes stay; scalars travel. All notes are synthetic.

    python examples/medical_notes.py FOLDER

The notes are made by this file and describe nobody. Each hospital has its own vocabulary and its own share of urgent
patients. One small language model learns from all three; each hospital measures on its own held-out notes. For a real
model put its folder or hub id into ``model.name``. Needs the extra `llm`.
"""

import random
import sys
from pathlib import Path
from typing import Any

from tiny_language_model import write_model, write_rows

from scalarfl.experiment import recipe as recipes, run

URGENT = {
    "north": ["chest pain", "short of breath", "slurred speech"],
    "east": ["crushing pain", "gasping", "sudden weakness"],
    "south": ["pain radiating left", "blue lips", "one arm numb"],
}
ROUTINE = {
    "north": ["mild cough", "annual check", "sore knee"],
    "east": ["runny nose", "vaccination", "stiff back"],
    "south": ["light rash", "new glasses", "tired feet"],
}
SHARE = {"north": 0.5, "east": 0.3, "south": 0.7}
"""Of urgent patients."""


def notes(hospital: str, count: int = 200) -> list[dict[str, str]]:
    """A hospital's synthetic notes."""
    draw = random.Random(hospital)
    made = []
    for _ in range(count):
        urgent = draw.random() < SHARE[hospital]
        found = draw.sample((URGENT if urgent else ROUTINE)[hospital], 2)
        text = f"patient of {draw.randrange(20, 90)} years , {found[0]} and {found[1]} , seen at {draw.randrange(24)} h"
        made.append({"text": text, "label": "urgent" if urgent else "routine"})
    return made


def main(folder: Path, rounds: int = 50) -> dict[str, Any]:
    """Write notes and a model into the folder, train, and return the result."""
    everything = {hospital: notes(hospital) for hospital in SHARE}
    for hospital, rows in everything.items():
        write_rows(folder / f"{hospital}.jsonl", rows)  # one file a client, named after it
    write_model(folder / "model", [f"{row['text']} {row['label']} :" for rows in everything.values() for row in rows])
    recipe = recipes.parse(
        {
            "model": {"name": str(folder / "model")},
            "task": {"name": "own", "file": str(folder / "*.jsonl"), "prompt": "{text} :"},
            "federation": {"clients": 3, "sampled": 3, "rounds": rounds, "local_steps": 5, "aggregation": "weighted"},
            "method": {
                "name": "decomfl",
                "slopes": "training",  # hospitals can train; they send 128 numbers
                "noise": "hadamard",
                "perturbations": 128,
                "lr": 0.03,
                "local_lr": 0.1,
            },
            "evaluation": {"by": "clients", "every": 10},
        }
    )
    result = run.run(recipe, folder / "run")
    print(
        f"{result['accuracy']:.0%} of the held-out notes after {result['rounds']} rounds; "
        f"a hospital sent {result['serialized_bytes_up']:,.0f} bytes and no note"
    )
    return result


if __name__ == "__main__":
    main(Path(sys.argv[1]))
