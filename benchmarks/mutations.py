"""Damage run folders and see what the commands make of it: `python -m benchmarks.mutations --count 5000`.

Each mutation flips one bit of a file or edits one field, and one command reads the folder. The outcome is one of

- refused: exit code 2 or 3 and a sentence;
- harmless: the same output and the same model as from the folder that was left alone;
- one record earlier: the run was not finished, and the outcome is that of a ledger without its last record. A power cut
  leaves such a ledger, and nothing in the folder can tell the two apart; a finished run's result names the last record;
- accepted, traceback, hang: a failure.

Commands run in a process that is replaced when it takes longer than ``LIMIT`` seconds. All choices follow from --seed.
"""

import argparse
import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import random
import shutil
import sqlite3
import tempfile
import traceback
from collections import Counter
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

LIMIT = 120.0
RESULTS = Path(__file__).parent / "results" / "mutations.json"
GOOD = ("refused", "harmless", "one record earlier")
UNTIMED = ("seconds", "peak_rss_bytes", "checksum")

RECIPE = """
[model]
name = "mlp"
hidden = [4]

[task]
name = "digits"
train_examples = 120

[federation]
clients = 4
sampled = 2
rounds = 8
batch_size = 8

[method]
name = "{method}"
lr = 1e-2
perturbations = 2
directions = "{directions}"

[evaluation]
every = 3
examples = 40
by = "{by}"
"""
RUNS = {
    "hiso": ("hiso", "shared", "server"),
    "decomfl, own directions": ("decomfl", "per-client", "server"),
    "momentum, measured by clients": ("momentum", "shared", "clients"),
    "hizoo, killed": ("hizoo", "per-client", "clients"),
    "server": ("hiso", "shared", "clients"),
}
COMMANDS = {
    "hiso": ("verify", "show", "export", "resume", "evaluate", "snapshot"),
    "decomfl, own directions": ("verify", "show", "export", "resume", "evaluate"),
    "momentum, measured by clients": ("verify", "show", "export", "resume", "snapshot"),
    "hizoo, killed": ("verify", "show", "export", "resume"),
    "server": ("show", "verify", "export", "server", "server"),
}


def build(home: Path) -> None:
    """One folder a run, each beside its recipe; "hizoo, killed" has a hot write-ahead log."""
    from scalarfl.experiment import recipe as recipes, run

    for name, (method, directions, by) in RUNS.items():
        place = home / name
        place.mkdir(parents=True)
        recipe = place / "r.toml"
        recipe.write_text(RECIPE.format(method=method, directions=directions, by=by))
        if name == "server":
            _serve(recipe, place / "run")
        elif name == "hizoo, killed":
            killed = multiprocessing.get_context("spawn").Process(target=_killed, args=(recipe, place / "run"))
            killed.start()
            killed.join()
            (place / "run" / "ledger.sqlite-shm").unlink(missing_ok=True)
        else:
            run.run(recipes.load(recipe), place / "run")
            _snapshot(recipe, place / "run")
        shutil.copytree(place / "run", place / "earlier")
        _shorten(place / "earlier" / "ledger.sqlite")


def _serve(recipe: Path, out: Path) -> None:
    """A server's folder: the announcement's ledger, and rounds with the recipe's clients, in this process."""
    import msgspec

    from scalarfl.experiment import recipe as recipes, spec as announce
    from scalarfl.experiment.build import build_client
    from scalarfl.protocol.server import Server

    announced = announce.load(recipe)
    (recipe.parent / "announced.json").write_bytes(msgspec.json.encode(announced))
    loaded = recipes.load(recipe)
    clients = {f"client-{index:04d}": build_client(loaded, f"client-{index:04d}") for index in range(4)}
    with announced.opened(out) as ledger:
        server = Server(ledger, lr=announced.run.first_lr, sampled=announced.sampled)
        for client in clients.values():
            server.admit(client.hello())
        for _ in range(6):
            if ledger.rounds % announced.evaluate_every == 0:
                asked = server.open_evaluation(list(clients))
                server.close_evaluation((name, clients[name].measure(task)) for name, task in asked.items())
            tasks = server.open_round(list(clients))
            server.close_round((name, clients[name].answer(task)) for name, task in tasks.items())


def _killed(recipe: Path, out: Path) -> None:
    from scalarfl.experiment import recipe as recipes, run

    run.run(recipes.load(recipe), out, callbacks=lambda progress: os._exit(9) if progress.round == 5 else None)


def _snapshot(recipe: Path, out: Path) -> None:
    """A client's snapshot after five rounds of the run."""
    from scalarfl.experiment import recipe as recipes, run
    from scalarfl.experiment.build import build_client
    from scalarfl.model import snapshot
    from scalarfl.simulation import replay

    replica = build_client(recipes.load(recipe), "client-0000").probe.replica
    with run.open_ledger(out) as ledger:
        replay(replica, ledger, 5)
    snapshot.write(replica, out / "replica.safetensors", 1.0)


def _shorten(ledger: Path) -> None:
    """Take the last record off a ledger."""
    with contextlib.closing(sqlite3.connect(ledger)) as database, database:
        database.execute("DELETE FROM entries WHERE id = (SELECT max(id) FROM entries)")


def mutate(folder: Path, command: str, dice: random.Random) -> str:
    """Damage one file of the run; returns where and how."""
    kinds = {"ledger.sqlite": 5, "ledger.sqlite-wal": 5, "recipe.toml": 2, "result.json": 2, "fields": 4}
    files = [
        name for name in kinds if name == "fields" or ((folder / name).is_file() and (folder / name).stat().st_size)
    ]
    chosen = dice.choices(files, [kinds[name] for name in files])[0]
    if command == "snapshot":
        chosen = "replica.safetensors"
    if chosen == "fields":
        return _edited(folder, command, dice)
    content = bytearray((folder / chosen).read_bytes())
    at = dice.randrange(len(content))
    if chosen != "recipe.toml" and dice.random() < 0.3:  # the beginnings of pages and files hold their structure
        at = min(len(content) - 1, 4096 * dice.randrange(len(content) // 4096 + 1) + dice.randrange(100))
    bit = dice.randrange(8)
    content[at] ^= 1 << bit
    (folder / chosen).write_bytes(content)
    return f"{chosen}: bit {bit} of byte {at}"


def _edited(folder: Path, command: str, dice: random.Random) -> str:
    what = dice.choice(["ledger", "ledger", "recipe", "result"])
    if what == "result" and (folder / "result.json").is_file():
        from scalarfl.experiment import run_folder as folders

        result = json.loads((folder / "result.json").read_text())
        key = dice.choice(sorted(result))
        result[key] = _other(result[key], dice)
        forged = command == "verify" and key not in (*UNTIMED, "warnings")
        if forged:  # the checksum renewed: verify alone compares the numbers
            result["checksum"] = folders.checksum(result)
        (folder / "result.json").write_text(json.dumps(result) + "\n")
        return f"result.json: {key}{' and its checksum' if forged else ''}"
    if what == "recipe":
        lines = (folder / "recipe.toml").read_text().splitlines()
        number = dice.choice([index for index, line in enumerate(lines) if "=" in line])
        key, _, value = lines[number].partition(" = ")
        if value[0] == '"':
            value = dice.choice(['"hiso"', '"clients"', '"dirichlet"', '"weighted"', '"x"', '"norms"', "1"])
        elif value in ("true", "false"):
            value = "true" if value == "false" else "false"
        else:
            value = dice.choice([value + "1", "0", "-1", "2.5", "3", "[3]", '"x"'])
        lines[number] = f"{key} = {value}"
        (folder / "recipe.toml").write_text("\n".join(lines) + "\n")
        return f"recipe.toml: {lines[number]}"
    database = sqlite3.connect(folder / "ledger.sqlite")
    with contextlib.closing(database), database:
        rows = database.execute("SELECT id FROM entries").fetchall()
        column, (row,) = dice.choice(["kind", "round", "body", "audit", "head", "id"]), dice.choice(rows)
        (value,) = database.execute(f"SELECT {column} FROM entries WHERE id = ?", (row,)).fetchone()
        try:
            database.execute(f"UPDATE entries SET {column} = ? WHERE id = ?", (_other(value, dice), row))
        except sqlite3.IntegrityError:
            database.execute("DELETE FROM entries WHERE id = ?", (row,))
    return f"ledger.sqlite: {column} of entry {row}"


def _other(value: Any, dice: random.Random) -> Any:
    """Another value, most often of the same type."""
    if dice.random() < 0.1:
        return dice.choice(["", 0, -1, 2.5])
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + dice.choice([1, -1, 0.5, 1 << 40])
    if isinstance(value, bytes):
        at = dice.randrange(len(value) + 1)
        return dice.choice([value[:at] + b"\0", value[:at] + bytes([dice.randrange(256)]) + value[at:], value + b"\0"])
    if isinstance(value, str):
        return dice.choice(["", value + "0", value[:-1], "round", "evaluation", "settings"])
    return dice.choice([None, [], "x", 1])


def observed(command: str, place: Path) -> tuple[int, str]:
    """(exit code, everything that the command tells or makes), with times and places left out."""
    folder, out = place / "run", place / "out"
    if command == "server":
        return 0, _opened(place)
    if command == "snapshot":
        return 0, _restored(place)
    arguments = {
        "verify": ["verify", str(folder), "--json"],
        "show": ["show", str(folder), "--json"],
        "export": ["export", str(folder), str(out)],
        "resume": ["run", str(place / "r.toml"), "--out", str(folder), "--resume", "--json"],
        "evaluate": ["evaluate", str(folder), "--json"],
    }[command]
    from scalarfl.cli import commands as cli

    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        code = cli._exit_code(arguments)
    if code in (2, 3):
        said = stderr.getvalue()
        assert said.count("error: ") == 1, said
        return code, said
    told = stdout.getvalue().replace(str(place), "PLACE")
    if command == "resume":
        told = json.dumps(
            {key: value for key, value in json.loads(told.splitlines()[-1]).items() if key not in UNTIMED}
        )
    if out.exists():
        made = [(str(file.relative_to(out)), file.read_bytes()) for file in sorted(out.rglob("*")) if file.is_file()]
        told += hashlib.sha256(repr(made).encode()).hexdigest()
    return code, told


def _opened(place: Path) -> str:
    """What a server makes of its folder when it is started again: the ledger, and the tasks of the next round."""
    import msgspec

    from scalarfl.experiment.spec import FederationSpec
    from scalarfl.protocol.server import Server

    announced = msgspec.json.decode((place / "announced.json").read_bytes(), type=FederationSpec)
    with announced.opened(place / "run") as ledger:
        server = Server(ledger, lr=announced.run.first_lr, sampled=announced.sampled)
        tasks = server.open_round(sorted(server.admitted))
        content = ledger.head, ledger.trail, ledger.rounds, ledger.evaluations(), sorted(tasks.items())
    return repr((content, (place / "run" / "recipe.toml").read_bytes()))


def _restored(place: Path) -> str:
    """Where a client stands that starts from its snapshot and then applies the rest of the ledger."""
    from scalarfl.experiment import recipe as recipes, run
    from scalarfl.experiment.build import build_client
    from scalarfl.model.snapshot_manager import SnapshotManager
    from scalarfl.simulation import replay

    replica = build_client(recipes.load(place / "r.toml"), "client-0000").probe.replica
    with run.open_ledger(place / "run") as ledger:
        SnapshotManager(replica, place / "run" / "replica.safetensors").begin(ledger.rounds)
        replay(replica, ledger)
    return f"{replica.position} {replica.digest()} {replica.trail.hex()}"


def work(pipe: Connection, home: Path, scratch: Path) -> None:
    """Answer (run, command, seed) with (outcome, damage, what was said), until the pipe is closed."""
    import logging

    import torch

    from scalarfl import ScalarflError
    from scalarfl.tasks import digits

    torch.set_num_threads(1)
    logging.disable()
    digits.Digits.load = cache(digits.Digits.load)  # type: ignore[method-assign]

    def fresh(name: str, source: str = "run") -> Path:
        place = scratch / "place"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        for file in (home / name).iterdir():
            if file.is_file():
                shutil.copy(file, place)
        shutil.copytree(home / name / source, place / "run")
        return place

    @cache
    def expected(name: str, command: str, source: str = "run") -> tuple[int, str]:
        return observed(command, fresh(name, source))

    for name, commands in COMMANDS.items():  # whatever is loaded or compiled once is, before anything is timed
        for command in commands:
            code, told = expected(name, command)
            assert code == 0, (name, command, told)
    pipe.send("ready")
    while True:
        name, command, seed = pipe.recv()
        place, dice = fresh(name), random.Random(seed)
        damage = mutate(place / "run", command, dice)
        try:
            code, told = observed(command, place)
        except ScalarflError as error:  # of the parts that are no commands
            code, told = error.exit_code, str(error)
        except BaseException:
            pipe.send(("traceback", damage, traceback.format_exc()))
            continue
        if code in (2, 3):
            outcome = "refused"
        elif (code, told) == expected(name, command):
            outcome = "harmless"
        elif not (home / name / "run" / "result.json").exists() and (code, told) == expected(name, command, "earlier"):
            outcome = "one record earlier"
        else:
            outcome = "accepted"
        pipe.send((outcome, damage, told))


class Worker:
    """A process that runs commands, and is replaced when one hangs."""

    def __init__(self, home: Path, scratch: Path) -> None:
        self.places = home, scratch
        self.process: multiprocessing.process.BaseProcess | None = None

    def ask(self, question: tuple[str, str, int]) -> tuple[str, str, str]:
        """(outcome, damage, what was said)."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=work, args=(theirs, *self.places), daemon=True)
            self.process.start()
            theirs.close()
            self.pipe.recv()
        self.pipe.send(question)
        try:
            if self.pipe.poll(LIMIT):
                answer: tuple[str, str, str] = self.pipe.recv()
                return answer
            outcome = "hang"
        except EOFError:
            outcome = "traceback"  # the process died
        self.close()
        return outcome, "", f"{question}: the process was replaced"

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def campaign(count: int, seed: int, scratch: Path) -> dict[str, Any]:
    """So many mutations; returns the counts, and what failed."""
    home = scratch / "home"
    build(home)
    dice = random.Random(seed)
    counts: Counter[tuple[str, str]] = Counter()
    by_file: Counter[tuple[str, str]] = Counter()
    failures: list[dict[str, str]] = []
    worker = Worker(home, scratch / "worker")
    try:
        for number in range(count):
            name = dice.choice(sorted(RUNS))
            question = name, dice.choice(COMMANDS[name]), dice.randrange(1 << 60)
            outcome, damage, said = worker.ask(question)
            counts[question[1], outcome] += 1
            by_file[damage.partition(":")[0], outcome] += 1
            if outcome not in GOOD:
                failures.append(
                    {"question": repr(question), "outcome": outcome, "damage": damage, "said": said[-1500:]}
                )
                print(f"{outcome}: {question}, {damage}\n{said[-1500:]}", flush=True)
            if number % 100 == 99:
                print(f"{number + 1} of {count}", flush=True)
    finally:
        worker.close()

    def table(counted: Counter[tuple[str, str]]) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        for (row, outcome), number in sorted(counted.items()):
            found.setdefault(row, {})[outcome] = number
        return found

    total = Counter[str]()
    for (_, outcome), number in counts.items():
        total[outcome] += number
    return {
        "mutations": count,
        "seed": seed,
        "outcomes": dict(sorted(total.items())),
        "by_command": table(counts),
        "by_file": table(by_file),
        "failures": failures,
    }


def main() -> None:
    """Run the campaign; exit code 1 where anything failed."""
    parser = argparse.ArgumentParser(description="Damage run folders and count what the commands make of it.")
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the counts to this JSON file")
    options = parser.parse_args()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch:
        found = campaign(options.count, options.seed, Path(scratch))
    print(json.dumps({key: value for key, value in found.items() if key != "failures"}, indent=1))
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    raise SystemExit(1 if found["failures"] else 0)


if __name__ == "__main__":
    main()
