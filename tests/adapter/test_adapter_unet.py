"""LoRA on a UNet named as diffusers names it learns to take noise away, by a loop of one's own, and is loaded again."""

from pathlib import Path

import torch
from torch import Tensor

import lorica
from tiny_layers import CONTEXT, UNET

RECIPE = lorica.LoRA(r=4, alpha=8, target_modules=["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2"])


def noised(count: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Noise on one of two pictures, which the context names -> the noise (count, 2, 4, 4)."""
    draw = torch.Generator().manual_seed(seed)
    pictures = 2 * torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    contexts = torch.randn(2, 3, CONTEXT, generator=torch.Generator().manual_seed(1))
    which = torch.randint(2, (count,), generator=draw)
    noise = torch.randn(count, 2, 4, 4, generator=draw)
    inputs = {
        "sample": pictures[which] + noise,
        "timestep": torch.ones(count),
        "encoder_hidden_states": contexts[which],
    }
    return inputs, noise


def error(model, rows: tuple[dict[str, Tensor], Tensor]) -> Tensor:
    inputs, noise = rows
    return torch.nn.functional.mse_loss(model(**inputs), noise)


def learned(method: lorica.Method, folder: Path) -> float:
    """The error on noise that was never seen, with the adapter as it was loaded again."""
    attached = lorica.attach(UNET.build(torch.float32), method, seed=0)
    optimizer = torch.optim.AdamW(attached.parameters(), lr=2e-2, weight_decay=0.0)
    attached.train()
    for step in range(120):
        loss = error(attached, noised(16, seed=step + 10))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    attached.eval().save(folder)
    again = lorica.load(UNET.build(torch.float32), folder)
    with torch.no_grad():
        return error(again, noised(256, seed=2)).item()


def test_lora_on_linears_and_convolutions_beats_no_answer_and_the_last_layer_alone(tmp_path: Path):
    """No answer, zero, has the error 1, the variance of the noise."""
    lora = learned(RECIPE, tmp_path / "lora")
    head = learned(lorica.METHODS["head"](modules_to_save=("conv_out",)), tmp_path / "head")
    assert lora < 0.7 * head
    assert lora < 0.5
