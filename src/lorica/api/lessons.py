"""A base and a data source to data sets: the tokenizer and template of one room, handed to the other."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from lorica import data
from lorica.data import DataConfig, Dataset, Renderer, Tokenizer
from lorica.errors import ModelError
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
    """The training and the evaluation data that a config names."""
    tokenizer, template = tokenizer_of(model)
    return data.load(config, tokenizer, template, limit=longest(model))


def from_anything(model: nn.Module, source: "str | Rows | Dataset", config: DataConfig | None = None) -> Dataset:
    """A data set as it is, rows in memory, or a source by name, encoded as `config` says."""
    if isinstance(source, Dataset):
        return source
    if isinstance(source, str):
        kept = config.model_dump(exclude={"train", "eval"}) if config else {}
        return from_files(model, DataConfig(train=source, **kept))[0]
    tokenizer, template = tokenizer_of(model)
    return data.from_rows(source, tokenizer, template, config=config, limit=longest(model))


def longest(model: nn.Module) -> int:
    return context_limit(model) or ANY_LENGTH
