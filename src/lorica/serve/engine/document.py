"""Document: a request while it is served, the tokens it has so far and the blocks it holds."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from lorica.models.paged import BLOCK
from lorica.models.sampling import seed_of
from lorica.serve.engine.lease import Lease
from lorica.serve.engine.prefix import chained
from lorica.serve.engine.request import Listener, Request, Usage


@dataclass(eq=False, slots=True)
class Document:
    """tokens      of the prompt and the answer so far
    room        how many tokens the answer may have
    ends_at     the time by which it is cut off, None for never
    read        how many tokens have their keys and values in blocks
    table       the blocks, in order
    keys        of the blocks that are full, after that of the beginning
    reused      tokens of the prompt that were not computed, None before it ran first
    generator   what it draws from, None where it is greedy
    number      the Bank's for its adapters, while it runs
    """

    request: Request
    listener: Listener
    lease: Lease
    room: int
    ends_at: float | None
    tokens: list[int]
    keys: list[bytes]
    generator: torch.Generator | None
    read: int = 0
    table: list[int] = field(default_factory=list)
    reused: int | None = None
    number: int = -1
    ended: bool = False

    @classmethod
    def of(
        cls, request: Request, listener: Listener, lease: Lease, room: int, ends_at: float | None, root: bytes
    ) -> "Document":
        sampled = request.temperature > 0.0
        generator = torch.Generator().manual_seed(seed_of(request.seed, 0)) if sampled else None
        return cls(request, listener, lease, room, ends_at, list(request.tokens), [root], generator)

    @property
    def written(self) -> int:
        return len(self.tokens) - len(self.request.tokens)

    @property
    def unread(self) -> int:
        return len(self.tokens) - self.read

    @property
    def cost(self) -> int:
        """Tokens it may come to, for its share of the turns; one that has had its turn before costs nothing more."""
        return len(self.request.tokens) + self.room if self.reused is None else 0

    @property
    def usage(self) -> Usage:
        return Usage(prompt_tokens=len(self.request.tokens), written=self.written, reused=self.reused or 0)

    def keys_up_to(self, blocks: int) -> Sequence[bytes]:
        """The keys of its first blocks, each of which its tokens fill."""
        for index in range(len(self.keys) - 1, blocks):
            self.keys.append(chained(self.keys[-1], self.tokens[index * BLOCK : (index + 1) * BLOCK]))
        return self.keys[1 : blocks + 1]
