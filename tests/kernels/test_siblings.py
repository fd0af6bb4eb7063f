"""Linears of one input and the gated MLP as one function each: outputs and gradients are those of the branches alone.

The bound is of sums of products in the type at hand, relative to the same sums with every number replaced by its size.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import pytest
import torch
from test_low_rank import TYPES, cast, with_fields
from torch import Tensor

from lorica.kernels import Branch, DenseWeight, LowRank, Noise, gated_mlp, siblings
from lorica.kernels.gated_mlp import reference as gated_reference
from lorica.kernels.low_rank import reference

kernel, mlp = (import_module(f"lorica.kernels.{name}") for name in ("siblings", "gated_mlp"))
LEADS = [(1,), (5,), (2, 3), (64,), (0,)]
KINDS = ["plain", "gain", "gain and bias", "one without"]


def draw(*size: int, seed: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def branch(d_in: int, d_out: int, r: int, kind: str, seed: int, dropout: float = 0.0) -> Branch:
    bias = draw(d_out, seed=seed + 3) if kind == "gain and bias" else None
    weight = DenseWeight(draw(d_out, d_in, seed=seed))
    if kind == "one without" and seed == 20:
        return Branch(weight, bias)
    gain = 1 + 0.3 * draw(d_out, seed=seed + 4) if kind.startswith("gain") else None
    A, B = draw(r, d_in, seed=seed + 1), draw(d_out, r, seed=seed + 2)
    return Branch(weight, bias, LowRank(A=A, B=B, scale=2.5, base=gain, output=gain, dropout=dropout, site=seed))


def of_type(given: Branch, dtype: torch.dtype) -> Branch:
    low_rank = given.low_rank and trained(cast(given.low_rank, dtype))
    return Branch(cast(given.weight, dtype), None if given.bias is None else given.bias.to(dtype), low_rank)


def trained(low_rank: LowRank) -> LowRank:
    """With leaves of its own; the gain is one tensor in both of its places."""
    gain = None if low_rank.output is None else low_rank.output.detach().clone().requires_grad_(True)
    A, B = (part.detach().clone().requires_grad_(True) for part in (low_rank.A, low_rank.B))
    return with_fields(low_rank, A=A, B=B, base=gain, output=gain)


def sized(given: Branch) -> Branch:
    """Every number replaced by its size; of a gain, one is taken and added again."""
    low_rank = given.low_rank
    if low_rank is not None:
        gain = None if low_rank.output is None else (low_rank.output.detach().abs() + 3).requires_grad_(True)
        A, B = (part.detach().abs().requires_grad_(True) for part in (low_rank.A, low_rank.B))
        low_rank = with_fields(low_rank, A=A, B=B, base=gain, output=gain)
    bias = None if given.bias is None else 3 * given.bias.abs()
    return Branch(DenseWeight(given.weight.stored.abs()), bias, low_rank)


def leaves(x: Tensor, branches: Sequence[Branch]) -> list[Tensor]:
    held = [low_rank for b in branches if (low_rank := b.low_rank) is not None]
    return [x, *(part for one in held for part in (one.A, one.B, one.output) if part is not None)]


def drawn_towards(y: Tensor, seed: int) -> Tensor:
    """Numbers that bfloat16 holds exactly."""
    return draw(*y.shape, seed=60 + seed).bfloat16()


def values(
    op: Callable[..., Sequence[Tensor]], x: Tensor, branches: Sequence[Branch], *, absolute: bool = False
) -> list[Tensor]:
    """Outputs and gradients, under drawn gradients of the outputs, the same whatever the type."""
    x = x.detach().clone().requires_grad_(True)
    outputs = op(x, branches)
    towards = [drawn_towards(y, n).to(y.dtype) for n, y in enumerate(outputs)]
    torch.autograd.backward(list(outputs), [t.abs() if absolute else t for t in towards])
    grads = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves(x, branches)]
    return [*(y.detach() for y in outputs), *grads]


def each_alone(x: Tensor, branches: Sequence[Branch]) -> list[Tensor]:
    return [
        b.weight.product(x, b.bias) if b.low_rank is None else reference(x, b.weight, b.bias, b.low_rank)
        for b in branches
    ]


def worst(
    op: Callable[..., Sequence[Tensor]],
    definition: Callable[..., Sequence[Tensor]],
    x: Tensor,
    branches: Sequence[Branch],
    dtype: torch.dtype,
    terms: int,
) -> float:
    """The largest error in units of its bound: `terms` roundings, relative to the sum of sizes."""
    narrow, exact = x.to(dtype), torch.float64
    rounded = [of_type(of_type(b, dtype), exact) for b in branches]
    got = values(op, narrow, [of_type(b, dtype) for b in branches])
    wanted, sizes = (
        values(definition, narrow.to(exact), rounded),
        values(definition, narrow.to(exact).abs(), [sized(b) for b in rounded], absolute=True),
    )
    limit = terms * torch.finfo(dtype).eps
    ratios = [
        float(((g.double() - w).abs() / (limit * s.abs() + 1e-300)).max())
        for g, w, s in zip(got, wanted, sizes, strict=True)
        if g.numel()
    ]
    return max(ratios, default=0.0)


def made(lead: tuple[int, ...], kind: str) -> tuple[Tensor, list[Branch]]:
    return draw(*lead, 7, seed=1), [branch(7, 5 + n, 2 + n, kind, 10 * n) for n in range(3)]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lead", LEADS, ids=str)
def test_outputs_and_gradients_of_siblings_are_those_of_each_alone(lead: Any, kind: str, dtype: torch.dtype) -> None:
    x, branches = made(lead, kind)
    rows = x.numel() // 7
    error = worst(siblings, each_alone, x, branches, dtype, terms=max(rows, 3 * 7) + 9 + 16)
    assert error <= 1, f"{error:.1f} times the bound"


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_siblings_pass_gradcheck(kind: str) -> None:
    x, branches = made((4,), kind)
    branches = [of_type(b, torch.float64) for b in branches]

    def op(x: Tensor, *_: Tensor) -> Any:
        return siblings(x, branches)

    assert torch.autograd.gradcheck(op, tuple(leaves(x.requires_grad_(True), branches)))


def test_siblings_keep_the_input_once_and_nothing_of_the_size_of_an_output() -> None:
    x, branches = made((500,), "plain")
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        siblings(x.requires_grad_(True), [of_type(b, torch.float64) for b in branches])
    assert sorted(tuple(t.shape) for t in kept if 500 in t.shape) == [(9, 500), (500, 7)]


@pytest.mark.parametrize("kind", ["plain", "gain"])
def test_outputs_are_the_same_to_the_bit_whether_anything_is_trained_or_not(kind: str) -> None:
    """An adapter is proven by its outputs, and loaded with nothing to train."""
    x, branches = made((64,), kind)
    trained_ones = [of_type(b, torch.float32) for b in branches]
    still = [Branch(b.weight, b.bias, b.low_rank and detached(b.low_rank)) for b in trained_ones]
    for found, wanted in zip(siblings(x.float(), still), siblings(x.float(), trained_ones), strict=True):
        assert torch.equal(found, wanted)


def detached(low_rank: LowRank) -> LowRank:
    gain = None if low_rank.output is None else low_rank.output.detach()
    return with_fields(low_rank, A=low_rank.A.detach(), B=low_rank.B.detach(), base=gain, output=gain)


def test_siblings_with_dropout_or_a_frozen_A_are_called_alone_and_equal_it() -> None:
    x = draw(6, 7, seed=1)
    noise = Noise(1, 2, torch.arange(6), torch.arange(6))
    dropped = [of_type(branch(7, 5, 2, "plain", 10 * n, dropout=0.4), torch.float64) for n in range(2)]
    for found, b in zip(siblings(x, dropped, noise), dropped, strict=True):
        assert b.low_rank is not None
        torch.testing.assert_close(found, reference(x, b.weight, b.bias, b.low_rank, noise), rtol=0, atol=1e-12)
    assert not dropped[0].fuses(noise)
    assert dropped[0].fuses(None)


def mlp_of(kind: str) -> tuple[Tensor, list[Branch]]:
    sizes = [(7, 9), (7, 9), (9, 7)]
    return draw(5, 7, seed=1) / 3, [branch(i, o, 2 + n, kind, 10 * n) for n, (i, o) in enumerate(sizes)]


def scaled(branches: Sequence[Branch], factor: float) -> list[Branch]:
    return [Branch(DenseWeight(b.weight.stored * factor), b.bias, b.low_rank) for b in branches]


def fused(x: Tensor, branches: Sequence[Branch]) -> list[Tensor]:
    return [gated_mlp(x, *branches)]


def plain(x: Tensor, branches: Sequence[Branch]) -> list[Tensor]:
    return [gated_reference(x, *branches)]


@pytest.mark.parametrize("kind", ["plain", "gain", "gain and bias"])
def test_the_gated_mlp_and_its_gradients_are_the_definition_to_double_rounding(kind: str) -> None:
    x, branches = mlp_of(kind)
    branches = [of_type(b, torch.float64) for b in branches]
    found = values(fused, x, branches)
    wanted = values(plain, x, [of_type(b, torch.float64) for b in branches])
    for f, w in zip(found, wanted, strict=True):
        assert float((f - w).abs().max()) <= 1e-13 * float(w.abs().max())


@pytest.mark.parametrize("kind", ["plain", "gain", "gain and bias"])
def test_gradients_of_the_gated_mlp_pass_gradcheck(kind: str) -> None:
    x, branches = mlp_of(kind)
    branches = [of_type(b, torch.float64) for b in branches]
    assert torch.autograd.gradcheck(
        lambda x, *_: gated_mlp(x, *branches), tuple(leaves(x.requires_grad_(True), branches))
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["plain", "gain", "gain and bias"])
def test_the_gated_mlp_is_as_near_to_double_as_the_definition_in_its_own_type(kind: str, dtype: torch.dtype) -> None:
    """silu has no bound by sizes: what the plain branches lose in the same type is the measure, with a factor for the
    divided gain and the order of sums."""
    x, branches = mlp_of(kind)
    narrow = [of_type(b, dtype) for b in branches]
    exact = values(plain, x.to(dtype).double(), [of_type(b, torch.float64) for b in narrow])
    found, other = values(fused, x.to(dtype), narrow), values(plain, x.to(dtype), [of_type(b, dtype) for b in narrow])
    for f, o, e in zip(found, other, exact, strict=True):
        scale = float(e.abs().max())
        allowed = 3 * float((o.double() - e).abs().max()) + 4 * torch.finfo(dtype).eps * scale
        assert float((f.double() - e).abs().max()) <= allowed


def test_the_gated_mlp_keeps_no_product_of_gate_and_up() -> None:
    x, branches = mlp_of("plain")
    x = x.repeat(100, 1).requires_grad_(True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        gated_mlp(x, *(of_type(b, torch.float64) for b in branches))
    wide = [tuple(t.shape) for t in kept if 500 in t.shape]
    assert sorted(wide) == [(4, 500), (5, 500), (500, 7), (500, 9), (500, 9)]


def test_a_gain_of_zero_still_gets_its_gradient() -> None:
    x, branches = mlp_of("gain")
    branches = [of_type(b, torch.float64) for b in branches]
    gain = branches[0].low_rank.output  # type: ignore[union-attr]
    with torch.no_grad():
        gain[0] = 0.0
    found = values(fused, x, branches)
    wanted = values(plain, x, [of_type(b, torch.float64) for b in branches])
    for f, w in zip(found, wanted, strict=True):
        assert float((f - w).abs().max()) <= 1e-13 * float(w.abs().max())


@pytest.mark.parametrize("part", ["_input_gradient", "_inner_gradients", "factors"])
def test_a_wrong_gradient_is_caught(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = kernel.Gradients if part == "factors" else kernel
    right = getattr(owner, part)

    def halved(*given: Any) -> Any:
        found = right(*given)
        return [None if each is None else each / 2 for each in found] if isinstance(found, list) else found / 2

    monkeypatch.setattr(owner, part, halved)
    x, branches = made((16,), "plain")
    assert worst(siblings, each_alone, x, branches, torch.float32, terms=60) > 1
    x, branches = mlp_of("plain")
    branches = [of_type(b, torch.float64) for b in branches]
    given = tuple(leaves(x.requires_grad_(), branches))
    assert not torch.autograd.gradcheck(lambda x, *_: gated_mlp(x, *branches), given, raise_exception=False)
