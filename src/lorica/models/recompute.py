"""What is computed again in the backward pass, and where its input waits until then: on the device, or elsewhere."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from lorica.kernels.elsewhere import Kept, Store

Recompute = Callable[..., Any]
"""recompute(function, *args) -> function(*args), of which the backward pass has the arguments alone."""


def recomputed(function: Callable[..., Any], *args: Any) -> Any:
    return checkpoint(function, *args, use_reentrant=False)


class Waiting:
    """`recomputed`, whose inputs wait in `store`.  What no gradient goes through is small, or is another's too."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        with saved_tensors_hooks(self._away, self._back):
            return recomputed(function, *args)

    def _away(self, tensor: Tensor) -> Tensor | tuple[Kept, Any]:
        if tensor.grad_fn is None:
            return tensor
        return self.store.keep(tensor, passing=True), tensor.device

    def _back(self, waiting: Tensor | tuple[Kept, Any]) -> Tensor:
        return waiting if isinstance(waiting, Tensor) else waiting[0].tensor(waiting[1])
