"""The commands that use an adapter: eval, generate, chat, inspect, verify, merge."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lorica.cli.output import say, show
from lorica.cli.words import AdapterPath, AsJson, Dtype, ModelSource, OtherBase, Untrained


class Onto(StrEnum):
    dequantised = "dequantised"
    original = "original"


def evaluate(
    data: Annotated[
        str, typer.Option("--data", metavar="FILE", help="Rows to score: a file or any other data source.")
    ],
    adapter: Annotated[str | None, typer.Argument(metavar="[ADAPTER]", help="An adapter folder or hub id.")] = None,
    model: ModelSource = None,
    base: Annotated[bool, typer.Option("--base", help="Score the bare base instead.")] = False,
    dtype: Dtype = None,
    untrained: Untrained = False,
    other_base: OtherBase = False,
    as_json: AsJson = False,
) -> None:
    """Score an adapter, or its bare base, on a data file. Loss, perplexity and the task's metrics."""
    from lorica import api
    from lorica.cli.progress import Lines

    found = api.evaluate(
        adapter,
        data,
        model=model,
        base=base,
        dtype=dtype,
        untrained=untrained,
        other_base=other_base,
        reporter=Lines(),
    )
    show(found, as_json)
    note_unverified(adapter)


def generate(
    adapter: AdapterPath,
    prompt: Annotated[str, typer.Option("--prompt", metavar="TEXT", help="What to continue; `-` reads stdin.")],
    model: ModelSource = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens",
            metavar="N",
            min=1,
            help="Stop after this many. Default: 256, or the task's own.",
            show_default=False,
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option("--temperature", metavar="T", min=0.0, help="0 is greedy: always the likeliest token.")
    ] = 0.0,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="Of the sampling, when the temperature is not 0.")
    ] = 0,
    base: Annotated[bool, typer.Option("--base", help="Let the bare base answer instead.")] = False,
    dtype: Dtype = None,
    untrained: Untrained = False,
    other_base: OtherBase = False,
    as_json: AsJson = False,
) -> None:
    """Answer one prompt. It is written to the model as the rows it was taught with."""
    from lorica import api

    said = api.generate(
        adapter,
        sys.stdin.read() if prompt == "-" else prompt,
        model=model,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        base=base,
        dtype=dtype,
        untrained=untrained,
        other_base=other_base,
    )
    show(said, as_json)
    note_unverified(adapter)


def chat(
    adapter: AdapterPath,
    model: ModelSource = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", metavar="N", min=1, help="Of each answer.")] = 512,
    temperature: Annotated[float, typer.Option("--temperature", metavar="T", min=0.0, help="0 is greedy.")] = 0.0,
    dtype: Dtype = None,
    untrained: Untrained = False,
    other_base: OtherBase = False,
) -> None:
    """Talk with an adapter. Answers appear as they are written; an empty line ends."""
    from lorica.cli.talk import talk

    accepted = {"untrained": untrained, "other_base": other_base}
    talk(adapter, model=model, max_tokens=max_tokens, temperature=temperature, dtype=dtype, **accepted)


def inspect(
    adapter: AdapterPath,
    other: Annotated[
        str | None,
        typer.Argument(
            metavar="[ADAPTER]", help="A second one: what the two have in common is shown.", show_default=False
        ),
    ] = None,
    other_base: OtherBase = False,
    as_json: AsJson = False,
) -> None:
    """Show what an adapter holds. Sites, ranks, spectra, where it came from; of two, their overlap."""
    from lorica import api

    show(api.inspect(adapter) if other is None else api.overlap(adapter, other, other_base=other_base), as_json)


def verify(
    adapter: AdapterPath,
    model: ModelSource = None,
    full: Annotated[
        bool, typer.Option("--full", help="Hash every byte of the base, not blocks of each tensor.")
    ] = False,
    untrained: Untrained = False,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="TYPE", help="Compute in this type. Default: the one that was recorded."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Prove that an adapter works as saved. Its files, its base, and what both answer."""
    from lorica import api

    found = api.verify(adapter, model=model, dtype=dtype, untrained=untrained, full=full)
    show(found, as_json)
    if not found.ok:
        raise typer.Exit(1)


def note_unverified(adapter: str | None) -> None:
    from lorica import api

    if adapter is not None and api.unverified(adapter):
        say(f"{adapter}: unverified, since others wrote it: no lorica.json says what it is and what it did")


def merge(
    adapter: AdapterPath,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A new folder for the merged checkpoint.")],
    model: ModelSource = None,
    untrained: Untrained = False,
    other_base: OtherBase = False,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="TYPE", help="Write the weights in this type. Default: as the base is stored."),
    ] = None,
    onto: Annotated[
        Onto,
        typer.Option(
            "--onto", help="Of an adapter trained on a quantised base: the numbers it saw, or the base's own."
        ),
    ] = Onto.dequantised,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint with the adapter folded in. transformers loads it as any other."""
    from lorica import api

    accepted = {"untrained": untrained, "other_base": other_base}
    merged = api.merge(adapter, out, model=model, dtype=dtype, onto=onto.value, **accepted)
    show(merged, as_json)
    note_unverified(adapter)
    if not as_json:
        say(f"load it with: transformers.{api.class_of(out)}.from_pretrained({str(out)!r})")
