"""The commands as a user meets them: output, exit codes, errors in one sentence, nothing half-written."""

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scalarfl import InputError, Ledger, Replica, make_method
from scalarfl.cli import commands as cli
from scalarfl.experiment import demo
from support import RECIPE, command, fresh, header, last_json, network

KEYS = {
    "method", "task", "model", "seed", "dimension", "clients", "sampled", "perturbations", "local_steps",
    "lr", "rounds", "forward_passes", "accuracy", "best_accuracy", "loss", "curve", "payload_bytes_up",
    "payload_bytes_down", "serialized_bytes_up", "serialized_bytes_down", "seconds", "peak_rss_bytes",
    "digest", "ledger_head",
}  # fmt: skip


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run's folder; tests that alter it copy it first."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "r.toml").write_text(RECIPE)
    done = fresh("run", str(folder / "r.toml"), "--out", str(folder / "run"), "--json")
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    return folder


def scalarfl(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run a command in this process: (exit code, standard output, standard error)."""
    with pytest.raises(SystemExit) as end:
        cli.main(list(arguments))
    captured = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, captured.out, captured.err


def refused(error: str) -> str:
    """The sentence of a refusal, checked for its form."""
    lines = error.strip().splitlines()
    assert lines, "nothing was said"
    assert lines[-1].startswith("error: ") or lines[-2].startswith("error: ")
    assert "Traceback" not in error
    return error


def test_a_run_writes_its_folder_and_prints_its_result_last(finished: Path) -> None:
    result = json.loads((finished / "run" / "result.json").read_text())
    assert last_json((finished / "stdout").read_text()) == result
    assert set(result) >= KEYS
    names = {path.name for path in (finished / "run").iterdir()}
    assert {"recipe.toml", "ledger.sqlite", "result.json", "curve.png"} <= names
    assert not [name for name in names if name.startswith(".")]
    assert (finished / "run" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert [point[0] for point in result["curve"]] == [0, 5, 10, 12]
    assert result["forward_passes"] == 12 * 2 * 3
    assert result["payload_bytes_up"] == 12 * 2 * 4 * 2 / 4
    assert result["best_accuracy"] == max(point[1] for point in result["curve"])
    assert result["rounds"] == 12
    assert result["dimension"] == 64 * 8 + 8 + 8 * 10 + 10


def test_verify_confirms_a_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = json.loads((finished / "run" / "result.json").read_text())
    code, out, _ = scalarfl(capsys, "verify", str(finished / "run"))
    assert code == 0
    assert result["digest"] in out.replace("\n", "")
    code, out, _ = scalarfl(capsys, "verify", str(finished / "run"), "--json")
    assert last_json(out)["head"] == result["ledger_head"]


def test_show_tells_curve_bytes_and_participants(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = scalarfl(capsys, "show", str(finished / "run"))
    assert code == 0
    for word in ("hiso", "client-0000", "catch-up", "handshake"):
        assert word in out
    code, out, _ = scalarfl(capsys, "show", str(finished / "run"), "--json")
    view = last_json(out)
    assert sum(row["rounds"] for row in view["clients"].values()) == 24
    result = json.loads((finished / "run" / "result.json").read_text())
    up = sum(row["serialized"] for row in view["traffic"] if row["direction"] == "up")
    assert up / 4 == result["serialized_bytes_up"]


def test_the_printed_recipe_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = scalarfl(capsys, "recipe")
    assert code == 0
    (tmp_path / "r.toml").write_text(out)
    code, _, _ = scalarfl(
        capsys, "run", str(tmp_path / "r.toml"), "-s", "federation.rounds=3", "--out", str(tmp_path / "o")
    )
    assert code == 0


def test_methods_are_listed_with_their_settings(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = scalarfl(capsys, "methods")
    assert code == 0
    for word in ("decomfl", "hiso", "hiso-scalar", "nu", "floor"):
        assert word in out


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["run"], ["verify"], ["show"], ["demo"]):
        code, out, _ = scalarfl(capsys, *arguments, "--help")
        assert code == 0
        assert "Usage" in out
    assert scalarfl(capsys, "--version")[1].startswith("scalarfl ")


def test_progress_goes_to_standard_error(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(RECIPE)
    done = command("run", "r.toml", "--json", cwd=tmp_path)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 1
    assert "round 12 of 12" in done.stderr
    assert "up" in done.stderr
    assert (tmp_path / "runs" / "r" / "result.json").exists()


def test_the_demo_runs_is_interrupted_and_continues(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    arguments = ["demo", "--rounds", "30", "--out", str(out)]
    program = [sys.executable, "-m", "scalarfl", *arguments]
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True) as process:
        wait_for_rounds(out / "projected" / "ledger.sqlite", 2, process, seconds=600)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=300)
    assert process.returncode == 130, said
    assert f"scalarfl demo --out {out} --rounds 30" in said
    done_before = (out / "fedavg" / "result.json").read_bytes()
    assert not (out / "projected" / "result.json").exists()
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    assert (out / "fedavg" / "result.json").read_bytes() == done_before
    assert json.loads((out / "projected" / "result.json").read_text())["rounds"] == 30
    assert "verified: from base model and ledger, 3 of 4 models were rebuilt bit for bit" in done.stderr
    assert max(len(line) for line in done.stdout.splitlines() if str(out) not in line) <= 80
    told = " ".join(done.stdout.split())
    assert re.search(r"Projected training reached .+ a client, .+ FedAvg reached .+, [0-9]+ times as much", told)
    picture = (out / "curves.svg").read_text()
    assert all(entry.label in picture for entry in demo.ENTRIES.values())
    assert demo._unfinished(out, {name: demo.recipe(name, 30) for name in demo.ENTRIES}) is False


def test_the_demo_spares_what_it_has_not_written(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    done = command("demo", "--rounds", "5", "--out", str(tmp_path / "mine"))
    assert done.returncode == 2
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def contents(folder: Path) -> dict[Path, bytes]:
    """All files but the lock, which stays empty, and those that SQLite makes and removes beside an open database."""
    passing = (".lock", ".sqlite-shm", ".sqlite-wal")
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix not in passing}


# Wrong input of every kind: (arguments, what the sentence must say). {r}: a good recipe, {d}: an empty folder.
RESUME = ["run", "{r}", "--out", "{f}", "--resume"]
WRONG = {
    "no such command": (["runn"], "runn"),
    "no such option": (["run", "{r}", "--outt", "x"], "outt"),
    "no recipe": (["run"], "RECIPE"),
    "recipe missing": (["run", "{d}/none.toml"], "No such file"),
    "recipe a folder": (["run", "{d}"], "cannot read the recipe"),
    "unknown section": (["run", "{r}", "-s", "metod.lr=1"], "did you mean 'method'"),
    "unknown key": (["run", "{r}", "-s", "method.lrate=1"], "method.lrate: no such key"),
    "wrong type": (["run", "{r}", "-s", "method.lr=fast"], "method.lr = 'fast'"),
    "out of range": (["run", "{r}", "-s", "method.lr=0"], "method.lr = 0"),
    "unknown method": (["run", "{r}", "-s", "method.name=hizo"], "did you mean 'hizoo'"),
    "unknown task": (["run", "{r}", "-s", "task.name=digit"], "did you mean 'digits'"),
    "unknown model": (["run", "{r}", "-s", "model.name=ccn"], "did you mean 'cnn'"),
    "pattern that matches nothing": (["run", "{r}", "-s", 'model.trainable=["x*"]'], "matches no parameter"),
    "more sampled than clients": (["run", "{r}", "-s", "federation.sampled=5"], "at most federation.clients = 4"),
    "more clients than examples": (["run", "{r}", "-s", "federation.clients=5000"], "the number of training examples"),
    "override without value": (["run", "{r}", "-s", "method.lr"], "section.key=value"),
    "data folder missing": (["run", "{r}", "-s", "task.name=mnist", "--data-dir", "{d}/none"], "no such folder"),
    "data folder empty": (["run", "{r}", "-s", "task.name=mnist", "--data-dir", "{d}"], "train-images-idx3-ubyte"),
    "out is a file": (["run", "{r}", "--out", "{r}"], "cannot be written"),
    "out below a file": (["run", "{r}", "--out", "{r}/x"], "cannot be written"),
    "out is a run already": (["run", "{r}", "--out", "{f}"], "continue it with --resume"),
    "resume into other lr": ([*RESUME, "-s", "method.lr=1"], "method.lr is 1.0 now"),
    "resume into other method": ([*RESUME, "-s", "method.name=decomfl"], "method.name"),
    "resume into other data": ([*RESUME, "-s", "federation.alpha=2"], "federation.alpha"),
    "verify nothing": (["verify", "{d}"], "not a run folder"),
    "verify what is not there": (["verify", "{d}/none"], "not a run folder"),
    "show nothing": (["show", "{d}"], "not a run folder"),
    "threads 0": (["--threads", "0", "methods"], "threads"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(WRONG))
def test_wrong_input_gets_one_sentence_and_exit_code_2(
    case: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, empty, run = tmp_path / "r.toml", tmp_path / "empty", tmp_path / "run"
    recipe.write_text(RECIPE)
    empty.mkdir()
    shutil.copytree(finished / "run", run)
    before = contents(tmp_path)
    arguments, says = WRONG[case]
    places = {"{r}": recipe, "{d}": empty, "{f}": run}
    filled = []
    for argument in arguments:
        for mark, path in places.items():
            argument = argument.replace(mark, str(path))
        filled.append(argument)
    if filled[0] == "run" and "--out" not in filled:
        filled += ["--out", str(tmp_path / "out")]
    code, out, error = scalarfl(capsys, *filled)
    assert code == 2
    assert says in refused(error)
    assert out == ""
    assert not (tmp_path / "out").exists(), "half-written"
    assert contents(tmp_path) == before


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs Linux's /sys, where not even root may make folders")
def test_a_read_only_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.toml").write_text(RECIPE)
    code, _, error = scalarfl(capsys, "run", str(tmp_path / "r.toml"), "--out", "/sys/kernel/scalarfl/run")
    assert code == 2
    assert "/sys/kernel/scalarfl/run: cannot be written" in refused(error)
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    if os.geteuid() != 0:  # root is not stopped by permissions
        code, _, error = scalarfl(capsys, "run", str(tmp_path / "r.toml"), "--out", str(locked / "run"))
        assert code == 2
        assert "cannot be written" in refused(error)


def test_a_full_disk_is_refused_and_the_run_goes_on_afterwards(finished: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: the ledger cannot grow beyond it."""
    (tmp_path / "r.toml").write_text(RECIPE)
    program = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
from scalarfl.cli import commands as cli
cli.main(sys.argv[1:])
"""
    arguments = ["run", "r.toml", "--out", "out", "-s", "federation.rounds=60"]
    done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "result.json").exists()
    done = command(*arguments, "--resume", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    whole = command(*arguments[:3], "whole", *arguments[4:], "--json", cwd=tmp_path)
    assert last_json(done.stdout)["ledger_head"] == last_json(whole.stdout)["ledger_head"]


def alter_ledger(run: Path, how: str) -> None:
    db = sqlite3.connect(run / "ledger.sqlite")
    with db:
        if how == "a scalar":
            (body,) = db.execute("SELECT body FROM entries WHERE kind = 'round' AND round = 7").fetchone()
            db.execute("UPDATE entries SET body = ? WHERE kind = 'round' AND round = 7", (body[:-1] + b"\1",))
        else:
            db.execute("DELETE FROM entries WHERE id = 4")
    db.close()


@pytest.mark.parametrize(("how", "says"), [("a scalar", "round 7) was altered"), ("a record", "entry 4 is missing")])
def test_verify_finds_and_names_what_was_altered(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str, says: str
) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    alter_ledger(tmp_path / "run", how)
    code, _, error = scalarfl(capsys, "verify", str(tmp_path / "run"))
    assert code == 3
    assert says in refused(error)


def test_ctrl_c_loses_nothing_and_says_how_to_resume(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(RECIPE)
    arguments = ["run", "r.toml", "--out", "out", "-s", "federation.rounds=3000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "scalarfl", *arguments], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    wait_for_rounds(tmp_path / "out" / "ledger.sqlite", 5, process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "nothing is lost" in error
    assert "scalarfl run r.toml -s federation.rounds=3000 --out out --resume" in error
    rounds = rounds_in(tmp_path / "out" / "ledger.sqlite")
    assert 5 <= rounds < 3000
    arguments = [*arguments[:-1], "federation.rounds=3001"]
    process = subprocess.Popen([sys.executable, "-m", "scalarfl", *arguments, "--resume"], cwd=tmp_path, text=True)
    wait_for_rounds(tmp_path / "out" / "ledger.sqlite", rounds + 1, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 130


def rounds_in(path: Path) -> int:
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
            (rounds,) = db.execute("SELECT count(*) FROM entries WHERE kind = 'round'").fetchone()
    except sqlite3.OperationalError:  # not there yet
        return 0
    return int(rounds)


def wait_for_rounds(path: Path, rounds: int, process: "subprocess.Popen[str]", seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while rounds_in(path) < rounds:
        assert process.poll() is None, "the run ended by itself"
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_demo_replaces_a_demo_and_deletes_nothing_else(tmp_path: Path) -> None:
    def write(out: Path) -> None:
        for folder in (out, out / "hiso", out / "decomfl"):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / demo.MARK).write_text(demo._MARKED)
        for name in ("recipe.toml", "result.json", "curve.png", "ledger.lock", "checkpoint.pt", "checkpoint.lock"):
            (out / "hiso" / name).write_text("x")

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "recipe.toml").write_text("x")
    out = tmp_path / "demo"
    demo.clear(out)
    write(out)
    demo.clear(out)
    assert not list(out.iterdir())

    spoilers: dict[str, Callable[[], object]] = {
        "a file beside": lambda: (out / "notes.txt").write_text("x"),
        "a file in a run": lambda: (out / "hiso" / "thesis.txt").write_text("x"),
        "a folder in a run": lambda: (out / "hiso" / "curve.png").mkdir(),
        "a run of the user's": lambda: shutil.copytree(tmp_path / "mine", out / "projected"),
        "a mark of the user's": lambda: (out / "hiso" / demo.MARK).write_text("mine"),
        "no mark": lambda: (out / demo.MARK).unlink(),
    }
    for name, spoil in spoilers.items():
        shutil.rmtree(out)
        write(out)
        if name == "a folder in a run":
            (out / "hiso" / "curve.png").unlink()
        spoil()
        before = sorted(out.rglob("*"))
        with pytest.raises(InputError, match="not written by a demonstration"):
            demo.clear(out)
        assert sorted(out.rglob("*")) == before, name

    shutil.rmtree(out)
    write(out)
    with Ledger.create(out / "hiso" / "ledger.sqlite", header(Replica(network(), make_method("hiso")))):
        with pytest.raises(InputError, match="another process"):
            demo.clear(out)
        assert (out / "hiso" / "recipe.toml").exists()


def test_the_demo_leaves_a_folder_of_runs_alone(tmp_path: Path) -> None:
    """`--out runs` is an easy slip."""
    for name in ("first", "second"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "recipe.toml").write_text("precious")
    done = command("demo", "--rounds", "1", "--out", str(tmp_path / "runs"))
    assert done.returncode == 2
    assert "not written by a demonstration" in done.stderr
    assert [file.read_text() for file in sorted((tmp_path / "runs").rglob("recipe.toml"))] == ["precious"] * 2


def test_the_working_directory_s_python_files_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the processes that the package starts: a server's announcement, a comparison's runs, a benchmark's."""
    from scalarfl.bench.measure import in_a_process
    from scalarfl.experiment import spec

    recipe, folder = tmp_path / "recipe.toml", tmp_path / "hostile"
    recipe.write_text(RECIPE.replace("rounds = 12", "rounds = 1"))
    folder.mkdir()
    for name in ("json", "torch", "numpy", "msgspec", "scalarfl", "sitecustomize"):
        (folder / f"{name}.py").write_text("open('it-was-run', 'w').close()\nraise ImportError\n")
    monkeypatch.chdir(folder)
    assert spec.load(recipe).run.rounds == 1
    assert in_a_process("import json\nprint(json.dumps({'found': 1}))") == {"found": 1}
    options = [str(recipe), "--methods", "decomfl", "--seeds", "0", "--lrs", "1e-2", "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-P", "-m", "scalarfl", "compare", *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (folder / "it-was-run").exists()


def test_a_demonstration_that_is_stopped_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scalarfl.cli import commands as cli
    from scalarfl.experiment import demo, run

    def stopped(*_: object) -> None:
        raise run.Interrupted(3)

    monkeypatch.setattr(demo, "demo", stopped)
    with pytest.raises(SystemExit) as ended:
        cli.main(["demo", "--out", str(tmp_path / "demo")])
    assert ended.value.code == 130
