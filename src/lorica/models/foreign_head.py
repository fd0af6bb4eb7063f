"""The head of a transformers model at the learned places only: the logits of all places never exist.

hidden (B, L, d) -> head -> logits (B, L, vocabulary)        as the model's forward has it
hidden (N, d)                                                what this gives, with the head, to be asked in chunks

A hook before the head takes what it would read.  What the forward does with the logits (Gemma 2 caps them, Granite and
Cohere scale them), the forward itself tells once: it is shown a made-up row whose logits are large.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lorica.models import generators
from lorica.models.edited import Edited

Head = Callable[[Tensor], Tensor]
Places = tuple[Tensor, Tensor]
LARGE = 128.0
"""The largest logit of the made-up row: the caps in use (30 and 50) bend it by more than a rounding of bfloat16."""
_known: WeakKeyDictionary[nn.Module, Head | Literal["rows", "whole"]] = WeakKeyDictionary()
"""What the forward of each model does with its logits.  rows: something that is not known here, with each.  whole: its
head is asked in another way than once, for hidden states (B, L, d)."""


def asked_at(model: nn.Module, places: Places, call: Callable[[], Tensor]) -> tuple[Tensor, Head]:
    """(x (N, ..), head): head(x) are the logits (N, vocabulary) at `places`, rows and columns (N,), of those (B, L,
    vocabulary) that `call` makes with the model's forward.  A head that is edited is asked by the forward alone."""
    head = _head_of(model)
    if head is None or isinstance(head, Edited | nn.Embedding):
        return call()[places], _as_they_are
    if model not in _known:
        draws = generators.states()
        taken, returned = _called(call, head, places, lambda x: _made_up(head, x))
        known = _known[model] = _told(model, head, taken, returned)
        if taken is not None and callable(known):
            return taken, _then(head, known)
        del taken, returned  # a graph of its own, and dropout that the pass below draws again
        generators.restore(draws)
    known = _known[model]
    if known == "whole":
        return call()[places], _as_they_are
    if known == "rows":
        return _called(call, head, places, _as_they_are)[1][0], _as_they_are
    taken, _ = _called(call, head, places, _nothing)
    assert taken is not None
    return taken, _then(head, known)


def _head_of(model: Any) -> Any:
    """BLIP's is its decoder's."""
    asked = (getattr(each, "get_output_embeddings", None) for each in (model, getattr(model, "text_decoder", None)))
    return next((found for ask in asked if ask is not None and (found := ask()) is not None), None)


def _then(head: nn.Module, after: Head) -> Head:
    return head if after is _as_they_are else lambda x: after(head(x))


def _called(
    call: Callable[[], Tensor], head: nn.Module, places: Places, shown: Callable[[Tensor], Tensor]
) -> tuple[Tensor | None, Tensor]:
    """What the head would have read at the places, None where it was not asked once for (B, L, d), and what `call`
    returns when it reads `shown` of these rows instead."""
    taken: list[Tensor | None] = []

    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor] | None:
        if len(args) != 1 or not isinstance(args[0], Tensor) or args[0].dim() != 3:
            taken.append(None)
            return None
        read = args[0][places]
        taken.append(read)
        return (shown(read)[None],)

    handle = head.register_forward_pre_hook(hook)
    try:
        returned = call()
    finally:
        handle.remove()
    return (taken[0] if len(taken) == 1 else None), returned


@torch.no_grad()
def _told(model: nn.Module, head: nn.Module, taken: Tensor | None, returned: Tensor) -> Head | Literal["rows", "whole"]:
    if taken is None or returned.shape[:-1] != (1, 1):
        return "whole"
    return _after(model, head, returned[0], taken) or "rows"


def _after(model: nn.Module, head: nn.Module, returned: Tensor, like: Tensor) -> Head | None:
    """What makes of the head's logits of the made-up row just what the forward returned."""
    said = head(_made_up(head, like))
    if not said.any():
        return None
    return next((way for way in _ways(model) if torch.equal(way(said).double(), returned.double())), None)


def _ways(model: Any) -> Iterator[Head]:
    """As transformers' models compute them, in the type of the logits."""
    yield _as_they_are
    config = getattr(model, "config", None)
    if cap := getattr(config, "final_logit_softcapping", None):
        yield lambda logits: torch.tanh(logits / cap) * cap
    if divisor := getattr(config, "logits_scaling", None):
        yield lambda logits: logits / divisor
    if factor := getattr(config, "logit_scale", None):
        yield lambda logits: logits * factor


@torch.no_grad()
def _made_up(head: nn.Module, like: Tensor) -> Tensor:
    row = torch.linspace(-1, 1, like.shape[-1], dtype=like.dtype, device=like.device)[None]
    return row * (LARGE / head.forward(row).abs().max().clamp(min=LARGE / 2**10))


def _nothing(x: Tensor) -> Tensor:
    return x[:0]


def _as_they_are(x: Tensor) -> Tensor:
    return x
