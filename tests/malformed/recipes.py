"""Recipes: every key with values of the wrong type and out of range, and files that are no recipe."""

import random
from pathlib import Path

from malformed.case import RECIPE, Case, Spoil
from scalarfl.experiment.recipe import Recipe, table_of
from scalarfl.experiment.template import template

WRONG = {
    "a table": "{ a = 1 }",
    "a list of lists": "[[1]]",
    "a date": "1979-05-27T07:32:00Z",
    "NaN": "nan",
    "infinity": "-inf",
    "a negative number": "-1",
    "a huge number": "9" * 30,
    "NUL": '"a\\u0000b"',
    "true": "true",
    "nothing": '""',
}
EACH = 4
"""Wrong values that a key is tried with."""


def keys() -> list[Case]:
    """Every key with wrong values; by `plan`, which looks at the whole recipe and trains nothing."""
    chosen, cases = random.Random(12), []
    for section in Recipe.model_fields:
        kind = table_of(section)
        for key in kind.model_fields:
            if key == "own":
                continue
            for name in chosen.sample(sorted(WRONG), EACH):
                text = str(kind.model_fields[key])
                fine = {"true": key == "balanced", "nothing": "str" in text, "a huge number": "float" in text}
                command = ("plan", "r.toml", "-s", f"{section}.{key}={WRONG[name]}")
                cases.append(Case(f"{section}.{key}, {name}", command, harmless=fine.get(name, False)))
    return cases


def _writes(content: str | bytes) -> Spoil:
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    return lambda folder: (folder / "r.toml").write_bytes(data)


FILES: dict[str, str | bytes] = {
    "nothing": "",
    "a comment alone": "# nothing\n",
    "a byte order mark": "\ufeff" + RECIPE,
    "UTF-16": RECIPE.encode("utf-16"),
    "Latin-1": RECIPE.replace("mlp", "mlß").encode("latin-1"),
    "binary": bytes(range(256)) * 40,
    "zeros": bytes(4096),
    "10 MB of one word": "x" * 10_000_000,
    "10 MB of keys": RECIPE + "".join(f"k{index} = 1\n" for index in range(100_000)),
    "a NUL": RECIPE.replace("mlp", "ml\0p"),
    "a NUL in an escape": RECIPE.replace('"mlp"', '"ml\\u0000p"'),
    "a control character": RECIPE.replace('"mlp"', '"ml\\u001bp"'),
    "half a surrogate": RECIPE.replace('"mlp"', '"ml\ud800p"'),
    "half a surrogate in an escape": RECIPE.replace('"mlp"', '"ml\\ud800p"'),
    "JSON": '{"model": {"name": "mlp"}}',
    "YAML": "model:\n  name: mlp\n",
    "a key twice": RECIPE + "every = 2\n",
    "a section twice": RECIPE + "[model]\n",
    "no section": "name = 'mlp'\n",
    "a section that is a list": RECIPE.replace("[model]", "[[model]]"),
    "a section that is a number": "model = 3\ntask = 4\n",
    "a method that is a number": "model = {name = 'mlp'}\ntask = {name = 'digits'}\nmethod = 3\n",
    "a method that is a list": "model = {name = 'mlp'}\ntask = {name = 'digits'}\nmethod = [1]\n",
    "an unknown section": RECIPE + "[modle]\nname = 'mlp'\n",
    "a section below a section": RECIPE + "[evaluation.more]\nevery = 2\n",
    "a method's own table": RECIPE + "[method.own]\nnu = 0.1\n",
    "another method's key": RECIPE.replace("lr = 1e-2", "lr = 1e-2\nbeta = 0.5"),
    "a method's name in a list": RECIPE.replace('"hiso"', '["hiso"]'),
    "a method's name of nothing": RECIPE.replace('"hiso"', '""'),
    "a setting that is no number": RECIPE.replace("lr = 1e-2", "lr = 1e-2\nnu = nan"),
    "a setting in a table": RECIPE.replace("lr = 1e-2", "lr = 1e-2\nnu = {a = 1}"),
    "deep lists": f"a = {'[' * 5000}{']' * 5000}\n",
    "deep tables": f"a = {'{b = ' * 3000}1{'}' * 3000}\n",
    "a deep key": f"{'.'.join('a' * 5000)} = 1\n",
    "9,000 digits": RECIPE.replace("rounds = 2", f"rounds = {'9' * 9000}"),
    "400 digits": RECIPE.replace("rounds = 2", f"rounds = {'9' * 400}"),
    "a float beyond all": RECIPE.replace("1e-2", "1e999"),
    "a float below all": RECIPE.replace("1e-2", "1e-999"),
    "a size of the MLP below zero": RECIPE.replace("[4]", "[4, -1]"),
    "a size of the MLP of nothing": RECIPE.replace("[4]", "[0]"),
    "a size of the MLP beyond all memory": RECIPE.replace("[4]", f"[{10**15}]"),
    "a size of the MLP beyond 64 bits": RECIPE.replace("[4]", f"[{10**25}]"),
    "a CNN too deep for its images": RECIPE.replace('"mlp"', '"cnn"').replace("[4]", "[2, 2, 2, 2, 2]"),
    "a device that is none": RECIPE.replace("[task]", 'device = "tpu:9"\n[task]'),
    "a device that is half": RECIPE.replace("[task]", 'device = "cuda:99"\n[task]'),
    "a device without memory": RECIPE.replace("[task]", 'device = "meta"\n[task]'),
    "a pattern that matches nothing": RECIPE.replace("[task]", 'trainable = ["q*"]\n[task]'),
    "a pattern that is half": RECIPE.replace("[task]", 'trainable = ["["]\n[task]'),
    "no patterns": RECIPE.replace("[task]", "trainable = []\n[task]"),
    "a mask of nothing": RECIPE.replace("[task]", "trainable = {sparse = 0.0}\n[task]"),
    "a mask of more than all": RECIPE.replace("[task]", "trainable = {sparse = 1.5}\n[task]"),
    "a mask of something else": RECIPE.replace("[task]", 'trainable = {sparse = 0.5, of = "middle"}\n[task]'),
    "a baseline with a mask": RECIPE.replace("[task]", "trainable = {sparse = 0.5}\n[task]").replace("hiso", "fedavg"),
    "more clients than examples": RECIPE.replace("clients = 4", "clients = 2000"),
    "20 million clients": RECIPE.replace("clients = 4", "clients = 20_000_000"),
    "20 million clients, all sampled": RECIPE.replace(
        "clients = 4\nsampled = 2", "clients = 20_000_000\nsampled = 20_000_000"
    ),
    "clients beyond 64 bits": RECIPE.replace("clients = 4", f"clients = {10**25}"),
    "rounds beyond 64 bits": RECIPE.replace("rounds = 2", f"rounds = {10**25}"),
    "local steps beyond all memory": RECIPE.replace("rounds = 2", "rounds = 2\nlocal_steps = 1_000_000_000_000"),
    "local steps beyond a message": RECIPE.replace("rounds = 2", "rounds = 2\nlocal_steps = 10_000_000"),
    "a batch beyond all memory": RECIPE.replace("rounds = 2", f"rounds = 2\nbatch_size = {10**20}"),
    "an alpha of almost nothing": RECIPE.replace("rounds = 2", 'rounds = 2\npartition = "dirichlet"\nalpha = 1e-300'),
    "an alpha beyond all": RECIPE.replace("rounds = 2", 'rounds = 2\npartition = "dirichlet"\nalpha = 1e308'),
    "clients that measure too little": RECIPE.replace("examples = 20", 'examples = 2\nby = "clients"'),
    "more evaluated than there is": RECIPE.replace("examples = 20", f"examples = {10**25}"),
    "a mu of almost nothing": RECIPE.replace("lr = 1e-2", "lr = 1e-2\nmu = 1e-300"),
    "a mu beyond float32": RECIPE.replace("lr = 1e-2", "lr = 1e-2\nmu = 1e300"),
    "an lr beyond float32": RECIPE.replace("1e-2", "1e300"),
}
HARMLESS = {
    "a byte order mark", "20 million clients", "more evaluated than there is", "an alpha of almost nothing",
    "an alpha beyond all",
    "a batch beyond all memory",
}  # fmt: skip
PLANNED = {"20 million clients", "20 million clients, all sampled", "a batch beyond all memory"}


def files() -> list[Case]:
    """Files that are no recipe, or one of a federation that cannot be."""
    return [
        Case(name, ("run", "r.toml", "--out", "o"), spoil=_writes(content), harmless=name in HARMLESS, writes=("o",))
        for name, content in FILES.items()
    ] + [
        Case(f"plan, {name}", ("plan", "r.toml"), spoil=_writes(FILES[name]), harmless=True) for name in sorted(PLANNED)
    ]


def damaged(count: int = 15) -> list[Case]:
    """The printed template, cut, with bytes changed, doubled or swapped."""
    draw, good, cases = random.Random(7), template().encode(), []
    for index in range(count):
        data = bytearray(good)
        how = draw.choice(("cut", "flip", "byte", "double", "swap"))
        at, to = sorted(draw.sample(range(len(data)), 2))
        if how == "cut":
            del data[at:]
        elif how == "flip":
            for _ in range(draw.randint(1, 20)):
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        elif how == "byte":
            data[at] = draw.choice(b"\x00\xff\"'[]{}=.\n#-9")
        elif how == "double":
            data[at:at] = data[at:to]
        else:
            data[at], data[to] = data[to], data[at]
        cases.append(
            Case(f"template {index}, {how} at {at}", ("plan", "r.toml"), spoil=_writes(bytes(data)), harmless=True)
        )
    return cases


def spoil_text(name: str, old: str, new: str) -> Spoil:
    """Replaces text in a file, which must hold it."""

    def spoil(folder: Path) -> None:
        path = folder / name
        text = path.read_text()
        assert old in text, f"{name} does not hold {old!r}"
        path.write_text(text.replace(old, new))

    return spoil
