"""`lorica serve`: a base and many adapters over HTTP."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from lorica.cli.output import show
from lorica.cli.words import AsJson, Dtype
from lorica.errors import RequestError

NEEDED = ("fastapi", "uvicorn", "prometheus_client")
KEY, ADMIN_KEY = "LORICA_API_KEY", "LORICA_ADMIN_KEY"
Many = list[str] | None


def serve(
    model: Annotated[
        str,
        typer.Option(
            "--model", metavar="MODEL", help="The base: `embedded`, a folder or a hub id.", show_default=False
        ),
    ],
    adapter: Annotated[
        Many,
        typer.Option(
            "--adapter",
            metavar="NAME=DIR",
            help="An adapter by the name it is asked by. Many times.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[str, typer.Option("--host", metavar="HOST", help="Elsewhere than here needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="PORT", min=0, max=65535, help="0: any that is free.")] = 8000,
    api_key: Annotated[
        Many,
        typer.Option(
            "--api-key", metavar="KEY", help=f"Many times. Better: {KEY}. Default: made up, shown.", show_default=False
        ),
    ] = None,
    admin_key: Annotated[
        str | None,
        typer.Option(
            "--admin-key", metavar="KEY", help=f"Loads and unloads by request. Better: {ADMIN_KEY}.", show_default=False
        ),
    ] = None,
    adapters_root: Annotated[
        Path | None,
        typer.Option(
            "--adapters-root", metavar="DIR", help="Where requests find adapters, by folder name.", show_default=False
        ),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", metavar="N", min=1, help="The most that an answer may have.")
    ] = 4096,
    dtype: Dtype = None,
    merge: Annotated[
        str | None,
        typer.Option("--merge", metavar="NAME", help="Fold this one adapter into the weights.", show_default=False),
    ] = None,
    allow_host: Annotated[
        Many, typer.Option("--allow-host", metavar="NAME", help="A Host to answer to. Many times.", show_default=False)
    ] = None,
    allow_origin: Annotated[
        Many,
        typer.Option("--allow-origin", metavar="URL", help="A proxy's own pages. Many times.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Serve a base and many adapters. OpenAI's routes, adapters by name, a page at /."""
    _require_installed()
    adapters = _by_name(adapter or ())
    from lorica.api import serving

    serving.serve(
        model,
        adapters,
        host=host,
        port=port,
        api_keys=api_key or os.environ.get(KEY, "").split(),
        admin_key=admin_key or os.environ.get(ADMIN_KEY) or None,
        adapters_root=adapters_root,
        dtype=dtype,
        merge=merge,
        limits=serving.HttpLimits(max_tokens=max_tokens),
        allow_hosts=allow_host or (),
        allow_origins=allow_origin or (),
        ready=lambda listening: show(listening, as_json),
    )


def _require_installed() -> None:
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise RequestError(f"serve: {', '.join(missing)} not installed; pip install 'lorica[serve]'")


def _by_name(given: Sequence[str]) -> dict[str, Any]:
    adapters: dict[str, str] = {}
    problems = []
    for each in given:
        name, equals, folder = each.partition("=")
        if not (name and equals and folder):
            problems.append(f"--adapter {each}: give NAME=DIR, as in sql=runs/sql")
        elif name in adapters:
            problems.append(f"--adapter {each}: the name {name} is given twice")
        adapters[name] = folder
    if problems:
        raise RequestError.of(problems)
    return adapters
