"""The commands that make an adapter of adapters: combine, resize."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lorica.cli.output import show
from lorica.cli.words import AdapterPath, AsJson, OtherBase, Untrained

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="A new folder for the adapter.")]
Base = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="The base, to check the result on. Default: the recorded one, where it is on this machine.",
        show_default=False,
    ),
]


class How(StrEnum):
    exact = "exact"
    svd = "svd"
    ties = "ties"
    dare = "dare"
    dare_ties = "dare_ties"
    magnitude = "magnitude"


def combine(
    adapters: Annotated[
        list[str],
        typer.Argument(metavar="ADAPTER=WEIGHT...", help="Adapters with their weights: sql=0.7 json=0.3."),
    ],
    out: Out,
    how: Annotated[
        How, typer.Option("--how", help="exact has the sum of all ranks; the others are cut to --r.")
    ] = How.exact,
    r: Annotated[
        int | None,
        typer.Option("--r", metavar="R", help="Rank. Default: the largest that goes in.", show_default=False),
    ] = None,
    density: Annotated[
        float | None,
        typer.Option("--density", metavar="D", help="Share that pruning keeps. Default: 0.5.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="S", help="Of what dare and dare_ties drop.")] = 0,
    model: Base = None,
    untrained: Untrained = False,
    other_base: OtherBase = False,
    as_json: AsJson = False,
) -> None:
    """Make one adapter of several. Their deltas weighed; says how far it is from the exact blend."""
    from lorica import api

    accepted = {"untrained": untrained, "other_base": other_base}
    weights = weights_of(adapters)
    made = api.combine(weights, out, how=how.value, r=r, density=density, seed=seed, model=model, **accepted)
    show(made, as_json)


def weights_of(words: list[str]) -> dict[str | Path, float]:
    """`sql=0.7 json=0.3` as a mapping.  RequestError with every word that is none."""
    from lorica.errors import RequestError

    found, problems = dict[str | Path, float](), list[str]()
    for word in words:
        place, _, weight = word.rpartition("=")
        if not place or not _is_number(weight):
            problems.append(f"combine: {word!r} names no weight; write {place or word}=0.5")
        elif place in found:
            problems.append(f"combine: {place} comes twice; give it one weight")
        else:
            found[place] = float(weight)
    if problems:
        raise RequestError.of(problems)
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def resize(
    adapter: AdapterPath,
    out: Out,
    r: Annotated[
        int | None, typer.Option("--r", metavar="R", help="The rank of every site.", show_default=False)
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(
            "--energy", metavar="E", help="Or the share of energy that each site keeps: 0.99.", show_default=False
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="FILE", help="Rows to score it on before and after.", show_default=False),
    ] = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", metavar="T", help="With --data: how much the loss may grow.")
    ] = 0.02,
    model: Base = None,
    untrained: Untrained = False,
    other_base: OtherBase = False,
    as_json: AsJson = False,
) -> None:
    """Give an adapter other ranks. The best of each, with the spectrum and what is kept of it."""
    from lorica import api
    from lorica.cli.progress import Lines

    accepted = {"untrained": untrained, "other_base": other_base, "reporter": Lines()}
    made = api.resize(adapter, out, r=r, energy=energy, data=data, tolerance=tolerance, model=model, **accepted)
    show(made, as_json)
