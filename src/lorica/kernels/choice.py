"""Choice: which path an op takes for a tensor, and why; a function of what the tensor is, never of what ran before.

torch    the file of the op's name in this room, everywhere
native   the file of that name in `native/`, on a CPU that has AVX2, for the types that it reads
triton   the file of that name in `triton/`, for half-precision and float32 tensors of a CUDA device
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from lorica.kernels.native import library


@dataclass(frozen=True)
class Choice:
    path: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Op:
    """Why its Triton kernel is taken, or why not where it `stays` with torch; `what` has at most `widest` elements.
    `tried`: it has run on a device, and its result is committed.  `halves`: it is for half precision, since its tiles
    in float32 are more than most GPUs hold.  `native`: why its kernel in C is taken, None where there is none; `types`
    are those that it reads."""

    why: str
    native: str | None = None
    types: tuple[torch.dtype, ...] = (torch.bfloat16,)
    what: str = "row"
    widest: int | None = None
    stays: bool = False
    tried: bool = False
    halves: bool = False


OPS: Mapping[str, Op] = {
    "rms_norm": Op(
        why="one pass over the rows, forward and backward", native="one pass over the rows, in one type", widest=32768
    ),
    "rotary": Op(
        why="queries and keys are turned in place by one kernel",
        native="both halves of a head are turned in one pass",
        what="head",
        widest=512,
    ),
    "swiglu": Op(
        why="both gradients and the product again in one pass, in place",
        native="both gradients and the product again in one pass",
    ),
    "cross_entropy": Op(
        why="loss and gradient in two reads of the logits, which they overwrite",
        native="loss and gradient of a row while it is in cache, nothing of it in float32",
    ),
    "gain": Op(
        why="the gradient of the gain is a sum over all rows",
        native="both gradients in one pass over the rows",
        stays=True,
    ),
    "attention": Op(
        why="no scores in memory, no padding between documents, keys shared",
        native="scores of a block at a time, no padding between documents, keys laid out once for all their heads",
        what="head",
        widest=128,
        halves=True,
    ),
    "paged_attention": Op(
        why="no kernel in Triton reads keys from blocks yet",
        native="keys and values are read where they lie in their blocks",
        types=(torch.bfloat16, torch.float32),
        what="head",
        stays=True,
    ),
    "rowwise": Op(
        why="no kernel in Triton takes adapters by rows yet",
        native="the weight is read once for all rows, and each row's adapters are added before it is rounded",
        stays=True,
    ),
    "block": Op(
        why="blocks of an engine's pass are run op by op",
        native="a block of a few rows is one call, with no Python between its ops",
        stays=True,
    ),
    "linears": Op(
        why="the library's products are the quickest on a GPU",
        native="low-rank products and gains join a product before it is rounded, in bases that we load",
        stays=True,
    ),
    "thin": Op(
        why="the library's products are the quickest on a GPU",
        native="few long rows and many are read once each",
        stays=True,
    ),
    "low_rank": Op(why="the library's product of W outweighs the pass over y that a product of ours saves", stays=True),
    "dropped_low_rank": Op(why="neither mask nor dropped input ever exists", what="rank", widest=128, halves=True),
    "row_norms": Op(
        why="W is read once, in the type it is stored in",
        native="W is read once, in the type it is stored in",
        what="rank",
        widest=128,
    ),
}
"""`dropped_low_rank` is `low_rank` where dropout draws masks.  The reasons count passes over memory, untimed on any
GPU (docs/decisions/0070)."""

TYPES = (torch.bfloat16, torch.float16, torch.float32)


def chosen(op: str, like: Tensor, width: int | None = None) -> Choice:
    """The path of `op` for tensors like this one; `width` (by default like.shape[-1]) of what `OPS[op].what` names."""
    lacking = library().lacking if like.device.type == "cpu" and like.dtype in OPS[op].types else None
    return _decided(op, like.device.type, like.dtype, like.shape[-1] if width is None else width, has_triton(), lacking)


@cache
def _decided(op: str, device: str, dtype: torch.dtype, width: int, triton: bool, lacking: str | None) -> Choice:
    """Kept, because a pass asks some hundred times, as long as a kernel takes for a few rows."""
    return decided(op, device, dtype, width, triton, lacking)


def is_native(op: str, *tensors: Tensor) -> bool:
    """Whether the kernel in C serves these tensors, all of them on a CPU and in one type that it reads."""
    dtype = tensors[0].dtype
    for tensor in tensors:
        if not tensor.is_cpu or tensor.dtype != dtype:
            return False
    return _runs_in_c(op, dtype, library().lacking)


@cache
def _runs_in_c(op: str, dtype: torch.dtype, lacking: str | None) -> bool:
    """Kept, for the same reason."""
    return _on_cpu(OPS[op], dtype, lacking).path == "native"


def decided(op: str, device: str, dtype: torch.dtype, width: int, triton: bool, lacking: str | None) -> Choice:
    """`chosen`, of words and numbers alone; `lacking`: why there are no kernels in C, None where there are."""
    rule = OPS[op]
    if device == "cpu":
        return _on_cpu(rule, dtype, lacking)
    if device != "cuda":
        return Choice("torch", f"there are no kernels in Triton for {device}")
    if rule.stays:
        return Choice("torch", rule.why)
    if dtype not in TYPES:
        return Choice("torch", f"kernels in Triton compute in float32, and this is {_named(dtype)}")
    if rule.halves and dtype == torch.float32:
        return Choice("torch", "its kernel in Triton is for half precision, and this is float32")
    if not triton:
        return Choice("torch", "triton is not installed: pip install triton")
    if rule.widest is not None and width > rule.widest:
        return Choice("torch", f"a {rule.what} of {width} is more than the {rule.widest} that a tile holds")
    if not rule.tried:
        return Choice("torch", f"in Triton {rule.why}, but that kernel has run in the interpreter alone")
    return Choice("triton", rule.why)


def _on_cpu(rule: Op, dtype: torch.dtype, lacking: str | None) -> Choice:
    if rule.native is None:
        return Choice("torch", "there is no kernel in C for it")
    if dtype not in rule.types:
        read = " and ".join(_named(one) for one in rule.types)
        return Choice("torch", f"kernels in C read {read}, and this is {_named(dtype)}")
    return Choice("native", rule.native) if lacking is None else Choice("torch", lacking)


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def is_recast(x: Tensor, weight: torch.dtype) -> bool:
    """Whether autocast computes a product of x and such a weight in another type than both have: torch's own functions
    alone follow it there, so that the definition is what is taken."""
    kind = x.device.type
    return torch.is_autocast_enabled(kind) and not x.dtype == weight == torch.get_autocast_dtype(kind)


@cache
def has_triton() -> bool:
    """Found without importing it."""
    return find_spec("triton") is not None
