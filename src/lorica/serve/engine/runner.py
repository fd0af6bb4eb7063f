"""Runner: passes of the decoder over documents whose keys and values lie in blocks.

decode    one token of each document       what the documents have in common is kept while they stay the same
prefill   pieces of prompts                a document whose prompt ends in its piece writes its first token
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lorica.errors import RequestError
from lorica.models.causal_lm import CausalLM
from lorica.models.layout import Layout
from lorica.models.paged import KVBlocks, Paged
from lorica.serve.engine.document import Document
from lorica.serve.engine.request import Request, Wrote
from lorica.serve.engine.sampler import Chooser
from lorica.serve.engine.scheduler import Piece

Written = Iterable[tuple[Document, Wrote | None]]
"""What each document of a pass writes, None where the base's answer is no number."""


@dataclass(eq=False)
class Company:
    """Documents that are decoded together.

    held     blocks of them all: where it has changed, so have their tables
    layout   its positions move on by one a pass
    """

    documents: list[Document]
    chooser: Chooser
    route: Tensor | None
    held: int
    layout: Layout


class Runner:
    def __init__(self, model: CausalLM, blocks: KVBlocks, routed: bool) -> None:
        """routed: a Bank chooses among adapters."""
        self.model, self.blocks, self.routed = model, blocks, routed
        self._company: Company | None = None

    def check(self, request: Request) -> None:
        """RequestError for tokens that the base does not know."""
        most = self.model.shape.vocab
        wrong = [token for token in request.tokens if not 0 <= token < most]
        if wrong:
            raise RequestError(f"tokens: {wrong[0]} is none of the base's {most}")

    def decode(self, documents: list[Document]) -> Written:
        """One pass over the last token of each."""
        company, self._company = self._together(documents), None  # not kept where the pass fails
        tokens = torch.tensor([document.tokens[-1] for document in documents], device=self.model.device)
        hidden = self.model.hidden(tokens, company.layout)
        wrote = company.chooser(self.model.logits(hidden, company.layout))
        company.layout.positions.add_(1)
        self._company = company
        return zip(documents, wrote, strict=True)

    def prefill(self, pieces: Sequence[Piece]) -> Written:
        """One pass over so many tokens of each."""
        layout = Layout.of([count for _, count in pieces], cache=self._paged([d for d, _ in pieces]))
        numbers = [document.number for document, count in pieces for _ in range(count)]
        layout = replace(
            layout,
            positions=layout.positions.to(self.model.device),
            route=torch.tensor(numbers, device=self.model.device) if self.routed else None,
        )
        flat = [token for d, count in pieces for token in d.tokens[d.read : d.read + count]]
        last = layout.last
        hidden = self.model.hidden(torch.tensor(flat, device=self.model.device), layout, last)
        whole = [row for row, (document, count) in enumerate(pieces) if document.unread == count]
        if not whole:
            return ()
        rows = torch.tensor(whole, device=self.model.device)
        logits = self.model.logits(hidden[rows], layout.at(last[rows]))
        documents = [pieces[row][0] for row in whole]
        return zip(documents, Chooser.of(documents)(logits), strict=True)

    def _together(self, documents: list[Document]) -> Company:
        held = sum(len(document.table) for document in documents)
        before = self._company
        if before is None or before.documents != documents:
            return self._new(documents, held)
        if before.held != held:
            before.layout = replace(before.layout, cache=self._paged(documents))
            before.held = held
        return before

    def _new(self, documents: list[Document], held: int) -> Company:
        device = self.model.device
        route = torch.tensor([d.number for d in documents], device=device) if self.routed else None
        positions = torch.tensor([d.read for d in documents], device=device)
        layout = Layout((1,) * len(documents), positions, self._paged(documents), route, apart=True)
        return Company(list(documents), Chooser.of(documents), route, held, layout)

    def _paged(self, documents: Sequence[Document]) -> Paged:
        return Paged(self.blocks, tuple(tuple(d.table) for d in documents), [d.read for d in documents])
