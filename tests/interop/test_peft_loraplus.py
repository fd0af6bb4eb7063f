"""PEFT's LoRA+ optimiser and ours put each tensor into a group of the same rate and decay."""

import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from transformers import LlamaConfig, LlamaForCausalLM

from lorica.adapter import attach


def base():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=61, attention_bias=True, mlp_bias=True, tie_word_embeddings=False, **sizes)
    )


def test_rates_and_decay_agree_tensor_by_tensor():
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "up_proj", "embed_tokens"], bias="all")
    theirs = get_peft_model(base(), config)
    optimizer = create_loraplus_optimizer(
        theirs, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16.0, loraplus_weight_decay=0.01
    )
    names = {id(parameter): name.replace(".default", "") for name, parameter in theirs.named_parameters()}
    expected = {
        names[id(p)]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]
    }
    attached = attach(base(), config)
    keys = {id(parameter): key for key, parameter in attached.named_parameters()}
    groups = attached.parameter_groups(1e-3, lora_plus_ratio=16.0, weight_decay=0.01)
    found = {keys[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert found.keys() == expected.keys()
    assert {key for key in found if found[key] != expected[key]} == set()
    assert len({rate for rate, _ in found.values()}) == 3
