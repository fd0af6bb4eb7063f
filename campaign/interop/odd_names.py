"""A model of nobody's family, whose modules have the names that PEFT's own keys are made of."""

import torch
from torch import Tensor, nn

ROWS, WIDTH, CLASSES = 61, 32, 7


class OddBlock(nn.Module):
    """Linears called `lora`, `lora_A`, `weight_proj` and `weights_out`, in a chain with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.lora_A = nn.Linear(WIDTH, WIDTH)
        self.lora_norm = nn.LayerNorm(WIDTH)
        self.weight_proj = nn.Linear(WIDTH, WIDTH)
        self.lora = nn.Linear(WIDTH, WIDTH)
        self.weights_out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.lora_A(self.lora_norm(x)))
        y = torch.tanh(self.weight_proj(y))
        return x + self.weights_out(torch.tanh(self.lora(y)))


class OddNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Embedding(ROWS, WIDTH)
        self.lora_layers = nn.ModuleList([OddBlock(), OddBlock()])
        self.weight = nn.Linear(WIDTH, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.weights(ids)
        for block in self.lora_layers:
            x = block(x)
        return self.weight(x)
