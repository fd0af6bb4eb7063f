"""Attention over packed documents in C: outputs and gradients are the definition's, document by document."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lorica.kernels.native import attention as kernel
from lorica.kernels.native import document_attention, library

pytestmark = pytest.mark.skipif(library().functions is None, reason=library().why)

SHAPES = [
    ((1,), 1, 1, 32),
    ((5, 1, 2), 2, 1, 16),
    ((64,), 1, 1, 64),
    ((65, 3, 130), 6, 2, 64),
    ((63, 0, 129), 4, 4, 80),
    ((300,), 2, 1, 128),
    ((1100,), 3, 1, 8),
]
"""Documents, H, K, E: around a block of 64, longer than what is taken together, heads that are no multiple of 32."""
WINDOWS = [None, 1, 3, 64, 100]
BOUND = 3 * torch.finfo(torch.bfloat16).eps
"""P, dZ and what comes out are rounded to bfloat16, half an eps each; sums of the sizes of what they are rounded in are
no more than twice the largest result."""


def drawn(documents: Sequence[int], H: int, K: int, E: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(documents))
    return [torch.randn(sum(documents), n, E, generator=generator).bfloat16() for n in (H, K, K, H)]


def definition(q: Tensor, k: Tensor, v: Tensor, documents: Sequence[int], causal: bool, window: int | None) -> Tensor:
    """In float64, a document at a time."""
    parts = (part.split(list(documents)) for part in (q, k, v))
    done = []
    for q_d, shared, read in zip(*parts, strict=True):
        k_d, v_d = (part.repeat_interleave(q.shape[1] // k.shape[1], 1) for part in (shared, read))
        behind = torch.arange(len(q_d))[:, None] - torch.arange(len(q_d))
        sees = (behind >= 0) | torch.tensor(not causal)
        sees &= behind < (window or len(q_d))
        scores = torch.einsum("ihe,jhe->hij", q_d, k_d) * q.shape[-1] ** -0.5
        done.append(torch.einsum("hij,jhe->ihe", scores.masked_fill(~sees, float("-inf")).softmax(-1), v_d))
    return torch.cat(done)


def values(op: Any, parts: Sequence[Tensor], towards: Tensor) -> list[Tensor]:
    leaves = [part.clone().requires_grad_() for part in parts]
    y = op(*leaves)
    y.backward(towards)
    return [y.detach().double(), *(leaf.grad.double() for leaf in leaves if leaf.grad is not None)]


def error(documents: Sequence[int], sizes: tuple[int, int, int], causal: bool = True, window: int | None = None):
    """Of output and gradients, the largest relative to the largest of all their values."""
    *parts, towards = drawn(documents, *sizes)
    found = values(lambda q, k, v: document_attention(q, k, v, documents, causal=causal, window=window), parts, towards)
    wanted = values(
        lambda q, k, v: definition(q, k, v, documents, causal, window), [p.double() for p in parts], towards.double()
    )
    largest = max(float(w.abs().max()) for w in wanted)
    return max(float((f - w).abs().max()) for f, w in zip(found, wanted, strict=True)) / largest


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize(("documents", "H", "K", "E"), SHAPES, ids=str)
def test_outputs_and_gradients_are_the_definition(
    documents: tuple[int, ...], H: int, K: int, E: int, window: int | None
) -> None:
    assert error(documents, (H, K, E), window=window) <= BOUND


@pytest.mark.parametrize(("documents", "H", "K", "E"), SHAPES, ids=str)
def test_so_they_are_where_every_token_sees_its_whole_document(
    documents: tuple[int, ...], H: int, K: int, E: int
) -> None:
    assert error(documents, (H, K, E), causal=False) <= BOUND


def test_a_document_is_the_same_to_the_bit_alone_and_in_company() -> None:
    documents = (70, 5, 200)
    *parts, towards = drawn(documents, 4, 2, 64)
    together = values(lambda q, k, v: document_attention(q, k, v, documents), parts, towards)
    for place, n in enumerate(documents):
        begin = sum(documents[:place])
        own = [part[begin : begin + n] for part in parts]
        alone = values(lambda q, k, v, n=n: document_attention(q, k, v, (n,)), own, towards[begin : begin + n])
        assert all(torch.equal(a, t[begin : begin + n]) for a, t in zip(alone, together, strict=True))


def test_documents_that_were_answered_in_inference_are_learned_from() -> None:
    documents = (13, 21)
    *parts, towards = drawn(documents, 2, 1, 16)
    wanted = values(lambda q, k, v: document_attention(q, k, v, documents), parts, towards)
    kernel.starts_of.cache_clear()
    with torch.inference_mode():
        document_attention(*parts, documents)
    found = values(lambda q, k, v: document_attention(q, k, v, documents), parts, towards)
    assert all(torch.equal(f, w) for f, w in zip(found, wanted, strict=True))


def test_the_number_of_threads_changes_no_bit() -> None:
    documents, before = (40, 333), torch.get_num_threads()
    *parts, towards = drawn(documents, 4, 2, 32)
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(values(lambda q, k, v: document_attention(q, k, v, documents), parts, towards))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_what_is_no_number_is_seen_by_those_that_see_it() -> None:
    q, k, v, _ = drawn((100,), 2, 1, 32)
    k[70] = float("nan")
    y = document_attention(q, k, v, (100,))
    assert not y[:70].isnan().any()
    assert y[70:].isnan().all()


def test_products_of_torch_are_not_disturbed() -> None:
    """Both use the tiles of the processor."""
    x, W = torch.randn(64, 96).bfloat16(), torch.randn(128, 96).bfloat16()
    before = x @ W.T
    for _ in range(3):
        document_attention(*drawn((65,), 2, 2, 32)[:3], (65,))
        assert torch.equal(x @ W.T, before)


@pytest.mark.parametrize("wrong", ["window", "scale", "documents"])
def test_a_wrong_kernel_is_caught(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    right = kernel._called
    documents = (65, 3, 130)

    def bent(function: Any, tensors: Sequence[Tensor], sizes: tuple[float, ...]) -> None:
        if wrong == "documents":
            whole = kernel.starts_of((sum(documents),))
            return right(function, (*tensors[:-1], whole), (1, *sizes[1:]))
        count, H, K, E, window, causal, scale = sizes
        changed = (window + 7, scale) if wrong == "window" else (window, 1.1 * scale)
        return right(function, tensors, (count, H, K, E, changed[0], causal, changed[1]))

    monkeypatch.setattr(kernel, "_called", bent)
    assert error(documents, (4, 2, 64)) > 2 * BOUND
