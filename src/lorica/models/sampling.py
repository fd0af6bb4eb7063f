"""The next token from logits: greedy, or drawn from the tempered distribution cut to its top k and top p.

    p = softmax(logits / temperature);   keep the k largest, then the fewest whose sum reaches top_p;   draw

Each row draws from a generator of its own, so its tokens do not depend on the rows beside it.
Holtzman et al. 2020, arXiv:1904.09751 (top p).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import torch
from torch import Tensor

from lorica.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """temperature 0 is greedy; top_k 0 and top_p 1 keep everything.  RequestError for values out of range."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        problems = []
        if not 0.0 <= self.temperature < float("inf"):
            problems.append(f"temperature: {self.temperature} is out of range; it is 0 (greedy) or more")
        if not 0.0 < self.top_p <= 1.0:
            problems.append(f"top_p: {self.top_p} is out of range; it is above 0 and at most 1")
        if self.top_k < 0:
            problems.append(f"top_k: {self.top_k} is out of range; it is 0 (everything) or more")
        if problems:
            raise RequestError.of(problems)

    def choose(self, logits: Tensor, generators: Sequence[torch.Generator]) -> list[int]:
        """logits (N, vocabulary) -> N token ids; `generators` holds one for each row."""
        if self.temperature == 0.0:
            return logits.argmax(-1).tolist()
        wide = logits if logits.dtype == torch.float64 else logits.float()
        ordered, ids = (wide / self.temperature).sort(stable=True, dim=-1, descending=True)
        probabilities = self.kept(ordered.softmax(-1))
        draws = torch.stack([torch.rand(1, generator=generator, dtype=torch.float64) for generator in generators])
        cumulative = probabilities.double().cumsum(-1)
        places = torch.searchsorted(cumulative, draws.to(cumulative.device) * cumulative[:, -1:], right=True)
        return ids.gather(-1, places.clamp_max(ids.shape[-1] - 1)).squeeze(-1).tolist()

    def kept(self, probabilities: Tensor) -> Tensor:
        """Probabilities (N, vocabulary) in falling order, zero behind the cut."""
        if self.top_k:
            behind = torch.arange(probabilities.shape[-1], device=probabilities.device) >= self.top_k
            probabilities = probabilities.masked_fill(behind, 0.0)
            probabilities = probabilities / probabilities.sum(-1, keepdim=True)
        before = probabilities.cumsum(-1) - probabilities
        return probabilities.masked_fill(before >= self.top_p, 0.0)


def seed_of(seed: int, row: int) -> int:
    """The seed of one row of a batch: 32 bits, since torch's CPU generator ignores the others."""
    return int.from_bytes(sha256(f"{seed} {row}".encode()).digest()[:4], "little")


def generators_of(seed: int, rows: int) -> list[torch.Generator]:
    """One generator a row, on the CPU whatever the model's device, so that a seed means the same anywhere."""
    return [torch.Generator().manual_seed(seed_of(seed, row)) for row in range(rows)]
