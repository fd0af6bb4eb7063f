"""PiSSA on a quantised base: the residual as a base of its own, the principal part as the adapter on it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

import lorica
from lorica.errors import AdapterError, RequestError, TargetError
from lorica.models import weight_of
from lorica.models.quantised import unpacked
from oracles import nf4, starts

IDS = torch.tensor([[5, 9, 3, 22, 41, 7], [8, 8, 30, 2, 50, 60]])
PISSA = lorica.LoRA(r=4, alpha=12, init="pissa")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Weights whose singular values fall, as those of trained ones do."""
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=61, tie_word_embeddings=False, **shape))
    for module in model.model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            U, S, Vt = torch.linalg.svd(module.weight.data, full_matrices=False)
            module.weight.data = U * (S[0] / torch.arange(1, len(S) + 1)) @ Vt
    place = tmp_path_factory.mktemp("bases") / "llama"
    model.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory) -> Any:
    return lorica.residual(folder, PISSA, tmp_path_factory.mktemp("qpissa"))


def in_four_bits(W: torch.Tensor) -> torch.Tensor:
    codes, scales = nf4.quantised(W.float().flatten().numpy().astype(np.float32))
    return torch.from_numpy(nf4.dequantised(codes, scales, W.numel())).view_as(W)


def test_the_start_is_the_papers(folder: Path, made: Any):
    """q(W - s B A) + s B A with the principal B A, and less of W is lost, in the paper's nuclear norm, than by q(W)."""
    dense: Any = lorica.load_base(folder)
    attached = lorica.load(lorica.load_base(made.base, **made.load), made.adapter)
    assert len(attached.plan.edits) == 14
    squares = {"lost": 0.0, "plain": 0.0, "whole": 0.0}
    with torch.no_grad():
        for number, planned in enumerate(attached.plan.edits):
            W, module = dense.get_submodule(planned.site.name).weight, attached.modules[planned.key]
            A, B = starts.pissa(W.double(), 4, module.scale)
            assert (module.B @ module.A - B @ A).abs().max() < 1e-5 * (B @ A).abs().max()
            Q = weight_of(attached.model, planned.site).dense()
            if number < 2:
                assert torch.equal(Q, in_four_bits(torch.addmm(W, module.B, module.A, alpha=-module.scale)))
            lost, plain = W - module.merged(Q), W - lorica.kernels.quantised.quantised(W, "nf4", False).dense()
            assert torch.linalg.matrix_norm(lost, "nuc") < 0.9 * torch.linalg.matrix_norm(plain, "nuc")
            for name, each in (("lost", lost), ("plain", plain), ("whole", W)):
                squares[name] += float(each.square().sum())
    assert made.error == pytest.approx((squares["lost"] / squares["whole"]) ** 0.5, rel=1e-5)
    assert made.plain_error == pytest.approx((squares["plain"] / squares["whole"]) ** 0.5, rel=1e-5)


def test_both_together_are_the_base_until_the_residual_is_quantised(folder: Path, made: Any):
    base = lorica.load_base(folder)
    with torch.no_grad():
        expected, residual = base(IDS).logits, lorica.load_base(made.base)
        bare = residual(IDS).logits
        found = lorica.load(residual, made.adapter)(IDS).logits
    assert (bare - expected).abs().max() > 0.1 * expected.abs().max()
    # one rounding of each weight, through fourteen layers
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_the_adapter_belongs_to_the_residual_alone_and_verifies_on_it(folder: Path, made: Any):
    assert lorica.verify(made.adapter, model=made.base).ok
    with pytest.raises(AdapterError, match="fingerprint"):
        lorica.load(lorica.load_base(folder, **made.load), made.adapter)


def test_peft_reads_both_with_bitsandbytes(made: Any):
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    ours = lorica.load(lorica.load_base(made.base, **made.load), made.adapter)
    base = AutoModelForCausalLM.from_pretrained(made.base, quantization_config=four, dtype=torch.float32)
    unpacked(base)
    with torch.no_grad():
        found, expected = PeftModel.from_pretrained(base, made.adapter).eval()(IDS).logits, ours(IDS).logits
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_it_merges_into_either(made: Any, tmp_path: Path):
    usual = lorica.merge(made.adapter, tmp_path / "usual", model=made.base)
    original = lorica.merge(made.adapter, tmp_path / "original", model=made.base, onto="original")
    assert usual.outputs is not None
    assert original.outputs is not None
    assert usual.outputs.within_rounding
    assert usual.outputs.deviation < original.outputs.deviation


def test_what_has_no_principal_part_to_take_is_refused(folder: Path, tmp_path: Path):
    with pytest.raises(RequestError, match="init='pissa'"):
        lorica.residual(folder, lorica.LoRA(r=4), tmp_path)
    for more in ({"target_modules": ("q_proj", "lm_head")}, {"modules_to_save": ("lm_head",)}):
        with pytest.raises(TargetError, match=r"lm_head.* is not quantised"):
            lorica.residual(folder, PISSA.model_copy(update=more), tmp_path)
    assert not list(tmp_path.iterdir())
