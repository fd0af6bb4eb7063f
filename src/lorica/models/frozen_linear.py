"""A linear of a base that has no parameter `weight`: its FrozenWeight says how it is stored, and where."""

from typing import Any

import torch
from torch import Tensor, nn

from lorica.kernels import FrozenWeight
from lorica.models.tiled_linear import is_plain


class FrozenLinear(nn.Linear):
    """y = x W^T + b.  `weight` is the dense weight, made anew at every read, for whoever reads it without calling the
    module."""

    stored_as = "elsewhere"
    """How, in the words of an error."""
    plain: type[nn.Linear] = nn.Linear
    """What stood in its place, and does again once its weight is dense."""

    def __init__(self, shape: tuple[int, ...], bias: nn.Parameter | None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = shape
        self.register_parameter("bias", bias)

    def frozen_weight(self) -> FrozenWeight:
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.frozen_weight().dense()

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.frozen_weight().linear(x, self.bias)

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: Any,
        missing_keys: Any,
        unexpected_keys: Any,
        error_msgs: Any,
    ) -> None:
        """What `state_dict` gave is taken back, and nothing else."""
        given, own = state_dict.get(f"{prefix}weight"), self.frozen_weight()
        if given is None:
            missing_keys.append(f"{prefix}weight")
        elif given.shape != own.shape or not torch.equal(given.to(own.device), own.dense()):
            error_msgs.append(
                f"{prefix}weight is stored {self.stored_as}, and another weight was given; load_base stores it so"
            )
        if self.bias is not None and f"{prefix}bias" in state_dict:
            with torch.no_grad():
                self._take_bias(state_dict[f"{prefix}bias"])

    def _take_bias(self, given: Tensor) -> None:
        if self.bias.is_meta:
            self.bias = nn.Parameter(given, requires_grad=False)
        else:
            self.bias.copy_(given)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """As a plain linear in its computing type: what is saved is read by any loader."""
        destination[f"{prefix}weight"] = self.weight
        if self.bias is not None:
            destination[f"{prefix}bias"] = self.bias if keep_vars else self.bias.detach()


def put(model: nn.Module, name: str, after: FrozenLinear) -> None:
    """In place of the linear `name`."""
    before = model.get_submodule(name)
    after.training = before.training
    if isinstance(before, FrozenLinear):
        after.plain = before.plain
    elif is_plain(before):
        after.plain = type(before)
    model.set_submodule(name, after)
