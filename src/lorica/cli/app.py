"""The commands of `lorica`, in the order in which a person meets them."""

import typer

from lorica import __version__
from lorica.cli import look, make, run, serve, use

app = typer.Typer(
    name="lorica",
    help="Fine-tune models with LoRA: plan what fits, train, look at what came out, and use it.",
    epilog="First time here? `lorica quickstart` needs no network and takes a few minutes.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def options(version: bool = typer.Option(False, "--version", help="Print the version and stop.")) -> None:
    if version:
        print(__version__)
        raise typer.Exit


COMMANDS = {
    "quickstart": run.quickstart,
    "plan": run.plan,
    "advise": look.advise,
    "train": run.train,
    "eval": use.evaluate,
    "generate": use.generate,
    "chat": use.chat,
    "inspect": use.inspect,
    "verify": use.verify,
    "merge": use.merge,
    "combine": make.combine,
    "resize": make.resize,
    "serve": serve.serve,
    "data": look.data,
    "methods": look.methods,
    "doctor": look.doctor,
}

for name, command in COMMANDS.items():
    app.command(name)(command)
