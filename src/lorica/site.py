"""A site: one place in a base where an edit can be installed, described by shapes alone.

The five kinds of site match the five edits:

    linear, embedding   Around             y = W x, or a row of W
    sublayer            After              the module whose output is added to the residual stream
    attention           KeysValuesBefore   one attention layer
    tokens              TokensBefore       the embedding that turns token ids into vectors
    parameter           Instead            one named parameter
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Place = Literal["around", "after", "keys_values_before", "tokens_before", "instead"]
"""The five edits by the name under which `models/` installs them."""
Kind = Literal["linear", "embedding", "sublayer", "attention", "tokens", "parameter"]


@dataclass(frozen=True, kw_only=True)
class Site:
    """One place in a base.

    name    path of the module (or of the parameter) as `named_modules()` gives it
    roles   what it computes: q k v o gate up down fc1 fc2 head embed norm bias ...; a fused layer has several
    shape   linear (d_out, d_in); embedding and tokens (rows, d); sublayer (d,); attention (heads_kv, d_head);
            parameter: its own shape
    layer   index of the block it belongs to, None outside the blocks
    """

    name: str
    kind: Kind
    roles: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    layer: int | None = None
    bias: bool = False
    transposed: bool = False
    """The module stores its weight as (d_in, d_out), as the Conv1D of transformers does."""
    dtype: str = "float32"
    alone: bool = False
    """Of a parameter that is tied, only the place that `name` names is meant; the others keep what they hold."""

    @property
    def d_out(self) -> int:
        return self.shape[0] if self.kind == "linear" else self.shape[-1]

    @property
    def d_in(self) -> int:
        return self.shape[1] if self.kind == "linear" else self.shape[0]

    @property
    def leaf(self) -> str:
        """Last component of the name: `q_proj` of `model.layers.0.self_attn.q_proj`."""
        return self.name.rpartition(".")[2]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
