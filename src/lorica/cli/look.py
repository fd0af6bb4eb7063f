"""The commands that only look: data, methods, doctor."""

from typing import Annotated

import typer

from lorica.cli.output import show
from lorica.cli.words import AsJson


def data(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Rows: a file, a folder, a glob or a named source.")],
    model: Annotated[
        str, typer.Option("--model", metavar="MODEL", help="The base whose tokenizer and chat template are used.")
    ],
    held: Annotated[
        str | None,
        typer.Option("--eval", metavar="FILE", help="Evaluation rows, to look for leaks.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a data file would teach. Rows used and dropped and why, lengths, learned tokens."""
    from lorica import api

    show(api.data_report(file, model, held=held), as_json)


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
