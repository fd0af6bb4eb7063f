"""Bases that are no decoder of ours: answered through their own forward, one request at a time.

A request is written as a whole, by `lorica.models.generate`; until it is, it can be neither cancelled nor cut off, and
what it wrote is heard at once.
"""

from collections.abc import Sequence
from contextlib import nullcontext

from torch import nn

from lorica.adapter import Bank
from lorica.errors import RequestError
from lorica.models import generate
from lorica.serve.engine.blocks import Blocks
from lorica.serve.engine.document import Document
from lorica.serve.engine.request import Request, Wrote
from lorica.serve.engine.runner import Written
from lorica.serve.engine.scheduler import Piece


class NoReuse(Blocks):
    """Books of blocks that hold nothing, so that nothing of one document can serve another."""

    def seal(self, block: int, key: bytes) -> None:
        return None


class ForeignRunner:
    def __init__(self, model: nn.Module, bank: Bank | None) -> None:
        self.model, self.bank = model, bank

    def check(self, request: Request) -> None:
        """RequestError for what its own generation does not tell."""
        if request.logprobs is not None:
            raise RequestError(f"logprobs: {type(self.model).__name__} does not tell them; leave them out")

    def decode(self, documents: list[Document]) -> Written:
        return self._whole(documents)

    def prefill(self, pieces: Sequence[Piece]) -> Written:
        return self._whole([document for document, _ in pieces])

    def _whole(self, documents: Sequence[Document]) -> Written:
        return [(document, Wrote(token)) for document in documents for token in self._answer(document)]

    def _answer(self, document: Document) -> list[int]:
        asked = document.request
        chosen = nullcontext() if self.bank is None else self.bank.use(document.lease.choice)
        with chosen:
            (tokens,) = generate(
                self.model,
                [asked.tokens],
                document.room,
                stop_ids=asked.stop_ids,
                temperature=asked.temperature,
                top_p=asked.top_p,
                top_k=asked.top_k,
                seed=asked.seed,
            )
        document.room = len(tokens)
        return tokens
