"""Installing: the pins, the declared dependencies, the interpreter that make finds, and what a hint says."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lock
from scalarfl import errors

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
PINS = [line for line in lock.CONSTRAINTS.read_text().splitlines() if not line.startswith("#")]


def declared() -> Iterator[Requirement]:
    for line in [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]:
        if (requirement := Requirement(line)).name != "scalarfl":
            yield requirement


def malformed(lines: list[str]) -> list[str]:
    """Lines that are not ``name==version``, or that pin a name twice without saying where."""
    form = re.compile(r"([a-z0-9]+(?:-[a-z0-9]+)*)==[0-9][a-z0-9.]*( ; .+)?")
    names = [line.partition("==")[0] for line in lines]
    return [
        line for line in lines if not (found := form.fullmatch(line)) or (names.count(found[1]) > 1 and not found[2])
    ]


def test_every_pin_is_a_name_and_a_version() -> None:
    assert malformed(PINS) == []


@pytest.mark.parametrize(
    "line",
    [
        "triton @ file:///wheels/triton.whl",
        "triton>=3.7",
        "torch==2.13.0+cpu",
        "--find-links /wheels",
        "numpy==2.4.*",
        "",
    ],
)
def test_any_other_line_is_found(line: str) -> None:
    assert malformed(["numba==0.68.1", line]) == [line]


def test_a_name_pinned_twice_without_a_marker_is_found() -> None:
    assert malformed(["a==1", "a==2 ; python_version < '3.12'"]) == ["a==1"]


def test_the_pins_are_in_the_declared_ranges() -> None:
    pins = {name: version for name, _, version in (line.partition("==") for line in PINS)}
    for requirement in declared():
        assert requirement.specifier, f"{requirement.name} has no range"
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_whatever_the_environment_needs_is_pinned() -> None:
    """The closure of scalarfl[dev], as far as this machine needs it."""
    pinned = {line.partition("==")[0] for line in PINS}
    waiting, seen = [(str(canonicalize_name(r.name)), frozenset(r.extras)) for r in declared()], set()
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        assert name in pinned
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # not for this platform, or Ray
            continue
        for requirement in map(Requirement, lines):
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in ("", *extras)):
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))


def imported(folder: Path) -> set[str]:
    """The top-level modules that a folder's files import."""
    found = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found


@cache
def homes_of_modules() -> Mapping[str, list[str]]:
    """The distributions that hold each module which is installed here."""
    return metadata.packages_distributions()


@pytest.mark.parametrize("folder", ["src", "tests", "benchmarks", "examples"])
def test_every_third_party_import_is_declared(folder: str) -> None:
    beside = [*(ROOT / "tests").iterdir(), *(ROOT / "examples").iterdir()]
    own = [path.stem for path in beside if path.is_dir() or path.suffix == ".py"]
    ours = {"scalarfl", "benchmarks", *own}
    homes = homes_of_modules()
    known = {str(canonicalize_name(requirement.name)) for requirement in declared()}
    trackers = {"mlflow", "trackio", "wandb"} if folder == "examples" else set()  # each named in its first line
    for module in sorted(imported(ROOT / folder) - ours - trackers - set(sys.stdlib_module_names)):
        names = {str(canonicalize_name(name)) for name in homes.get(module, [module])}
        assert names & known, f"{folder} imports {module}: pyproject.toml declares none of {sorted(names)}"


def chosen(tmp_path: Path, *settings: str, **pythons: str) -> str:
    """What `make -n env` would do or say on a machine that has these Pythons alone."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, script in pythons.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    for file in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / file, tmp_path)
    make = shutil.which("make")
    assert make
    done = subprocess.run(
        [make, "-n", "env", *settings], cwd=tmp_path, env={"PATH": str(programs)}, capture_output=True, text=True
    )
    return done.stdout if done.returncode == 0 else done.stderr


FINE, TOO_OLD, BROKEN = f'exec {sys.executable} "$@"', "exit 1", "exec /nowhere/python"


@pytest.mark.parametrize(
    ("pythons", "taken"),
    [
        ({"python3.13": FINE}, "python3.13"),
        ({"python3.11": BROKEN, "python3.12": FINE, "python3.13": FINE}, "python3.12"),
        ({"python3.11": FINE, "python3.14": FINE, "python3": FINE}, "python3.11"),
        ({"python3": TOO_OLD, "python": FINE}, "python"),
    ],
)
def test_make_finds_an_interpreter(pythons: dict[str, str], taken: str, tmp_path: Path) -> None:
    assert chosen(tmp_path, **pythons).splitlines()[0] == f"{taken} -m venv .venv"


def test_make_takes_the_interpreter_that_it_is_given(tmp_path: Path) -> None:
    said = chosen(tmp_path, "PYTHON=/opt/python", **{"python3.11": FINE})
    assert said.startswith("/opt/python -m venv .venv")


def test_make_says_that_there_is_no_interpreter(tmp_path: Path) -> None:
    said = chosen(tmp_path, python3=TOO_OLD)
    assert "no Python 3.11 to 3.14" in said
    assert "make env PYTHON=" in said


def test_every_hint_names_an_extra_of_ours() -> None:
    hints = 0
    for file in (ROOT / "src").rglob("*.py"):
        text = file.read_text()
        assert file.name == "errors.py" or "pip install" not in text, f"{file}: use scalarfl.errors.install_hint"
        for extra in re.findall(r"install_hint\(['\"](\w+)", text):
            hints += 1
            assert extra in EXTRAS, f"{file}: no extra {extra}"
    assert hints >= 10


def test_a_checkout_s_hint_installs_the_checkout() -> None:
    assert errors.install_hint("llm").endswith(f'-m pip install --editable "{ROOT}[llm]"')


def test_a_wheel_s_hint_names_the_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "site-packages" / "scalarfl" / "errors.py"))
    lines = ["torch<3,>=2.6", *(f"{line}; extra == 'llm'" for line in EXTRAS["llm"]), 'flwr; extra == "flower"']
    monkeypatch.setattr(metadata, "requires", lambda name: lines)
    assert re.findall('"(.+?)"', errors.install_hint("llm")) == EXTRAS["llm"]
    assert errors.install_hint("flower").endswith('install "flwr"')


def test_a_hint_runs_the_pip_of_this_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Path(sys.executable).with_name("pip")
    monkeypatch.setattr(shutil, "which", lambda name: str(own))
    assert errors.install_hint("llm").startswith("pip install ")
    monkeypatch.setattr(shutil, "which", lambda name: "/elsewhere/pip")
    assert errors.install_hint("llm").startswith(f"{sys.executable} -m pip install ")


@pytest.mark.registry
@pytest.mark.parametrize("platform", lock.PLATFORMS)
@pytest.mark.parametrize("python", lock.PYTHONS)
def test_the_pins_resolve(python: str, platform: str) -> None:
    """Everything, from wheels of the public index alone, and nothing that is not pinned."""
    pins = {line.partition(" ;")[0] for line in PINS}  # which version goes where is uv's to find
    assert set(lock.resolved(python, platform, "--all-extras", "pyproject.toml")) <= pins


@pytest.mark.registry
def test_nothing_is_pinned_that_nothing_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`make lock` leaves the file as it is."""
    again = tmp_path / "constraints.txt"
    shutil.copy(lock.CONSTRAINTS, again)
    monkeypatch.setattr(lock, "CONSTRAINTS", again)
    lock.main([])
    assert again.read_text() == (ROOT / "constraints.txt").read_text()
