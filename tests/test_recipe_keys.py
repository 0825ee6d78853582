"""The page of a recipe's keys is made of their declarations: `python tests/test_recipe_keys.py` prints it."""

import json
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from scalarfl.baselines import BASELINES
from scalarfl.cli.commands import main
from scalarfl.experiment.recipe import Recipe, table_of
from scalarfl.experiment.sections import Mask
from scalarfl.methods import METHODS
from scalarfl.protocol.config import FederationConfig, RunConfig
from scalarfl.protocol.keys import Privacy

PAGE = Path(__file__).parent.parent / "docs" / "recipe-keys.md"
HEAD = """\
# Recipe keys

Every key of a recipe, with its default and accepted values. `scalarfl recipe` prints a commented recipe;
`-s SECTION.KEY=VALUE` overrides a key for one run. Keys marked A must be equal for all parties of a federation and are
in the ledger's header: they are the fields of `scalarfl.FederationConfig`. Keys marked R are one run's settings, the
fields of `scalarfl.RunConfig`. Both are keywords of `scalarfl.simulate`.
"""
WORDS = {str: "text", bool: "true or false", float: "number", int: "whole number", types.NoneType: "", Mask: "table"}
SIGNS: dict[type, tuple[str, str]] = {Ge: ("ge", "≥"), Gt: ("gt", ">"), Le: ("le", "≤"), Lt: ("lt", "<")}


RENAMED = {("MethodSection", "name"): "A", ("EvaluationSection", "every"): "R"}
"""Keys that have another name from Python: ``method`` and ``evaluate_every``."""


def kinds(annotation: Any) -> Iterator[str]:
    """What a key's type accepts, in words."""
    if get_origin(annotation) is Literal:
        yield from (f"`{json.dumps(value)}`" for value in get_args(annotation))
    elif get_origin(annotation) in (Union, types.UnionType):
        for one in get_args(annotation):
            yield from kinds(one)
    elif get_origin(annotation) is list:
        (element,) = get_args(annotation)
        several = {str: "text", str | dict[str, Any]: "text or tables"}
        yield f"list of {several.get(element, 'whole numbers')}"
    elif get_origin(annotation) is dict:
        yield "table of names"
    elif get_origin(annotation) is Annotated:
        yield from kinds(get_args(annotation)[0])
    else:
        yield WORDS[annotation]


def number(bound: float) -> str:
    power = int(bound).bit_length() - 1
    return f"2^{power}" if power > 20 and bound == 2**power else f"{bound:g}"


def accepted(info: FieldInfo) -> str:
    bounds = [(type(one), one) for one in info.metadata if type(one) in SIGNS]
    shown = [f"{SIGNS[kind][1]} {number(getattr(one, SIGNS[kind][0]))}" for kind, one in bounds]
    return " ".join([" or ".join(filter(None, kinds(info.annotation))), ", ".join(shown)]).strip()


def rows(section: type[BaseModel], mark: bool) -> Iterator[str]:
    yield "| key | default | accepted | meaning |" + (" of |" if mark else "")
    yield "|---|---|---|---|" + ("---|" if mark else "")
    for key, info in section.model_fields.items():
        if key == "own":
            continue
        required = info.is_required()
        default = "required" if required else "" if info.default is None else f"`{json.dumps(info.default)}`"
        agreed = key in FederationConfig.model_fields or section is Privacy
        whose = "A" if agreed else "R" if key in RunConfig.model_fields else ""
        cells = [f"`{key}`", default, accepted(info), str(info.description)]
        cells += [whose or RENAMED.get((section.__name__, key), "")] if mark else []
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def page() -> str:
    lines = [HEAD]
    for name in Recipe.model_fields:
        section = table_of(name)
        lines += [f"## [{name}]", "", (section.__doc__ or "").splitlines()[0], "", *rows(section, True), ""]
    lines += ["## [method], keys of one method", "", "Every party must agree on these too.", ""]
    ours: dict[str, type[BaseModel]] = {**METHODS, **BASELINES}
    for name, kind in sorted(ours.items()):
        if kind.model_fields and kind.__module__.startswith("scalarfl."):
            lines += [f"### {name}", "", *rows(kind, False), ""]
    return "\n".join(lines)


def test_the_page_is_made_of_the_declarations() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()


def test_the_command_lists_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["recipe", "--keys"])
    assert not ended.value.code
    listed = capsys.readouterr().out
    for name in Recipe.model_fields:
        for key in table_of(name).model_fields.keys() - {"own"}:
            assert re.search(rf"^{name}\.{key}( = \S.*)?: \w*", listed, re.M), key
    assert "federation.batch_size = 16: examples in a client's batch" in listed


if __name__ == "__main__":
    print(page(), end="")
