"""One decoder forward for the Llama family: Llama 2/3, Mistral, Qwen2, Qwen3, SmolLM2.

    h = embed(tokens);   h += attention(norm(h));   h += mlp(norm(h));   hidden = norm(h);   logits = head(hidden)

Module paths are named as transformers names them.  Input is flat tokens and a Layout; see `layout.py`.

Shapes: T tokens, D width, H heads, K heads of keys and values, E width of a head, P soft or prefix tokens.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lorica.kernels import residual_norm, rms_norm
from lorica.models import attention
from lorica.models.block_rows import BlockRows
from lorica.models.branches import gated, is_watched, linear, project
from lorica.models.config import DecoderConfig
from lorica.models.edited import apply
from lorica.models.layout import Layout
from lorica.models.recompute import Recompute, recomputed
from lorica.models.rope import Rotation, Rotations, rotate
from lorica.models.tiled_linear import TiledLinear


class RMSNorm(nn.Module):
    def __init__(self, d: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


def joined(norm: nn.Module, x: Tensor, added: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x + added, x where nothing is added, and its norm: as one where nobody stands around the norm or watches it."""
    if type(norm) is RMSNorm and not is_watched(norm):
        return residual_norm(x, added, norm.weight, norm.eps)
    x = x if added is None else x + added
    return x, norm(x)


class SelfAttention(nn.Module):
    def __init__(self, c: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer, self.window = c, layer, c.window[layer]
        self.q_proj = TiledLinear(c.d, c.heads * c.d_head, bias=c.qkv_bias)
        self.k_proj = TiledLinear(c.d, c.heads_kv * c.d_head, bias=c.qkv_bias)
        self.v_proj = TiledLinear(c.d, c.heads_kv * c.d_head, bias=c.qkv_bias)
        self.o_proj = TiledLinear(c.heads * c.d_head, c.d, bias=c.o_bias)
        if c.qk_norm:
            self.q_norm, self.k_norm = RMSNorm(c.d_head, c.eps), RMSNorm(c.d_head, c.eps)
        self.prefix: Callable[[Layout], attention.Prefix] | None = None
        """Where a KeysValuesBefore edit is installed: learned keys and values before those of every document."""

    def forward(
        self,
        x_TD: Tensor,
        layout: Layout,
        rotation: Rotation,
        attend: attention.Attention,
        places: Tensor | None = None,
    ) -> Tensor:
        q, k, v = project((self.q_proj, self.k_proj, self.v_proj), x_TD, layout)
        q_THE, k_TKE, v_TKE = (part.unflatten(-1, (-1, self.config.d_head)) for part in (q, k, v))
        if self.config.qk_norm:
            q_THE, k_TKE = self.q_norm(q_THE), self.k_norm(k_TKE)
        q_THE, k_TKE = rotate(rotation, q_THE, k_TKE)
        prefix = None if self.prefix is None else self.prefix(layout)
        out_THE = attend(self.layer, q_THE, k_TKE, v_TKE, self.window, prefix)
        if places is not None:
            out_THE, layout = out_THE[places], layout.at(places)
        return linear(self.o_proj, out_THE.flatten(1), layout)


class MLP(nn.Module):
    def __init__(self, c: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = TiledLinear(c.d, c.d_ff, bias=c.mlp_bias)
        self.up_proj = TiledLinear(c.d, c.d_ff, bias=c.mlp_bias)
        self.down_proj = TiledLinear(c.d_ff, c.d, bias=c.mlp_bias)

    def forward(self, x_TD: Tensor, layout: Layout) -> Tensor:
        return gated(self.gate_proj, self.up_proj, self.down_proj, x_TD, layout)


class Block(nn.Module):
    def __init__(self, c: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(c.d, c.eps)
        self.self_attn = SelfAttention(c, layer)
        self.post_attention_layernorm = RMSNorm(c.d, c.eps)
        self.mlp = MLP(c)

    def forward(
        self,
        x_TD: Tensor,
        layout: Layout,
        rotation: Rotation,
        attend: attention.Attention,
        places: Tensor | None = None,
    ) -> Tensor:
        """places (N,): the tokens whose output is read; the others serve as keys and values alone."""
        x_TD, normed = joined(self.input_layernorm, x_TD)
        attended = self.self_attn(normed, layout, rotation, attend, places)
        if places is not None:
            x_TD, layout = x_TD[places], layout.at(places)
        x_TD, normed = joined(self.post_attention_layernorm, x_TD, attended)
        return x_TD + self.mlp(normed, layout)


class Decoder(nn.Module):
    def __init__(self, c: DecoderConfig) -> None:
        super().__init__()
        self.config = c
        self.embed_tokens = nn.Embedding(c.vocab, c.d)
        self.layers = nn.ModuleList(Block(c, layer) for layer in range(c.layers))
        self.norm = RMSNorm(c.d, c.eps)
        self.rotations = Rotations(c)
        self.soft_tokens: Callable[[Layout], Tensor] | None = None
        """Where a TokensBefore edit is installed: (D, P, d) vectors before the embeddings of every document."""
        self.prefix_length = 0
        """Positions that KeysValuesBefore edits occupy: real tokens are rotated from there on."""
        self.recomputed_layers = 0
        """How many of the first blocks are recomputed in the backward pass instead of kept."""
        self.recompute: Recompute = recomputed

    def forward(self, tokens: Tensor, layout: Layout, places: Tensor | None = None) -> Tensor:
        """tokens (T,) int64 -> hidden states (T, d), or (N, d) of the tokens at `places` (N,) alone."""
        x_TD = apply(self.embed_tokens, tokens, layout)
        if self.soft_tokens is not None:
            x_TD, layout, real = _with_soft_tokens(x_TD, layout, self.soft_tokens(layout))
            places = real if places is None else real[places]
        positions = layout.positions + self.prefix_length
        if layout.apart:
            rotation = self.rotations.at(positions, x_TD.dtype)
        else:
            rotation = Rotation.of(self.config, positions, x_TD.dtype)
        attend = attention.choose(layout, x_TD, prefix=self.prefix_length > 0)
        rows = BlockRows.of(layout, x_TD, rotation)
        for index, block in enumerate(self.layers):
            read = places if index == len(self.layers) - 1 else None
            if rows is not None and read is None and rows.read_(block, x_TD):  # type: ignore[arg-type]
                continue
            if index < self.recomputed_layers and torch.is_grad_enabled():
                x_TD = self.recompute(block, x_TD, layout, rotation, attend, read)
            else:
                x_TD = block(x_TD, layout, rotation, attend, read)
        if layout.cache is not None:
            layout.cache.advance(layout.documents)
        return self.norm(x_TD)


def _with_soft_tokens(x_TD: Tensor, layout: Layout, soft_DPD: Tensor) -> tuple[Tensor, Layout, Tensor]:
    longer, places = layout.lengthened(soft_DPD.shape[1])
    is_soft = torch.ones(longer.total, dtype=torch.bool, device=x_TD.device).index_fill(0, places, False)
    soft = torch.nonzero(is_soft).squeeze(-1)
    vectors = soft_DPD[longer.document_of[soft], longer.offsets[soft]].to(x_TD.dtype)
    return (
        x_TD.new_zeros(longer.total, x_TD.shape[1]).index_put((places,), x_TD).index_put((soft,), vectors),
        longer,
        places,
    )
