"""Attention over keys in blocks: the definition in float64, and no bit of a token from its company."""

import pytest
import torch
from torch import Tensor

from lorica.kernels import BLOCK, paged_attention
from lorica.kernels.native import library

NATIVE = pytest.mark.skipif(library().functions is None, reason=library().why)
TYPES = [
    pytest.param(torch.bfloat16, marks=NATIVE, id="native bfloat16"),
    pytest.param(torch.float32, marks=NATIVE, id="native float32"),
    pytest.param(torch.float64, id="torch"),
]
LENGTHS = [1, 16, 17, 40, 75]


class Documents:
    """Whole documents of H heads on K, and an empty pool in which their blocks lie in no order."""

    def __init__(self, dtype: torch.dtype, H: int, K: int, E: int) -> None:
        g = torch.Generator().manual_seed(E)
        self.dtype, self.shape = dtype, (H, K, E)
        self.q, self.k, self.v = (
            [torch.randn(n, heads, E, generator=g).to(dtype) for n in LENGTHS] for heads in (H, K, K)
        )
        needed = [-(-n // BLOCK) for n in LENGTHS]
        order = torch.randperm(sum(needed) + 3, generator=g).tolist()
        self.tables = [[order.pop() for _ in range(count)] for count in needed]
        size = (sum(needed) + 3, BLOCK, K, E)
        self.blocks = (torch.full(size, float("nan")).to(dtype), torch.full(size, float("nan")).to(dtype))

    def read(self, spans: dict[int, tuple[int, int]], window: int | None = None) -> dict[int, Tensor]:
        """The tokens [begin, end) of these documents in one pass."""
        most = max(len(self.tables[d]) for d in spans)
        tables = torch.tensor([self.tables[d] + [0] * (most - len(self.tables[d])) for d in spans], dtype=torch.int32)
        q, k, v = (torch.cat([part[d][b:e] for d, (b, e) in spans.items()]) for part in (self.q, self.k, self.v))
        counts = torch.tensor([e - b for b, e in spans.values()])
        documents = torch.arange(len(spans)).repeat_interleave(counts)
        positions = torch.cat([torch.arange(b, e) for b, e in spans.values()])
        out = paged_attention(q, k, v, self.blocks, tables, documents, positions, window)
        return dict(zip(spans, out.split(counts.tolist()), strict=True))

    def definition(self, document: int, window: int | None) -> Tensor:
        H, K, E = self.shape
        q, k, v = (part[document].double() for part in (self.q, self.k, self.v))
        k, v = (part.repeat_interleave(H // K, 1) for part in (k, v))
        scores = torch.einsum("ihe,jhe->hij", q, k) * E**-0.5
        i, j = torch.arange(len(q))[:, None], torch.arange(len(q))
        seen = (j <= i) if window is None else (j <= i) & (i - j < window)
        return torch.einsum("hij,jhe->ihe", scores.masked_fill(~seen, float("-inf")).softmax(-1), v)


@pytest.mark.parametrize("window", [None, 5, 20])
@pytest.mark.parametrize("heads", [(4, 2, 8), (3, 1, 64), (2, 2, 80)], ids=str)
@pytest.mark.parametrize("dtype", TYPES)
def test_every_path_is_the_definition(dtype: torch.dtype, heads: tuple[int, int, int], window: int | None) -> None:
    documents = Documents(dtype, *heads)
    found = documents.read({d: (0, n) for d, n in enumerate(LENGTHS)}, window)
    for d, out in found.items():
        wanted = documents.definition(d, window)
        sums = torch.finfo(torch.promote_types(dtype, torch.float32)).eps * 8 * max(LENGTHS) ** 0.5
        bound = sums + torch.finfo(dtype).eps / 2
        assert float((out.double() - wanted).abs().max()) <= bound * float(wanted.abs().max())


@pytest.mark.parametrize("dtype", TYPES)
def test_no_token_depends_on_its_company_or_on_how_its_document_is_cut(dtype: torch.dtype) -> None:
    whole = Documents(dtype, 4, 2, 8).read({d: (0, n) for d, n in enumerate(LENGTHS)})
    documents, pieces = Documents(dtype, 4, 2, 8), {d: [] for d in range(len(LENGTHS))}
    held = dict.fromkeys(pieces, 0)
    generator = torch.Generator().manual_seed(0)
    while open_ones := [d for d in held if held[d] < LENGTHS[d]]:
        order = [open_ones[i] for i in torch.randperm(len(open_ones), generator=generator).tolist()]
        taken = order[: 1 + int(torch.randint(len(order), (), generator=generator))]
        spans = {
            d: (held[d], min(LENGTHS[d], held[d] + 1 + int(torch.randint(20, (), generator=generator)))) for d in taken
        }
        for d, out in documents.read(spans).items():
            pieces[d].append(out)
            held[d] = spans[d][1]
    assert all(torch.equal(torch.cat(pieces[d]), whole[d]) for d in held)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_window_that_is_left_out_is_caught(dtype: torch.dtype) -> None:
    documents = Documents(dtype, 4, 2, 8)
    found = documents.read({4: (0, 75)})[4]
    wanted = documents.definition(4, 5)
    assert float((found.double() - wanted).abs().max()) > 0.1 * float(wanted.abs().max())
