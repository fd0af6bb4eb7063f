"""TokensBefore: learned vectors before the token embeddings of every document; outputs are of real tokens only.

decoder         the layout is lengthened, documents whose beginning is cached gain none
GPT-2           see `causal_soft_tokens.py`
BERT, T5        see `soft_tokens.py`
"""

from torch import Tensor, nn

from lorica.errors import TargetError
from lorica.models.decoder import Decoder
from lorica.models.edited import Beside
from lorica.models.edits import causal_soft_tokens, soft_tokens
from lorica.models.edits.holders import Undo, module_named
from lorica.models.layout import Layout
from lorica.site import Site


def install(model: nn.Module, site: Site, adapter: nn.Module) -> Undo:
    """TargetError where the base has soft tokens already, or its family is not among those above."""
    module_named(model, site.name)
    owner, _, leaf = site.name.rpartition(".")
    stack = model.get_submodule(owner)
    if isinstance(stack, Decoder) and leaf == "embed_tokens":
        return _in_decoder(stack, adapter)
    if causal_soft_tokens.reads(model, stack):
        return causal_soft_tokens.install(site, stack, adapter)
    return soft_tokens.install(model, site, adapter)


class DecoderTokens(Beside):
    """The same vectors for every document: (P, d) -> (D, P, d)."""

    def forward(self, layout: Layout) -> Tensor:
        soft = self.adapter()
        return soft.expand(len(layout.documents), *soft.shape)


def _in_decoder(decoder: Decoder, adapter: nn.Module) -> Undo:
    if decoder.soft_tokens is not None:
        raise TargetError("embed_tokens has soft tokens before it already; detach those first")
    decoder.soft_tokens = DecoderTokens(adapter.train(decoder.training))

    def undo() -> None:
        del decoder.soft_tokens
        decoder.soft_tokens = None

    return undo
