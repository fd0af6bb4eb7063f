"""Small bases whose layers are not all linears: convolutions, torch's own attention, experts, and a UNet.

As in `tiny_bases`: noise in every weight, double precision unless asked otherwise.  What is not a model of transformers
has its blocks from there all the same, so that gradient checkpointing reaches them.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from lorica.models.decoder import RMSNorm
from tiny_bases import BATCH, VOCABULARY, Base, _logits, _text

WIDTH, TIME, CONTEXT = 8, 12, 10


def _random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Convolutions(GradientCheckpointingLayer):
    """(B, 2, 4, 6, 6) -> (B, 6, 6): strides, groups, dilation, an uneven "same", every padding mode, depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.volume = nn.Conv3d(2, 4, (3, 3, 2), stride=(2, 1, 1), padding=(1, 2, 0), padding_mode="replicate")
        self.image = nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=2, padding_mode="circular")
        self.strided = nn.Conv2d(8, 6, (2, 1), stride=(2, 1), padding="valid", bias=False)
        self.signal = nn.Conv1d(6, 6, 4, padding="same", padding_mode="reflect")
        self.depthwise = nn.Conv1d(6, 6, 3, padding=1, groups=6)
        self.norms = nn.ModuleList(nn.GroupNorm(1, channels) for channels in (4, 8, 6, 6))

    def forward(self, x: Tensor) -> Tensor:
        volume, image, strided, signal = self.norms
        x = torch.tanh(volume(self.volume(x))).mean(2)
        x = torch.tanh(image(self.image(x)))
        x = torch.tanh(strided(self.strided(x))).mean(2)
        return self.depthwise(torch.tanh(signal(self.signal(x))))


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = Convolutions()
        self.out = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.features(x).mean(-1))


class Attentions(GradientCheckpointingLayer):
    """Self-attention with one matrix for queries, keys and values, and attention to a context of other widths."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.cross = nn.MultiheadAttention(WIDTH, 2, batch_first=True, kdim=CONTEXT, vdim=6, bias=False)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.cross(x, context, context[..., :6], need_weights=False)[0]


class TorchAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attentions() for _ in range(2))
        self.out = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, context)
        return self.out(x)


class Resnet(GradientCheckpointingLayer):
    """The parts of diffusers' ResnetBlock2D, by its names."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(2, before), nn.Conv2d(before, after, 3, padding=1)
        self.time_emb_proj = nn.Linear(TIME, after)
        self.norm2, self.conv2 = nn.GroupNorm(2, after), nn.Conv2d(after, after, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        silu = nn.functional.silu
        y = self.conv1(silu(self.norm1(x))) + self.time_emb_proj(silu(time))[:, :, None, None]
        return self.conv_shortcut(x) + self.conv2(silu(self.norm2(y)))


class DiffusersAttention(nn.Module):
    def __init__(self, context: int) -> None:
        super().__init__()
        self.heads = 2
        self.to_q = nn.Linear(WIDTH, WIDTH, bias=False)
        self.to_k, self.to_v = (nn.Linear(context, WIDTH, bias=False) for _ in range(2))
        self.to_out = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Identity()])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for y in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
        return self.to_out[1](self.to_out[0](y))


class GatedUnit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        hidden, gate = self.proj(x).chunk(2, dim=-1)
        return hidden * nn.functional.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.ModuleList([GatedUnit(), nn.Identity(), nn.Linear(WIDTH, WIDTH)])

    def forward(self, x: Tensor) -> Tensor:
        for part in self.net:
            x = part(x)
        return x


class TransformerBlock(GradientCheckpointingLayer):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn1 = nn.LayerNorm(WIDTH), DiffusersAttention(WIDTH)
        self.norm2, self.attn2 = nn.LayerNorm(WIDTH), DiffusersAttention(CONTEXT)
        self.norm3, self.ff = nn.LayerNorm(WIDTH), FeedForward()

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attn1(y, y)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer2D(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.proj_in = nn.GroupNorm(2, WIDTH), nn.Conv2d(WIDTH, WIDTH, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock()])
        self.proj_out = nn.Conv2d(WIDTH, WIDTH, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        y = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            y = block(y, context)
        return x + self.proj_out(y.transpose(1, 2).unflatten(-1, x.shape[2:]))


class CrossAttnBlock(nn.Module):
    def __init__(self, before: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([Resnet(before, WIDTH)])
        self.attentions = nn.ModuleList([Transformer2D()])

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        return self.attentions[0](self.resnets[0](x, time), context)


class UNet(nn.Module):
    """One step down, one up, with the skip that makes it a U."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(2, 4, 3, padding=1)
        self.time_embedding = nn.ModuleDict({"linear_1": nn.Linear(4, TIME), "linear_2": nn.Linear(TIME, TIME)})
        self.down_blocks = nn.ModuleList([CrossAttnBlock(4)])
        self.downsample = nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1)
        self.mid_block = CrossAttnBlock(WIDTH)
        self.up_blocks = nn.ModuleList([CrossAttnBlock(2 * WIDTH)])
        self.conv_norm_out, self.conv_out = nn.GroupNorm(2, WIDTH), nn.Conv2d(WIDTH, 2, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        first, second = self.time_embedding.values()
        angles = timestep[:, None] * timestep.new_tensor([1.0, 0.1])
        time = second(nn.functional.silu(first(torch.cat([angles.cos(), angles.sin()], -1))))
        down = self.down_blocks[0](self.conv_in(sample), time, encoder_hidden_states)
        middle = self.mid_block(self.downsample(down), time, encoder_hidden_states)
        up = nn.functional.interpolate(middle, scale_factor=2, mode="nearest")
        x = self.up_blocks[0](torch.cat([up, down], 1), time, encoder_hidden_states)
        return self.conv_out(nn.functional.silu(self.conv_norm_out(x)))


class WideRouter(nn.Module):
    """Qwen3's router in the type of its input, and the same weight."""

    def __init__(self, router: Any) -> None:
        super().__init__()
        self.weight, self.top_k = router.weight, router.top_k

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores = x.flatten(0, -2) @ self.weight.T
        top, experts = scores.softmax(-1).topk(self.top_k, dim=-1)
        return scores, top, experts


def _wide(model: nn.Module) -> nn.Module:
    """Norms and routers that take no step in float32, which would hide errors of 1e-6."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child).__name__.endswith("RMSNorm"):
                setattr(parent, name, RMSNorm(child.weight.numel(), child.variance_epsilon))  # type: ignore
            elif type(child).__name__ == "Qwen3MoeTopKRouter":
                setattr(parent, name, WideRouter(child))
    return model


def _moe(attention: str, **more: Any) -> dict[str, Any]:
    """Eager, because the grouped product knows no double precision."""
    shape = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, **more}
    return {
        **shape,
        "vocab_size": VOCABULARY,
        "num_hidden_layers": 2,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 64,
        "experts_implementation": "eager",
        "attn_implementation": attention,
    }


def qwen3_moe() -> nn.Module:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    shape = {"num_experts": 4, "moe_intermediate_size": 12, "intermediate_size": 20, "norm_topk_prob": False}
    return _wide(Qwen3MoeForCausalLM(Qwen3MoeConfig(**_moe("sdpa", **shape))))


def gpt_oss() -> nn.Module:
    """Its experts are stored as (E, d_in, d_out), with biases, gate and up interleaved."""
    from transformers import GptOssConfig, GptOssForCausalLM

    rope = {"rope_type": "default", "rope_theta": 10000.0}
    shape = {"num_local_experts": 3, "intermediate_size": 12, "rope_parameters": rope}
    return _wide(GptOssForCausalLM(GptOssConfig(**_moe("eager", **shape))))


def _itself(output: Tensor) -> Tensor:
    return output


CONVNET = Base("convnet", ConvNet, lambda: {"x": _random(BATCH, 2, 4, 6, 6)}, _itself)
ATTENTION = Base(
    "attention",
    TorchAttention,
    lambda: {"x": _random(BATCH, 5, WIDTH), "context": _random(BATCH, 4, CONTEXT, seed=2)},
    _itself,
)
UNET = Base(
    "unet",
    UNet,
    lambda: {
        "sample": _random(BATCH, 2, 4, 4),
        "timestep": _random(BATCH, seed=3),
        "encoder_hidden_states": _random(BATCH, 3, CONTEXT, seed=2),
    },
    _itself,
)
MOE = Base("moe", qwen3_moe, _text, _logits)
GPT_OSS = Base("gpt-oss", gpt_oss, _text, _logits)
