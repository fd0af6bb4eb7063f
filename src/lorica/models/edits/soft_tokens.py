"""Soft tokens in transformers' BERT and in T5's encoder: P learned vectors before the word embeddings.

BertModel   p x x x -> embeddings -> encoder -> drop p -> pooler      positions of real tokens move up by P
T5Stack     p x x x -> encoder -> h h h h -> decoder's cross attention sees all; drop p from what the model returns
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lorica.errors import ModelError, TargetError
from lorica.models.edited import Beside
from lorica.models.edits.holders import Undo, together
from lorica.site import Site

SLOT = "tokens_edit"


def install(model: nn.Module, site: Site, adapter: nn.Module) -> Undo:
    """TargetError where the embedding belongs to neither, or has soft tokens already."""
    stack, owner = _stack(model, site)
    if SLOT in stack._modules:
        raise TargetError(f"{site.name} has soft tokens before it already; detach those first")
    soft = SoftTokens(adapter.train(stack.training))
    stack.add_module(SLOT, soft)
    hooks = [stack.register_forward_pre_hook(soft.lengthen, with_kwargs=True), *_droppers(stack, owner, soft)]

    def forget() -> None:
        del stack._modules[SLOT]

    return together([forget, *(hook.remove for hook in hooks)])


def _stack(model: nn.Module, site: Site) -> tuple[nn.Module, nn.Module]:
    """The stack that the embedding feeds, and the module that returns the stack's output to the caller."""
    path = site.name.split(".")
    above: list[Any] = [model.get_submodule(".".join(path[:depth])) for depth in range(len(path))][::-1]
    bert = next((module for module in above if type(module).__name__ == "BertModel"), None)
    if bert is not None and path[-1] == "word_embeddings" and not bert.config.is_decoder:
        return bert, bert
    encoder: Any = above[0] if path[-1] == "embed_tokens" else getattr(above[0], "encoder", None)
    if type(encoder).__name__ == "T5Stack" and not encoder.is_decoder:
        return encoder, next((module for module in above if module is not encoder), encoder)
    raise TargetError(
        f"{site.name}: soft tokens before it are not known for {type(model).__name__}; "
        "they are for the decoder family, causal stacks that take embeddings (GPT-2), BERT and T5's encoder"
    )


def _droppers(stack: nn.Module, owner: nn.Module, soft: "SoftTokens") -> list[Any]:
    if type(stack).__name__ == "BertModel":
        return [
            stack.encoder.register_forward_hook(soft.drop),  # type: ignore[union-attr, operator]
            stack.register_forward_hook(soft.drop_recorded),
        ]
    decoder = getattr(owner, "decoder", None)
    if not isinstance(decoder, nn.Module):
        return [stack.register_forward_hook(soft.drop)]
    return [
        decoder.register_forward_pre_hook(soft.show, with_kwargs=True),
        owner.register_forward_hook(soft.drop_encoders),
    ]


class SoftTokens(Beside):
    """Hooks around a stack; `adapter` gives the vectors (P, d)."""

    def __init__(self, adapter: nn.Module) -> None:
        super().__init__(adapter)
        self.length = adapter().shape[0]

    def lengthen(self, stack: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        """The stack's arguments with P soft tokens before the real ones."""
        given = by_name(stack.forward, args, kwargs)
        ids, embedded = given.pop("input_ids", None), given.pop("inputs_embeds", None)
        real = embedded if ids is None else stack.get_input_embeddings()(ids)
        refuse_too_long(stack, real.shape[1], self.length)
        soft = self.adapter().to(real.dtype).expand(len(real), -1, -1)
        longer = {name: self._longer(name, value) for name, value in given.items()}
        return (), {**longer, "inputs_embeds": torch.cat([soft, real], 1)}

    def _longer(self, name: str, value: Any) -> Any:
        if value is None or name not in ("attention_mask", "token_type_ids", "position_ids"):
            return value
        if value.dim() != 2:
            raise ModelError(f"{name}: with soft tokens it must be (batch, tokens), not {tuple(value.shape)}")
        if name == "position_ids":
            first = torch.arange(self.length, device=value.device).expand(len(value), -1)
            return torch.cat([first, value + self.length], 1)
        return nn.functional.pad(value, (self.length, 0), value=1 if name == "attention_mask" else 0)

    def show(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        """The decoder's cross attention sees the soft tokens of the encoder too."""
        given = by_name(decoder.forward, args, kwargs)
        mask = given.get("encoder_attention_mask")
        if mask is not None:
            given["encoder_attention_mask"] = nn.functional.pad(mask, (self.length, 0), value=1)
        return (), given

    def drop(self, module: Any, args: Any, output: Any) -> Any:
        """The stack's output, of real tokens only."""
        output.last_hidden_state = output.last_hidden_state[:, self.length :]
        return self.drop_recorded(module, args, output)

    def drop_recorded(self, module: Any, args: Any, output: Any) -> Any:
        """The same for the hidden states and attentions of its layers, where they were asked for."""
        return _kept(_named(output), "", output.last_hidden_state.shape[1])

    def drop_encoders(self, module: Any, args: Any, output: Any) -> Any:
        """What an encoder-decoder returns of its encoder, of real tokens only."""
        real = _named(output).encoder_last_hidden_state.shape[1] - self.length
        output.encoder_last_hidden_state = output.encoder_last_hidden_state[:, -real:]
        if output.get("cross_attentions") is not None:
            output.cross_attentions = tuple(part[..., -real:] for part in output.cross_attentions)
        return _kept(output, "encoder_", real)


def _kept(output: Any, prefix: str, real: int) -> Any:
    """The last `real` places of each layer's hidden states and attentions."""
    if output.get(f"{prefix}hidden_states") is not None:
        output[f"{prefix}hidden_states"] = tuple(part[:, -real:] for part in output[f"{prefix}hidden_states"])
    if output.get(f"{prefix}attentions") is not None:
        output[f"{prefix}attentions"] = tuple(part[..., -real:, -real:] for part in output[f"{prefix}attentions"])
    return output


def _named(output: Any) -> Any:
    if isinstance(output, tuple):
        raise ModelError("return_dict: soft tokens are dropped from outputs by name; leave return_dict at True")
    return output


def by_name(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Positional arguments under their names."""
    return {**dict(zip(inspect.signature(forward).parameters, args, strict=False)), **kwargs}


def refuse_too_long(stack: Any, tokens: int, soft: int) -> None:
    limit = getattr(stack.config, "max_position_embeddings", None)
    if limit is not None and tokens + soft > limit:
        raise ModelError(f"{soft} soft tokens and {tokens} tokens are more than the base's {limit} positions")
