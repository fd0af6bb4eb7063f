"""Attention of transformers' models by our own kernel, where torch's is slow: in bfloat16 on CPU.

Registered with transformers' AttentionInterface.  What it does not know (dropout, position bias, shared keys, a cache)
goes to the function that transformers would have called.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lorica.kernels import document_attention, is_native, masked_attention
from lorica.models.attention import Rectangle, rectangles_of
from lorica.models.layout import Layout
from lorica.models.quiet import quiet

FUNCTION = "lorica"
INSTEAD_OF = "sdpa"


@dataclass(frozen=True, eq=False)
class Documents:
    """What stands where a mask would: T tokens of documents one after another, none of which sees another's, and
    `behind` more that are read by nobody."""

    layout: Layout
    behind: int

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """(T, H, E) each, and out."""
        if is_native("attention", query):
            lengths = (*self.layout.documents, self.behind)
            return document_attention(query, key, value, lengths, causal=False, scale=scale)
        done, end = [], 0
        for group, mask in self._groups:
            part = slice(end, end := end + sum(group.documents))
            q, k, v = (group.filled(x[part]).transpose(1, 2) for x in (query, key, value))
            done.append(group.flat(masked_attention(q, k, v, mask, scale).transpose(1, 2)))
        return torch.cat([*done, query.new_zeros(self.behind, *query.shape[1:])])

    @cached_property
    def _groups(self) -> tuple[tuple[Rectangle, Tensor | None], ...]:
        """Rectangles, each with the mask (D, 1, 1, L) of its tokens, None where all of its places are tokens."""
        device = self.layout.positions.device
        return tuple((each, _real(each, device)) for each in rectangles_of(self.layout))


def _real(rectangle: Rectangle, device: torch.device) -> Tensor | None:
    if rectangle.places is None:
        return None
    lengths = torch.tensor(rectangle.documents, device=device)
    return (torch.arange(rectangle.length, device=device) < lengths[:, None])[:, None, None]


def use(model: Any) -> None:
    """The model's attention goes through ours, where it is on CPU, in bfloat16, and takes a function by name."""
    place = next(model.parameters())
    implementation = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if implementation != INSTEAD_OF or place.device.type != "cpu" or place.dtype != torch.bfloat16 or selects(model):
        return
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(FUNCTION, attend)
    AttentionMaskInterface.register(FUNCTION, sdpa_mask)
    with quiet():
        model.set_attn_implementation(FUNCTION)


def selects(module: nn.Module) -> bool:
    """Whether an indexer chooses the keys (DeepSeek-V3.2), which is heeded under the names `eager` and `sdpa` alone."""
    return any(hasattr(each, "indexer") for each in module.modules())


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | Documents | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """query (B, H, L, E), key and value (B, H, S, E), mask as for sdpa -> (B, L, H, E).  B is 1 where documents lie in
    one row."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if isinstance(attention_mask, Documents):
        assert not dropout
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        return attention_mask.attend(q, k, v, scale)[None], None
    if dropout or query.shape[1] != key.shape[1] or any(value is not None for value in _strange(options)):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            is_causal=is_causal,  # type: ignore[arg-type]
            **options,
        )
    mask = implied(module, query, key, is_causal) if attention_mask is None else attention_mask
    return masked_attention(query, key, value, mask, scale).transpose(1, 2).contiguous(), None


def _strange(options: dict[str, Any]) -> list[Any]:
    return [options.get(name) for name in ("position_bias", "cache", "softcap")]


def implied(module: nn.Module, query: Tensor, key: Tensor, is_causal: bool | None) -> Tensor | None:
    """The causal mask that sdpa would have used for want of one: token i sees the keys 0..i."""
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if not causal or query.shape[2] == 1:
        return None
    return torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
