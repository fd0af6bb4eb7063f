"""A GPU in software: tensors that say they lie on cuda:0, are computed on the CPU, and refuse what CUDA refuses.

An op on tensors of two devices raises as it does there, and no kernel in C is taken.  What it cannot tell: speed,
memory, rounding, kernels in Triton.  To torch's own C++ such a tensor is one of the meta device; what C++ makes like it
(zeros of a gradient) is therefore taken for the GPU's as well, unless Python asks for meta by name.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda:0")
ops = torch.ops.aten
ACROSS = {ops.copy_.default, ops._to_copy.default, ops._local_scalar_dense.default}
INDEXED = {ops.index.Tensor, ops.index_put_.default, ops.index_put.default, ops._index_put_impl_.default}
"""Indices may lie on the CPU."""
STATES: Mapping[str, Any] = {
    "_lazy_init": None,
    "is_available": True,
    "device_count": 1,
    "current_device": 0,
    "synchronize": None,
    "empty_cache": None,
    "reset_peak_memory_stats": None,
    "memory_allocated": 0,
    "max_memory_allocated": 0,
    "memory_reserved": 0,
    "mem_get_info": (20 << 30, 24 << 30),
    "get_device_name": "RTX 4090",
    "get_device_capability": (8, 9),
    "is_bf16_supported": True,
    "get_rng_state": torch.zeros(16, dtype=torch.uint8),
    "set_rng_state": None,
}


class OnGPU(Tensor):
    """`held`: the same on the CPU."""

    held: Tensor
    device = property(lambda self: GPU)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = is_meta = property(lambda self: False)  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnGPU":
        shape = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = Tensor._make_wrapper_subclass(cls, held.size(), device="meta", **shape)  # type: ignore[attr-defined]
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        return computed(op, args, kwargs or {}, named_meta=False)

    def __getitem__(self, at: Any) -> Tensor:
        """C++ would make an index of a list on the meta device."""
        parts = [
            torch.tensor(part) if isinstance(part, list) else part for part in (at if isinstance(at, tuple) else [at])
        ]
        return super().__getitem__(tuple(parts))

    def tolist(self) -> Any:
        return self.held.tolist()

    def numpy(self, **options: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


def computed(op: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], named_meta: bool) -> Any:
    """The op on the CPU; its results lie where CUDA would put them."""
    leaves = tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    asked = next((leaf for leaf in leaves if isinstance(leaf, torch.device)), None)
    deciding = tensors[:1] if op in ACROSS | INDEXED else tensors
    on_gpu = any(isinstance(tensor, OnGPU) for tensor in deciding)
    if asked is not None:
        on_gpu = asked.type == "cuda" or (asked.type == "meta" and not named_meta)
    places = {isinstance(tensor, OnGPU) for tensor in tensors if tensor.dim() or isinstance(tensor, OnGPU)}
    if len(places) > 1 and op not in ACROSS | INDEXED:
        raise RuntimeError(f"{op}: Expected all tensors to be on the same device, but found cuda:0 and cpu")
    given: Any = tree_map(lambda leaf: _on_cpu(leaf, on_gpu), (args, dict(kwargs)))
    back = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, OnGPU)}
    return tree_map(lambda out: _returned(out, back, on_gpu), op(*given[0], **given[1]))


def _on_cpu(leaf: Any, on_gpu: bool) -> Any:
    if isinstance(leaf, OnGPU):
        return leaf.held
    return torch.device("cpu") if on_gpu and isinstance(leaf, torch.device) else leaf


def _returned(out: Any, back: Mapping[int, Tensor], on_gpu: bool) -> Any:
    if not isinstance(out, Tensor) or isinstance(out, OnGPU):
        return out
    return back[id(out)] if id(out) in back else OnGPU(out) if on_gpu else out


class Ops(TorchDispatchMode):
    """Ops without a tensor of the GPU among what they are given: those that make tensors."""

    def __init__(self, asking: "Asking") -> None:
        super().__init__()
        self.asking = asking

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        return computed(op, args, kwargs or {}, self.asking.named_meta)


class Asking(TorchFunctionMode):
    """What Python asks for: whether meta is named, and tensors from values, which C++ would fill on the device."""

    named_meta = False

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        asked = kwargs.get("device")
        kind = None if asked is None else torch.device(asked).type
        if function in (torch.tensor, torch.as_tensor) and kind == "cuda":
            del kwargs["device"]
            return function(*args, **kwargs).to(GPU)
        meta = any(isinstance(each, Tensor) and type(each) is not OnGPU and each.is_meta for each in args)
        before, self.named_meta = self.named_meta, self.named_meta or kind == "meta" or meta
        try:
            return function(*args, **kwargs)
        finally:
            self.named_meta = before


def _attention(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """C++ would make the mask of the plain path on the meta device."""

    def attend(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
        tensors = [each.held if isinstance(each, OnGPU) else each for each in (q, k, v, attn_mask)]
        if not isinstance(q, OnGPU):
            return plain(*tensors, **options)
        kinds = {each.device.type for each in (q, k, v, attn_mask) if each is not None}
        assert kinds == {"cuda"}, kinds
        return _Attended.apply(plain, options, q, k, v, attn_mask)  # type: ignore[return-value]

    return attend


class _Attended(torch.autograd.Function):
    @staticmethod
    def forward(ctx, plain, options, *tensors):  # type: ignore[override]
        ctx.leaves = [None if t is None else t.held.detach() for t in tensors]
        ctx.leaves = [t.requires_grad_() if t is not None and t.is_floating_point() else t for t in ctx.leaves]
        with torch.enable_grad():
            ctx.out = plain(*ctx.leaves, **options)
        return OnGPU(ctx.out.detach())

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        wanted = [t for t in ctx.leaves if t is not None and t.requires_grad]
        found = iter(torch.autograd.grad(ctx.out, wanted, grad.held, allow_unused=True))
        grads = [next(found) if t is not None and t.requires_grad else None for t in ctx.leaves]
        return None, None, *(None if g is None else OnGPU(g) for g in grads)


@contextmanager
def software_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Inside, torch sees the GPU.  Autograd's own inference mode would refuse to wrap a result."""
    for name, value in STATES.items():
        monkeypatch.setattr(torch.cuda, name, lambda *args, value=value, **kwargs: value)
    monkeypatch.setattr(
        nn.functional, "scaled_dot_product_attention", _attention(nn.functional.scaled_dot_product_attention)
    )
    monkeypatch.setattr(torch, "inference_mode", lambda mode=True: torch.no_grad() if mode else torch.enable_grad())
    asking = Asking()
    with Ops(asking), asking:
        yield GPU
