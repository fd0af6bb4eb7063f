"""Tokens added to a base: the tokenizer learns them, and the embedding and the head get a row for each.

A new row is the mean of the rows there were, so that it depends on the base alone: whoever adds the same tokens to the
same base has the same model, to the bit on one machine.  transformers draws such rows at random.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lorica.errors import ModelError
from lorica.models.causal_lm import CausalLM
from lorica.models.edited import Beside, Edited


def add_tokens(
    model: nn.Module, tokens: str | Sequence[str], *, tokenizer: Any = None, special: bool = False
) -> tuple[int, ...]:
    """Adds tokens to the vocabulary of a base in place and returns their ids, in order.

    tokenizer   the one to extend; None: the base's own, `model.tokenizer`
    special     they are cut out before normalisation and left out of text decoded without special tokens

    A token that is there already keeps its id.  Attach an adapter afterwards, with `trainable_token_indices` these ids.
    ModelError where there is no tokenizer, a token is empty or named twice, or an adapter is in place.
    """
    words = [tokens] if isinstance(tokens, str) else list(tokens)
    tokenizer = tokenizer if tokenizer is not None else getattr(model, "tokenizer", None)
    _require(model, words, tokenizer)
    known = tokenizer.get_vocab()
    tokenizer.add_tokens(words, special_tokens=special)
    ids = tuple(int(token) for token in tokenizer.convert_tokens_to_ids(words))
    if max(ids) >= rows_of(model):
        resize(model, max(ids) + 1)
    added: Any = model
    added.added_tokens = (*added_tokens(model), *(word for word in words if word not in known))
    return ids


def added_tokens(model: nn.Module) -> tuple[str, ...]:
    """The tokens that were added to a base after it was loaded."""
    return getattr(model, "added_tokens", ())


def missing_tokens(model: nn.Module, wanted: Sequence[str]) -> tuple[str, ...]:
    """Those of `wanted` that the base's tokenizer does not know; none where the base has no tokenizer to ask."""
    tokenizer = getattr(model, "tokenizer", None)
    known = tokenizer.get_vocab() if tokenizer is not None else wanted
    return tuple(word for word in wanted if word not in known)


def rows_of(model: Any) -> int:
    """How many tokens the base has an embedding for."""
    return model.get_input_embeddings().weight.shape[0]


def resize(model: Any, rows: int) -> None:
    """Gives embedding and head `rows` rows in all, new ones the mean of the others."""
    if isinstance(model, CausalLM):
        _resize_decoder(model, rows)
        return
    before = rows_of(model)
    model.resize_token_embeddings(rows, mean_resizing=False)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        if module is not None and module.weight.shape[0] == rows:
            module.weight.data[before:] = _mean(module.weight.data[:before])


def _resize_decoder(model: CausalLM, rows: int) -> None:
    embedding, head = model.model.embed_tokens, model.lm_head
    tied = head.weight is embedding.weight
    embedding.weight = _lengthened(embedding.weight, rows)
    head.weight = embedding.weight if tied else _lengthened(head.weight, rows)
    embedding.num_embeddings = head.out_features = rows
    model.config.vocab_size = rows
    model.shape = model.model.config = replace(model.shape, vocab=rows)


def _lengthened(weight: Tensor, rows: int) -> nn.Parameter:
    W = weight.detach()
    new = _mean(W).expand(max(rows - len(W), 0), -1)
    return nn.Parameter(torch.cat([W[:rows], new]), requires_grad=weight.requires_grad)


def _mean(W: Tensor) -> Tensor:
    """(V, d) -> (d,), summed in float64 so that the rounding to the type of W is nearly always the same."""
    return W.mean(0, dtype=torch.float64).to(W.dtype)


def _require(model: Any, words: Sequence[str], tokenizer: Any) -> None:
    problems = [f"add_tokens: {word!r} is named twice" for word in sorted({w for w in words if words.count(w) > 1})]
    if not words or not all(isinstance(word, str) and word for word in words):
        problems.append("add_tokens: give one or more tokens, none of them empty")
    if tokenizer is None:
        problems.append("add_tokens: this base brings no tokenizer; give the one to extend, tokenizer=...")
    if not hasattr(model, "get_input_embeddings"):
        problems.append(f"add_tokens: {type(model).__name__} does not say which of its modules is the embedding")
    if any(isinstance(module, Edited | Beside) for module in model.modules()):
        problems.append("add_tokens: an adapter is in place; detach() it, add the tokens, then attach")
    if problems:
        raise ModelError.of(problems)
