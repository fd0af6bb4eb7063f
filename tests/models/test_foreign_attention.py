"""transformers' models in bfloat16 on CPU go through our attention: outputs and gradients are those of torch's."""

import pytest
import torch
from torch import Tensor

from lorica.models import foreign_attention
from tiny_bases import BERT, GPT2, T5, VIT, Base

BASES = {"bert": BERT, "gpt2": GPT2, "t5": T5, "vit": VIT}


def values(base: Base, ours: bool) -> list[Tensor]:
    """Output, and the gradient of every parameter."""
    model = base.build(torch.bfloat16)
    if ours:
        foreign_attention.use(model)
        assert model.config._attn_implementation == foreign_attention.FUNCTION
    model.requires_grad_(True)
    y = base.output(model)
    y.float().square().sum().backward()
    grads = (parameter.grad for parameter in model.parameters() if parameter.grad is not None)
    return [y.detach().float(), *(grad.float() for grad in grads)]


def distance(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Of all numbers together, relative to their length."""
    found, wanted = (torch.cat([part.flatten() for part in parts]) for parts in (found, wanted))
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("name", BASES)
def test_a_family_computes_what_it_computed_before(name: str) -> None:
    """Two blocks of some ten roundings each, in a random walk, forward and backward."""
    allowed = 2 * (2 * 10) ** 0.5 * torch.finfo(torch.bfloat16).eps
    assert distance(values(BASES[name], True), values(BASES[name], False)) <= allowed


def test_a_mask_that_is_forgotten_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = foreign_attention.masked_attention
    monkeypatch.setattr(foreign_attention, "masked_attention", lambda q, k, v, mask, scale: right(q, k, v, None, scale))
    allowed = 2 * (2 * 10) ** 0.5 * torch.finfo(torch.bfloat16).eps
    assert distance(values(GPT2, True), values(GPT2, False)) > allowed


def test_a_base_in_another_type_keeps_its_own() -> None:
    model = BERT.build(torch.float32)
    foreign_attention.use(model)
    assert model.config._attn_implementation == foreign_attention.INSTEAD_OF


def test_a_base_that_chooses_its_keys_keeps_its_own() -> None:
    """DeepSeek-V3.2 heeds its choice under the names eager and sdpa alone."""
    model = BERT.build(torch.bfloat16)
    model.bert.encoder.layer[0].attention.indexer = None
    foreign_attention.use(model)
    assert model.config._attn_implementation == foreign_attention.INSTEAD_OF
