"""The commands that only look: data, advise, methods, doctor."""

from pathlib import Path
from typing import Annotated

import typer

from lorica.cli.output import show
from lorica.cli.words import AsJson, Device, Memory, Settings


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


def advise(
    source: Annotated[str, typer.Option("--data", metavar="FILE", help="The rows: a file, a folder, a named source.")],
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="The base that is to learn them.")],
    task: Annotated[
        str | None,
        typer.Option("--task", metavar="TASK", help="What the rows are for. Default: causal_lm.", show_default=False),
    ] = None,
    memory: Memory = None,
    device: Device = None,
    hours: Annotated[float | None, typer.Option("--hours", help="That training may take.", show_default=False)] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="RECIPE", help="A new file for the recipe.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say which method suits rows and a base.

    With which settings, and why of each; ends with a recipe to train.
    """
    from lorica import api, durable
    from lorica.budget import memory_in_bytes
    from lorica.errors import RequestError

    if out is not None and out.exists():
        raise RequestError(f"--out {out}: is there already; choose another name")
    size = None if memory is None else memory_in_bytes(memory)
    found = api.advise(source, model, task=task, memory=size, device=device, hours=hours)
    if out is not None:
        durable.write_text(out, found.yaml)
    show(found, as_json)


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
