"""Rows of a data set on the hub, through `datasets` (the `hub` extra)."""

from collections.abc import Iterator
from typing import Any

from lorica.data.rows import Row, without_fillers
from lorica.data.sources import HubSource
from lorica.errors import DataError


def hub_rows(source: HubSource) -> Iterator[Row]:
    """Rows in the data set's order, numbered from 1. Raises `DataError` without the extra or without a connection."""
    for number, fields in enumerate(_dataset(source), 1):
        yield Row(without_fillers(fields), f"{source.name}:{number}", source.name)


def _dataset(source: HubSource) -> Any:
    try:
        from datasets import load_dataset  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise DataError(f"{source.name}: needs the hub extra: pip install 'lorica[hub]'") from None
    try:
        return load_dataset(source.dataset, source.config, split=source.split)
    except Exception as error:
        # `datasets` raises a dozen unrelated types here, from ConnectionError to its own and pyarrow's.
        reason = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
        raise DataError(f"{source.name}: cannot be loaded ({reason}); check the name and the connection") from error
