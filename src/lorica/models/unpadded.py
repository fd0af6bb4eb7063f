"""Rows of a transformers encoder without their padding: inside the stack of layers all tokens lie in one row.

embeddings (B, L, d) -> (1, T, d) -> layers -> (1, T, d) -> (B, L, d), zeros where padded -> head

Layers compute nothing across tokens but attention, which is told of the documents where it would have had a mask.  T is
rounded up, and what is behind the last document belongs to none.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from lorica.kernels import Noise, rounded, with_rows
from lorica.models import ambient
from lorica.models.foreign_attention import FUNCTION, Documents
from lorica.models.layout import Layout

STACKS = frozenset({"BertEncoder", "RobertaEncoder", "XLMRobertaEncoder", "CamembertEncoder", "ElectraEncoder"})
"""Of layers that take (hidden states, attention_mask), and whose positions are in the embeddings alone."""


@contextmanager
def unpadded(model: nn.Module, mask: Tensor | None) -> Iterator[None]:
    """Inside, the model is called with rows whose padding is behind, as `mask` (B, L) says.  Where there is none, or
    the model's family or an edit that is in place wants rows, nothing is changed."""
    stack = None if mask is None else stack_of(model)
    if stack is None or mask is None or bool(mask.all()):
        yield
        return
    packing = _Packing(mask)
    before = stack.register_forward_pre_hook(packing.pack, with_kwargs=True)
    after = stack.register_forward_hook(packing.unpack)
    try:
        yield
    finally:
        before.remove()
        after.remove()


def stack_of(model: nn.Module) -> nn.Module | None:
    """The one stack of layers whose tokens can lie in one row: of a known family, its attention ours and unedited."""
    stacks = [module for module in model.modules() if type(module).__name__ in STACKS]
    if len(stacks) != 1 or stacks[0].training:
        return None
    configs: list[Any] = [module.config for module in stacks[0].modules() if hasattr(module, "config")]
    ours = all(config._attn_implementation == FUNCTION and not config.is_decoder for config in configs)
    return stacks[0] if ours else None


class _Packing:
    def __init__(self, mask: Tensor) -> None:
        self.shape = tuple(mask.shape)
        self.layout = Layout.of(mask.sum(1).tolist(), device=mask.device)
        self.packed = False

    def pack(self, stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        rows: Tensor = args[0]
        entered = ambient.current.get()
        self.packed = tuple(rows.shape[:2]) == self.shape and (entered.route is None or len(entered.route) == 1)
        if not self.packed:  # soft tokens have made the rows longer, or each row has an adapter of its own
            return None
        total = rounded(self.layout.total, rows)
        row = with_rows(rows[self.layout.document_of, self.layout.offsets], total)
        self.outside = ambient.current.set(replace(entered, noise=self._noise(entered.noise, total)))
        return (row[None],), {**kwargs, "attention_mask": Documents(self.layout, total - self.layout.total)}

    def unpack(self, stack: nn.Module, args: Any, output: Any) -> None:
        if self.packed:
            ambient.current.reset(self.outside)
            row = output.last_hidden_state[0, : self.layout.total]
            places = (self.layout.document_of, self.layout.offsets)
            output.last_hidden_state = row.new_zeros(*self.shape, row.shape[-1]).index_put(places, row)

    def _noise(self, noise: Noise | None, total: int) -> Noise | None:
        """Of each token, what it has where rows are padded."""
        return noise and self.layout.with_noise(noise.seed, noise.step, noise.rows).filled(total).noise
