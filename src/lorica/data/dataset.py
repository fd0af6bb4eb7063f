"""A data set: every row read is either used or dropped with a reason."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from lorica.data.example import Dropped, Example


@dataclass(frozen=True, eq=False)
class Dataset:
    """Examples in the order they were read. `read` counts rows: a long text is one row and many examples."""

    examples: tuple[Example, ...]
    dropped: tuple[Dropped, ...]
    read: int
    shape: str = "text"

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    @property
    def used(self) -> int:
        return self.read - len(self.dropped)

    @property
    def truncated(self) -> tuple[str, ...]:
        """Where the rows are that were cut to the limit."""
        return tuple(example.origin for example in self.examples if example.cut)

    @property
    def why_dropped(self) -> str:
        """Each reason with its rows counted and the first of them; empty where none was dropped."""
        counts = Counter(drop.reason for drop in self.dropped)
        first = {drop.reason: drop.origin for drop in reversed(self.dropped)}
        told = [f"{count} {reason} (the first is {first[reason]})" for reason, count in counts.most_common(3)]
        rest = sum(count for _, count in counts.most_common()[3:])
        return "; ".join([*told, *([f"{rest} for other reasons"] if rest else [])])

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each example (examples,)."""
        return np.array([len(example) for example in self.examples], dtype=np.int64)

    @cached_property
    def label_tokens(self) -> int:
        return sum(example.units for example in self.examples)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over lengths, ids and masks, in order: what the model is taught, and nothing else."""
        digest = hashlib.sha256()
        for example in self.examples:
            for part in example.content():
                digest.update(part)
        return digest.hexdigest()

    def to_dict(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "read": self.read,
            "used": self.used,
            "examples": len(self),
            "tokens": int(self.lengths.sum()),
            "label_tokens": self.label_tokens,
            "fingerprint": self.fingerprint,
        }

    def __str__(self) -> str:
        cut = f", {len(self.truncated)} cut" if self.truncated else ""
        return (
            f"{self.read} rows read ({self.shape}), {self.used} used{cut}, {len(self.dropped)} dropped: "
            f"{len(self)} examples, {int(self.lengths.sum())} tokens, {self.label_tokens} learned"
        )
