"""Folders of runs, of comparisons and of kits: pieces missing, cut, swapped, of another form."""

import json
import pickle
import random
from pathlib import Path
from typing import Any

import torch

from malformed.case import Case, Spoil
from malformed.models import changed, cut, flipped, without, written
from scalarfl.experiment.compare.page import PICTURES

TEXTS: dict[str, str | bytes] = {
    "empty": "",
    "half": '{"rounds": ',
    "a list": "[1, 2]",
    "null": "null",
    "binary": bytes(range(256)),
    "nested deeply": "[" * 100_000 + "]" * 100_000,
}
READERS = {
    "verify": ("verify", "run"),
    "show": ("show", "run"),
    "export": ("export", "run", "model"),
    "evaluate": ("evaluate", "run"),
    "resume": ("run", "r.toml", "--out", "run", "--resume", "-s", "federation.rounds=3"),
    "run again": ("run", "r.toml", "--out", "run"),
}
OWN = ("model", "run/")
"""What commands that succeed may write."""


def _folder(name: str) -> Spoil:
    """A folder where a file should be."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return spoil


LEDGER: dict[str, Spoil] = {
    "no ledger": without("run/ledger.sqlite"),
    "an empty ledger": written("run/ledger.sqlite", b""),
    "a ledger of text": written("run/ledger.sqlite", "this is no database\n" * 50),
    "another database": written("run/ledger.sqlite", b"SQLite format 3\0" + bytes(4080)),
    "a ledger that is a folder": _folder("run/ledger.sqlite"),
    "half a ledger": cut("run/ledger.sqlite", 0.5),
    "a ledger without its end": cut("run/ledger.sqlite", 0.99),
    "no recipe": without("run/recipe.toml"),
    "an empty recipe": written("run/recipe.toml", ""),
    "half a recipe": cut("run/recipe.toml", 0.5),
    "a binary recipe": written("run/recipe.toml", bytes(range(256))),
    "a recipe that is a folder": _folder("run/recipe.toml"),
}


def runs() -> list[Case]:
    """A run's folder, damaged, and every command that reads one."""
    made = []
    for fault, spoil in LEDGER.items():
        for name, command in READERS.items():
            # Without a recipe or a ledger a model's folder may still be one, and `show` reads the ledger alone.
            # To resume, the ledger's own record of the settings is enough: the recipe is written again.
            harmless = name in ("show", "resume") and "recipe" in fault
            if (name, fault) != ("resume", "a recipe that is a folder"):
                made.append(Case(f"{name}, {fault}", command, ("run",), spoil, harmless, OWN))
    for form, text in TEXTS.items():
        for name in ("verify", "export"):
            made.append(Case(f"{name}, result {form}", READERS[name], ("run",), written("run/result.json", text)))
    result = ("rounds", "curve", "accuracy", "loss", "digest", "ledger_head", "forward_passes", "dimension", "metric")
    for key in result:
        for form, value in {"gone": None, "text": "x", "a table": {"a": 1}}.items():
            spoil = changed("run/result.json", **{key: value})
            made.append(Case(f"verify, {key} {form}", READERS["verify"], ("run",), spoil, key in SILENT, OWN))
            if key in ("accuracy", "loss", "metric"):
                made.append(Case(f"export, {key} {form}", READERS["export"], ("run",), spoil, True, OWN))
    draw = random.Random(11)
    for index in range(12):
        name, command = draw.choice(sorted(READERS.items()))
        what = draw.choice(("ledger.sqlite", "recipe.toml"))
        spoil = flipped(f"run/{what}", draw, 3, 30_000)
        made.append(Case(f"{name}, bits of {what}, {index}", command, ("run",), spoil, True, OWN))
    return made + _exports() + _baselines()


SILENT = {"dimension", "metric"}
"""Keys of a result whose absence `verify` may pass over."""


def _exports() -> list[Case]:
    def of(name: str, command: tuple[str, ...], spoil: Spoil | None = None, harmless: bool = False) -> Case:
        return Case(name, command, ("run", "baseline"), spoil, harmless, ("model",))

    return [
        of("export onto things", ("export", "run", "things")),
        of("export onto a file", ("export", "run", "notes.txt")),
        of("export onto itself", ("export", "run", "run")),
        of("export below a file", ("export", "run", "notes.txt/model")),
        of("export into the run", ("export", "run", "run/ledger.sqlite")),
        of("export a baseline", ("export", "baseline", "model")),
        of("verify a baseline", ("verify", "baseline")),
        of("show a baseline", ("show", "baseline")),
        of("export round of nothing", ("export", "run", "model", "--round", "x")),
        of("export round -1", ("export", "run", "model", "--round", "-1")),
        of("export round 99", ("export", "run", "model", "--round", "99")),
        of("evaluate on another task", ("evaluate", "run", "--task", "sst2")),
        of("evaluate on no task", ("evaluate", "run", "--task", "x")),
        of("evaluate with another model", ("evaluate", "run", "-s", "method.lr=0")),
        of("demo over runs", ("demo", "--rounds", "1", "--out", "."), without("r.toml")),
        of("demo over a folder of runs", ("demo", "--rounds", "1", "--out", "runs"), _gathered),
    ]


def _gathered(folder: Path) -> None:
    """Runs in a folder, as `--out runs/NAME` leaves them."""
    (folder / "runs").mkdir()
    for name in ("run", "baseline"):
        (folder / name).rename(folder / "runs" / name)


class _Evil:
    def __reduce__(self) -> Any:
        return (print, ("code of a checkpoint's own was run",))


def _saved(content: Any) -> Spoil:
    return lambda folder: torch.save(content, folder / "baseline" / "checkpoint.pt")


def _without_key(key: str, value: Any = None) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "baseline" / "checkpoint.pt"
        kept = torch.load(path, weights_only=True)
        kept.pop(key)
        torch.save(kept if value is None else kept | {key: value}, path)

    return spoil


CHECKPOINTS: dict[str, Spoil] = {
    **{form: written("baseline/checkpoint.pt", text) for form, text in TEXTS.items()},
    **{f"cut at {share:.0%}": cut("baseline/checkpoint.pt", share) for share in (0.1, 0.5, 0.9)},
    "a list saved": _saved([1, 2]),
    "nothing saved": _saved({}),
    "code": written("baseline/checkpoint.pt", pickle.dumps(_Evil())),
    "a folder": _folder("baseline/checkpoint.pt"),
    **{f"no {key}": _without_key(key) for key in ("x", "optimizer", "round", "curve", "participations", "seconds")},
    "fewer tensors": _without_key("x", [torch.zeros(3)]),
    "tensors of other shapes": _without_key("x", [torch.zeros(1)] * 4),
    "a round of text": _without_key("round", "two"),
    "a curve of numbers": _without_key("curve", [1, 2]),
}


def _baselines() -> list[Case]:
    command = (
        "run",
        "r.toml",
        "-s",
        "method.name=fedavg",
        "--out",
        "baseline",
        "--resume",
        "-s",
        "federation.rounds=3",
    )
    return [Case(f"checkpoint, {name}", command, ("baseline",), spoil) for name, spoil in CHECKPOINTS.items()]


def comparisons() -> list[Case]:
    """`report` over a damaged comparison: text that is none, keys gone or of another form, wherever they stand."""
    writes = tuple(f"compare/{name}" for name in PAGE)
    made = [
        Case(f"text, {form}", ("report", "compare"), ("compare",), written("compare/compare.json", text))
        for form, text in TEXTS.items()
    ]
    draw = random.Random(2)
    for index in range(4):
        seed, form = draw.random(), draw.choice(("gone", "text", "null", "list", "number", "table"))
        made.append(
            Case(f"a key {form}, {index}", ("report", "compare"), ("compare",), _somewhere(seed, form), True, writes)
        )
    return made


PAGE = ("report.html", *(f"{name}.svg" for name in PICTURES))
FORMS: dict[str, Any] = {"text": "x", "null": None, "list": [], "number": -1e400, "table": {}}


def _somewhere(seed: float, form: str) -> Spoil:
    """Changes one value anywhere in the comparison."""

    def spoil(folder: Path) -> None:
        path, draw = folder / "compare" / "compare.json", random.Random(seed)
        content = json.loads(path.read_text())
        at: Any = content
        while True:
            key = draw.choice(sorted(at)) if isinstance(at, dict) else draw.randrange(len(at))
            if isinstance(at[key], dict | list) and at[key] and draw.random() < 0.8:
                at = at[key]
                continue
            if form == "gone":
                del at[key]
            else:
                at[key] = FORMS[form]
            break
        path.write_text(json.dumps(content))

    return spoil


KITS = {
    "server": ("server", "r.toml", "--out", "o", "--kit", "kits/server"),
    "client": ("client", "r.toml", "--kit", "kits/alpha"),
    "observer": ("status", "--once", "--kit", "kits/observer"),
}
KIT_FORMS: dict[str, Any] = {
    "run": ("", "a b", 3, None, "x" * 300, "größe"),
    "name": ("", "a.b", 3, None, "../up"),
    "address": ("", "http://x", "nats://example.org:1", 3, None, "tls://[::1", "tls://h:port", "tls://h:99999"),
    "role": ("", "king", 3, None),
}


def kits() -> list[Case]:
    """A kit's files missing, cut, swapped, of another form; and every command that takes one."""
    made = []
    for who, command in KITS.items():
        place = f"kits/{command[-1].split('/')[1]}"
        faults: dict[str, Spoil] = {}
        for file in ("kit.json", "certificate.pem", "key.pem", "authority.pem"):
            faults[f"no {file}"] = without(f"{place}/{file}")
            faults[f"{file} empty"] = written(f"{place}/{file}", "")
            faults[f"{file} binary"] = written(f"{place}/{file}", bytes(range(256)))
            faults[f"{file} cut"] = cut(f"{place}/{file}", 0.5)
            faults[f"{file} a folder"] = _folder(f"{place}/{file}")
        faults["kit.json a list"] = written(f"{place}/kit.json", "[1]")
        faults["kit.json nested deeply"] = written(f"{place}/kit.json", "[" * 100_000 + "]" * 100_000)
        faults["kit.json with a key too many"] = changed(f"{place}/kit.json", more=1)
        faults["a key for a certificate"] = _swapped(place, "certificate.pem", "key.pem")
        faults["another's key"] = _copied("kits/beta/key.pem", f"{place}/key.pem")
        faults["another's kit"] = _copied("kits/broker/authority.pem", f"{place}/kit.json")
        for key, values in KIT_FORMS.items():
            for value in values:
                faults[f"{key} {value!r:.30}"] = changed(f"{place}/kit.json", **{key: value})
        for fault, spoil in faults.items():
            # A certificate that signs nothing is found by the other side.
            made.append(Case(f"{who}, {fault}", command, ("kits",), spoil, fault in ("name 'a.b'",), ("o",)))
    made.append(
        Case(
            "broker's kit without its configuration",
            ("network", "start", "--kit", "kits/broker"),
            ("kits",),
            without("kits/broker/broker.conf"),
        )
    )
    made.append(Case("kits over kits", ("network", "init", "kits", "--clients", "a"), ("kits",)))
    return made


def _swapped(place: str, one: str, other: str) -> Spoil:
    def spoil(folder: Path) -> None:
        first, second = folder / place / one, folder / place / other
        content = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(content)

    return spoil


def _copied(source: str, to: str) -> Spoil:
    return lambda folder: (folder / to).write_bytes((folder / source).read_bytes())
