"""scalarfl recipe: a recipe to start from."""

import json
from typing import Annotated, Literal

import typer


def recipe(
    model: Annotated[
        str | None, typer.Option(help="Pretrained model, a folder or hub id; suggests a method.lr.")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("-s", "--set", metavar="SECTION.KEY=VALUE", help="Set a key; repeatable.")
    ] = None,
    clients: Annotated[
        Literal["training", "inference", "paper"],
        typer.Option(
            "--for",
            help='"training": clients take backward passes; "inference": they only run the model; "paper": HiSo as '
            "published. docs/which-method.md says why.",
        ),
    ] = "training",
    keys: Annotated[bool, typer.Option("--keys", help="List every key with its default and meaning instead.")] = False,
) -> None:
    """Print a commented, runnable recipe with the recommended method."""
    from scalarfl.experiment.plan import suggested_lr
    from scalarfl.experiment.recipe import described
    from scalarfl.experiment.template import template

    if keys:
        for key, default, meaning in described():
            print(f"{key} = {default}: {meaning}" if default else f"{key}: {meaning}")
        return
    given = [] if model is None else [f"model.name={json.dumps(model)}"]
    print(template([*given, *(setting or [])], clients, suggested_lr), end="")


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(recipe)
