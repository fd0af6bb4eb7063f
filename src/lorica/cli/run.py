"""The commands that teach: quickstart, plan, train."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorica.cli.output import say, show
from lorica.cli.supervised import Note
from lorica.cli.words import AsJson, RecipePath, Settings

if TYPE_CHECKING:
    from lorica.recipe import Recipe


def quickstart(
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Where the run goes.")] = Path(
        "runs/quickstart"
    ),
    as_json: AsJson = False,
) -> None:
    """See it work: teach a small base text-to-SQL. Needs no network and some minutes."""
    from lorica.cli.progress import live
    from lorica.quickstart.run import quickstart as teach

    with live() as reporter:
        result = teach(output, reporter=reporter)
    show(result, as_json)


def plan(
    recipe: RecipePath,
    settings: Settings = None,
    memory: Annotated[
        str | None,
        typer.Option("--memory", metavar="SIZE", help="Plan for this much memory instead of this machine's: 8GB."),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME", help="Plan for this card: 'RTX 3060 Ti'.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a recipe would train, and the memory it takes. Warns of settings known to fail; reads no weights."""
    from lorica import api
    from lorica.budget import memory_in_bytes

    size = None if memory is None else memory_in_bytes(memory)
    resolved = _recipe(recipe, settings)
    planned = api.plan(resolved, memory=size, device=device)
    if not as_json:
        print(resolved)
    show(planned, as_json)


def train(
    context: typer.Context,
    recipe: RecipePath,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the newest checkpoint that verifies.")
    ] = False,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Train an adapter as a recipe says. Ctrl-C saves; --resume goes on from there."""
    from lorica import api
    from lorica.cli.progress import live
    from lorica.train import room

    resolved = _recipe(recipe, settings)
    note = context.obj or Note()
    note.tell(folder=resolved.output)
    if note.tokens:
        room.keep(Path(resolved.output), note.tokens)
    say(api.plan(resolved))
    with live(note) as reporter:
        done = api.train(resolved, resume=resume, reporter=reporter)
    show(done, as_json)
    if done.exit_status:
        raise typer.Exit(done.exit_status)
    if not as_json:
        say("\n".join(["", *(f"  {line}" for line in api.next_steps(resolved, str(done.adapter)))]))


def _recipe(path: Path, settings: list[str] | None) -> "Recipe":
    from lorica.recipe import Recipe

    return Recipe.load(path, settings or ())
