"""Instead: the copy is what everybody reads, in the base's own type, and what is trained, in float32 or better."""

from typing import Any

import pytest
import torch
from test_contract_installation import built
from torch import nn

from lorica.adapter import attach
from lorica.errors import TargetError
from lorica.methods import Full
from lorica.methods.contract import Copy, Instead
from lorica.methods.lora import LoRA
from lorica.models import install, parameter_of, sites
from lorica.models.causal_lm import CausalLM
from lorica.models.layout import Layout
from lorica.site import Site
from tiny_bases import LLAMA, T5, filled, llama, stir
from traces import traces


def tied(dtype: torch.dtype = torch.float64) -> CausalLM:
    model: Any = llama()
    config = model.config
    config.tie_word_embeddings = True
    return filled(CausalLM(config)).to(dtype).eval().requires_grad_(False)  # type: ignore[return-value]


def parameter(model: nn.Module, name: str) -> Site:
    return next(site for site in sites(model) if site.kind == "parameter" and site.name == name)


def test_a_tied_copy_is_read_by_both_and_gets_the_gradient_of_both():
    model = tied()
    edit = Instead(parameter(model, "model.embed_tokens.weight"), Copy)
    copy: Any = built(model, edit)
    install(model, edit.place, edit.site, copy)
    assert model.lm_head.weight is copy.value
    assert model.model.embed_tokens.weight is copy.value
    LLAMA.loss(model).backward()
    plain = tied()
    plain.lm_head.weight.requires_grad_(True)
    LLAMA.loss(plain).backward()
    torch.testing.assert_close(copy.value.grad, plain.lm_head.weight.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_base_is_trained_in_float32_and_computes_in_its_own_type(dtype: torch.dtype):
    model = tied(dtype)
    before, hidden = traces(model), model.hidden(torch.arange(3, 9), Layout.of([6]))
    attached = attach(model, Full())
    assert {p.dtype for p in attached.parameters()} == {torch.float32}
    with torch.no_grad():
        assert torch.equal(model.hidden(torch.arange(3, 9), Layout.of([6])), hidden)
    assert model.model.norm.weight.dtype == dtype
    assert model.lm_head.weight.dtype == dtype
    model(torch.arange(3, 9)[None]).logits.float().square().sum().backward()
    assert not [name for name, p in attached.named_parameters() if p.grad is None or p.grad.dtype != torch.float32]
    tiny = next(p for name, p in attached.named_parameters() if name.endswith("norm.weight"))
    with torch.no_grad():
        tiny.add_(1e-4 * torch.finfo(dtype).eps)
    assert torch.equal(model.model.norm.weight, model.model.norm.weight.to(dtype))
    attached.detach()
    model.requires_grad_(False)
    assert traces(model) == before


def test_a_family_that_reads_the_type_of_a_weight_reads_the_bases():
    model: Any = T5.build(torch.bfloat16)
    attached = attach(model, Full())
    assert model.encoder.block[0].layer[1].DenseReluDense.wo.weight.dtype == torch.bfloat16
    T5.output(model).float().sum().backward()
    assert all(p.grad is not None for p in attached.parameters())


def test_the_original_moves_with_the_model():
    model = tied()
    weight = model.model.norm.weight
    attached = attach(model, Full())
    model.to(torch.float32)
    attached.detach()
    assert model.model.norm.weight is weight
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_parameter_of_and_sites_see_the_base_under_its_copies():
    model = LLAMA.build()
    before = sites(model)
    norm = model.model.norm.weight  # type: ignore[union-attr]
    attach(model, Full())
    assert sites(model) == before
    assert parameter_of(model, parameter(model, "model.norm.weight")) is not norm


def test_a_weight_that_is_replaced_and_adapted_at_once_is_an_error():
    model = tied()
    adapted = LoRA(r=3, target_modules=("q_proj",)).edits(sites(model))[0]
    weight = Instead(parameter(model, adapted.site.name + ".weight"), Copy)
    undo = install(model, adapted.place, adapted.site, built(model, adapted))
    with pytest.raises(TargetError, match="already"):
        install(model, weight.place, weight.site, built(model, weight))
    undo()
    install(model, weight.place, weight.site, built(model, weight))
    with pytest.raises(TargetError, match="already"):
        install(model, adapted.place, adapted.site, built(model, adapted))


def test_a_bias_may_be_replaced_where_its_weight_is_adapted():
    model = LLAMA.build()
    attached = attach(model, LoRA(r=3, alpha=8, bias="lora_only", target_modules=("q_proj",)))
    stir(attached.named_parameters())
    LLAMA.loss(model).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in attached.parameters())


def test_a_copy_of_another_shape_is_an_error():
    model = tied()
    with pytest.raises(TargetError, match=r"the copy is \(2,\), the parameter \(32,\)"):
        install(model, "instead", parameter(model, "model.norm.weight"), Fixed())


class Fixed(nn.Module):
    def forward(self) -> torch.Tensor:
        return torch.zeros(2)
