"""Documents in blocks: the decoder's own answers, and no bit of them from company, chunks or place."""

import random
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from decoder_family import KINDS, VOCABULARY, ours
from lorica.kernels import BLOCK
from lorica.kernels.native import library
from lorica.models import block_rows
from lorica.models.layout import Layout
from lorica.models.paged import KVBlocks, Paged

LENGTHS = (5, 16, 23, 40)


def prompts(seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(VOCABULARY, (n,), generator=g) for n in LENGTHS]


class Engine:
    """The least of one: every document has blocks of its own, in no order."""

    def __init__(self, model, documents) -> None:
        self.model, self.documents, self.held = model, documents, [0] * len(documents)
        needed = [-(-len(d) // BLOCK) for d in documents]
        order = torch.randperm(sum(needed), generator=torch.Generator().manual_seed(1)).tolist()
        self.tables = [tuple(order.pop() for _ in range(count)) for count in needed]
        self.blocks = KVBlocks(model.shape, sum(needed), model.dtype)

    def read(self, counts: dict[int, int], route=None):
        """The next tokens of these documents: logits after the last of each."""
        cache = Paged(self.blocks, tuple(self.tables[d] for d in counts), [self.held[d] for d in counts])
        layout = Layout.of(list(counts.values()), cache=cache)
        if route is not None:
            layout = replace(layout, route=torch.tensor([route[d] for d in counts])[layout.document_of])
        flat = torch.cat([self.documents[d][self.held[d] : self.held[d] + n] for d, n in counts.items()])
        with torch.inference_mode():
            logits = self.model.logits(self.model.hidden(flat, layout, layout.last), layout.at(layout.last))
        for d, n in counts.items():
            self.held[d] += n
        return dict(zip(counts, logits, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_documents_in_blocks_have_the_decoders_own_logits(kind: str) -> None:
    model, documents = ours(kind, torch.float32), prompts()
    engine = Engine(model, documents)
    engine.read(dict.fromkeys(range(4), 3))
    found = engine.read({d: len(documents[d]) - 3 for d in range(4)})
    for d, document in enumerate(documents):
        with torch.inference_mode():
            wanted = model(document[None]).logits[0, -1]
        bound = 64 * torch.finfo(torch.float32).eps * float(wanted.abs().max())
        assert float((found[d] - wanted).abs().max()) <= bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["llama", "qwen3 tied and sliding", "llama with wide heads and biases"])
def test_company_and_chunks_change_no_bit(kind: str, dtype: torch.dtype) -> None:
    model, documents, draw = ours(kind, dtype), prompts(), random.Random(0)
    alone = []
    for d, document in enumerate(documents):
        engine = Engine(model, documents)
        for _ in document[:-1]:
            engine.read({d: 1})
        alone.append(engine.read({d: 1})[d])
    for _ in range(20):
        engine, last = Engine(model, documents), {}
        while unread := [d for d in range(4) if engine.held[d] < LENGTHS[d]]:
            taken = draw.sample(unread, draw.randint(1, len(unread)))
            last |= engine.read({d: draw.randint(1, LENGTHS[d] - engine.held[d]) for d in taken})
        assert all(torch.equal(last[d], alone[d]) for d in range(4))


@pytest.mark.skipif(library().functions is None, reason=library().why)
@pytest.mark.parametrize(
    "kind", ["llama", "mistral sliding", "qwen3 tied and sliding", "llama with wide heads and biases"]
)
def test_a_block_as_one_call_is_its_ops_one_by_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, documents, found, calls = ours(kind, torch.bfloat16), prompts(), [], []
    told = block_rows.block_
    monkeypatch.setattr(block_rows, "block_", lambda *given: calls.append(told(*given)))
    for way in ("one call", "ops"):
        if way == "ops":
            assert len(calls) == 2 * len(model.model.layers) - 1  # the last of a chunk reads its last tokens alone
            monkeypatch.setattr(block_rows.BlockRows, "of", lambda *given: None)
        engine = Engine(model, documents)
        engine.read({d: len(documents[d]) - 1 for d in range(4)})
        found.append(engine.read(dict.fromkeys(range(4), 1)))
    assert all(torch.equal(found[0][d], found[1][d]) for d in range(4))


@pytest.mark.skipif(library().functions is None, reason=library().why)
def test_a_block_that_is_watched_runs_op_by_op() -> None:
    model, seen = ours("llama", torch.bfloat16), []
    handle = model.model.layers[1].mlp.up_proj.register_forward_hook(lambda *given: seen.append(1))
    try:
        Engine(model, prompts()).read(dict.fromkeys(range(4), 1))
    finally:
        handle.remove()
    assert seen


@pytest.mark.parametrize("kind", ["llama", "qwen3 tied and sliding", "llama with wide heads and biases"])
def test_in_bfloat16_they_are_as_near_to_float32_as_a_pass_of_whole_documents(kind: str) -> None:
    narrow = ours(kind, torch.bfloat16)
    wide = deepcopy(narrow).float()
    documents, engine = prompts(), Engine(narrow, prompts())
    engine.read(dict.fromkeys(range(4), 3))
    found = engine.read({d: len(documents[d]) - 3 for d in range(4)})
    errors = []
    for d, document in enumerate(documents):
        with torch.inference_mode():
            exact = wide(document[None]).logits[0, -1]
            whole = narrow(document[None]).logits[0, -1].float()
        errors.append([float((one - exact).norm()) for one in (found[d], whole)])
    apart, whole_documents = (sum(column) for column in zip(*errors, strict=True))
    assert apart <= 1.5 * whole_documents
