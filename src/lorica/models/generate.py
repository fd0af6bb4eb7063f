"""Generation: prompts in, new tokens out, with the decoder's own key-value cache.

    read all prompts in one packed pass;   repeat: choose a token a document, let finished documents leave, read them

The documents of a batch never see each other, and each draws from a generator of its own.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lorica.errors import ModelError, RequestError
from lorica.models import ambient
from lorica.models.cache import KVCache
from lorica.models.causal_lm import CausalLM
from lorica.models.layout import Layout
from lorica.models.sampling import Sampling, generators_of
from lorica.models.walking import context_limit

OnToken = Callable[[int, int], None]
"""Called with (prompt, token id) as each token is chosen."""


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    *,
    stop_ids: Iterable[int] | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    on_token: OnToken | None = None,
) -> list[list[int]]:
    """The new tokens of each prompt (token ids), the stop token that ended it included.

    stop_ids   None: the base's own end tokens
    A document also ends where the base's context does.  An ambient route has one entry, or one a prompt.

    ModelError for a prompt that leaves no room or a model that cannot generate, RequestError for other values.
    """
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k)
    stops = frozenset(own_stop_ids(model) if stop_ids is None else stop_ids)
    _check(prompts, max_tokens)
    say = on_token or (lambda row, token: None)
    if not prompts or not max_tokens:
        return [[] for _ in prompts]
    with evaluating(model), torch.inference_mode():
        if isinstance(model, CausalLM):
            return _Batch.of(model, prompts, max_tokens, stops, sampling, seed, say).run()
        from lorica.models.generate_foreign import generate_foreign

        return generate_foreign(model, prompts, max_tokens, stops, sampling, seed, say)


def own_stop_ids(model: nn.Module) -> tuple[int, ...]:
    """The end tokens that the base's generation config, its config or its tokenizer states."""
    for owner in (getattr(model, "generation_config", None), getattr(model, "config", None)):
        stated = getattr(owner, "eos_token_id", None)
        if stated is not None:
            return tuple(stated) if isinstance(stated, list | tuple) else (int(stated),)
    end = getattr(getattr(model, "tokenizer", None), "eos_token_id", None)
    return () if end is None else (end,)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, and every module's own mode again afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _check(prompts: Sequence[Sequence[int]], max_tokens: int) -> None:
    problems = [
        f"prompt {row}: empty; a document begins with at least one token" for row, p in enumerate(prompts) if not p
    ]
    if max_tokens < 0:
        problems.append(f"max_tokens: {max_tokens} is out of range; it is 0 or more")
    if problems:
        raise RequestError.of(problems)


@dataclass(eq=False)
class _Batch:
    """Documents being written.  `live` are the rows still open, in the order that the cache holds them."""

    model: CausalLM
    room: list[int]
    stops: frozenset[int]
    sampling: Sampling
    generators: list[torch.Generator]
    on_token: OnToken
    route: Tensor | None
    prompts: Sequence[Sequence[int]]
    written: list[list[int]] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        model: CausalLM,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        stops: frozenset[int],
        sampling: Sampling,
        seed: int,
        on_token: OnToken,
    ) -> "_Batch":
        room = _room(model, prompts, max_tokens)
        generators = generators_of(seed, len(prompts))
        route = _route(model, len(prompts))
        return cls(model, room, stops, sampling, generators, on_token, route, prompts, [[] for _ in prompts])

    def run(self) -> list[list[int]]:
        live = list(range(len(self.prompts)))
        cache = KVCache(len(live))
        unread: list[list[int]] = [list(prompt) for prompt in self.prompts]
        while live:
            tokens = self._next(live, unread, cache)
            kept = [place for place, row in enumerate(live) if not self._write(row, tokens[place])]
            if len(kept) < len(live):
                cache = cache.keep(kept)
            live, unread = [live[place] for place in kept], [[tokens[place]] for place in kept]
        return self.written

    def _next(self, live: list[int], unread: list[list[int]], cache: KVCache) -> list[int]:
        """Read what each live document has not read yet, and choose its next token."""
        device = self.model.device
        route = None if self.route is None else self.route[live]
        layout = Layout.of([len(document) for document in unread], cache=cache, device=device)
        layout = replace(layout, route=None if route is None else route[layout.document_of])
        flat = torch.tensor([token for document in unread for token in document], device=device)
        hidden = self.model.hidden(flat, layout, layout.last)
        logits = self.model.logits(hidden, layout.at(layout.last))
        return self.sampling.choose(logits, [self.generators[row] for row in live])

    def _write(self, row: int, token: int) -> bool:
        """Whether this token ends its document."""
        self.written[row].append(token)
        self.on_token(row, token)
        return token in self.stops or len(self.written[row]) == self.room[row]


def _room(model: CausalLM, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[int]:
    """How many tokens each document may gain.  The last one written is never read, so it needs no position."""
    limit = context_limit(model)
    if limit is None:
        return [max_tokens] * len(prompts)
    problems = [
        f"prompt {row}: {len(prompt)} tokens, and the base reads at most {limit}; shorten it"
        for row, prompt in enumerate(prompts)
        if len(prompt) > limit
    ]
    if problems:
        raise ModelError.of(problems)
    return [min(max_tokens, limit - len(prompt) + 1) for prompt in prompts]


def _route(model: CausalLM, prompts: int) -> Tensor | None:
    route = ambient.current.get().route_of(prompts)
    return None if route is None else route.to(model.device)


def generate_rows(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int | None = None,
    max_length: int | None = None,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 50,
    eos_token_id: int | list[int] | None = None,
    pad_token_id: int | None = None,
    seed: int | None = None,
    **unsupported: Any,
) -> Tensor:
    """As transformers' generate: rows (B, S) -> (B, S + new), rows that end early filled with the padding token.

    max_new_tokens defaults to 20, as there.  A seed that is not given is drawn from torch's global generator.
    """
    _refuse(unsupported)
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    prompts = [row[real.to(torch.bool)].tolist() for row, real in zip(input_ids, mask, strict=True)]
    allowed = (
        max_new_tokens if max_new_tokens is not None else (max_length or input_ids.shape[1] + 20) - input_ids.shape[1]
    )
    stops = own_stop_ids(model) if eos_token_id is None else eos_token_id
    stops = (stops,) if isinstance(stops, int) else tuple(stops)
    options = {"temperature": temperature, "top_p": top_p, "top_k": top_k} if do_sample else {}
    drawn = int(torch.randint(2**31, ())) if seed is None and do_sample else seed or 0
    new = generate(model, prompts, allowed, stop_ids=stops, seed=drawn, **options)
    padding = pad_token_id if pad_token_id is not None else next(iter(stops), 0)
    longest = max(map(len, new), default=0)
    rows = [row + [padding] * (longest - len(row)) for row in new]
    added = torch.tensor(rows, dtype=input_ids.dtype, device=input_ids.device).view(len(rows), longest)
    return torch.cat([input_ids, added], 1)


ACCEPTED: dict[str, tuple[Any, ...]] = {
    "use_cache": (True, False, None),
    "num_beams": (1, None),
    "return_dict_in_generate": (False, None),
}
"""Values of transformers' other options that change nothing here."""


def _refuse(unsupported: dict[str, Any]) -> None:
    """Options of transformers' generate that would change the result are refused, not ignored."""
    asked = sorted(name for name, value in unsupported.items() if value not in ACCEPTED.get(name, (None,)))
    if asked:
        raise ModelError(f"generate: the decoder does not take {', '.join(asked)}")
