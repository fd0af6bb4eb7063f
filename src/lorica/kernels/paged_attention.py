"""Attention of new tokens over keys and values that lie in blocks, as a decoder reads them that answers many at once.

    y_i = sum over j <= i of p_ij v_j        p_ij = exp(s q_i k_j) / sum_j exp(s q_i k_j)        and i - j < window

T new tokens of D documents, H heads of queries on K of keys, E width of a head.  What comes out for a token depends on
its own document alone, to the bit, however many tokens are read together.
Kwon et al. 2023, arXiv:2309.06180, section 4.
"""

import torch
from torch import Tensor, nn

from lorica.kernels.choice import is_native
from lorica.kernels.native import paged_attention as native

BLOCK = 16
"""Tokens of a block."""


def paged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: tuple[Tensor, Tensor],
    tables: Tensor,
    documents: Tensor,
    positions: Tensor,
    window: int | None,
) -> Tensor:
    """q (T, H, E); k and v (T, K, E), which are written to their blocks -> (T, H, E), without gradient.

    blocks      keys and values, each (count, BLOCK, K, E)
    tables      (D, most) int32, the blocks of each document in order
    documents   (T,) int64, of each token; positions (T,) int64, in its document
    """
    if is_native("paged_attention", q):
        return native.paged_attention(q, k, v, blocks, tables, documents, positions, window or 0)
    with torch.no_grad():
        return _by_tokens(q, k, v, blocks, tables, documents, positions, window)


def _by_tokens(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: tuple[Tensor, Tensor],
    tables: Tensor,
    documents: Tensor,
    positions: Tensor,
    window: int | None,
) -> Tensor:
    """One token after another: the shapes of its products are decided by its own position."""
    places = tables[documents, positions // BLOCK].long(), positions % BLOCK
    for stored, new in zip(blocks, (k, v), strict=True):
        stored[places] = new
    out = torch.empty_like(q)
    for token, (document, position) in enumerate(zip(documents.tolist(), positions.tolist(), strict=True)):
        own = tables[document, : position // BLOCK + 1].long()
        first = 0 if window is None else max(0, position + 1 - window)
        keys, values = (stored[own].flatten(0, 1)[first : position + 1].transpose(0, 1) for stored in blocks)
        query = q[token].view(keys.shape[0], -1, q.shape[-1])
        out[token] = nn.functional.scaled_dot_product_attention(query, keys, values).flatten(0, 1)
    return out
