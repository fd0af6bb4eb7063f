"""Causal attention by blocks of queries: outputs and gradients are the definition's at lengths around a block."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lorica.kernels import attention as kernel
from lorica.kernels.attention import BLOCK, by_blocks, causal_attention, masked_attention, reference, sdpa

SHAPES = [(1, 1, 1, 1, 4), (2, 5, 2, 3, 8), (1, BLOCK, 1, 2, 16), (2, BLOCK + 1, 1, 1, 8), (1, 2 * BLOCK + 7, 2, 2, 4)]
"""D, L, K, G, E."""
WINDOWS = [None, 1, 3, BLOCK, BLOCK + 5]


def drawn(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    documents, length, heads, groups, width = shape
    generator = torch.Generator().manual_seed(length)
    sizes = [heads * groups, heads, heads, heads * groups]
    parts = (torch.randn(documents, length, n, width, generator=generator, dtype=torch.float64) for n in sizes)
    return tuple(part.to(dtype) for part in parts)


def values(op: Any, q: Tensor, k: Tensor, v: Tensor, towards: Tensor, window: int | None) -> list[Tensor]:
    leaves = [part.detach().clone().requires_grad_(True) for part in (q, k, v)]
    y = op(*leaves, window)
    y.backward(towards)
    return [y.detach().double(), *(leaf.grad.double() for leaf in leaves if leaf.grad is not None)]


def error(op: Any, shape: tuple[int, ...], dtype: torch.dtype, window: int | None) -> float:
    """The largest of output and gradients, relative to the largest of their values."""
    narrow = drawn(shape, dtype)
    found = values(op, *narrow, window)
    wanted = values(reference, *(part.double() for part in narrow), window)
    largest = max(float(w.abs().max()) for w in wanted)
    return max(float((f - w).abs().max()) for f, w in zip(found, wanted, strict=True)) / largest


def bound(shape: tuple[int, ...], dtype: torch.dtype) -> float:
    """Scores of up to about 3 E^0.5 round to eps of their size, which is an error of that much in the exponent, so in
    every probability and in each gradient once more; the sums are of averages."""
    return 4 * 3 * shape[-1] ** 0.5 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_blocks_and_their_gradients_are_the_definition(shape: Any, window: int | None, dtype: torch.dtype) -> None:
    assert error(by_blocks, shape, dtype, window) <= bound(shape, dtype)
    assert error(causal_attention, shape, dtype, window) <= bound(shape, dtype)


def test_gradients_pass_gradcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "BLOCK", 2)
    q, k, v, _ = (part.requires_grad_(True) for part in drawn((2, 5, 2, 2, 3), torch.float64))
    assert torch.autograd.gradcheck(by_blocks, (q, k, v))
    assert torch.autograd.gradcheck(lambda q, k, v: by_blocks(q, k, v, 3), (q, k, v))


def test_nothing_is_kept_but_queries_keys_and_values() -> None:
    q, k, v, _ = (part.requires_grad_(True) for part in drawn((1, 200, 2, 3, 4), torch.float64))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        by_blocks(q, k, v)
    assert sorted(kept) == sorted(part.numel() for part in (q, k, v))


def test_a_token_that_sees_its_future_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = kernel._hidden
    monkeypatch.setattr(kernel, "_hidden", lambda *given: torch.zeros_like(hidden(*given)))
    shape = (2, 70, 1, 2, 8)
    assert error(by_blocks, shape, torch.float32, None) > bound(shape, torch.float32)


def test_a_gradient_that_forgets_its_scale_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = kernel._Blocks.backward

    def unscaled(ctx: Any, grad: Tensor) -> Any:
        grad_q, *rest = right(ctx, grad)
        return grad_q * 1.2, *rest

    monkeypatch.setattr(kernel._Blocks, "backward", staticmethod(unscaled))
    shape = (2, 70, 1, 2, 8)
    assert error(by_blocks, shape, torch.float32, None) > bound(shape, torch.float32)


MASKS = {
    "none": None,
    "keys": torch.arange(6) < torch.tensor([[[[6]]], [[[2]]]]),
    "added": torch.randn(2, 1, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
}


@pytest.mark.parametrize("masked", [True, False])
def test_heads_that_are_repeated_are_those_that_are_shared(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (torch.randn(2, heads, 9, 8, dtype=torch.float64) for heads in (6, 2, 2))
    mask = torch.ones(9, 9, dtype=torch.bool).tril() if masked else None
    shared = sdpa(q, k, v, mask)
    monkeypatch.setattr(kernel, "takes_shared_heads", lambda q, masked: False)
    assert (sdpa(q, k, v, mask) - shared).abs().max() < 1e-14


def test_on_a_gpu_only_flash_reads_shared_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    def takes(dtype: torch.dtype, major: int, masked: bool, is_cuda: bool = True) -> bool:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
        return kernel.takes_shared_heads(SimpleNamespace(is_cuda=is_cuda, dtype=dtype, device="cuda"), masked=masked)

    assert takes(torch.bfloat16, 8, masked=False)
    assert takes(torch.float16, 9, masked=False)
    assert not takes(torch.bfloat16, 8, masked=True)
    assert not takes(torch.float32, 8, masked=False)
    assert not takes(torch.float16, 7, masked=False)
    assert takes(torch.float32, 0, masked=True, is_cuda=False)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    scores = q @ k.mT * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mask", MASKS)
def test_masked_attention_and_its_gradients_are_the_definition(mask: str, dtype: torch.dtype) -> None:
    generator, seen = torch.Generator().manual_seed(1), MASKS[mask]
    q, k, v, towards = (torch.randn(2, 3, n, 8, generator=generator).to(dtype) for n in (5, 6, 6, 5))
    narrow = seen if seen is None or seen.dtype == torch.bool else seen.to(dtype)
    wide = narrow if narrow is None or narrow.dtype == torch.bool else narrow.double()
    found = values(lambda *leaves: masked_attention(*leaves[:3], narrow, 0.3), q, k, v, towards, None)
    exact = [part.double() for part in (q, k, v, towards)]
    wanted = values(lambda *leaves: softmax_attention(*leaves[:3], wide, 0.3), *exact, None)
    largest = max(float(w.abs().max()) for w in wanted)
    worst = max(float((f - w).abs().max()) for f, w in zip(found, wanted, strict=True)) / largest
    assert worst <= 4 * 3 * 8**0.5 * torch.finfo(dtype).eps


def test_masked_attention_passes_gradcheck() -> None:
    q, k, v = (torch.randn(1, 2, n, 3, dtype=torch.float64, requires_grad=True) for n in (4, 5, 5))
    sees = torch.ones(1, 1, 4, 5, dtype=torch.bool).tril()
    assert torch.autograd.gradcheck(lambda q, k, v: masked_attention(q, k, v, sees, 0.4), (q, k, v))


def test_a_mask_that_was_computed_has_its_gradient() -> None:
    """Relative positions of Parakeet, for one, are products of queries that come as what is added to the scores."""
    q, k, v = (torch.randn(2, 2, n, 3, dtype=torch.float64, requires_grad=True) for n in (4, 5, 5))
    for size in ((2, 2, 4, 5), (1, 2, 4, 5), (2, 1, 1, 5)):
        mask = torch.randn(size, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda *leaves: masked_attention(*leaves, 0.4), (q, k, v, mask))
