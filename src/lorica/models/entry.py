"""Where a model is entered: what the caller has chosen for the pass is read once, here, and travels from there.

Our decoder puts it in the Layout by itself and only needs the clock.  A foreign model keeps it in the context variable
for the duration of its forward; activations that are recomputed later enter it again.
"""

from collections.abc import Callable
from contextvars import Token
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lorica.models import ambient
from lorica.models.causal_lm import CausalLM
from lorica.models.edits.holders import Undo, together


def enter(model: nn.Module, clock: ambient.Clock) -> Undo:
    """Training forwards made outside our trainer draw their noise from `clock`, a step each."""
    if isinstance(model, CausalLM):
        before, model.clock = model.clock, clock
        return lambda: setattr(model, "clock", before)
    return _Root(clock).hook(model)


class _Root:
    """Sets the context variable before the model's forward and resets it after, also when that fails."""

    def __init__(self, clock: ambient.Clock) -> None:
        self.clock = clock
        self.tokens: list[Token[ambient.Pass]] = []

    def hook(self, model: nn.Module) -> Undo:
        before = model.register_forward_pre_hook(self.before, with_kwargs=True, prepend=True)
        after = model.register_forward_hook(self.after, always_call=True)
        return together([before.remove, after.remove, lambda: forget_checkpointing(model)])

    def before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        chosen, rows = ambient.current.get(), _rows(args, kwargs)
        self.tokens.append(ambient.current.set(chosen))  # first, because `after` is called even if what follows fails
        chosen = replace(chosen, route=chosen.route_of(len(rows)))
        if chosen.noise is None and model.training:
            chosen = replace(chosen, noise=self.clock.tick(rows))
        remember_in_checkpointing(model)
        ambient.current.set(chosen)

    def after(self, model: nn.Module, inputs: Any, output: Any) -> None:
        ambient.current.reset(self.tokens.pop())


def _rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The batch rows 0..B-1, B being the first dimension of the first tensor given."""
    first = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim()), None)
    return torch.arange(1) if first is None else torch.arange(len(first), device=first.device)


class Reentering:
    """A checkpoint function of transformers that enters the pass of the forward again when it recomputes.

    Recomputation runs after the forward has left the model, on a GPU in a thread of autograd's own.
    """

    def __init__(self, inner: Callable[..., Any]) -> None:
        self.inner = inner

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        chosen = ambient.current.get()

        def again(*inputs: Any, **options: Any) -> Any:
            with ambient.entered(chosen):
                return function(*inputs, **options)

        return self.inner(again, *args, **kwargs)


def remember_in_checkpointing(model: nn.Module) -> None:
    """Also for checkpointing that the user, or HF Trainer, has switched on."""
    for module in model.modules():
        function = module.__dict__.get("_gradient_checkpointing_func")
        if function is not None and not isinstance(function, Reentering):
            module._gradient_checkpointing_func = Reentering(function)  # type: ignore[assignment]


def forget_checkpointing(model: nn.Module) -> None:
    for module in model.modules():
        function = module.__dict__.get("_gradient_checkpointing_func")
        if isinstance(function, Reentering):
            module._gradient_checkpointing_func = function.inner  # type: ignore[assignment]
