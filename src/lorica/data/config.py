"""What a run is taught from: the `data:` part of a recipe."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

ShapeName = Literal["prompt_completion", "messages", "alpaca", "sharegpt", "text"]
OverLength = Literal["drop", "truncate", "error"]
LossOn = Literal["completion", "all"]
Source = Annotated[str, Field(min_length=1)]


class HoldOut(BaseModel):
    """A share of the training data kept back for evaluation.

    `by: file` holds out whole files, chosen by a hash of their relative path and the seed; `by: row` holds out
    rows, chosen by a hash of their content and the seed, so that equal rows always stay on one side.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: Literal["file", "row"] = "row"
    share: float = Field(default=0.1, gt=0, lt=1)
    seed: int = 0


class DataConfig(BaseModel):
    """Where rows come from, what they look like and which of their tokens are learned.

    A source is a file (`.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`, anything else is plain text), a folder, a glob,
    `python:stdlib`, `python:include`, `python:docstrings`, `images:FOLDER`, or `hub:owner/name[:config[:split]]`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: Source | Annotated[list[Source], Field(min_length=1)]
    eval: Source | HoldOut | None = None
    shape: ShapeName | None = Field(default=None, description="None: recognised from the fields of the rows")
    max_length: int | None = Field(default=None, ge=2, description="tokens of a row; None: what the base allows")
    over_length: OverLength = "drop"
    loss_on: LossOn = "completion"
    template: str | None = Field(default=None, description="chat template: Jinja text, or a path ending in .jinja")
