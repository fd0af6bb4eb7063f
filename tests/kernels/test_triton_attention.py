"""Attention in Triton: the definition in float64, over packed documents of awkward lengths."""

from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from triton_against_float64 import DEVICE, bound, broken, drawn, error_of

from lorica.kernels.triton import attention
from lorica.kernels.triton.tiles import Tile

SMALL = Tile(rows=16, columns=32, inner=0, warps=1, stages=1)
CASES = [
    ((1,), None, 2, 2, 16),
    ((5, 0, 35, 1), None, 2, 1, 20),
    ((5, 20), 7, 4, 2, 20),
    ((19, 3), 1, 1, 1, 5),
    ((0,), None, 2, 1, 8),
]
"""Documents, window, query heads, key heads, width of a head."""


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "TILE", SMALL)
    monkeypatch.setattr(attention, "KEYS", SMALL)


def definition(q: Tensor, k: Tensor, v: Tensor, documents: tuple[int, ...], window: int | None) -> Tensor:
    """Token by token, head by head."""
    group, outs, begin = q.shape[1] // k.shape[1], [q[:0] * k[:0, :1] * v[:0, :1]], 0
    for length in documents:
        for i in range(begin, begin + length):
            seen = slice(max(begin, i + 1 - (window or length)), i + 1)
            keys, values = (part[seen].repeat_interleave(group, 1) for part in (k, v))
            scores = torch.einsum("he,jhe->hj", q[i], keys) / q.shape[-1] ** 0.5
            outs.append(torch.einsum("hj,jhe->he", scores.softmax(-1), values)[None])
        begin += length
    return torch.cat(outs)


def error(module: ModuleType, dtype: torch.dtype, case: tuple[tuple[int, ...], int | None, int, int, int]) -> float:
    documents, window, heads, heads_kv, width = case
    tokens = sum(documents)
    q, towards = (drawn(tokens, heads, width, seed=seed, dtype=dtype) for seed in (0, 1))
    kv = drawn(tokens, heads_kv, 2 * width, seed=2, dtype=dtype)

    def op(q: Tensor, kv: Tensor) -> Tensor:
        return module.attention(q, *kv.chunk(2, dim=-1), documents, window)

    def wide(q: Tensor, kv: Tensor) -> Tensor:
        return definition(q, *kv.chunk(2, dim=-1), documents, window)

    return error_of(op, wide, [q, kv], towards)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_output_and_gradients_are_the_definitions(
    case: tuple[tuple[int, ...], int | None, int, int, int], dtype: torch.dtype
) -> None:
    """Keys and values are strided parts of one tensor.  The longest sum is over the keys a query sees, or the queries
    of a group that see a key."""
    assert error(attention, dtype, case) < bound(dtype, 2 * 35)


def test_only_the_output_and_one_number_a_head_are_kept_beside_the_inputs() -> None:
    q, k, v = (drawn(9, 2, 8, seed=seed, dtype=torch.float32).requires_grad_(True) for seed in range(3))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        attention.attention(q, k, v, (4, 5))
    assert sorted(kept) == sorted([q.numel(), k.numel(), v.numel(), q.numel(), 9 * 2])


def test_every_tile_of_every_document_is_worked_on_once() -> None:
    work = attention.work_of((5, 0, 37, 1), 16, torch.device(DEVICE)).tolist()
    assert sorted(work) == [[0, 5, 0], [5, 42, 5], [5, 42, 21], [5, 42, 37], [42, 43, 42]]
    assert work[0] == [5, 42, 37]


BREAKS = [
    ("(behind >= 0)", "(behind >= -1)"),
    ("(behind < reach)", "(behind <= reach)"),
    ("tl.maximum(begin, first - reach + 1)", "tl.maximum(0, first - reach + 1)"),
    ("dp - along[:, None]", "dp"),
    ("shrink = tl.exp2(largest - safe)", "shrink = tl.exp2(largest - largest)"),
    ("range(key_head * group, (key_head + 1) * group)", "range(key_head * group, key_head * group + 1)"),
]


@pytest.mark.parametrize(("right", "wrong"), BREAKS, ids=[wrong for _, wrong in BREAKS])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_wrong_kernel_is_seen(right: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look ahead, a window one too wide, a document that sees the one before, and sums that lose a part."""
    copy = broken(attention, right, wrong, tmp_path)
    monkeypatch.setattr(copy, "TILE", SMALL)
    assert not error(copy, torch.float32, ((3, 35), 20, 2, 1, 20)) < 20 * bound(torch.float32, 2 * 35)
