"""Tensors in, tensors out."""

from lorica.kernels.cross_entropy import head_cross_entropy
from lorica.kernels.few_shapes import rounded, with_rows
from lorica.kernels.frozen_conv import FrozenConv
from lorica.kernels.frozen_weight import FrozenWeight
from lorica.kernels.low_rank import LowRank, low_rank_linear, reference
from lorica.kernels.noise import Noise, site_id
from lorica.kernels.rms_norm import rms_norm
from lorica.kernels.rotary import rotary

__all__ = [
    "FrozenConv",
    "FrozenWeight",
    "LowRank",
    "Noise",
    "head_cross_entropy",
    "low_rank_linear",
    "reference",
    "rms_norm",
    "rotary",
    "rounded",
    "site_id",
    "with_rows",
]
