"""Embeddings of a base that encodes: the mean over a text's tokens, or its first token, brought to length one.

e = pooled(hidden of the last layer);   e / |e|          as sentence-transformers does it (1_Pooling/config.json)
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lorica.adapter import AdapterFile, Bank
from lorica.adapter.mixes import Choice
from lorica.errors import RequestError
from lorica.models import context_limit
from lorica.models.folder import folder_of
from lorica.serve.engine import Described
from lorica.serve.engine.verified import Verifier

POOLING = "1_Pooling/config.json"
ROWS = 16
"""Texts that are read at a time, those of nearly one length together."""


@dataclass(frozen=True)
class Resident:
    """Adapters that stay with a bank from the start to the end, as a list shows them."""

    described: tuple[Described, ...]

    @classmethod
    def on(cls, bank: Bank, folders: Mapping[str, Path]) -> "Resident":
        """AdapterError for one that does not check out."""
        verified = Verifier(bank.model)
        return cls(tuple(_added(bank, name, verified(folder).file) for name, folder in folders.items()))

    def list(self) -> tuple[Described, ...]:
        return self.described


def _added(bank: Bank, name: str, file: AdapterFile) -> Described:
    bank.add(name, file)
    return Described(
        name=name,
        generation=1,
        digest=file.digest or "",
        state="ready",
        rank=max((r for method in file.methods if isinstance(r := getattr(method, "r", None), int)), default=None),
        bytes=bank.bytes(name),
        method=" + ".join(method.kind for method in file.methods),
        tier="device",
        in_flight=0,
        loaded_at=time.time(),
    )


class Encoder:
    """A bank of adapters on an encoder.  Not for several threads at once."""

    def __init__(self, bank: Bank) -> None:
        self.bank = bank
        self.model: Any = bank.model
        self.first = pools_first(self.model)
        self.limit = context_limit(self.model)

    def __call__(self, texts: Sequence[str], choice: Choice) -> tuple[np.ndarray, int]:
        """(N, d) float32, and the tokens that were read.  RequestError for a text longer than the base reads."""
        rows = self.model.tokenizer(list(texts), verbose=False)["input_ids"]
        self._require_short(rows)
        order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
        parts = [self._encoded([rows[n] for n in order[at : at + ROWS]], choice) for at in range(0, len(order), ROWS)]
        back = np.argsort(np.array(order))
        return np.concatenate(parts)[back], sum(map(len, rows))

    def _require_short(self, rows: Sequence[Sequence[int]]) -> None:
        long = [number for number, row in enumerate(rows) if self.limit is not None and len(row) > self.limit]
        if long:
            raise RequestError(f"input[{long[0]}]: {len(rows[long[0]])} tokens; this base reads at most {self.limit}")

    @torch.no_grad()
    def _encoded(self, rows: Sequence[Sequence[int]], choice: Choice) -> np.ndarray:
        longest = max(map(len, rows))
        ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : len(row)], mask[number, : len(row)] = torch.tensor(row), 1
        device = next(self.model.parameters()).device
        with self.bank.use(choice):
            out = self.model(
                input_ids=ids.to(device), attention_mask=mask.to(device), output_hidden_states=True, return_dict=True
            )
        pooled = self._pooled(out.hidden_states[-1].float().cpu(), mask)
        return nn.functional.normalize(pooled, dim=-1).numpy()

    def _pooled(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """(N, L, d) -> (N, d)"""
        if self.first:
            return hidden[:, 0]
        seen = mask[..., None].to(hidden.dtype)
        return (hidden * seen).sum(1) / seen.sum(1)


def pools_first(model: nn.Module) -> bool:
    """Whether the base states that its first token stands for a text."""
    source = getattr(model, "source", None)
    stated = _stated(folder_of(source) / POOLING) if source else {}
    return stated.get("pooling_mode_cls_token") is True


def _stated(file: Path) -> Mapping[str, Any]:
    try:
        stated = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stated if isinstance(stated, dict) else {}
