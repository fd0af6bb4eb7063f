"""LoftQ beside PEFT: the same decomposition, and a file that PEFT reads on the base that bitsandbytes quantised."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.utils.loftq_utils import _low_rank_decomposition
from peft_bases import distance, only_their_own_warnings
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

import lorica
from lorica.methods import LoRA
from lorica.methods.starts import LoftQ
from lorica.models import weight_of
from lorica.models.quantised import unpacked
from tiny_bases import stir

IDS = torch.tensor([[5, 9, 3, 22, 41, 7], [8, 8, 30, 2, 50, 60]])


def four_bit() -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Rows of whole blocks, which bitsandbytes' own kernel for a CPU needs."""
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=61, tie_word_embeddings=False, **shape)).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_it_is_peft_s_decomposition_of_what_is_lost_over_the_scale(folder: Path):
    """`replace_lora_weights_loftq` needs a GPU and leaves the scale out; with alpha = r it is this."""
    dense: Any = lorica.load_base(folder)
    attached = lorica.attach(
        lorica.load_base(folder, quantize="nf4", double_quant=True), LoRA(r=3, alpha=8, init="loftq")
    )
    for planned in attached.plan.edits:
        W, Q = dense.get_submodule(planned.site.name).weight, weight_of(attached.model, planned.site).dense()
        theirs, module = _low_rank_decomposition(W - Q, reduced_rank=3), attached.modules[planned.key]
        found = (module.scale * module.B @ module.A).detach()
        assert distance(found, theirs["L"] @ theirs["R"]) < 1e-5


@pytest.mark.parametrize("method", [LoRA, lorica.DoRA])
def test_peft_reads_it_on_the_base_that_bitsandbytes_quantised(folder: Path, tmp_path: Path, method: Any):
    """As a plain adapter of the same rank: nothing about the base has changed."""
    ours = lorica.load_base(folder, quantize="nf4", double_quant=True)
    with torch.no_grad():
        bare = ours(IDS).logits
        attached = lorica.attach(ours, method(r=3, alpha=8, init="loftq"))
        start = attached(IDS).logits
        stir(attached.named_parameters(), 0.05)
        expected = attached(IDS).logits
    attached.save(tmp_path / "adapter")
    assert distance(expected, start) > 0.01
    with only_their_own_warnings(), torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(folder, quantization_config=four_bit(), dtype=torch.float32)
        unpacked(base)
        model = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        found = model(IDS).logits
    assert model.peft_config["default"].r == 3
    assert distance(start, bare) > 1e-3
    # both sum some forty products of 64 numbers in another order
    assert distance(found, expected) < 1e-4


def test_a_config_of_peft_names_it():
    given = {"init_lora_weights": "loftq", "target_modules": ["q_proj"]}
    assert LoRA.from_peft(given).init == LoftQ()
    assert LoRA.from_peft({**given, "loftq_config": {"loftq_bits": 4}}).init == LoftQ()
    with pytest.raises(lorica.errors.RecipeError, match=r"loftq_config.loftq_iter: 5 has no counterpart"):
        LoRA.from_peft({**given, "loftq_config": {"loftq_iter": 5}})
