"""A site: one place in a base where an edit can be installed, described by shapes alone.

The kinds of site match the five edits:

    linear, embedding   Around             y = W x, or a row of W
    conv                Around             y = W * x, a convolution
    experts             Around             y = W[e] x, the weights of all experts in one parameter
    sublayer            After              the module whose output is added to the residual stream
    attention           KeysValuesBefore   one attention layer
    tokens              TokensBefore       the embedding that turns token ids into vectors
    parameter           Instead            one named parameter
"""

from dataclasses import asdict, dataclass
from math import prod
from typing import Any, Literal

Place = Literal["around", "after", "keys_values_before", "tokens_before", "instead"]
"""The five edits by the name under which `models/` installs them."""
Kind = Literal["linear", "embedding", "conv", "experts", "sublayer", "attention", "tokens", "parameter"]


@dataclass(frozen=True, kw_only=True)
class Site:
    """One place in a base.

    name    path of the module (or of the parameter) as `named_modules()` gives it
    roles   what it computes: q k v o gate up down fc1 fc2 head embed norm bias ...; a fused layer has several
    shape   linear (d_out, d_in); embedding and tokens (rows, d); conv (d_out, channels_in / groups, *kernel);
            experts (E, d_out, d_in); sublayer (d,); attention (heads_kv, d_head); parameter: its own shape
    layer   index of the block it belongs to, None outside the blocks
    """

    name: str
    kind: Kind
    roles: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    layer: int | None = None
    bias: bool = False
    transposed: bool = False
    """The module stores its weight as (d_in, d_out), as the Conv1D of transformers and some experts do."""
    window: int | None = None
    """Of attention: how many tokens back it looks, None for all."""
    groups: int = 1
    """Of a convolution: output channels of one group see the input channels of theirs alone."""
    part_of: str = ""
    """The module, by path, that reads this weight itself instead of calling a module for it: nn.MultiheadAttention, or
    one that holds experts.  A name that fits it means all its parts."""
    bare: bool = False
    """`name` is the path of the weight itself, for which no module stands."""
    tower: str = ""
    """Of a base of images and text, the part it lies in: vision, connector, cross-attention, language."""
    dtype: str = "float32"
    """The type that is computed in; weights are held in it too unless `stored` says otherwise."""
    stored: str = ""
    """How a quantised weight is held: nf4, fp4, int8."""
    held_bytes: int = 0
    """Bytes of a quantised weight with its scales."""
    alone: bool = False
    """Of a parameter that is tied, only the place that `name` names is meant; the others keep what they hold."""

    @property
    def d_out(self) -> int:
        """Numbers that come out, for each token, pixel or expert."""
        if self.kind == "experts":
            return self.shape[1]
        return self.shape[0] if self.kind in ("linear", "conv") else self.shape[-1]

    @property
    def d_in(self) -> int:
        """Numbers that each of them is a sum of: of a convolution, those under its kernel."""
        if self.kind == "experts":
            return self.shape[2]
        return prod(self.shape[1:]) if self.kind in ("linear", "conv") else self.shape[0]

    @property
    def owner(self) -> str:
        """Path of the module that a parameter belongs to."""
        return self.name.rpartition(".")[0]

    @property
    def weight(self) -> str:
        """Path of the parameter that an edit around this site is about."""
        return self.name if self.bare else f"{self.name}.weight"

    @property
    def leaf(self) -> str:
        """Last component of the name: `q_proj` of `model.layers.0.self_attn.q_proj`."""
        return self.name.rpartition(".")[2]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
