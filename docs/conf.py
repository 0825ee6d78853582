"""The documentation site: `make docs` builds it into site/ from the Markdown pages and the docstrings.

The pages are plain Markdown and link to each other by path, here as on a forge. docs/README.md is the site's table of
contents: its headings are the sidebar's, its links their pages. On the site docs/api.md goes on after its table with
the signature and docstring of every public name.
"""

import inspect
import re
import shutil
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.ext.napoleon.docstring import GoogleDocstring

import scalarfl

ROOT = Path(__file__).parent.parent

project = "scalarfl"
author = "The scalarfl developers"
version = release = scalarfl.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "README"
include_patterns = ["*.md", "docs/**.md", "examples/*.md", "recipes/*.md"]
exclude_patterns = [".*", "build", "dist", "runs", "site", "src"]  # not searched for pages
html_theme = "furo"
html_title = f"scalarfl {version}"
html_copy_source = False
html_show_copyright = False
myst_heading_anchors = 4  # the anchors of a forge
autodoc_default_options = {"exclude-members": "model_config"}  # pydantic's own
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
toc_object_entries = False
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True


def sidebar(index: str) -> str:
    """The lists of docs/README.md as tables of contents: its links lead to documents, named as there."""
    made = ""
    for title, text in re.findall(r"^## (.+)\n((?:(?!## ).*\n)*)", index, re.M):
        lines = ["```{toctree}", ":hidden:", f":caption: {title}", ""]
        for name, page in re.findall(r"^- \[(.+?)\]\((?!https:)(.+?)\.md\)", text, re.M):
            document = (ROOT / "docs" / page).resolve().relative_to(ROOT)
            lines.append(f"{name} <{'self' if str(document) == root_doc else f'/{document}'}>")
        made += "\n\n" + "\n".join([*lines, "```", ""])
    return made


def entry(name: str, sentence: str) -> str:
    """A public name's signature and docstring, or its sentence where it is no function or class."""
    value = getattr(scalarfl, name)
    if not inspect.isclass(value) and not inspect.isfunction(value):
        return f"\n\n## {name}\n\n{sentence}\n"
    kind = "autofunction" if inspect.isfunction(value) else "autoclass"
    members = "" if inspect.isfunction(value) else "\n   :members:"
    return f"\n\n## {name}\n\n```{{eval-rst}}\n.. {kind}:: scalarfl.{name}{members}\n```\n"


def extend(_app: Sphinx, page: str, source: list[str]) -> None:
    """Add to a page what it has on the site alone."""
    text = source[0]
    if page == root_doc:
        text += sidebar((ROOT / "docs" / "README.md").read_text(encoding="utf-8"))
    elif page == "docs/api":
        rows = re.findall(r"^\| `(\w+)(?:\(\.\.\.\))?` \| (.+) \|$", text, re.M)
        text = re.sub(r"^\| (`(\w+).*?`) \|", lambda row: f"| [{row[1]}](#{row[2].lower()}) |", text, flags=re.M)
        text += "".join(entry(name, sentence) for name, sentence in rows)
    elif page.startswith("docs/study/") and not text.startswith("# "):  # tables, linked from the study alone
        text = f"---\norphan: true\n---\n# Tables: {Path(page).relative_to('docs/study')}\n\n{text}"
    source[0] = text


def arguments(_app: Sphinx, what: str, _name: str, _value: object, _options: object, lines: list[str]) -> None:
    """Turn ``Arguments:`` into a list of fields; the docstring of an attribute has none, and may have a colon."""
    if what not in ("attribute", "property"):
        lines[:] = GoogleDocstring(lines).lines()


def finish(app: Sphinx, error: Exception | None) -> None:
    """README.html is the site's start, also for who opens its folder."""
    if error is None:
        shutil.copy(Path(app.outdir) / f"{root_doc}.html", Path(app.outdir) / "index.html")


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    app.connect("source-read", extend)
    app.connect("autodoc-process-docstring", arguments)
    app.connect("build-finished", finish)
