"""Generation with a model of transformers, through its own `generate`.

Prompts of one length are read together when greedy.  A sampled row is generated alone, from a seed of its own.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lorica.errors import ModelError
from lorica.models import ambient
from lorica.models.quiet import quiet
from lorica.models.sampling import Sampling, seed_of


def generate_foreign(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    stops: frozenset[int],
    sampling: Sampling,
    seed: int,
    on_token: Callable[[int, int], None],
) -> list[list[int]]:
    """The new tokens of each prompt.  `on_token` hears of a row when the whole of it is there."""
    if not _writes(model):
        raise ModelError(f"{type(model).__name__} does not generate; a causal or sequence-to-sequence base is needed")
    written: list[list[int]] = [[] for _ in prompts]
    for rows in _groups(prompts, alone=sampling.temperature > 0.0):
        together = [prompts[row] for row in rows]
        with _chosen(rows):
            outputs = _generated(model, together, max_tokens, stops, sampling, seed_of(seed, rows[0]))
        for row, tokens in zip(rows, outputs, strict=True):
            written[row] = _ended(tokens, stops)
            for token in written[row]:
                on_token(row, token)
    return written


def _writes(model: Any) -> bool:
    return callable(getattr(model, "generate", None)) and bool(getattr(model, "can_generate", lambda: True)())


def _groups(prompts: Sequence[Sequence[int]], alone: bool) -> Iterator[list[int]]:
    """Rows of the same length: they need no padding, which not every family masks."""
    if alone:
        yield from ([row] for row in range(len(prompts)))
        return
    by_length: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(row)
    yield from by_length.values()


@contextmanager
def _chosen(rows: list[int]) -> Iterator[None]:
    """The ambient choice of adapters, cut to these rows."""
    entered = ambient.current.get()
    route = entered.route
    route = route if route is None or len(route) == 1 else route[rows]
    with ambient.entered(replace(entered, route=route)):
        yield


def _generated(
    model: Any, prompts: list[Sequence[int]], max_tokens: int, stops: frozenset[int], sampling: Sampling, seed: int
) -> list[list[int]]:
    ids = torch.tensor([list(prompt) for prompt in prompts], device=next(model.parameters()).device)
    options: dict[str, Any] = {"do_sample": sampling.temperature > 0.0, "max_new_tokens": max_tokens}
    if options["do_sample"]:
        options |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    if stops:
        options |= {"eos_token_id": sorted(stops), "pad_token_id": min(stops)}
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(seed)
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    start = 1 if model.config.is_encoder_decoder else ids.shape[1]
    return out[:, start:].tolist()


def _ended(tokens: list[int], stops: frozenset[int]) -> list[int]:
    """Up to the first stop token; what follows it is padding."""
    ends = [place for place, token in enumerate(tokens) if token in stops]
    return tokens[: ends[0] + 1] if ends else tokens
