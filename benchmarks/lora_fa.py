"""Bytes that a training pass keeps for the gradient: LoRA, and LoRA-FA whose A is frozen.

    python benchmarks/lora_fa.py [result.json]

Four blocks of SmolLM2-135M's widths (576, 192 for keys and values, 1536) with weights at random, adapters of rank 8 on
every linear, packed documents of 512 tokens in bfloat16.  Every tensor that autograd saves is counted once by its
storage; what the base, the adapter and the layout hold anyway is not counted.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from machine import machine
from torch import Tensor, nn
from transformers import LlamaConfig

from lorica.adapter import attach, plan
from lorica.kernels import Noise
from lorica.methods import LoRA, LoRAFA, Method
from lorica.models import ambient
from lorica.models.causal_lm import CausalLM

BLOCKS, TOKENS, R = 4, 512, 8
CASES: dict[str, Method | None] = {
    "base": None,
    "lora": LoRA(r=R),
    "lora, dropout": LoRA(r=R, dropout=0.1),
    "lora-fa": LoRAFA(r=R),
    "lora-fa, dropout": LoRAFA(r=R, dropout=0.1),
    "lora-fa, corrected": LoRAFA(r=R, corrected=True),
}


def base() -> CausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=BLOCKS,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    return CausalLM(config).bfloat16().eval().requires_grad_(False)


def kept(model: nn.Module) -> int:
    """Bytes that the backward pass waits for, the gradient going on to the embeddings as if blocks were below."""
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, y: y.requires_grad_(True))  # type: ignore[operator]
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    seen: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        seen.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    ids = torch.randint(0, 512, (1, TOKENS), generator=torch.Generator().manual_seed(1))
    chosen = ambient.Pass(noise=Noise(0, 1, torch.zeros(1, dtype=torch.int64)))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), ambient.entered(chosen):
        model(input_ids=ids)
    a_token = (tensor for pointer, tensor in seen.items() if pointer not in own and _is_of_tokens(tensor))
    return sum(tensor.untyped_storage().nbytes() for tensor in a_token)


def _is_of_tokens(tensor: Tensor) -> bool:
    """Factors that were cast to the base's type are kept too, however many tokens there are."""
    return TOKENS in tensor.shape and tensor.is_floating_point()


def measured() -> dict[str, Any]:
    sites = len(plan(base(), LoRA(r=R)).edits)
    held: dict[str, int] = {}
    for name, method in CASES.items():
        model = base()
        if method is not None:
            attach(model, method).train()
        held[name] = kept(model)
    rows = {
        name: {
            "bytes_per_token": round(size / TOKENS, 1),
            "bytes_per_token_and_site_beyond_the_base": round((size - held["base"]) / TOKENS / sites, 2),
        }
        for name, size in held.items()
    }
    return {"sites": sites, "r": R, "bytes_of_r_numbers": 2 * R, "kept": rows}


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "results" / "lora_fa.json"
    result = {**measured(), "machine": machine()}
    target.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["kept"], indent=2))


if __name__ == "__main__":
    main()
