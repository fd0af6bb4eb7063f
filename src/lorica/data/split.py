"""What is held out for evaluation, as a function of names or contents and a seed, not of the order of files.

rank = SHA-256(seed, relative path)     by file
rank = SHA-256(seed, the row's fields)  by row, so that equal rows lie on one side
held out: the first `share` of all, in the order of their ranks; at least one, never all
"""

import hashlib
import json
from collections.abc import Sequence

from lorica.data.config import HoldOut
from lorica.data.rows import Row
from lorica.errors import DataError


def split(rows: Sequence[Row], hold_out: HoldOut) -> tuple[list[Row], list[Row]]:
    """Rows to train on and rows held out, each in their first order. Raises `DataError` when one would be empty."""
    keys = [row.file if hold_out.by == "file" else _content(row) for row in rows]
    ranked = sorted(set(keys), key=lambda key: _rank(key, hold_out.seed))
    if len(ranked) < 2:
        what = "files; use by: row" if hold_out.by == "file" else "different rows; name an evaluation file"
        raise DataError(f"data.eval: holding out by {hold_out.by} needs at least two {what}")
    count = min(max(1, round(hold_out.share * len(ranked))), len(ranked) - 1)
    held = set(ranked[:count])
    train = [row for row, key in zip(rows, keys, strict=True) if key not in held]
    return train, [row for row, key in zip(rows, keys, strict=True) if key in held]


def _rank(key: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{key}".encode("utf-8", "surrogatepass")).digest()


def _content(row: Row) -> str:
    return json.dumps(row.fields, sort_keys=True, default=repr)
