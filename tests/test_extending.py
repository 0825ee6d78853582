"""Methods, tasks, aggregations and models of one's own: from files, from installed packages, and what is refused."""

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from scalarfl import HiSo, InputError, Ledger, simulate
from scalarfl.experiment import recipe as recipes, verify
from scalarfl.experiment.prepare import prepare
from scalarfl.experiment.run import run
from scalarfl.methods import METHODS, DeComFL, make_method
from scalarfl.model.digest import base_digest
from scalarfl.protocol.aggregation import AGGREGATIONS
from scalarfl.registry import is_reference, load, placed, portable
from scalarfl.tasks import TASKS
from scalarfl.testing import aggregations, methods, tasks
from support import command, cross_entropy, last_json, network, shards

EXAMPLES = Path(__file__).parent.parent / "examples"


def own(name: str, what: str) -> Any:
    return load("a test", f"{EXAMPLES / name}:{what}")


SignRule, Rings, Midmean = (
    own("own_method.py", "SignRule"),
    own("own_task.py", "Rings"),
    own("own_aggregation.py", "Midmean"),
)

TestSignRule = methods.contract(SignRule())
TestRings = tasks.contract(Rings)
TestMidmean = aggregations.contract(Midmean())


def test_a_recipe_of_nothing_but_one_s_own_runs_from_the_command_line(tmp_path: Path) -> None:
    """Run, resumed, verified and exported; the files are named relative to the recipe, from any folder."""
    home = tmp_path / "mine"
    home.mkdir()
    for file in EXAMPLES.glob("own*"):
        shutil.copy(file, home)
    out = tmp_path / "out"
    quick = ["-s", "federation.rounds=12", "-s", "evaluation.every=6"]
    done = command("run", str(home / "own.toml"), "--out", str(out), "--json", *quick, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = last_json(done.stdout)
    assert (result["method"], result["task"], result["model"]) == (
        "own_method.py:SignRule",
        "own_task.py:Rings",
        "own_model.py:radial",
    )
    with Ledger.open(out / "ledger.sqlite") as ledger:
        header, settings = ledger.header, ledger.settings
    assert (header.method, header.settings, header.aggregation) == ("sign-rule", {"horizon": 50.0}, "midmean")
    assert settings is not None
    assert settings["method.name"] == "own_method.py:SignRule"  # and no folder: another machine has another
    assert settings["federation.aggregation"] == "own_aggregation.py:Midmean"
    checked = command("verify", str(out))
    assert checked.returncode == 0, checked.stderr
    more = ["-s", "federation.rounds=18", "-s", "evaluation.every=6"]
    longer = command("run", str(home / "own.toml"), "--out", str(out), "--resume", "--json", *more)
    assert longer.returncode == 0, longer.stderr
    whole = run(recipes.load(home / "own.toml", more[1::2]), tmp_path / "whole")
    assert last_json(longer.stdout)["digest"] == whole["digest"]
    (home / "own_aggregation.py").unlink()  # what is on record can be read without the rule that made it
    shutil.copy(EXAMPLES / "own_aggregation.py", out)  # and a file that has moved is found beside the recipe
    assert verify.verify(out)
    exported = command("export", str(out), str(tmp_path / "model"))
    assert exported.returncode == 0, exported.stderr


def test_objects_go_where_names_do() -> None:
    """In Python: the same digests as by reference."""
    method = f"{EXAMPLES / 'own_method.py'}:SignRule"
    aggregation = f"{EXAMPLES / 'own_aggregation.py'}:Midmean"
    by_name = simulate(network(), shards(), cross_entropy, method=method, aggregation=aggregation, rounds=4)
    by_object = simulate(network(), shards(), cross_entropy, method=SignRule(), aggregation=Midmean(), rounds=4)
    assert by_name.digest == by_object.digest
    assert by_name.head == by_object.head


@pytest.mark.parametrize("key", ["horizon = -1.0", "horizn = 2.0"])
def test_one_s_own_settings_are_checked_like_ours(tmp_path: Path, key: str) -> None:
    text = (EXAMPLES / "own.toml").read_text().replace("horizon = 50.0", key).replace("own_", f"{EXAMPLES}/own_")
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(InputError, match=r"method.horizon = -1.0|method.horizn: .*'horizon'"):
        recipes.load(tmp_path / "r.toml")


def test_a_resolved_recipe_reads_back(tmp_path: Path) -> None:
    recipe = recipes.load(EXAMPLES / "own.toml")
    (tmp_path / "again.toml").write_text(recipes.to_toml(recipe))
    assert recipes.load(tmp_path / "again.toml") == recipe


def test_an_own_model_s_weights_come_from_the_seed() -> None:
    """And what others draw does not change."""

    def digest(seed: int) -> str:
        return base_digest(prepare(recipes.load(EXAMPLES / "own.toml", [f"federation.seed={seed}"])).model)

    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    assert digest(0) == digest(0) != digest(1)
    assert torch.equal(torch.rand(1), expected)


GOOD = {"model.name": "mlp", "task.name": "digits", "federation.aggregation": "mean", "method.name": "hiso"}
FILE = """
from scalarfl import HiSo
from scalarfl.protocol.aggregation import Aggregator
from scalarfl.tasks import ArrayTask

class Nameless(HiSo):
    name = ""

class Taken(HiSo):
    pass

class Unfinished(Aggregator):
    name = summary = source = "unfinished"

class Shapeless(ArrayTask):
    name = "shapeless"
    classes = size = 3
    @classmethod
    def load(cls, data_dir=None):
        raise RuntimeError

def nothing():
    return None

def fails(inputs):
    return inputs[7]

number = 3
"""


@pytest.mark.parametrize(
    ("key", "name", "says"),
    [
        ("method.name", "mine.py:Missing", "has no 'Missing'"),
        ("method.name", "absent.py:Rule", "there is no file .*absent.py"),
        ("method.name", "broken.py:Rule", r"loading .*broken.py failed: SyntaxError: .* \(line 2\)"),
        ("method.name", "raising.py:Rule", r"loading .*raising.py failed: ZeroDivisionError: .* \(line 3\)"),
        ("method.name", "leaving.py:Rule", "loading .*leaving.py failed: SystemExit: 3"),
        ("method.name", "importing.py:Rule", "ModuleNotFoundError: No module named 'no_such_module'"),
        (
            "method.name",
            "no_such_package.rules:Rule",
            "No module named 'no_such_package.*an installed module or a file",
        ),
        ("method.name", "json:dumps", "<function dumps .* is not a class derived from scalarfl.methods.Method"),
        ("method.name", "mine.py:Nameless", "has name = ''; accepted is a text"),
        ("method.name", "mine.py:Taken", "is called 'hiso', as a method of scalarfl is; give it a name of its own"),
        ("method.name", "hizo", "no such method; did you mean 'hizoo'.*file.py:Object"),
        ("federation.aggregation", "mine.py:Unfinished", "lacks aggregate, which every .*Aggregator has"),
        ("federation.aggregation", "mine.py:number", "3 is not a class derived from scalarfl.protocol.aggregation"),
        ("federation.aggregation", "medain", "no such aggregation; did you mean 'median'"),
        ("task.name", "mine.py:Shapeless", "has inputs = None; accepted is a tuple of whole numbers"),
        ("task.name", "mine.py:nothing", "is not a class derived from scalarfl.tasks.ArrayTask"),
        ("task.name", "digit", "no such task; did you mean 'digits'"),
        ("model.name", "mine.py:nothing", "it gave None; accepted is a torch.nn.Module"),
        ("model.name", "mine.py:fails", r"called for inputs of shape \(1, 8, 8\) and 10 classes it failed: IndexError"),
        ("model.name", "mine.py:number", "3 is no function or class"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(tmp_path: Path, key: str, name: str, says: str) -> None:
    files = {"mine": FILE, "broken": "x = 1\nclass (", "raising": "\n\n1 / 0", "leaving": "raise SystemExit(3)"}
    for stem, text in (files | {"importing": "import no_such_module"}).items():
        (tmp_path / f"{stem}.py").write_text(text)
    tables: dict[str, dict[str, str]] = {}
    for where, value in (GOOD | {key: name}).items():
        section, _, entry = where.partition(".")
        tables.setdefault(section, {})[entry] = value
    lines = [
        f"[{section}]\n" + "\n".join(f"{k} = {json.dumps(v)}" for k, v in table.items())
        for section, table in tables.items()
    ]
    (tmp_path / "r.toml").write_text("\n".join(lines))
    with pytest.raises(InputError, match=f"(?s){key}.*{says}"):
        prepare(recipes.load(tmp_path / "r.toml"))


def test_the_command_line_refuses_in_one_sentence(tmp_path: Path) -> None:
    done = command("run", str(EXAMPLES / "own.toml"), "-s", "method.name=gone.py:Rule", "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: method.name = ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_file_that_changed_is_loaded_again(tmp_path: Path) -> None:
    file = tmp_path / "rule.py"
    for value in (1, 2):
        file.write_text(f"x = {value}")
        assert load("a test", f"{file}:x") == value
    assert load("a test", f"{file}:x") is load("a test", f"{file}:x")


def test_references() -> None:
    for name in ("a.py:B", "./x/a.py:B", "C:/x/a.py:B", "package.module:Object", "package:Object"):
        assert is_reference(name), name
    for other in ("hiso", "facebook/opt-125m", "C:\\models\\opt", "a.py:", "a b:c", ":x", "a.py:1", 3, None):
        assert not is_reference(other), other
    assert portable("/somewhere/a.py:B") == "a.py:B"
    assert portable("package.module:Object") == "package.module:Object"
    assert placed("sub/a.py:B", Path("/r")) == "/r/sub/a.py:B"
    assert placed("package.a:B", Path("/r")) == "package.a:B"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package that offers one of each, as pip would have installed it."""
    package = tmp_path / "site" / "offering"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    for name in ("own_method", "own_task", "own_aggregation"):
        shutil.copy(EXAMPLES / f"{name}.py", package)
    info = tmp_path / "site" / "offering-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: offering\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[scalarfl.methods]\nsign-rule = offering.own_method:SignRule\nhiso = offering.own_method:SignRule\n"
        "wrong = offering.own_method:SignRule\ngone = offering.nowhere:Rule\n"
        "[scalarfl.tasks]\nrings = offering.own_task:Rings\n"
        "[scalarfl.aggregations]\nmidmean = offering.own_aggregation:Midmean\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    metadata.MetadataPathFinder().invalidate_caches()
    for registry in (METHODS, TASKS, AGGREGATIONS):
        monkeypatch.delitem(vars(registry), "_offered", raising=False)
    yield
    for registry in (METHODS, TASKS, AGGREGATIONS):
        vars(registry).pop("_offered", None)
    for name in [name for name in sys.modules if name.startswith("offering")]:
        del sys.modules[name]


@pytest.mark.usefixtures("installed")
def test_an_installed_package_adds_names() -> None:
    assert {"sign-rule", "hiso"} <= set(METHODS)
    assert METHODS["hiso"] is HiSo  # a name of ours cannot be taken
    assert TASKS["rings"].classes == 3
    by_name = simulate(network(), shards(), cross_entropy, method="sign-rule", aggregation="midmean", rounds=3)
    assert (
        by_name.digest
        == simulate(network(), shards(), cross_entropy, method=SignRule(), aggregation=Midmean(), rounds=3).digest
    )
    with pytest.raises(InputError, match="it calls itself 'sign-rule'; the two names must be equal"):
        make_method("wrong")
    with pytest.raises(InputError, match=r"entry point 'gone'.*No module named 'offering.nowhere'"):
        make_method("gone")


class Warm(HiSo):
    """HiSo's rule under HiSo's name, with another start."""

    nu: float = 0.2


class Named(Warm):
    name: ClassVar[str] = "warm"


def test_a_subclass_needs_a_name_of_its_own_on_a_ledger() -> None:
    """The header would else say what is not so."""
    with pytest.raises(InputError, match=r"Warm.* is called 'hiso', as a method of scalarfl is"):
        simulate(network(), shards(), cross_entropy, method=Warm(), rounds=1)
    assert simulate(network(), shards(), cross_entropy, method=Named(), rounds=1).rounds == 1


class Impure(DeComFL):
    """Breaks its promises: weighs by what it saw before."""

    name: ClassVar[str] = "impure"
    seen: ClassVar[list[float]] = []

    def weigh(self, coefficients: Sequence[float]) -> Sequence[float]:
        self.seen.append(coefficients[0])
        return [c * len(self.seen) for c in coefficients]


def test_the_public_tests_fail_where_a_promise_is_broken() -> None:
    suite = methods.contract(Impure())()
    with pytest.raises(AssertionError):
        suite.test_weights_are_as_many_finite_and_a_function_of_the_scalars(Impure())
