"""Tensors in, tensors out."""

from lorica.kernels.attention import causal_attention, masked_attention, sdpa
from lorica.kernels.choice import is_native
from lorica.kernels.cross_entropy import head_cross_entropy
from lorica.kernels.few_shapes import rounded, with_rows
from lorica.kernels.frozen_conv import FrozenConv
from lorica.kernels.frozen_weight import DenseWeight, FrozenWeight
from lorica.kernels.gated_mlp import gated_mlp
from lorica.kernels.low_rank import LowRank, reference
from lorica.kernels.low_rank_linear import low_rank_linear, siblings
from lorica.kernels.native import BlockReading, block_, document_attention
from lorica.kernels.native.pool import pool, pooled
from lorica.kernels.noise import Noise, site_id
from lorica.kernels.paged_attention import BLOCK, paged_attention
from lorica.kernels.preconditioned import preconditioned
from lorica.kernels.rms_norm import residual_norm, rms_norm
from lorica.kernels.rotary import rotary
from lorica.kernels.row_norms import row_norms, row_squares
from lorica.kernels.rowwise import Factors, RowBranch, Terms, in_slabs, rowwise, rowwise_swiglu
from lorica.kernels.siblings import Branch
from lorica.kernels.swiglu import swiglu
from lorica.kernels.tiled import TiledWeight, reads_codes, tiled_linear, tiled_linears

__all__ = [
    "BLOCK",
    "BlockReading",
    "Branch",
    "DenseWeight",
    "Factors",
    "FrozenConv",
    "FrozenWeight",
    "LowRank",
    "Noise",
    "RowBranch",
    "Terms",
    "TiledWeight",
    "block_",
    "causal_attention",
    "document_attention",
    "gated_mlp",
    "head_cross_entropy",
    "in_slabs",
    "is_native",
    "low_rank_linear",
    "masked_attention",
    "paged_attention",
    "pool",
    "pooled",
    "preconditioned",
    "reads_codes",
    "reference",
    "residual_norm",
    "rms_norm",
    "rotary",
    "rounded",
    "row_norms",
    "row_squares",
    "rowwise",
    "rowwise_swiglu",
    "sdpa",
    "siblings",
    "site_id",
    "swiglu",
    "tiled_linear",
    "tiled_linears",
    "with_rows",
]
