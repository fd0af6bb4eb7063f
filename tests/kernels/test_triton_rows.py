"""RMSNorm, rotation, SwiGLU, cross entropy and the lengths of rows in Triton: the definitions in float64."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from triton_against_float64 import DEVICE, DTYPES, bound, broken, drawn, error_of, largest_error, with_gradients

from lorica.kernels import DenseWeight
from lorica.kernels import row_norms as plain_row_norms
from lorica.kernels.rms_norm import reference as rms_norm_reference
from lorica.kernels.rotary import reference as rotary_reference
from lorica.kernels.triton import cross_entropy, rms_norm, rotary, row_norms, swiglu

SHAPES = [(1, 1, 16), (3, 1, 6), (5, 3, 66), (35, 2, 126), (0, 2, 4)]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def rms_norm_error(module: ModuleType, shape: tuple[int, ...], dtype: torch.dtype) -> float:
    x, weight, towards = (drawn(*size, seed=seed, dtype=dtype) for seed, size in enumerate((shape, shape[-1:], shape)))
    definition: Callable[..., Tensor] = lambda x, w: rms_norm_reference(x, w, 1e-5)  # noqa: E731
    return error_of(lambda x, w: module.rms_norm(x, w, 1e-5), definition, [x, weight], towards)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@dtypes
def test_rms_norm_and_its_gradients_are_the_definitions(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """The longest sum is over a row, or over all rows for the weight."""
    assert rms_norm_error(rms_norm, shape, dtype) < bound(dtype, max(shape[-1], shape[0] * shape[1]))


def test_a_frozen_weight_has_no_gradient_made() -> None:
    x = drawn(3, 8, seed=0, dtype=torch.float32).requires_grad_(True)
    weight = drawn(8, seed=1, dtype=torch.float32)
    rms_norm.rms_norm(x, weight, 1e-5).sum().backward()
    assert x.grad is not None
    assert weight.grad is None


def angles(tokens: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    angle = drawn(tokens, 1, width // 2, seed=3).repeat(1, 1, 2)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotary_error(module: ModuleType, shape: tuple[int, ...], dtype: torch.dtype) -> float:
    x, towards = drawn(*shape, seed=4, dtype=dtype), drawn(*shape, seed=5, dtype=dtype)
    cos, sin = angles(shape[0], shape[-1], dtype)
    definition: Callable[..., Tensor] = lambda x: rotary_reference(x, cos.double(), sin.double())  # noqa: E731
    return error_of(lambda x: module.rotary(x, cos, sin), definition, [x], towards)


@pytest.mark.parametrize("shape", [*SHAPES[:3], (0, 2, 4), (4, 7, 126)], ids=str)
@dtypes
def test_rotation_and_its_gradient_are_the_definitions(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert rotary_error(rotary, shape, dtype) < bound(dtype, 2)


@dtypes
def test_queries_and_keys_are_turned_in_place_by_their_positions(dtype: torch.dtype) -> None:
    """Keys are a strided part of a wider row; a row of the table serves every token at its position."""
    cos, sin = angles(9, 12, dtype)
    positions = torch.tensor([0, 1, 2, 0, 8], device=DEVICE)
    fused = drawn(5, 7, 12, seed=0, dtype=dtype)
    q, k = fused[:, :3], fused[:, 3:5]
    wanted = [rotary_reference(part.double(), cos[positions].double(), sin[positions].double()) for part in (q, k)]
    rest = fused[:, 5:].clone()
    found = rotary.rotary_pair(q, k, cos, sin, positions)
    assert [part.data_ptr() for part in found] == [q.data_ptr(), k.data_ptr()]
    assert largest_error([part.double() for part in found], wanted) < bound(dtype, 2)
    assert torch.equal(fused[:, 5:], rest)


def test_gradients_of_queries_and_keys_turned_together_are_those_of_each() -> None:
    cos, sin = angles(5, 8, torch.float32)
    q, k = drawn(5, 3, 8, seed=0, dtype=torch.float32), drawn(5, 1, 8, seed=1, dtype=torch.float32)
    towards = drawn(5, 4, 8, seed=2, dtype=torch.float32)

    def together(q: Tensor, k: Tensor) -> Tensor:
        return torch.cat(rotary.rotary_pair(q + 0, k + 0, cos, sin), dim=1)

    def each(q: Tensor, k: Tensor) -> Tensor:
        return torch.cat([rotary_reference(part, cos.double(), sin.double()) for part in (q, k)], dim=1)

    assert error_of(together, each, [q, k], towards) < bound(torch.float32, 2)


def swiglu_reference(gate: Tensor, up: Tensor) -> Tensor:
    return gate / (1 + (-gate).exp()) * up


def swiglu_error(module: ModuleType, shape: tuple[int, ...], dtype: torch.dtype) -> float:
    gate, up, towards = (drawn(*shape, seed=seed, dtype=dtype) for seed in range(3))
    return error_of(module.swiglu, swiglu_reference, [3 * gate, up], towards)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (17, 129), (0, 4)], ids=str)
@dtypes
def test_swiglu_and_its_gradients_are_the_definitions(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert swiglu_error(swiglu, shape, dtype) < bound(dtype, 1)


@dtypes
def test_swiglus_gradients_and_its_product_take_the_place_of_what_they_are_made_from(dtype: torch.dtype) -> None:
    gate, up, grad = (drawn(5, 33, seed=seed, dtype=dtype) for seed in range(3))
    h, *gradients = with_gradients(swiglu_reference, [gate.double(), up.double()], grad.double())
    places = [part.data_ptr() for part in (gate, up, grad)]
    found = swiglu.swiglu_backward_(grad, gate, up)
    assert [part.data_ptr() for part in found] == places
    assert largest_error([part.double() for part in found], [*gradients, h]) < bound(dtype, 1)


def cross_entropy_error(module: ModuleType, rows: int, width: int, dtype: torch.dtype) -> float:
    head = nn.Linear(6, width, bias=False, device=DEVICE, dtype=dtype).requires_grad_(False)
    head.weight.copy_(drawn(width, 6, seed=1))
    labels = torch.randint(0, width, (rows,), generator=torch.Generator().manual_seed(2)).to(DEVICE)
    wide: Callable[..., Tensor] = lambda hidden: nn.functional.cross_entropy(  # noqa: E731
        hidden @ head.weight.double().T, labels, reduction="sum"
    )
    hidden = drawn(rows, 6, seed=3, dtype=dtype)
    return error_of(
        lambda hidden: module.head_cross_entropy(hidden, head, labels), wide, [hidden], torch.tensor(2.0, device=DEVICE)
    )


@pytest.mark.parametrize(("rows", "width"), [(1, 5), (7, 16), (5, 41), (9, 1), (0, 11)])
@dtypes
def test_loss_and_gradient_of_a_frozen_head_are_torchs(
    rows: int, width: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are read in parts and hidden states in chunks.  Logits of up to 8 round by as many roundings of one."""
    monkeypatch.setattr(cross_entropy, "CHUNK_ROWS", 4)
    monkeypatch.setattr(cross_entropy, "WIDEST", 16)
    assert cross_entropy_error(cross_entropy, rows, width, dtype) < 4 * bound(dtype, rows + width)


def test_logits_at_the_edges_of_float32_lose_nothing() -> None:
    logits = torch.tensor([[3e4, -3e4, -torch.inf], [-torch.inf, -1e4, -torch.inf]], device=DEVICE)
    losses = cross_entropy.losses_and_gradient_(logits, torch.tensor([1, 1], device=DEVICE))
    assert losses.tolist() == [6e4, 0.0]
    assert logits.tolist() == [[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]]


def test_a_head_with_a_bias_or_a_trained_weight_takes_the_path_of_torch() -> None:
    head = nn.Linear(6, 11, device=DEVICE)
    hidden, labels = drawn(4, 6, seed=0, dtype=torch.float32), torch.tensor([1, 3, 3, 10], device=DEVICE)
    loss = cross_entropy.head_cross_entropy(hidden, head, labels)
    loss.backward()
    torch.testing.assert_close(loss, nn.functional.cross_entropy(head(hidden), labels, reduction="sum"))
    assert head.bias.grad is not None


def row_norms_error(module: ModuleType, shape: tuple[int, int], rank: int, dtype: torch.dtype) -> float:
    W, A, B = drawn(*shape, seed=0, dtype=dtype), drawn(rank, shape[1], seed=1), drawn(shape[0], rank, seed=2)
    squares = W.double().square().sum(1)
    found = module.row_norms(DenseWeight(W), squares.float(), A.float(), B.float(), 0.7)
    wanted = (W.double() + 0.7 * B.float().double() @ A.float().double()).norm(dim=1)
    return largest_error([found.double()], [wanted])


@pytest.mark.parametrize(("shape", "rank"), [((1, 1), 1), ((7, 66), 3), ((130, 35), 17)], ids=str)
@dtypes
def test_lengths_of_rows_are_those_of_the_dense_sum(shape: tuple[int, int], rank: int, dtype: torch.dtype) -> None:
    """Sums are made in float32 whatever W is stored in."""
    assert row_norms_error(row_norms, shape, rank, dtype) < bound(torch.float32, shape[1] + rank)


def test_lengths_of_rows_with_a_zero_B_are_those_of_the_base_to_the_bit() -> None:
    W, A = drawn(7, 66, seed=0, dtype=torch.float32), drawn(3, 66, seed=1, dtype=torch.float32)
    squares = W.square().sum(1)
    given = (DenseWeight(W), squares, A, torch.zeros(7, 3, device=DEVICE), 0.7)
    assert torch.equal(row_norms.row_norms(*given), plain_row_norms(*given))


BREAKS: list[tuple[Callable[[ModuleType], float], ModuleType, str, str]] = [
    (lambda m: rms_norm_error(m, (5, 3, 66), torch.float32), rms_norm, "(inner - normed * along)", "inner"),
    (lambda m: rms_norm_error(m, (35, 2, 6), torch.float32), rms_norm, "(split + 1) * share", "split * share + 31"),
    (lambda m: rotary_error(m, (5, 3, 66), torch.float32), rotary, "saved_tensors, -1", "saved_tensors, 1"),
    (lambda m: swiglu_error(m, (3, 7), torch.float32), swiglu, "(1 - sigma)", "sigma"),
    (lambda m: cross_entropy_error(m, 5, 41, torch.float32), cross_entropy, "tl.where(at == label, 1.0, 0.0)", "0.0"),
    (
        lambda m: cross_entropy_error(m, 5, 5000, torch.float32),
        cross_entropy,
        "total * tl.exp(largest - safe)",
        "total",
    ),
    (lambda m: row_norms_error(m, (7, 66), 3, torch.float32), row_norms, "2.0 * scale * crossed", "scale * crossed"),
]


@pytest.mark.parametrize(("error", "module", "right", "wrong"), BREAKS, ids=[wrong for *_, wrong in BREAKS])
def test_a_wrong_kernel_is_seen(
    error: Callable[[ModuleType], float], module: ModuleType, right: str, wrong: str, tmp_path: Path
) -> None:
    """More than ten times what float32 may be off by."""
    assert error(module) < bound(torch.float32, 5041)
    assert error(broken(module, right, wrong, tmp_path)) > 10 * bound(torch.float32, 5041)
