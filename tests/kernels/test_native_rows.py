"""RMSNorm, rotation, SwiGLU and cross entropy in C: the definitions in float64, to the bit whatever stands beside.

Errors are relative to the largest value; a few roundings of bfloat16 are allowed.
"""

import ctypes
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lorica.kernels import cross_entropy, head_cross_entropy, rms_norm, rotary, swiglu
from lorica.kernels.choice import is_native
from lorica.kernels.native import build, library
from lorica.kernels.native import cross_entropy as native_cross_entropy
from lorica.kernels.native import rms_norm as native_rms_norm
from lorica.kernels.native import rotary as native_rotary
from lorica.kernels.native import swiglu as native_swiglu
from lorica.kernels.rms_norm import reference as rms_norm_reference
from lorica.kernels.rotary import reference as rotary_reference
from lorica.kernels.swiglu import swiglu_backward_

if library().lacking:
    REASON = f"kernels in C are not tested: {library().lacking}"
    print(REASON, file=sys.__stderr__)
    pytest.skip(REASON, allow_module_level=True)

EPS = torch.finfo(torch.bfloat16).eps
BOUND = 4 * EPS
"""Of an element: n, y and its gradient are rounded once or twice, and so is what they are compared in."""
SHAPES = [(1, 1, 2), (3, 1, 6), (5, 3, 66), (35, 2, 126), (64, 4, 128), (0, 2, 4)]
"""Widths of no whole vector, one row, none, and more elements than one thread takes."""
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


def strided(x: Tensor) -> Tensor:
    """The same values, every second element of something else."""
    return torch.stack([x, torch.full_like(x, 7)], dim=-1)[..., 0]


def with_gradients(op: Callable[..., Tensor], inputs: list[Tensor], towards: Tensor) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_(True) for tensor in inputs]
    y = op(*leaves)
    y.backward(towards.to(y.dtype))
    return [y.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def largest_error(found: list[Tensor], wanted: list[Tensor]) -> float:
    assert [part.shape for part in found] == [part.shape for part in wanted]
    pairs = [(f.double(), w) for f, w in zip(found, wanted, strict=True) if w.numel()]
    return max((float((f - w).abs().max() / (w.abs().max() or 1.0)) for f, w in pairs), default=0.0)


def error_of(op: Callable[..., Tensor], definition: Callable[..., Tensor], inputs: list[Tensor], to: Tensor) -> float:
    wide = [tensor.double() for tensor in inputs]
    return largest_error(with_gradients(op, inputs, to), with_gradients(definition, wide, to.double()))


def norm_error(shape: tuple[int, ...], made: Callable[[Tensor], Tensor] = torch.clone) -> float:
    x, weight, towards = made(drawn(*shape, seed=0)), made(drawn(shape[-1], seed=1)), made(drawn(*shape, seed=2))
    assert is_native("rms_norm", x, weight)
    return error_of(
        lambda x, w: rms_norm(x, w, 1e-5), lambda x, w: rms_norm_reference(x, w, 1e-5), [x, weight], towards
    )


def angles(tokens: int, width: int) -> tuple[Tensor, Tensor]:
    angle = drawn(tokens, 1, width // 2, seed=3).repeat(1, 1, 2)
    return angle.cos(), angle.sin()


def rotary_error(shape: tuple[int, ...], made: Callable[[Tensor], Tensor] = torch.clone) -> float:
    x, towards = made(drawn(*shape, seed=4)), made(drawn(*shape, seed=5))
    cos, sin = angles(shape[0], shape[-1])
    assert is_native("rotary", x, cos, sin)
    definition: Callable[..., Tensor] = lambda x: rotary_reference(x, cos.double(), sin.double())  # noqa: E731
    return error_of(lambda x: rotary(cos, sin, x)[0], definition, [x], towards)


def swiglu_reference(gate: Tensor, up: Tensor) -> Tensor:
    return gate / (1 + (-gate).exp()) * up


def swiglu_error(shape: tuple[int, ...], made: Callable[[Tensor], Tensor] = torch.clone) -> float:
    gate, up, towards = (made(drawn(*shape, seed=seed)) for seed in range(3))
    assert is_native("swiglu", gate, up)
    return error_of(swiglu, swiglu_reference, [3 * gate, up], towards)


def logits_error(shape: tuple[int, ...]) -> float:
    """Of the gradient, or of the losses in parts of their own bound: a rounding of float32 for each of the summed."""
    logits = 4 * drawn(shape[0] * shape[1], shape[2], seed=6)
    labels = torch.randint(0, shape[2], (len(logits),), generator=torch.Generator().manual_seed(7))
    wide = logits.double().requires_grad_(True)
    wanted = nn.functional.cross_entropy(wide, labels, reduction="none")
    wanted.sum().backward()
    losses = native_cross_entropy.to_gradient_(logits, labels)
    assert wide.grad is not None
    allowed = (8 + shape[2]) * torch.finfo(torch.float32).eps * (1 + wanted.detach())
    of_losses = max(((losses - wanted.detach()).abs() / allowed).tolist(), default=0.0)
    return max(BOUND * of_losses, largest_error([logits], [wide.grad]))


@shapes
@pytest.mark.parametrize("made", [torch.clone, strided])
def test_rows_and_their_gradients_are_the_definitions(shape: tuple[int, ...], made: Callable[[Tensor], Tensor]) -> None:
    """The weight's gradient is summed in float32, of terms that are not rounded."""
    assert norm_error(shape, made) < BOUND
    assert rotary_error(shape, made) < BOUND
    assert swiglu_error(shape, made) < BOUND


@pytest.mark.parametrize("shape", [*SHAPES, (3, 1, 4096)], ids=str)
def test_losses_and_gradients_of_logits_are_torchs(shape: tuple[int, ...]) -> None:
    assert logits_error(shape) < BOUND


@shapes
def test_swiglus_gradients_in_place_are_those_of_its_product_which_is_the_same_to_the_bit(
    shape: tuple[int, ...],
) -> None:
    gate, up, grad = (drawn(*shape, seed=seed) for seed in range(3))
    h, of_gate, of_up = with_gradients(swiglu, [gate, up], grad)
    place = grad.data_ptr()
    found = swiglu_backward_(grad, gate, up)
    assert all(map(torch.equal, found, (of_gate, of_up, h)))
    assert found[1].data_ptr() == place


def test_a_gradient_that_autograd_hands_over_is_left_as_it_was() -> None:
    gate, up, grad = (drawn(5, 33, seed=seed) for seed in range(3))
    before = grad.clone()
    with_gradients(swiglu, [gate, up], grad)
    assert torch.equal(grad, before)


def everything(rows: slice) -> list[Tensor]:
    """What the ops make of some of 48 rows of 768."""
    x, towards = (drawn(48, 12, 64, seed=seed)[rows] for seed in range(2))
    cos, sin = (part[rows] for part in angles(48, 64))
    flat, weight = x.flatten(1), drawn(768, seed=2)
    logits = 4 * flat
    losses = native_cross_entropy.to_gradient_(logits, torch.arange(48)[rows])
    return [
        *with_gradients(lambda x: rms_norm(x, weight, 1e-5), [flat], towards.flatten(1)),
        *with_gradients(lambda x: rotary(cos, sin, x)[0], [x], towards),
        *with_gradients(swiglu, [flat, 2 * flat], towards.flatten(1)),
        losses,
        logits,
    ]


def test_a_row_has_the_same_bits_alone_and_in_company() -> None:
    together, alone = everything(slice(None)), [everything(slice(row, row + 1)) for row in range(48)]
    assert all(
        torch.equal(all_rows, torch.cat(each))
        for all_rows, each in zip(together, zip(*alone, strict=True), strict=True)
    )


def test_gradients_wanted_or_not_the_output_has_the_same_bits() -> None:
    x, weight, (cos, sin) = drawn(5, 2, 66, seed=0), drawn(66, seed=1), angles(5, 66)
    leaf = x.clone().requires_grad_(True)
    ops = (lambda x: rms_norm(x, weight, 1e-5), lambda x: rotary(cos, sin, x)[0], lambda x: swiglu(x, x))
    recorded = [op(leaf).detach() for op in ops]
    with torch.no_grad():
        assert all(torch.equal(op(x), wanted) for op, wanted in zip(ops, recorded, strict=True))


def test_two_threads_give_the_bits_of_one() -> None:
    before, weight = torch.get_num_threads(), drawn(768, seed=2).requires_grad_(True)
    found: list[list[Tensor]] = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            of_weight = with_gradients(
                lambda w: rms_norm(drawn(48, 768, seed=0), w, 1e-5), [weight], drawn(48, 768, seed=1)
            )
            found.append([*everything(slice(None)), *of_weight])
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_no_number_makes_the_loss_none_and_stays_in_its_row(value: float) -> None:
    x = drawn(3, 70, seed=0)
    x[1, 69] = value
    logits = x.clone()
    losses = native_cross_entropy.to_gradient_(logits, torch.tensor([0, 1, 2]))
    assert losses.isfinite().tolist() == [True, False, True]
    assert logits.isfinite().all(1).tolist() == [True, False, True]
    for y in (rms_norm(x, torch.ones_like(x[0]), 1e-5), swiglu(torch.ones_like(x), x)):
        assert y.isfinite().all(1).tolist() == [True, False, True]


def test_logits_at_the_edges_lose_nothing() -> None:
    wide = torch.tensor([[3e4, -3e4, -torch.inf], [-torch.inf, -1e4, -torch.inf]])
    logits = wide.to(torch.bfloat16)
    losses = native_cross_entropy.to_gradient_(logits, torch.tensor([1, 1]))
    assert losses.tolist() == [2 * float(wide.to(torch.bfloat16)[0, 0]), 0.0]
    assert logits.tolist() == [[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]]


def test_a_large_gate_has_the_limits_of_its_function() -> None:
    gate = torch.tensor([-1e4, -100.0, 100.0, 1e4], dtype=torch.bfloat16)
    h, of_gate, _ = with_gradients(swiglu, [gate, torch.ones_like(gate)], torch.ones_like(gate))
    assert h.tolist() == [0.0, 0.0, *gate[2:].tolist()]
    assert of_gate.tolist() == [0.0, 0.0, 1.0, 1.0]


def test_a_label_that_is_none_of_the_columns_is_refused() -> None:
    for label in (-1, 70):
        with pytest.raises(IndexError, match="70 logits"):
            native_cross_entropy.to_gradient_(drawn(2, 70, seed=0), torch.tensor([3, label]))


def test_a_head_takes_the_kernel() -> None:
    head = nn.Linear(6, 41, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    hidden, labels = drawn(9, 6, seed=0).requires_grad_(True), torch.arange(9)
    loss = head_cross_entropy(hidden, head, labels)
    loss.backward()
    assert hidden.grad is not None
    logits = nn.functional.linear(hidden.detach(), head.weight)
    assert torch.equal(loss.detach(), native_cross_entropy.to_gradient_(logits, labels).sum())
    torch.testing.assert_close(hidden.grad, logits @ head.weight, rtol=0, atol=BOUND)


@pytest.mark.parametrize(("wrong", "holds"), [(1.0, True), (1.5, False)])
def test_a_head_of_whole_tiles_has_its_products_in_c(
    wrong: float, holds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the strides of the hidden states, and in chunks.  An error of a logit, half an eps of it, is one of the
    loss, and of each share of the softmax relative to it; shares and the gradient are rounded once more."""
    monkeypatch.setattr(cross_entropy, "CHUNK_ROWS", 96)
    monkeypatch.setattr(cross_entropy, "FEW_ROWS", 64)
    hidden, weight, labels = drawn(64, 150, seed=0).T, drawn(160, 64, seed=1) / 8, torch.arange(150)
    head = nn.Linear(64, 160, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    head.weight.copy_(wrong * weight)
    given, wide = hidden.requires_grad_(True), hidden.detach().double().requires_grad_(True)
    logits = wide @ weight.double().T
    wanted = nn.functional.cross_entropy(logits, labels, reduction="none")
    loss = head_cross_entropy(given, head, labels)
    (of_given,), (of_wide,) = torch.autograd.grad(loss, given), torch.autograd.grad(wanted.sum(), wide)
    logit = EPS / 2 * float(logits.detach().abs().max())
    shares = (logits.softmax(-1) - nn.functional.one_hot(labels, 160)).abs()
    allowed = (2 * logit + 2 * EPS) * shares @ weight.double().abs()
    assert bool(((of_given - of_wide).abs() <= allowed).all()) == holds
    assert (abs(float(loss.detach() - wanted.detach().sum())) <= 150 * 2 * logit) == holds


def test_what_does_not_fit_the_kernels_is_left_to_torch() -> None:
    x = drawn(3, 8, seed=0)
    wide = rms_norm(x, torch.ones(8), 1e-5)
    assert largest_error([wide], [rms_norm_reference(x.double(), torch.ones(8).double(), 1e-5)]) < BOUND
    assert swiglu(x, x[:1]).shape == x.shape
    with pytest.raises(RuntimeError):
        rms_norm(x, drawn(5, seed=0), 1e-5)


def compiled(sources: list[Path], place: Path) -> ctypes.CDLL:
    wanted = build.sources(sources)
    wanted.compile(wanted.compiler(), place)
    return ctypes.CDLL(str(place))


POWERS = """
#include "bfloat16.h"
void powers(const float *x, float *y, int64_t n) {
    for (ptrdiff_t i = 0; i < n; i += 16) store_wide(y + i, exp2_of(load_wide(x + i)));
}
"""


def test_powers_of_two_are_within_one_unit_of_the_last_place(tmp_path: Path) -> None:
    for header in build.FOLDER.glob("*.h"):
        (tmp_path / header.name).write_bytes(header.read_bytes())
    (tmp_path / "powers.c").write_text(POWERS)
    function = compiled([tmp_path / "powers.c"], tmp_path / "powers.so").powers

    def powers(x: np.ndarray) -> np.ndarray:
        y = np.empty_like(x)
        function(ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(y.ctypes.data), ctypes.c_int64(len(x)))
        return y

    generator = np.random.default_rng(0)
    parts = (generator.uniform(-126, 128, 1 << 19), generator.uniform(-1, 1, 1 << 19))
    x = np.concatenate(parts).astype(np.float32).clip(-126, np.nextafter(np.float32(128), np.float32(0)))
    exact = np.exp2(x.astype(np.float64))
    assert np.abs((powers(x) - exact) / np.spacing(exact.astype(np.float32))).max() < 1
    edges = np.array([0, 1, -126, -127, -np.inf, np.inf, 128, np.nan] * 2, np.float32)
    np.testing.assert_array_equal(powers(edges)[:8], [1, 2, 2.0**-126, 0, 0, np.inf, np.inf, np.nan])


BREAKS: list[tuple[str, str, str, Callable[[], float]]] = [
    ("rms_norm.c", "minus_times(dn, n, mean)", "times_plus(n, mean, dn)", lambda: norm_error((5, 3, 66))),
    (
        "rotary.c",
        "minus_times(times(a, turn), b, cross)",
        "times_plus(b, cross, times(a, turn))",
        lambda: rotary_error((5, 3, 66)),
    ),
    ("swiglu.c", "minus(one, s)", "s", lambda: swiglu_error((5, 3, 66))),
    ("cross_entropy.c", "/ sum - 1.0f", "/ sum", lambda: logits_error((5, 3, 66))),
]
OPS = (native_rms_norm, native_rotary, native_swiglu, native_cross_entropy)


@pytest.fixture
def wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The library with one thing changed in each file."""
    for path in build.FOLDER.glob("*.[ch]"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for name, right, changed, _ in BREAKS:
        text = (tmp_path / name).read_text()
        assert right in text
        (tmp_path / name).write_text(text.replace(right, changed))
    made = build.Library(compiled([tmp_path / name for name, *_ in BREAKS], tmp_path / "wrong.so"), "", "wrong")
    clear = [
        getattr(module, name).cache_clear
        for module in OPS
        for name in ("_functions", "_function")
        if hasattr(module, name)
    ]
    for module in OPS:
        monkeypatch.setattr(module, "library", lambda: made)
    for forget in clear:
        forget()
    yield
    for forget in clear:
        forget()


@pytest.mark.usefixtures("wrong")
def test_a_wrong_kernel_is_seen() -> None:
    """More than ten times what may be off."""
    assert {name: error() > 10 * BOUND for name, *_, error in BREAKS} == {name: True for name, *_ in BREAKS}


ONE_RUNTIME = """
import os, torch
from lorica.kernels import rms_norm
rms_norm(torch.ones(512, 512, dtype=torch.bfloat16), torch.ones(512, dtype=torch.bfloat16), 1e-5)
loaded = {line.split()[-1] for line in open("/proc/self/maps")}
print(len([path for path in loaded if any(name in path for name in ("libgomp", "libomp", "libiomp"))]))
"""


def test_no_second_runtime_of_threads_is_loaded() -> None:
    ran = subprocess.run([sys.executable, "-c", ONE_RUNTIME], capture_output=True, text=True, check=True, timeout=120)
    assert ran.stdout.strip() == "1"
