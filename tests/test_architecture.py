"""Imports point one way, the public names are listed in one place, and files stay short."""

import ast
import subprocess
import sys
from pathlib import Path

import scalarfl

SOURCE = Path(scalarfl.__file__).parent

# From the bottom to the top: a package or module imports only from the rows before its own, never from its own row.
LAYERS = [
    {"errors"},
    {"units", "files", "picture"},
    {"registry"},
    {"noise", "methods", "privacy"},
    {"ledger", "tasks"},
    {"model"},
    {"protocol"},
    {"progress"},
    {"simulation"},
    {"baselines", "language"},
    {"experiment"},
    {"transports", "bench"},
    {"testing"},
    {"cli"},
    {"flower"},  # the names that Flower apps of version 0.1 hold
    {"__main__"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if name != "__init__":
            found.append((name, path))
    return found


def imported(path: Path) -> set[str]:
    """First component below scalarfl of everything that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "scalarfl":
            rest = node.module.split(".")[1:]
            names |= {rest[0]} if rest else {alias.name for alias in node.names} - {"__version__"}
        elif isinstance(node, ast.Import):
            names |= {a.name.split(".")[1] for a in node.names if a.name.startswith("scalarfl.")}
    return names


def test_imports_point_one_way() -> None:
    wrong = [
        f"{path.relative_to(SOURCE)} imports {name}"
        for module, path in modules()
        for name in imported(path)
        if name != module and RANK[name] >= RANK[module]
    ]
    assert not wrong


def test_every_package_has_its_layer_and_its_line_in_the_design() -> None:
    names = {name for name, _ in modules()}
    assert names == set(RANK)
    design = (SOURCE.parent.parent / "docs" / "design.md").read_text()
    assert not [name for name in sorted(names - {"__main__"}) if f"| `{name}`" not in design]


def test_files_fit_on_a_few_screens() -> None:
    long = {str(path): len(path.read_text().splitlines()) for _, path in modules()}
    assert max(long.values()) <= 350, {path: lines for path, lines in long.items() if lines > 350}


def test_pytest_is_for_the_public_tests_alone() -> None:
    for module, path in modules():
        trees = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        names = {getattr(tree, "module", None) or tree.names[0].name for tree in trees}
        assert module == "testing" or "pytest" not in names, path


def test_public_names_are_listed_once_and_load() -> None:
    assert scalarfl.__all__ == sorted(scalarfl.__all__, key=lambda name: (not name.isupper(), name[0].islower(), name))
    assert set(scalarfl.__all__) == set(scalarfl._HOME)
    for name in scalarfl.__all__:
        assert getattr(scalarfl, name) is not None


def test_importing_the_package_is_cheap() -> None:
    program = "import sys, scalarfl, scalarfl.cli.commands; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
