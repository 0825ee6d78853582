"""The reference is whole, and the site is built: `python tests/test_reference.py` prints docs/commands.md."""

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import typer

import scalarfl
from scalarfl import errors
from scalarfl.cli import commands
from scalarfl.protocol import party

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
HEAD = """\
# Commands

What `scalarfl --help` and `scalarfl COMMAND --help` say. The options of `scalarfl` itself stand before the command, as
in `scalarfl --threads 4 run mine.toml`. Exit codes are explained in [errors.md](errors.md).
"""


def commands_of(command: Any, name: str = "scalarfl") -> Iterator[tuple[str, Any]]:
    """(the words that call it, the command), for the program, its groups and their commands."""
    yield name, command
    for word, one in getattr(command, "commands", {}).items():
        yield from commands_of(one, f"{name} {word}")


def row(parameter: Any) -> str:
    """An argument or option as a row of its command's table."""
    argument = parameter.param_type_name == "argument"
    choices = "|".join(getattr(parameter.type, "choices", []))
    value = parameter.metavar or choices or parameter.type.name.partition(" ")[0].upper()
    words = [value] if argument else parameter.opts
    if not argument and not parameter.is_flag:
        words = [*words[:-1], f"{words[-1]} {value}"]
    default = getattr(parameter.default, "value", parameter.default)
    shown = "required" if parameter.required else "" if default in (None, False) else f"`{default}`"
    cells = [", ".join(f"`{word}`" for word in words), shown, parameter.help]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def page() -> str:
    lines = [HEAD]
    for name, command in commands_of(typer.main.get_command(commands.app)):
        lines += [f"## {name}", "", command.help, ""]
        if inner := getattr(command, "commands", None):
            listed = ", ".join(f"[{word}](#{name.replace(' ', '-')}-{word})" for word in inner)
            lines += [f"Commands: {listed}.", ""]
        if command.params:
            lines += ["| argument or option | default | meaning |", "|---|---|---|", *map(row, command.params), ""]
    return "\n".join(lines)


def test_the_page_lists_every_command_and_option() -> None:
    assert (DOCS / "commands.md").read_text(encoding="utf-8") == page()
    for name, command in commands_of(typer.main.get_command(commands.app)):
        assert command.help, name
        assert all(parameter.help for parameter in command.params), name


def subclasses(kind: type[errors.ScalarflError]) -> Iterator[type[errors.ScalarflError]]:
    yield kind
    for one in kind.__subclasses__():
        yield from subclasses(one)


def test_the_page_lists_every_error_with_its_exit_code() -> None:
    text = (DOCS / "errors.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (\d+) \|", text, re.M)
    assert party.Refused in set(subclasses(errors.ScalarflError))  # its module is loaded
    ours = [kind for kind in subclasses(errors.ScalarflError) if kind.__module__.startswith("scalarfl.")]
    assert sorted(listed) == sorted((kind.__name__, kind.__bases__[0].__name__, str(kind.exit_code)) for kind in ours)
    codes = {0, commands.EXIT_INTERRUPTED, *(kind.exit_code for kind in ours)}
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", text, re.M)] == sorted(codes)


def test_the_sentences_on_the_page_are_the_program_s() -> None:
    text = (DOCS / "errors.md").read_text(encoding="utf-8").partition("## Sentences")[2]
    joined = re.compile(r'"\s*\n\s*f?"')  # a text that goes on in the next line
    source = "".join(joined.sub("", file.read_text(encoding="utf-8")) for file in (ROOT / "src").rglob("*.py"))
    quoted = re.findall(r"^\| `(.+?)` \|", text, re.M)
    assert len(quoted) > 10
    assert [words for words in quoted if words not in source] == []


def test_every_recipe_is_listed() -> None:
    linked = re.findall(r"\]\(([^)]+\.toml)\)", (ROOT / "recipes" / "README.md").read_text(encoding="utf-8"))
    assert sorted(linked) == sorted(str(file.relative_to(ROOT / "recipes")) for file in ROOT.glob("recipes/**/*.toml"))


def test_the_citation_is_of_this_version() -> None:
    assert f"\nversion: {scalarfl.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


class Page(HTMLParser):
    """What a page of the site loads, and the ids of its elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids.add(found.get("id") or "")
        if tag in ("script", "img", "iframe") or (tag == "link" and found.get("rel") in ("stylesheet", "icon")):
            self.loads += [found.get("src") or found.get("href") or ""]


def check_pages(site: Path) -> None:
    """Every page is there, and every public name, with its signature if it has one."""
    files = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("examples/*.md"), *ROOT.glob("recipes/*.md")]
    pages = [path.relative_to(ROOT) for path in files]
    assert [page for page in pages if not (site / page.with_suffix(".html")).exists()] == []
    assert (site / "index.html").read_text() == (site / "README.html").read_text()
    api = Page((site / "docs" / "api.html").read_text())
    for name in scalarfl.__all__:
        value = getattr(scalarfl, name)
        signed = inspect.isclass(value) or inspect.isfunction(value)
        assert (f"scalarfl.{name}" if signed else name.lower()) in api.ids, name
    assert "scalarfl.Replica.apply" in api.ids


def check_needs_no_network(site: Path) -> None:
    for file in site.rglob("*.html"):
        for address in Page(file.read_text()).loads:
            assert not re.match(r"\w+:|//", address) or address.startswith("data:"), f"{file}: {address}"
    assert not [file for file in site.rglob("*.css") if re.search(r"url\(['\"]?(https?:|//)", file.read_text())]
    index = (site / "searchindex.js").read_text()
    assert index.startswith("Search.setIndex(")
    assert all(word in index for word in ("docs/errors", "quorum", "hiso"))


def test_the_site_is_whole_and_needs_no_network(tmp_path: Path) -> None:
    """Built as `make docs` does: every warning, of a link that leads nowhere say, is an error."""
    line = str(re.findall(r"^\t\$\(BIN\)/sphinx-build (.+) site$", (ROOT / "Makefile").read_text(), re.M)[0])
    words = line.replace("build/doctrees", str(tmp_path / "doctrees")).split()
    command = [sys.executable, "-m", "sphinx", *words, str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    check_pages(tmp_path / "site")
    check_needs_no_network(tmp_path / "site")


if __name__ == "__main__":
    print(page(), end="")
