"""A base and a data source to data sets: the tokenizer and template of one room, handed to the other."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from lorica import data
from lorica.data import DataConfig, Dataset, Renderer, Tokenizer
from lorica.errors import DataError, ModelError
from lorica.models import context_limit, renderer
from lorica.models.chat import plain_tokenizer

Rows = Iterable[Mapping[str, Any]]
ANY_LENGTH = 1 << 20
"""The longest row for a base that has no limit of its own."""


def tokenizer_of(model: nn.Module) -> tuple[Tokenizer, Renderer | None]:
    """The tokenizer as the data room takes it, and its chat template where it has one."""
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise ModelError(
            "this base brings no tokenizer; set model.tokenizer, or load the base from a folder that has one"
        )
    return plain_tokenizer(tokenizer), renderer(tokenizer)


def from_files(model: nn.Module, config: DataConfig) -> tuple[Dataset, Dataset | None]:
    """The training and the evaluation data that a config names.  DataError where every row of one was dropped."""
    tokenizer, template = tokenizer_of(model)
    learned, held = data.load(config, tokenizer, template, limit=longest(model))
    return _usable(learned, "data.train"), None if held is None else _usable(held, "data.eval")


def from_anything(model: nn.Module, source: "str | Rows | Dataset", config: DataConfig | None = None) -> Dataset:
    """A data set as it is, rows in memory, or a source by name, encoded as `config` says."""
    if isinstance(source, Dataset):
        return source
    if isinstance(source, str):
        kept = config.model_dump(exclude={"train", "eval"}) if config else {}
        return from_files(model, DataConfig(train=source, **kept))[0]
    tokenizer, template = tokenizer_of(model)
    return _usable(data.from_rows(source, tokenizer, template, config=config, limit=longest(model)), "rows")


def _usable(rows: Dataset, what: str) -> Dataset:
    if len(rows):
        return rows
    reasons = Counter(drop.reason for drop in rows.dropped)
    told = "; ".join(f"{count} {reason}" for reason, count in reasons.most_common(3))
    raise DataError(f"{what}: none of {rows.read} rows can be used: {told} (the first is {rows.dropped[0].origin})")


def longest(model: nn.Module) -> int:
    return context_limit(model) or ANY_LENGTH
