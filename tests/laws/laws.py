"""The laws of every method, one function each: a base and a method in, an AssertionError where the law is broken.

Tolerances are relative to the largest value compared.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn

from lorica.adapter import Attached, load
from lorica.adapter import attach as attached_with
from lorica.errors import AdapterError
from lorica.kernels import Noise
from lorica.methods import Method
from lorica.models import ambient, parameter_of, sites, weight_of
from lorica.site import Site
from tiny_bases import Base, KeptBase, stir
from traces import traces

Methods = Method | Sequence[Method]
ROUNDING = 1e-12
"""What double precision leaves after a forward and a backward pass of these bases: some thousand roundings of 1e-16."""
REPAIRED = {torch.float64: ROUNDING, torch.float32: 1e-5, torch.bfloat16: 1e-5}
"""Factors are float32 on a base of fewer bits: forty roundings of 1e-7, which the least is stationary against."""
STEP, SLOPE_ERROR = 1e-5, 1e-6
"""Of two central differences, extrapolated: their error is STEP^4 times a fifth derivative, and 3 ROUNDING / STEP."""
KEY_BIASES = ("k_proj.bias", "key.bias")
"""Added to every score of a softmax alike: their gradient is zero by mathematics."""


def attach(model: nn.Module, method: Methods, seed: int = 0) -> Attached:
    """With the statistics of noise for a start that reads data."""
    found: dict[str, Tensor] = {}
    for each in (method,) if isinstance(method, Method) else method:
        statistic = each.statistic(sites(model))
        for site in (site for group in statistic.passes() for site in group) if statistic else ():
            generator = torch.Generator().manual_seed(crc32(site.name.encode()))
            x, g = (torch.randn(40, d, generator=generator) for d in (site.d_in, site.d_out))
            statistic.see(site, x, g if statistic.gradients else None)
        found |= statistic.factors() if statistic else {}
    return attached_with(model, method, seed=seed, statistics=found)


def the_start_is_the_base(base: Base, method: Methods) -> None:
    """To the bit, in every type."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        model = base.build(dtype)
        with torch.no_grad():
            before = base.output(model)
            attach(model, method)
            assert torch.equal(base.output(model), before), f"the start differs from the base in {dtype}"


@torch.no_grad()
def the_start_repairs_what_quantising_took(base: KeptBase, method: Methods) -> None:
    """In every type |W - W'|^2 is what the best product of rank r leaves of |W - Q|^2, at every site."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        attached = attach(base.build(dtype), method)
        for planned in attached.plan.edits:
            module: Any = attached.modules[planned.key]
            W, Q = base.original(planned.site.weight), weight_of(attached.model, planned.site).dense().double()
            left = (W - module.merged(Q)).square().sum()
            best = torch.linalg.svdvals(W - Q)[len(module.A) :].square().sum()
            error = abs(float(left / best) - 1)
            assert error <= REPAIRED[dtype], f"{planned.site.name}: {error:.1e} beside the least that is left, {dtype}"


def forward_is_the_merged_weight(base: Base, method: Methods) -> None:
    """forward(x) == linear(x, merged(W)), with noise in every tensor, so that the output moves by a tenth or more."""
    attached = stirred(base, method)
    plain = base.plain()
    with torch.no_grad():
        unadapted = base.output(plain)
        for planned in attached.plan.edits:
            _write_merged(plain, planned.edit.place, planned.site, attached.modules[planned.key])
        adapted, merged = base.output(attached.model), base.output(plain)
    assert (adapted - unadapted).abs().max() >= 0.1 * unadapted.abs().max(), "the adapter has no visible effect"
    assert near(adapted, merged, ROUNDING), f"forward and merged(W) differ by {distance(adapted, merged):.1e}"


def _write_merged(model: nn.Module, place: str, site: Site, module: nn.Module) -> None:
    if place == "instead":
        parameter_of(model, site).copy_(module())
    else:
        W = weight_of(model, site).dense()
        W.copy_(module.merged(W.clone()))  # type: ignore[operator]
        if site.bias and not site.bare and hasattr(module, "merged_bias"):
            bias = model.get_submodule(site.name).get_parameter("bias")
            bias.copy_(module.merged_bias(bias.clone()))  # type: ignore[operator]


def everything_declared_moves_and_nothing_else(base: Base, method: Methods) -> None:
    """Within three steps, also when the first pass was made without gradients; the base keeps its bytes."""
    model = base.build()
    frozen = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    attached = attach(model, method)
    with torch.no_grad():
        base.output(model)
    start = {key: tensor.clone() for key, tensor in attached.state().items()}
    optimizer = torch.optim.Adam(attached.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        base.loss(model).backward()
        optimizer.step()
    trained, state = dict(attached.named_parameters()), attached.state()
    still = [key for key in trained if torch.equal(state[key], start[key]) and not key.endswith(KEY_BIASES)]
    assert not still, f"these do not move: {still}"
    strays = [key for key in state.keys() - trained.keys() if not torch.equal(state[key], start[key])]
    assert not strays, f"these move without being trained: {strays}"
    attached.detach()
    written = [name for name, parameter in model.named_parameters() if not torch.equal(parameter, frozen[name])]
    assert not written, f"the base was written: {written}"


def detaching_gives_back_the_base(base: Base, method: Methods) -> None:
    """Byte for byte and object for object, after a forward and a backward pass."""
    model = base.build()
    before = traces(model)
    attached = attach(model, method)
    stir(attached.named_parameters())
    base.loss(model).backward()
    attached.detach()
    after = traces(model)
    changed = [name for name in {*before, *after} if before.get(name) != after.get(name)]
    assert not changed, f"these differ after detach: {changed}"


def merging_leaves_a_plain_model_of_the_same_outputs(base: Base, method: Methods) -> None:
    """And writes to none of the base's own tensors."""
    attached = stirred(base, method)
    model, tensors = attached.model, list(attached.model.named_parameters())
    kept = [(name, parameter, parameter.detach().clone()) for name, parameter in tensors]
    merged_at = {p.site.name for p in attached.plan.edits if p.edit.place == "around"}
    dense, kinds = dict(base.plain().named_modules()), dict(base.build().named_modules())
    kinds = {name: type(dense[name] if name in merged_at else module) for name, module in kinds.items()}
    with torch.no_grad():
        adapted = base.output(model)
        merge(attached)
        merged = base.output(model)
    assert near(adapted, merged, ROUNDING), f"merging moves the output by {distance(adapted, merged):.1e}"
    assert {name: type(module) for name, module in model.named_modules()} == kinds, "merging leaves wrappers"
    written = [name for name, parameter, value in kept if not torch.equal(parameter, value)]
    assert not written, f"merging wrote to {written}"


def merge(attached: Attached) -> None:
    """A merge that refuses itself has broken the law as well."""
    try:
        attached.merge()
    except AdapterError as error:
        raise AssertionError(str(error)) from error


def saving_and_loading_keeps_every_bit(base: Base, method: Methods, folder: Path) -> None:
    """Adapters are trained and stored in float32."""
    attached = stirred(base, method, torch.float32)
    attached.save(folder / "adapter")
    again = load(base.build(torch.float32), folder / "adapter")
    held, found = dict(attached.file().tensors), dict(again.file().tensors)
    assert _equal(held, found), "the state differs after saving and loading"
    with torch.no_grad():
        assert torch.equal(base.output(attached.model), base.output(again.model)), "the output differs after loading"


def parameters_are_counted(base: Base, method: Methods, count: Callable[[Sequence[Site]], int]) -> None:
    """Plan, handle and tensors agree with the closed form of the paper."""
    attached = attach(base.build(), method)
    held = sum(parameter.numel() for parameter in attached.parameters())
    counts = {attached.plan.trainable_parameters, attached.trainable_parameters, held, count(attached.plan.base)}
    assert len(counts) == 1, f"plan, handle, tensors and closed form count {counts}"


def gradients_are_slopes(base: Base, method: Methods, tensors: int = 8) -> None:
    """The gradients of some tensors against their slope along one random direction, dropout on."""
    attached = stirred(base, method).train()
    state = {key: tensor.clone() for key, tensor in attached.state().items()}
    _loss(base, attached).backward()
    named = list(attached.named_parameters())
    for key, parameter in random.Random(len(named)).sample(named, min(tensors, len(named))):
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7), dtype=parameter.dtype)
        slope = _slope(base, attached, state, key, direction)
        assert parameter.grad is not None, f"{key} has no gradient"
        expected = (parameter.grad * direction).sum()
        size = parameter.grad.norm() * direction.norm() + 1e-3
        assert (slope - expected).abs() <= SLOPE_ERROR * size, f"{key}: gradient {expected:.6g}, slope {slope:.6g}"
    attached.load_state(state)


def _slope(base: Base, attached: Attached, state: dict[str, Tensor], key: str, direction: Tensor) -> Tensor:
    """Of the loss, by Richardson's extrapolation; a saturated softmax bends too sharply for one difference."""

    def loss(moved: float) -> Tensor:
        attached.load_state({**state, key: state[key] + moved * direction})
        with torch.no_grad():
            return _loss(base, attached)

    whole, half = ((loss(step) - loss(-step)) / (2 * step) for step in (STEP, STEP / 2))
    return (4 * half - whole) / 3


def recomputation_changes_nothing(base: Base, method: Methods) -> None:
    """Gradient checkpointing on or off, dropout on: the same gradients."""
    attached = stirred(base, method).train()
    kept = _gradients(base, attached)
    attached.checkpoint()
    again = _gradients(base, attached)
    assert _near(kept, again, ROUNDING), "gradients differ when activations are computed again"


def micro_batches_draw_the_masks_of_the_whole(base: Base, method: Methods) -> None:
    """Dropout on: the gradients of rows, added up in another order, are those of the batch."""
    attached = stirred(base, method).train()
    whole = _gradients(base, attached)
    attached.model.zero_grad()
    for row in (2, 0, 1):
        part = slice(row, row + 1)
        with ambient.entered(ambient.Pass(noise=Noise(4, 9, ROWS[part]))):
            projected(base, attached.model, part).backward()
    split = {key: _gradient(parameter) for key, parameter in attached.named_parameters()}
    assert _near(whole, split, ROUNDING), "gradients differ when the batch is split"


ROWS = torch.tensor([11, 3, 8])


def stirred(base: Base, method: Methods, dtype: torch.dtype = torch.float64) -> Attached:
    attached = attach(base.build(dtype), method, seed=5)
    stir(attached.named_parameters())
    return attached


def projected(base: Base, model: nn.Module, part: slice) -> Tensor:
    """The share of `base.loss` that these rows have, from these rows alone."""
    out = base.output(model, part)
    whole = torch.empty(len(ROWS), *out.shape[1:], dtype=out.dtype)
    weights = whole.copy_(torch.randn(whole.shape, generator=torch.Generator().manual_seed(3)))
    return (out * weights[part]).sum()


def _loss(base: Base, attached: Attached) -> Tensor:
    with ambient.entered(ambient.Pass(noise=Noise(4, 9, ROWS))):
        return base.loss(attached.model)


def _gradients(base: Base, attached: Attached) -> dict[str, Tensor]:
    attached.model.zero_grad()
    _loss(base, attached).backward()
    return {key: _gradient(parameter).clone() for key, parameter in attached.named_parameters()}


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def _near(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float) -> bool:
    largest = max(tensor.abs().max() for tensor in first.values())
    return all((first[key] - second[key]).abs().max() <= tolerance * largest for key in first)


def near(first: Tensor, second: Tensor, tolerance: float) -> bool:
    return distance(first, second) <= tolerance


def distance(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max() / second.abs().max())
