"""LoRA on a UNet named as diffusers names it learns what another UNet answers, by a loop of one's own."""

from pathlib import Path

import torch
from torch import Tensor, nn

import lorica
from tiny_bases import stir
from tiny_layers import CONTEXT, UNET

NAMES = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "conv_in", "time_emb_proj"]
LORA = lorica.LoRA(r=2, alpha=4, target_modules=NAMES)


def drawn(count: int, seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    sample, context = (torch.randn(count, *shape, generator=draw) for shape in ((2, 4, 4), (3, CONTEXT)))
    return {"sample": sample, "timestep": torch.rand(count, generator=draw), "encoder_hidden_states": context}


def teacher() -> nn.Module:
    """The base with other weights in the layers of `NAMES`."""
    other = lorica.attach(UNET.build(torch.float32), LORA, seed=9)
    stir(other.named_parameters())
    return other.merge()


def error(model: nn.Module | lorica.Attached, other: nn.Module, rows: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        wanted = other(**rows)
    return nn.functional.mse_loss(model(**rows), wanted)


def learned(method: lorica.Method, folder: Path) -> tuple[float, float]:
    """The error on inputs that were never seen, of the base and of the adapter as it was loaded again."""
    other, held = teacher(), drawn(128, seed=2)
    attached = lorica.attach(UNET.build(torch.float32), method, seed=0)
    before = error(attached, other, held).item()
    optimizer = torch.optim.AdamW(attached.parameters(), lr=1e-2, weight_decay=0.0)
    for step in range(100):
        error(attached.train(), other, drawn(16, seed=step + 10)).backward()
        optimizer.step()
        optimizer.zero_grad()
    attached.save(folder)
    again = lorica.load(UNET.build(torch.float32), folder)
    with torch.no_grad():
        return before, error(again, other, held).item()


def test_lora_on_linears_and_convolutions_learns_what_the_last_layer_alone_does_not(tmp_path: Path):
    before, lora = learned(LORA, tmp_path / "lora")
    _, last = learned(lorica.METHODS["head"](modules_to_save=("conv_out",)), tmp_path / "last")
    assert lora < 0.5 * before
    assert lora < 0.75 * last, (before, lora, last)
