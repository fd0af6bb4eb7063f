"""The law of the start rejects a start that is subtracted in another form, and holds under dropout."""

import pytest
import torch

import laws
from lorica.adapter import attach
from lorica.methods import DoRA, LoRA, dora
from lorica.methods.lora import MovedLinear
from lorica.methods.starts import loftq
from tiny_bases import GPT2, LLAMA, NF4_KEPT

PISSA = LoRA(r=3, alpha=8, dropout=0.3, init="pissa")


def test_two_products_beside_each_other_round_at_the_start(monkeypatch):
    """[B, -B0] [A; A0], as PEFT writes it, is zero in mathematics alone."""

    def signed(module: MovedLinear) -> dict[str, torch.Tensor]:
        return {"A": torch.cat([module.A, module.A0]), "B": torch.cat([module.B, -module.B0], dim=1)}

    laws.the_start_is_the_base(LLAMA, PISSA)
    monkeypatch.setattr(MovedLinear, "finished", signed)
    with pytest.raises(AssertionError, match="the start differs"):
        laws.the_start_is_the_base(LLAMA, PISSA)


def test_a_start_that_is_not_subtracted_is_not_the_base(monkeypatch):
    monkeypatch.setattr(MovedLinear, "finished", lambda module: {"A": module.A, "B": module.B})
    with pytest.raises(AssertionError, match="the start differs"):
        laws.the_start_is_the_base(GPT2, PISSA)


def test_the_start_is_the_base_under_dropout_too():
    model = LLAMA.build(torch.float32)
    before = LLAMA.output(model)
    attach(model, PISSA).train()
    assert torch.equal(LLAMA.output(model), before)


def test_training_moves_what_starts_and_not_what_is_subtracted():
    model = LLAMA.build()
    attached = attach(model, PISSA)
    frozen = {key: tensor.clone() for key, tensor in attached.start().items()}
    for parameter in attached.parameters():
        parameter.data.add_(0.1)
    assert frozen
    assert all(torch.equal(tensor, frozen[key]) for key, tensor in attached.start().items())


def test_a_repair_without_the_scale_is_none(monkeypatch):
    """As PEFT's replace_lora_weights_loftq has it, which is right where alpha is r."""
    method = LoRA(r=3, alpha=8, init="loftq")
    laws.the_start_repairs_what_quantising_took(NF4_KEPT, method)
    real = loftq.halves
    monkeypatch.setattr(loftq, "halves", lambda U, S, Vt, scale: real(U, S, Vt, 1.0))
    with pytest.raises(AssertionError, match="beside the least"):
        laws.the_start_repairs_what_quantising_took(NF4_KEPT, method)


def test_a_dora_whose_rows_keep_the_lengths_of_the_base_repairs_less(monkeypatch):
    method = DoRA(r=3, alpha=8, init="loftq", target_modules="minimal")
    laws.the_start_repairs_what_quantising_took(NF4_KEPT, method)
    real = dora.Magnitude
    monkeypatch.setattr(dora, "Magnitude", lambda weight, A, B, scale: real(weight, A, 0 * B, scale))
    with pytest.raises(AssertionError, match="beside the least"):
        laws.the_start_repairs_what_quantising_took(NF4_KEPT, method)
