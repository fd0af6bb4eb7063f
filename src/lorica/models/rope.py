"""Rotary position embedding: pairs (i, i + E/2) of a head turn by position * inverse_frequency[i].

Su et al. 2021, arXiv:2104.09864.  Scaled variants (linear, llama3, yarn) take their frequencies from transformers.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

from lorica.kernels import rotary
from lorica.models.config import DecoderConfig


@dataclass(frozen=True, eq=False)
class Rotation:
    """cos and sin (T, 1, E) of the angles of each token, scaled as the variant says."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, config: DecoderConfig, positions: Tensor, dtype: torch.dtype) -> "Rotation":
        inverse, scale = frequencies(config)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        angles = positions[:, None].to(wide) * inverse.to(positions.device, wide)
        angles = torch.cat([angles, angles], dim=-1)[:, None]
        return cls((angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype))


class Rotations:
    """Rotations of single positions, looked up in a table that grows by ROWS: where in a tensor an angle stands would
    decide by which of two cosines torch computes it."""

    ROWS = 1024

    def __init__(self, config: DecoderConfig) -> None:
        self.config = config
        self._tables: dict[tuple[torch.dtype, torch.device], Rotation] = {}

    def at(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        """positions (T,)"""
        table = self._table(1 + int(positions.max()) if len(positions) else 0, dtype, positions.device)
        return Rotation(table.cos[positions], table.sin[positions])

    def _table(self, rows: int, dtype: torch.dtype, device: torch.device) -> Rotation:
        table = self._tables.get((dtype, device))
        while table is None or len(table.cos) < rows:
            first = 0 if table is None else len(table.cos)
            more = Rotation.of(self.config, torch.arange(first, first + self.ROWS, device=device), dtype)
            if table is not None:
                more = Rotation(torch.cat([table.cos, more.cos]), torch.cat([table.sin, more.sin]))
            table = self._tables[dtype, device] = more
        return table


def rotate(rotation: Rotation, *each_THE: Tensor) -> tuple[Tensor, ...]:
    return rotary(rotation.cos, rotation.sin, *each_THE)


def frequencies(config: DecoderConfig) -> tuple[Tensor, float]:
    """Inverse frequencies (E/2,) float32 and the factor on cos and sin."""
    kind = config.rope.get("rope_type", "default")
    if kind == "default":
        exponents = torch.arange(0, config.d_head, 2, dtype=torch.float32) / config.d_head
        return 1.0 / config.rope["rope_theta"] ** exponents, 1.0
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    return ROPE_INIT_FUNCTIONS[kind](_as_transformers(config))


def _as_transformers(config: DecoderConfig) -> SimpleNamespace:
    """The few fields that transformers' frequency functions read."""
    return SimpleNamespace(
        rope_parameters=config.rope,
        head_dim=config.d_head,
        hidden_size=config.d,
        num_attention_heads=config.heads,
        max_position_embeddings=config.max_length,
        standardize_rope_params=lambda: None,
    )
