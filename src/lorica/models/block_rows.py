"""Blocks of a pass whose documents stand apart, each as one call where nothing in it is watched or edited in a way of
its own: between its ops there would be as much of Python as there is of arithmetic.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lorica.kernels import BlockReading, DenseWeight, RowBranch, block_, is_native
from lorica.models.branches import is_watched, row_branch
from lorica.models.layout import Layout
from lorica.models.paged import Paged
from lorica.models.rope import Rotation

if TYPE_CHECKING:
    from lorica.models.decoder import Block

NAMES = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, eq=False)
class BlockRows:
    """Blocks of one pass."""

    layout: Layout
    cache: Paged
    reading: BlockReading

    @classmethod
    def of(cls, layout: Layout, x: Tensor, rotation: Rotation) -> "BlockRows | None":
        """None where blocks are run op by op."""
        if not isinstance(layout.cache, Paged) or not is_native("block", x):
            return None
        cos, sin = (part.flatten(1).contiguous() for part in (rotation.cos, rotation.sin))
        places = {"documents": layout.document_of, "positions": layout.positions}
        return cls(layout, layout.cache, BlockReading(tables=layout.cache.table, **places, cos=cos, sin=sin))

    def read_(self, block: "Block", x: Tensor) -> bool:
        """x (n, d) through this block, in its place; False, and nothing done, where it is to be run op by op."""
        found = self._parts(block)
        if found is None:
            return False
        norms, branches = found
        c, attention = block.self_attn.config, block.self_attn
        blocks = self.cache.blocks.layer(attention.layer)
        heads = (c.heads, c.heads_kv, c.d_head)
        block_(x, norms, branches, blocks, self.reading, heads, attention.window or 0, c.eps)
        return True

    def _parts(self, block: "Block") -> tuple[list[Tensor | None], list[RowBranch]] | None:
        """Weights of norms, and linears with their terms."""
        attention, mlp = block._modules["self_attn"], block._modules["mlp"]
        outer: list[Any] = [block, attention, mlp]
        if [type(module).__name__ for module in outer] != ["Block", "SelfAttention", "MLP"]:
            return None
        norms = [*(block._modules[name] for name in ("input_layernorm", "post_attention_layernorm"))]
        norms += [outer[1]._modules.get(name) for name in ("q_norm", "k_norm")]
        weights = [None if norm is None else _weight(norm) for norm in norms]
        lost = any(norm is not None and weight is None for norm, weight in zip(norms, weights, strict=True))
        if lost or outer[1].prefix is not None or any(map(is_watched, outer)):
            return None
        branches = [self._branch(owner, name) for owner, names in zip(outer[1:], NAMES, strict=True) for name in names]
        known = [branch for branch in branches if branch is not None]
        return (weights, known) if len(known) == len(branches) else None

    def _branch(self, owner: nn.Module, name: str) -> RowBranch | None:
        module = owner._modules[name]
        assert module is not None
        adapter = module._modules.get("adapter")
        only = getattr(adapter, "only_terms", None)
        if adapter is not None and (only is None or not only(self.layout)):
            return None
        branch = row_branch(module, self.layout)
        if branch is None or not isinstance(branch.weight, DenseWeight) or branch.weight.transposed:
            return None
        return branch if branch.weight.shape[1] % 2 == 0 and branch.weight.stored.is_contiguous() else None


def _weight(norm: nn.Module) -> Tensor | None:
    """Of a norm that nothing stands around."""
    return norm._parameters.get("weight") if type(norm).__name__ == "RMSNorm" and not is_watched(norm) else None
