"""KeysValuesBefore: learned keys and values before those of every document, seen by every token.

decoder         not rotated, not cached, always visible; real tokens are rotated from position P on
transformers    see `attention_interface.py`
"""

from torch import Tensor, nn

from lorica.errors import TargetError
from lorica.models.decoder import Decoder, SelfAttention
from lorica.models.edited import Beside
from lorica.models.edits import attention_interface
from lorica.models.edits.holders import Undo, module_named
from lorica.models.layout import Layout
from lorica.site import Site


def install(model: nn.Module, site: Site, adapter: nn.Module) -> Undo:
    """TargetError where the layer has a prefix already, or the others have one of another length."""
    attention = module_named(model, site.name)
    if isinstance(attention, SelfAttention):
        return _in_decoder(model, site, attention, adapter)
    return attention_interface.install(model, site, attention, adapter)


class DecoderPrefix(Beside):
    """The same keys and values (P, heads_kv, d_head) for every document."""

    def forward(self, layout: Layout) -> tuple[Tensor, Tensor]:
        return self.adapter()


def _in_decoder(model: nn.Module, site: Site, attention: SelfAttention, adapter: nn.Module) -> Undo:
    decoder = next(m for m in model.modules() if isinstance(m, Decoder) and attention in list(m.modules()))
    length = adapter()[0].shape[0]
    if attention.prefix is not None:
        raise TargetError(f"{site.name} has a prefix already; detach that first")
    if decoder.prefix_length not in (0, length):
        raise TargetError(
            f"{site.name}: a prefix of {length} where other layers have {decoder.prefix_length}; use one length"
        )
    attention.prefix = DecoderPrefix(adapter.train(attention.training))
    decoder.prefix_length = length

    def undo() -> None:
        del attention.prefix
        attention.prefix = None
        if all(block.self_attn.prefix is None for block in decoder.layers):  # type: ignore[union-attr]
            decoder.prefix_length = 0

    return undo
