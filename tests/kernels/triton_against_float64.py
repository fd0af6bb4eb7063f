"""What the tests of Triton kernels share: the device, the comparison with float64, and copies with one line changed.

Without a GPU the kernels run in Triton's interpreter, which tests/conftest.py chooses before triton is imported.
"""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

if importlib.util.find_spec("triton") is None and sys.platform != "linux":
    REASON = f"kernels in Triton are not tested: there is no triton for {sys.platform}"
    print(REASON, file=sys.__stderr__)
    pytest.skip(REASON, allow_module_level=True)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ROUNDINGS = 8
"""Of an element, forward or backward: its products, sums and casts."""


def bound(dtype: torch.dtype, terms: int) -> float:
    """Relative to the largest value: a few roundings of the type, and one of float32 for each term of the longest."""
    return ROUNDINGS * torch.finfo(dtype).eps + terms * torch.finfo(torch.float32).eps


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DEVICE, dtype)


def with_gradients(op: Callable[..., Tensor], inputs: list[Tensor], towards: Tensor) -> list[Tensor]:
    """Output and gradients in float64."""
    leaves = [tensor.detach().clone().requires_grad_(True) for tensor in inputs]
    y = op(*leaves)
    y.backward(towards.to(y.dtype))
    return [tensor.double() for tensor in (y.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None))]


def largest_error(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Relative to the largest value of each tensor, or of all where that is nothing but rounding."""
    assert [part.shape for part in found] == [part.shape for part in wanted]
    scales = [float(part.abs().max()) if part.numel() else 0.0 for part in wanted]
    scales = [scale if scale > 1e-3 * max(scales) else max(scales) for scale in scales]
    pairs = [(f, w, scale) for f, w, scale in zip(found, wanted, scales, strict=True) if f.numel()]
    return max((float((f - w).abs().max()) / (scale or 1.0) for f, w, scale in pairs), default=0.0)


def error_of(
    op: Callable[..., Tensor], definition: Callable[..., Tensor], inputs: list[Tensor], towards: Tensor
) -> float:
    """`op` in the type of its inputs against `definition` of the same values in float64, with all gradients."""
    wanted = with_gradients(definition, [tensor.double() for tensor in inputs], towards.double())
    return largest_error(with_gradients(op, inputs, towards), wanted)


def broken(module: ModuleType, right: str, wrong: str, folder: Path) -> ModuleType:
    """A copy of the module with `wrong` in place of `right`."""
    source = Path(str(module.__file__)).read_text()
    assert right in source
    name = f"broken_{abs(hash((module.__name__, right, wrong)))}"
    path = folder / f"{name}.py"
    path.write_text(source.replace(right, wrong))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    sys.modules[name] = copy  # triton looks a kernel's globals up by its module
    spec.loader.exec_module(copy)
    return copy
