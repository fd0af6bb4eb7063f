"""Bottlenecks, virtual tokens, norms and biases compute what their papers say, term by term."""

from typing import Any

import pytest
import torch
from bottleneck_adapter import bottleneck
from norms import layer_norm, linear, rms_norm
from torch import Tensor, nn
from virtual_tokens import lstm_prompt, mlp_prompt, prefix

from lorica.adapter import attach
from lorica.methods import BitFit, Bottleneck, Norm, Prefix, Prompt, PTuning
from lorica.methods.bottleneck import BottleneckModule
from lorica.methods.contract import Start
from lorica.methods.p_tuning import LSTMVectors, MLPVectors
from lorica.models.ambient import Pass
from lorica.site import Site
from tiny_bases import BERT, LLAMA, VOCABULARY, stir

CLOSE = {"rtol": 0.0, "atol": 1e-13}
"""Sums of at most 64 terms of size one, each rounded at 1e-16."""


def start(**given: Any) -> Start:
    return Start(torch.Generator().manual_seed(0), torch.device("cpu"), torch.float64, **given)


def noisy(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


def lists(*tensors: Tensor) -> list[Any]:
    return [tensor.tolist() for tensor in tensors]


def same(got: Tensor, expected: Any) -> None:
    torch.testing.assert_close(got.detach(), torch.tensor(expected, dtype=torch.float64), **CLOSE)


@pytest.mark.parametrize("name", ["relu", "gelu", "swish", "tanh"])
def test_a_bottleneck_is_figure_2(name: Any):
    site = Site(name="o", kind="sublayer", roles=("mlp",), shape=(6,))
    module: Any = noisy(BottleneckModule(Bottleneck(size=3, nonlinearity=name), site, start()))
    h = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    parts = lists(module.down, module.down_bias, module.up, module.up_bias)
    same(module(h, Pass()), [bottleneck(token, *parts, name) for token in h.tolist()])


@pytest.mark.parametrize(("placement", "name"), [("houlsby", "swish"), ("pfeiffer", "relu")])
def test_each_placement_has_adapterhubs_nonlinearity(placement: Any, name: str):
    x = torch.linspace(-3, 3, 50)
    given, expected = (Bottleneck(placement=placement, nonlinearity=f).activation() for f in (None, name))
    assert torch.equal(given(x), expected(x))


def test_a_prefix_is_the_mlp_of_section_4_3():
    attached = attach(LLAMA.build(), Prefix(length=4, hidden=6))
    stir(attached.named_parameters())
    first, second = (attached.modules[planned.key] for planned in attached.plan.edits)
    encoder: Any = first.encoder
    for module in (first, second):
        keys, values = module()
        parts = lists(encoder.embedding, encoder.inner, encoder.inner_bias, module.out, module.out_bias)
        same(torch.stack([keys, values], 1).flatten(1), prefix(*parts))


def test_p_tuning_through_the_mlp():
    module: Any = noisy(MLPVectors(PTuning(length=4, hidden=5), 6, start()))
    layers = [(module.first, module.first_bias), (module.second, module.second_bias), (module.third, module.third_bias)]
    same(module(), mlp_prompt(module.embedding.tolist(), [lists(*pair) for pair in layers]))


def test_p_tuning_through_the_lstm():
    module: Any = noisy(LSTMVectors(PTuning(length=4, hidden=3, encoder="lstm"), 6, start()))
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    directions = [
        [lists(*(getattr(module.lstm, f"{name}_l{layer}{way}") for name in names)) for way in ("", "_reverse")]
        for layer in range(2)
    ]
    head = [lists(module.first, module.first_bias), lists(module.second, module.second_bias)]
    same(module(), lstm_prompt(module.embedding.tolist(), directions, head))


def test_a_prompt_begins_as_the_rows_of_its_text_repeated_to_its_length():
    model: Any = LLAMA.build()
    table = model.model.embed_tokens.weight
    attached = attach(model, Prompt(length=5, init_tokens=(7, 31)))
    assert torch.equal(next(attached.parameters()), table[[7, 31, 7, 31, 7]])
    attached.detach()
    drawn = next(attach(model, Prompt(length=5)).parameters())
    assert all((table == row).all(1).any() for row in drawn), "every vector is a row of the vocabulary"
    assert len({int((table == row).all(1).nonzero()[0]) for row in drawn}) > 1
    assert len(table) == VOCABULARY


def test_a_random_prompt_is_uniform_up_to_one_half():
    drawn = next(attach(LLAMA.build(), Prompt(length=60, init="random")).parameters())
    assert drawn.abs().max() <= 0.5
    assert abs(drawn.std() - 12**-0.5) < 0.01


@pytest.mark.parametrize("base", [LLAMA, BERT], ids=str)
def test_a_tuned_norm_is_the_norm_with_its_own_gain_and_bias(base: Any):
    model: Any = base.build()
    attached = attach(model, Norm())
    stir(attached.named_parameters())
    x = torch.randn(32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    if base is LLAMA:
        norm = model.model.layers[1].input_layernorm
        gain = attached.state()["base_model.model.model.layers.1.input_layernorm.ln_tuning_layers.weight"]
        same(norm(x), rms_norm(x.tolist(), gain.tolist(), norm.eps))
    else:
        norm = model.bert.encoder.layer[1].output.LayerNorm
        key = "base_model.model.bert.encoder.layer.1.output.LayerNorm.ln_tuning_layers"
        gain, bias = (attached.state()[f"{key}.{leaf}"] for leaf in ("weight", "bias"))
        same(norm(x), layer_norm(x.tolist(), gain.tolist(), bias.tolist(), norm.eps))


def test_bitfit_adds_its_own_bias_to_the_base_s_product():
    model: Any = LLAMA.build()
    attached = attach(model, BitFit())
    stir(attached.named_parameters())
    x = torch.randn(32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    linear_ = model.model.layers[1].self_attn.q_proj
    bias = attached.state()["model.layers.1.self_attn.q_proj.bias"]
    same(linear_(x), linear(x.tolist(), linear_.weight.tolist(), bias.tolist()))
