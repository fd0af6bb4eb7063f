"""FrozenConv: how a convolution reads its input, whatever weight it is read with.

    y[n, o, p] = sum_c,k  W[o, c, k] * x[n, group(o) + c, stride p + dilation k - padding]  +  bias[o]

W (d_out, channels_in / groups, *kernel); x (N, channels_in, *space), padded by zeros or as `padding_mode` says.
Because stride, padding, dilation and groups belong to the reading, a low-rank weight is two convolutions:

    W = s B A      y = s * conv_1x1(conv(x, A), B)      A (r, channels_in / groups, *kernel)    B (d_out, r, 1...)

With groups, A is read once in each of them: r middle channels a group.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {
    3: nn.functional.conv1d,
    4: nn.functional.conv2d,
    5: nn.functional.conv3d,
}


@dataclass(frozen=True, eq=False)
class FrozenConv:
    """padding: a number a dimension, or "same" or "valid".  padding_mode: zeros, reflect, replicate, circular."""

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str

    @classmethod
    def of(cls, module: Any) -> "FrozenConv":
        """The reading of an nn.Conv1d, nn.Conv2d or nn.Conv3d."""
        reading = (module.stride, module.padding, module.dilation, module.groups, module.padding_mode)
        return cls(module.weight.detach(), module.bias, *reading)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (N, channels_in, *space), or without N, read with this weight -> (N, d_out, *space')."""
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = nn.functional.pad(x, self._around(), mode=self.padding_mode), 0
        return self._convolution(x, weight, bias, self.stride, padding, self.dilation, self.groups)

    def low_rank_product(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """x read with the weight B A; A (r, channels_in / groups, *kernel), B (d_out, r, 1...)."""
        middle = self.product(x, A.repeat(self.groups, *(1,) * (A.dim() - 1)))
        return self._convolution(middle, B, groups=self.groups)

    @property
    def _convolution(self) -> Callable[..., Tensor]:
        return _CONVOLUTIONS[self.weight.dim()]

    def _around(self) -> list[int]:
        """What is padded before and behind, the last dimension first."""
        if isinstance(self.padding, str):
            same = 1 if self.padding == "same" else 0
            whole = [same * d * (k - 1) for d, k in zip(self.dilation, self.weight.shape[2:], strict=True)]
        else:
            whole = [2 * p for p in self.padding]
        return [side for total in reversed(whole) for side in (total // 2, total - total // 2)]
