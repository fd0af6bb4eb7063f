"""Choice: which path an op takes for a tensor, and why; a function of what the tensor is, never of what ran before.

torch    the file of the op's name in this room, everywhere
triton   the file of that name in `triton/`, for half-precision and float32 tensors of a CUDA device
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor


@dataclass(frozen=True)
class Choice:
    path: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Op:
    """Why its Triton kernel is taken, or why not where it `stays` with torch; `what` has at most `widest` elements.
    `tried`: it has run on a device, and its result is committed."""

    why: str
    what: str = "row"
    widest: int | None = None
    stays: bool = False
    tried: bool = False


OPS: Mapping[str, Op] = {
    "rms_norm": Op(why="one pass over the rows, forward and backward", widest=32768),
    "rotary": Op(why="queries and keys are turned in place by one kernel", what="head", widest=512),
    "swiglu": Op(why="both gradients and the product again in one pass, in place"),
    "cross_entropy": Op(why="loss and gradient in two reads of the logits, which they overwrite"),
    "attention": Op(why="no scores in memory, no padding between documents, keys shared", what="head", widest=128),
    "low_rank": Op(why="the library's product of W outweighs the pass over y that a product of ours saves", stays=True),
    "dropped_low_rank": Op(why="neither mask nor dropped input ever exists", what="rank", widest=128),
    "row_norms": Op(why="W is read once, in the type it is stored in", what="rank", widest=128),
}
"""`dropped_low_rank` is `low_rank` where dropout draws masks.  The reasons count passes over memory, untimed on any
GPU (docs/decisions/0070)."""

TYPES = (torch.bfloat16, torch.float16, torch.float32)


def chosen(op: str, like: Tensor, width: int | None = None) -> Choice:
    """The path of `op` for tensors like this one; `width` (by default like.shape[-1]) of what `OPS[op].what` names."""
    return decided(op, like.device.type, like.dtype, like.shape[-1] if width is None else width, has_triton())


def decided(op: str, device: str, dtype: torch.dtype, width: int, triton: bool) -> Choice:
    """`chosen`, of words and numbers alone."""
    rule = OPS[op]
    if device != "cuda":
        return Choice("torch", f"there are no kernels in Triton for {device}")
    if rule.stays:
        return Choice("torch", rule.why)
    if dtype not in TYPES:
        return Choice("torch", f"kernels in Triton compute in float32, and this is {str(dtype).removeprefix('torch.')}")
    if not triton:
        return Choice("torch", "triton is not installed: pip install triton")
    if rule.widest is not None and width > rule.widest:
        return Choice("torch", f"a {rule.what} of {width} is more than the {rule.widest} that a tile holds")
    if not rule.tried:
        return Choice("torch", f"in Triton {rule.why}, but that kernel has run in the interpreter alone")
    return Choice("triton", rule.why)


@cache
def has_triton() -> bool:
    """Found without importing it."""
    return find_spec("triton") is not None
