"""What an engine works with: blocks of the decoder for our own bases, generation of their own for others."""

from dataclasses import replace
from typing import Protocol

from torch import nn

from lorica.budget.free import free_memory
from lorica.errors import RequestError
from lorica.models import context_limit
from lorica.models.causal_lm import CausalLM
from lorica.models.paged import BLOCK, KVBlocks
from lorica.serve.engine.blocks import Blocks
from lorica.serve.engine.document import Document
from lorica.serve.engine.foreign import ForeignRunner, NoReuse
from lorica.serve.engine.lease import Adapters
from lorica.serve.engine.limits import Limits
from lorica.serve.engine.request import Request
from lorica.serve.engine.runner import Runner, Written
from lorica.serve.engine.scheduler import Piece, Scheduler

UNBOUNDED = 1 << 16
"""Tokens of a context where the base states no end."""


class AnyRunner(Protocol):
    def check(self, request: Request) -> None: ...

    def decode(self, documents: list[Document]) -> Written: ...

    def prefill(self, pieces: list[Piece]) -> Written: ...


def machinery(model: nn.Module, shelf: Adapters, limits: Limits) -> tuple[AnyRunner, Scheduler, Limits]:
    """The runner, the scheduler, and the limits that they keep."""
    if isinstance(model, CausalLM):
        count = _count(model, limits)
        runner = Runner(model, KVBlocks(model.shape, count, model.dtype, model.device), shelf.bank is not None)
        return runner, Scheduler(Blocks(count), shelf, limits), limits
    longest = limits.context or context_limit(model) or UNBOUNDED
    alone = replace(limits, running=1, prompt_chunk=longest, prompt_alone=longest)
    return ForeignRunner(model, shelf.bank), Scheduler(NoReuse(_blocks(2 * longest)), shelf, alone), alone


def _count(model: CausalLM, limits: Limits) -> int:
    """How many blocks there are."""
    one = KVBlocks.bytes_of_one(model.shape, model.dtype)
    if limits.cache_bytes is not None:
        count = limits.cache_bytes // one
        if not count:
            raise RequestError(f"limits: cache_bytes is {limits.cache_bytes}, and one block takes {one}")
        return count
    longest = min(limits.context or UNBOUNDED, context_limit(model) or UNBOUNDED)
    wanted = 2 * limits.running * _blocks(longest)
    free, _ = free_memory(model.device)
    return max(1, min(wanted, free // 4 // one)) if free else wanted


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK)
