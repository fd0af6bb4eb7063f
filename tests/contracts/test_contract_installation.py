"""The five edits on the five families: what starts at the base, what learns, and that nothing is left behind."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lorica.adapter import attach
from lorica.errors import TargetError
from lorica.kernels import site_id
from lorica.methods.contract import Method, Start
from lorica.methods.lora import LoRA, LoRALinear
from lorica.models import install, sites
from lorica.models.edited import AfterModule, AroundModule
from lorica.site import Site
from ten_line_methods import Biases, Bottleneck, Living, Magnitude, Prefix, Prompt, Scales
from tiny_bases import BASES, BERT, LLAMA, T5, VIT, Base, stir
from traces import traces

STARTS_AT_THE_BASE = (Magnitude(), Bottleneck(), Biases(), Scales(), Living())
CASES = [
    (base, method)
    for base in BASES
    for method in (*STARTS_AT_THE_BASE, Prefix(), Prompt())
    if not (method.kind == "test-prompt" and base is VIT) and not (method.kind == "test-biases" and base is T5)
]


def named(cases: list[tuple[Base, Method]]) -> list[str]:
    return [f"{base}-{method.kind.removeprefix('test-')}" for base, method in cases]


@pytest.mark.parametrize(("base", "method"), CASES, ids=named(CASES))
def test_an_edit_starts_where_it_says(base: Base, method: Method):
    model = base.build()
    with torch.no_grad():
        before = base.output(model)
        attach(model, method)
        after = base.output(model)
    if method in STARTS_AT_THE_BASE:
        assert torch.equal(before, after)
    else:
        assert (before - after).abs().max() > 0.1 * before.abs().max()


@pytest.mark.parametrize(("base", "method"), CASES, ids=named(CASES))
def test_every_tensor_of_an_edit_learns_and_no_other(base: Base, method: Method):
    model = base.build()
    attached = attach(model, method)
    stir(attached.named_parameters())
    base.loss(model).backward()
    ours = set(attached.parameters())
    silent = [name for name, p in attached.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert all("k_proj.bias" in name or "key.bias" in name for name in silent), silent
    assert not [name for name, p in model.named_parameters() if p.grad is not None and p not in ours]
    assert ours <= set(model.parameters())


@pytest.mark.parametrize(("base", "method"), CASES, ids=named(CASES))
def test_detaching_leaves_no_trace(base: Base, method: Method):
    model = base.build()
    before, output = traces(model), base.output(model)
    attached = attach(model, method)
    stir(attached.named_parameters())
    base.output(model)
    attached.detach()
    assert traces(model) == before
    assert torch.equal(base.output(model), output)


@pytest.mark.parametrize(("base", "method"), CASES, ids=named(CASES))
def test_the_sites_of_a_base_are_the_same_under_its_edits(base: Base, method: Method):
    model = base.build()
    before = sites(model)
    attach(model, method)
    assert sites(model) == before


def test_undos_may_come_in_any_order():
    model = LLAMA.build()
    before = traces(model)
    undos: list[Callable[[], None]] = []
    for method in (LoRA(r=3), Bottleneck(), Bottleneck(), Biases(), Scales(), Prefix(), Prompt()):
        undos += [install(model, edit.place, edit.site, built(model, edit)) for edit in method.edits(sites(model))]
    LLAMA.output(model)
    random.Random(5).shuffle(undos)
    for undo in undos:
        undo()
    assert traces(model) == before


def built(model: nn.Module, edit: Any) -> nn.Module:
    from lorica.models import parameter_of, weight_of

    weight = weight_of(model, edit.site) if edit.place == "around" else None
    parameter = parameter_of(model, edit.site) if edit.place == "instead" else None
    return edit.build(
        Start(
            torch.Generator().manual_seed(site_id(edit.site.name)),
            torch.device("cpu"),
            torch.float64,
            weight,
            parameter,
        )
    )


def lora(site: Site, r: int = 3, dropout: float = 0.0) -> LoRALinear:
    module = LoRALinear(LoRA(r=r, alpha=8, dropout=dropout), site, start())
    stir(module.named_parameters())
    return module


def start() -> Start:
    return Start(torch.Generator().manual_seed(0), torch.device("cpu"), torch.float64)


def site_named(model: nn.Module, name: str, kind: str = "linear") -> Site:
    return next(site for site in sites(model) if site.name == name and site.kind == kind)


def test_a_bottleneck_acts_on_the_adapted_output_whichever_came_first():
    outputs = []
    for methods in ([LoRA(r=3, alpha=8), Bottleneck()], [Bottleneck(), LoRA(r=3, alpha=8)]):
        model = LLAMA.build()
        attached = attach(model, methods)
        stir(attached.named_parameters())
        outputs.append(LLAMA.output(model))
        o_proj = model.get_submodule("model.layers.0.self_attn.o_proj")
        assert type(o_proj) is AfterModule
        assert type(o_proj.base) is AroundModule
    assert torch.equal(*outputs)


def test_a_wrapped_linear_still_answers_as_the_linear_it_wraps():
    model = BERT.build()
    name = "bert.encoder.layer.0.attention.self.query"
    linear: Any = model.get_submodule(name)
    install(model, "around", site_named(model, name), lora(site_named(model, name)))
    wrapped: Any = model.get_submodule(name)
    assert type(wrapped) is AroundModule
    assert isinstance(wrapped, nn.Linear)
    assert (wrapped.in_features, wrapped.out_features) == (linear.in_features, linear.out_features)
    assert wrapped.weight is linear.weight
    assert wrapped.bias is linear.bias
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = wrapped.nonsense


def test_a_module_that_is_reached_by_several_names_is_adapted_under_all_of_them():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.again = self.first

        def forward(self, x: Tensor) -> Tensor:
            return self.again(self.first(x))

    model = Twice().double()
    linear, x = model.first, torch.randn(2, 4, dtype=torch.float64)
    site = site_named(model, "first")
    adapter = lora(site)
    undo = install(model, "around", site, adapter)
    assert model.first is model.again
    W = adapter.merged(linear.weight)
    once = nn.functional.linear(x, W, linear.bias)
    torch.testing.assert_close(model(x), nn.functional.linear(once, W, linear.bias))
    undo()
    assert model.first is linear
    assert model.again is linear


def encoder() -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2).double().eval()


def in_layer(name: str, shape: tuple[int, int]) -> Site:
    return Site(name=f"layers.0.{name}", kind="linear", shape=shape, bias=True, dtype="float64")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", ["linear1", "self_attn.out_proj"])
def test_torchs_fused_encoder_does_not_read_past_an_edit(name: str):
    model, x = encoder(), torch.randn(2, 5, 16, dtype=torch.float64)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    traced, base = traces(model), model(x, src_key_padding_mask=mask)
    site = in_layer(name, (24, 16) if name == "linear1" else (16, 16))
    adapter = lora(site)
    undo = install(model, "around", site, adapter)
    with torch.no_grad():
        fused = model(x, src_key_padding_mask=mask)
    merged = encoder()
    linear: Any = merged.get_submodule(site.name)
    linear.weight.data = adapter.merged(linear.weight.data)
    expected = merged.train()(x, src_key_padding_mask=mask)
    seen = ~mask
    torch.testing.assert_close(fused[seen], expected[seen], rtol=1e-10, atol=1e-10)
    assert (fused - base)[seen].abs().max() > 0.05
    model.train()(x).sum().backward()
    assert adapter.A.grad is not None
    model.eval()
    undo()
    model.zero_grad()
    assert traces(model) == traced


def test_dropout_has_no_place_where_a_weight_is_read_without_a_call():
    site = in_layer("self_attn.out_proj", (16, 16))
    with pytest.raises(TargetError, match="dropout 0"):
        install(encoder(), "around", site, lora(site, dropout=0.1))
    with pytest.raises(TargetError, match="reads this module without calling it"):
        install(encoder(), "after", site, nn.Identity())


@pytest.mark.parametrize("base", [VIT], ids=str)
def test_soft_tokens_are_refused_by_name_where_they_are_not_known(base: Base):
    model = base.build()
    site = next(s for s in sites(model) if s.kind in ("tokens", "linear"))
    with pytest.raises(TargetError, match=r"the decoder family, .*, BERT and T5's encoder"):
        install(model, "tokens_before", site, nn.Identity())


@pytest.mark.parametrize("method", [LoRA(r=3), Prefix(), Prompt(), Biases()], ids=lambda m: m.kind)
def test_a_second_edit_of_the_same_kind_in_the_same_place_is_an_error(method: Method):
    model = LLAMA.build()
    edit = method.edits(sites(model))[0]
    install(model, edit.place, edit.site, built(model, edit))
    with pytest.raises(TargetError, match="already"):
        install(
            model,
            edit.place,
            edit.site,
            edit.build(
                Start(torch.Generator(), torch.device("cpu"), torch.float64, parameter=torch.zeros(edit.site.shape))
            ),
        )


def test_prefixes_of_several_lengths_are_an_error():
    model = LLAMA.build()
    first, second = Prefix(length=2).edits(sites(model))[0], Prefix(length=3).edits(sites(model))[1]
    install(model, "keys_values_before", first.site, built(model, first))
    with pytest.raises(TargetError, match="a prefix of 3 where other layers have 2"):
        install(model, "keys_values_before", second.site, built(model, second))


def test_a_place_that_does_not_exist_names_the_nearest():
    site = Site(name="model.layers.0.self_attn.q_prj", kind="linear", shape=(32, 32))
    with pytest.raises(TargetError, match=r"did you mean 'model\.layers\.0.self_attn.q_proj'"):
        install(LLAMA.build(), "around", site, lora(site))
