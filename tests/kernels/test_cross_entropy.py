"""Cross entropy of a head in chunks: torch's own, without the logits."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from lorica.kernels import cross_entropy, head_cross_entropy

BOUNDS = [(torch.float64, 1e-13), (torch.float32, 2e-6), (torch.bfloat16, 4e-2)]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cross_entropy, "CHUNK_ROWS", 4)


def made(rows: int, dtype: torch.dtype, bias: bool = False) -> tuple[Tensor, nn.Linear, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    head = nn.Linear(6, 11, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    hidden = torch.randn(rows, 6, generator=generator, dtype=torch.float64).to(dtype)
    return hidden.requires_grad_(True), head.to(dtype), torch.randint(0, 11, (rows,), generator=generator)


def plain(hidden: Tensor, head: nn.Linear, labels: Tensor) -> Tensor:
    wide = hidden.double() @ head.weight.double().T + (0 if head.bias is None else head.bias.double())
    return nn.functional.cross_entropy(wide, labels, reduction="sum")


def errors(rows: int, dtype: torch.dtype, trained: bool, bias: bool = False) -> tuple[float, ...]:
    """Of loss and of the gradients of `hidden` and of what is trained, relative to the largest value."""
    hidden, head, labels = made(rows, dtype, bias)
    head.requires_grad_(trained)
    loss = head_cross_entropy(hidden, head, labels)
    (2 * loss).backward()
    wide = deepcopy(head).double()
    exact = hidden.detach().double().requires_grad_(True)
    expected = plain(exact, wide, labels)
    (2 * expected).backward()
    got, wanted = ([one.grad for one in (x, *kind.parameters())] for x, kind in ((hidden, head), (exact, wide)))
    if not rows:
        return float(loss.detach().abs()), *(float(one.abs().sum()) for one in got if one is not None)
    pairs = [(loss.detach(), expected.detach()), *zip(got, wanted, strict=True)]
    assert all((one is None) == (other is None) for one, other in pairs)
    return tuple(
        float((one.double() - other).abs().max() / other.abs().max()) for one, other in pairs if one is not None
    )


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 17, 0])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize(("dtype", "bound"), BOUNDS, ids=str)
def test_loss_and_gradients_are_torchs(rows: int, dtype: torch.dtype, bound: float, trained: bool, bias: bool):
    """Bound: some 16 roundings, those of bfloat16 being those of its logits."""
    assert max(errors(rows, dtype, trained, bias)) <= bound


def test_a_weight_that_is_computed_as_it_is_read_has_its_gradient_once():
    hidden, head, labels = made(9, torch.float32)
    held, reads = head.weight.detach().clone().requires_grad_(True), []

    class Computed(nn.Linear):
        uncomputed = nn.Linear
        weight = property(lambda self: reads.append(1) or 2 * held)  # type: ignore[assignment]

    head._parameters.clear()
    head.__class__ = Computed
    head.bias = None
    head_cross_entropy(hidden, head, labels).backward()
    own = held.detach().clone().requires_grad_(True)
    nn.functional.cross_entropy(hidden.detach() @ (2 * own).T, labels, reduction="sum").backward()
    torch.testing.assert_close(held.grad, own.grad)
    assert len(reads) == 1


def test_where_no_gradient_is_asked_for_none_is_made():
    hidden, head, labels = made(9, torch.float32)
    kept: list[Tensor] = []
    with torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        assert head_cross_entropy(hidden, head, labels).grad_fn is None
    assert not kept


def test_a_head_with_a_bias_or_with_a_trained_weight_has_its_gradients():
    hidden, head, labels = made(9, torch.float64, bias=True)
    head_cross_entropy(hidden, head, labels).backward()
    got = [parameter.grad.clone() for parameter in head.parameters() if parameter.grad is not None]
    head.zero_grad()
    plain(hidden, head, labels).backward()
    for gradient, parameter in zip(got, head.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rows", [1, 5, 17])
@pytest.mark.parametrize(("dtype", "bound"), BOUNDS, ids=str)
def test_a_frozen_head_with_a_bias_keeps_no_logits_either(rows: int, dtype: torch.dtype, bound: float):
    assert max(errors(rows, dtype, trained=False, bias=True)) <= bound
    hidden, head, labels = made(rows, dtype, bias=True)
    loss = head_cross_entropy(hidden, head.requires_grad_(False), labels)
    assert type(loss.grad_fn).__name__ == "_LinearHeadBackward"


def test_any_function_may_be_the_head():
    hidden, head, labels = made(9, torch.float64)
    loss = head_cross_entropy(hidden, lambda rows: head(rows) / 2, labels)
    halved = nn.functional.cross_entropy(head(hidden) / 2, labels, reduction="sum")
    torch.testing.assert_close(loss, halved)


def test_a_head_that_only_passes_for_a_linear_is_called():
    class Edited(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1e-3 * x.sum(-1, keepdim=True) * torch.arange(11)

    hidden, head, labels = made(9, torch.float64)
    edited = Edited(6, 11, bias=False, dtype=torch.float64)
    edited.weight = head.weight
    edited.requires_grad_(False)
    called = nn.functional.cross_entropy(edited(hidden), labels, reduction="sum")
    torch.testing.assert_close(head_cross_entropy(hidden, edited, labels), called)


def test_the_frozen_path_never_holds_all_logits(monkeypatch: pytest.MonkeyPatch):
    hidden, head, labels = made(400, torch.float32)
    head.requires_grad_(False)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        head_cross_entropy(hidden, head, labels)
    assert sum(kept) <= hidden.numel()


def test_a_wrong_loss_is_caught(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cross_entropy, "CHUNK_ROWS", 4)
    right = cross_entropy._LinearHead.forward

    def shifted(ctx, hidden, weight, bias, labels):
        return right(ctx, hidden, weight, bias, labels.roll(1))

    monkeypatch.setattr(cross_entropy._LinearHead, "forward", staticmethod(shifted))
    assert errors(17, torch.float64, trained=False)[0] > 1e-3
