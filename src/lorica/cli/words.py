"""The options that several commands share, each worded once."""

from pathlib import Path
from typing import Annotated

import typer

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file (YAML).", show_default=False)]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one entry of the recipe, as in method.r=16. May be given many times.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else on stdout.")]
AdapterPath = Annotated[
    str,
    typer.Argument(
        metavar="ADAPTER", help="An adapter: a folder such as runs/NAME/adapter, or a hub id.", show_default=False
    ),
]
ModelSource = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="The base: `embedded`, a folder or a hub id. Default: the one the adapter was trained on.",
        show_default=False,
    ),
]
Untrained = Annotated[
    bool, typer.Option("--untrained", help="Accept an adapter without effect, or that its method did not end with.")
]
OtherBase = Annotated[
    bool, typer.Option("--other-base", help="Accept a base with another fingerprint than the recorded one.")
]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", metavar="TYPE", help="float32, bfloat16 or float16. Default: as the base is stored."),
]
Memory = Annotated[
    str | None,
    typer.Option("--memory", metavar="SIZE", help="For this much memory instead of this machine's: 8GB."),
]
Device = Annotated[str | None, typer.Option("--device", metavar="NAME", help="For this card: 'RTX 3060 Ti'.")]
