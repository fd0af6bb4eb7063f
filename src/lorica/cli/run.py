"""The commands that teach: quickstart, plan, train."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorica.cli.output import say, show
from lorica.cli.supervised import Note
from lorica.cli.words import AsJson, Device, Memory, RecipePath, Settings

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
    memory: Memory = None,
    device: Device = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Try its heaviest batch here, in a process of its own, and correct plans.")
    ] = False,
    fit: Annotated[
        bool, typer.Option("--fit", help="Show the three best recipes for this machine, or for --device or --memory.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a recipe would train, and the memory it takes. Warns of settings known to fail; reads no weights."""
    from lorica import api
    from lorica.budget import memory_in_bytes
    from lorica.errors import RequestError

    size = None if memory is None else memory_in_bytes(memory)
    if measure and (fit or size or device):
        raise RequestError("--measure tries the recipe on this machine; leave --fit, --device and --memory out")
    resolved = _recipe(recipe, settings)
    if fit:
        show(api.best_for(resolved, memory=size, device=device), as_json)
        return
    planned = api.plan(resolved, memory=size, device=device)
    if not as_json:
        print(f"{resolved}\n{planned}")
    if measure:
        found = api.measure(resolved)
        show(found, as_json)
        found.require_room()
    elif as_json:
        show(planned, as_json)


def train(
    context: typer.Context,
    recipe: RecipePath,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the newest checkpoint that verifies.")
    ] = False,
    finish: Annotated[
        bool, typer.Option("--finish", help="Train no further: make the adapter of that checkpoint, the best so far.")
    ] = False,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Train an adapter as a recipe says. Ctrl-C saves; --resume goes on from there, --finish keeps what there is."""
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
        done = api.train(resolved, resume=resume, finish=finish, reporter=reporter)
    show(done, as_json)
    if done.exit_status:
        raise typer.Exit(done.exit_status)
    if not as_json:
        say("\n".join(["", *(f"  {line}" for line in api.next_steps(resolved, str(done.adapter)))]))


def _recipe(path: Path, settings: list[str] | None) -> "Recipe":
    from lorica.recipe import Recipe

    return Recipe.load(path, settings or ())
