"""LoRA's modules on convolutions and experts compute what the paper says, sum by sum."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from lora_conv import expert_weight, lora_conv
from torch import Tensor, nn

from lorica.kernels import FrozenConv, Noise
from lorica.methods.contract import AroundConv, Start
from lorica.methods.lora import LoRA
from lorica.methods.lora_conv import LoRAConv
from lorica.methods.lora_experts import LoRAExperts
from lorica.models.ambient import Pass
from lorica.site import Site

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
R, ALPHA = 3, 8
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
# dimensions of space, then what the module is made with; (4, 6) channels
READINGS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((7,), {"kernel_size": 3}),
    ((7,), {"kernel_size": 4, "padding": "same"}),
    ((7,), {"kernel_size": 4, "padding": "same", "padding_mode": "reflect", "dilation": 2, "groups": 2}),
    ((5, 6), {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2}),
    ((4, 5), {"kernel_size": 3, "padding": 2, "padding_mode": "circular", "dilation": 2}),
    ((4, 5), {"kernel_size": 1, "padding": "valid", "padding_mode": "circular"}),
    ((3, 4, 2), {"kernel_size": (1, 3, 2), "padding": (0, 2, 1), "padding_mode": "replicate", "stride": (1, 2, 1)}),
]
readings = pytest.mark.parametrize(("space", "options"), READINGS, ids=str)


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def start() -> Start:
    return Start(torch.Generator().manual_seed(0), torch.device("cpu"), torch.float64)


def noisy(module: nn.Module) -> Any:
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(drawn(*parameter.shape, seed=number))
    return module


def made(space: tuple[int, ...], options: dict[str, Any], **method: Any) -> tuple[Any, LoRAConv]:
    base = noisy(CONVOLUTIONS[len(space)](4, 6, **options).double())
    site = Site(name="conv", kind="conv", shape=tuple(base.weight.shape), groups=base.groups)
    return base, noisy(LoRAConv(LoRA(r=R, alpha=ALPHA, **method), site, start()))


def expected(base: Any, module: LoRAConv, x: Tensor, dropped: Tensor | None = None) -> dict[tuple[int, ...], float]:
    sides = {"same": [d * (k - 1) for d, k in zip(base.dilation, base.kernel_size, strict=True)], "valid": [0, 0, 0]}
    if isinstance(base.padding, str):  # of an uneven sum the larger half is behind
        before = tuple(total // 2 for total in sides[base.padding][: x.dim() - 1])
        behind = tuple(total - b for total, b in zip(sides[base.padding], before, strict=False))
    else:
        before = behind = base.padding
    lists = [t.tolist() for t in (x, base.weight, base.bias, module.A, module.B.flatten(1))]
    reading = {"stride": base.stride, "dilation": base.dilation, "groups": base.groups, "mode": base.padding_mode}
    gone = None if dropped is None else dropped.tolist()
    return lora_conv(*lists, ALPHA / R, before=before, behind=behind, dropped=gone, **reading)


def agrees(y: Tensor, values: dict[tuple[int, ...], float]) -> None:
    assert max(values) == tuple(size - 1 for size in y.shape)
    for place, value in values.items():
        assert y[place].item() == pytest.approx(value, rel=0, abs=1e-12)


@readings
def test_the_convolution_is_equation_3_under_every_reading(space: tuple[int, ...], options: dict[str, Any]):
    base, module = made(space, options)
    x = drawn(2, 4, *space, seed=9)
    y = module(x, base, Pass())
    for row in range(2):
        agrees(y[row], expected(base, module, x[row]))
    torch.testing.assert_close(module(x[0], base, Pass()), y[0], rtol=0, atol=1e-13)


@readings
def test_the_merged_weight_computes_the_same(space: tuple[int, ...], options: dict[str, Any]):
    """Also by the forward pass that every other method on convolutions has."""
    base, module = made(space, options)
    x = drawn(2, 4, *space, seed=9)
    y = module(x, base, Pass())
    torch.testing.assert_close(AroundConv.forward(module, x, base, Pass()), y, rtol=0, atol=1e-12)
    base.weight.data = module.merged(base.weight.data)
    torch.testing.assert_close(base(x), y, rtol=0, atol=1e-12)


@readings
def test_a_convolution_reads_a_weight_as_the_module_does_to_the_bit(space: tuple[int, ...], options: dict[str, Any]):
    base, _ = made(space, options)
    x = drawn(2, 4, *space, seed=9)
    conv = FrozenConv.of(base)
    assert torch.equal(conv.product(x, conv.weight, conv.bias), base(x))


def test_dropout_is_by_row_place_and_channel_and_on_the_update_alone():
    base, module = made((4, 5), {"kernel_size": 3, "padding": 1}, dropout=0.4)
    x, noise = drawn(2, 4, 4, 5, seed=9), Noise(7, 9, torch.tensor([100, 2**31]))
    y = module(x, base, Pass(noise=noise))
    masks = noise.keep(0.4, module.site, x.movedim(1, -1)).movedim(-1, 1)
    assert 0 < (masks == 0).double().mean() < 0.6
    for row in range(2):
        agrees(y[row], expected(base, module, x[row], (x * masks)[row]))
    again = module(x[1:], base, Pass(noise=Noise(7, 9, torch.tensor([2**31]))))
    assert torch.equal(again[0], y[1])
    assert torch.equal(module.eval()(x, base, Pass(noise=noise)), module.train()(x, base, Pass()))


def test_a_depthwise_convolution_has_one_A_for_all_its_channels():
    """A (r, 1, k) and B (channels, r): the update of each channel's kernel is a mixture of r kernels."""
    base = noisy(nn.Conv1d(6, 6, 5, groups=6).double())
    site = Site(name="conv", kind="conv", shape=(6, 1, 5), groups=6)
    module = noisy(LoRAConv(LoRA(r=2, alpha=6), site, start()))
    assert [tuple(p.shape) for p in module.parameters()] == [(2, 1, 5), (6, 2, 1)]
    x = drawn(1, 6, 9, seed=9)
    kernels = base.weight[:, 0] + 3 * module.B[..., 0] @ module.A[:, 0]
    windows = x[0].unfold(-1, 5, 1)
    by_hand = torch.einsum("cpk,ck->cp", windows, kernels) + base.bias[:, None]
    torch.testing.assert_close(module(x, base, Pass())[0], by_hand, rtol=0, atol=1e-12)


def test_each_expert_has_a_pair_of_its_own():
    site = Site(name="experts.up", kind="experts", shape=(4, 5, 6), part_of="experts", bare=True)
    module = noisy(LoRAExperts(LoRA(r=R, alpha=ALPHA), site, start()))
    assert [tuple(p.shape) for p in module.parameters()] == [(4 * R, 6), (5, 4 * R)]
    W = drawn(4, 5, 6, seed=5)
    lists = [t.tolist() for t in (W, module.A, module.B)]
    merged = module.merged(W)
    for e in range(4):
        by_hand = torch.tensor(expert_weight(e, *lists, ALPHA / R), dtype=torch.float64)
        torch.testing.assert_close(merged[e], by_hand, rtol=0, atol=1e-13)
    pairs = module.factors()
    torch.testing.assert_close(W + pairs.scale * pairs.B @ pairs.A, merged, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("site", "module"),
    [
        (Site(name="c", kind="conv", shape=(40, 10, 5, 6)), LoRAConv),
        (Site(name="e", kind="experts", shape=(3, 40, 300)), LoRAExperts),
    ],
)
def test_the_starts_are_of_the_width_that_one_output_sums_over(site: Site, module: Any):
    uniform, gaussian = (module(LoRA(r=4, init=init), site, start()) for init in ("kaiming", "gaussian"))
    assert site.d_in == 300
    assert uniform.A.abs().max() <= 300**-0.5
    assert abs(uniform.A.std() * 300**0.5 - 3**-0.5) < 0.03
    assert abs(gaussian.A.std() - 1 / 4) < 0.02
    assert not uniform.B.any()
    assert not gaussian.B.any()
    assert all(a.shape == b.shape for a, b in pairwise([uniform.A, gaussian.A]))
