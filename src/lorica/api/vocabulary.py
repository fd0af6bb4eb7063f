"""A recipe's own tokens: added to the base, and their rows trained unless the recipe says otherwise."""

from collections.abc import Sequence

from torch import nn

from lorica.methods import LoRA, Method
from lorica.methods.token_rows import untied_heads
from lorica.models import add_tokens, sites


def with_tokens(model: nn.Module, words: Sequence[str], methods: Sequence[Method]) -> tuple[Method, ...]:
    """Adds `words` to the base.  A LoRA that names no tokens itself trains their rows, of an untied head too."""
    if not words:
        return tuple(methods)
    ids = add_tokens(model, words)
    return tuple(_training(method, ids, model) for method in methods)


def _training(method: Method, ids: tuple[int, ...], model: nn.Module) -> Method:
    if not isinstance(method, LoRA) or method.trainable_token_indices:
        return method
    found = sites(model)
    embedding = next(site.name for site in found if site.kind == "tokens")
    named = [embedding, *untied_heads({embedding: ids}, found)]
    rows = {name: ids for name in named if not method.saves(name)}
    return method.model_copy(update={"trainable_token_indices": rows})
