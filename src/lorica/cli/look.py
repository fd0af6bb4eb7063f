"""The commands that only look: data, methods, doctor."""

from pathlib import Path
from typing import Annotated

import typer

from lorica.cli.output import show
from lorica.cli.words import AsJson, Settings


def data(
    source: Annotated[
        str, typer.Argument(metavar="RECIPE|FILE", help="A recipe (YAML); or rows: a file, a folder, a named source.")
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="Of rows: the base that reads them.", show_default=False),
    ] = None,
    held: Annotated[
        str | None,
        typer.Option(
            "--eval", metavar="FILE", help="Of rows: those to evaluate on, to look for leaks.", show_default=False
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task", metavar="TASK", help="Of rows: what they are for. Default: causal_lm.", show_default=False
        ),
    ] = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Show what rows would teach. Used and dropped and why, lengths, answers, learned tokens."""
    from lorica import api
    from lorica.errors import RequestError
    from lorica.recipe import Recipe

    if Path(source).suffix in (".yaml", ".yml"):
        show(api.data_report(Recipe.load(source, settings or ()), model, held=held, task=task), as_json)
        return
    if settings:
        raise RequestError("data: --set changes a recipe; name one instead of rows")
    show(api.data_report(source, model, held=held, task=task), as_json)


def methods(
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="The base they are counted on.")] = "embedded",
    measure: Annotated[bool, typer.Option("--measure", help="Time a step of each, beside one another.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the methods that a recipe can name."""
    from lorica import api

    show(api.method_table(model, measure=measure), as_json)


def doctor(as_json: AsJson = False) -> None:
    """Show what this machine has to train with. Speed, versions, the path of each kernel, what is missing."""
    from lorica import api

    show(api.doctor(), as_json)
