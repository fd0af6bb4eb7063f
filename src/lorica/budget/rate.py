"""The rate of matrix products here and now: machines that share a processor differ by two from hour to hour."""

import time

import torch

from lorica.kernels import tiled_linear

SIZES = (512, 1024, 2048)
SECONDS = 0.3
"""A size that would take longer is not tried."""


def product_gflops(dtype: torch.dtype, device: torch.device | str = "cpu") -> float:
    """10^9 operations a second, 2 n^3 a product, as a base's linears have it: the best of squares of a few sizes."""
    best = 0.0
    for size in SIZES:
        if best and 2 * size**3 / best / 1e9 > SECONDS:
            break
        best = max(best, 2 * size**3 / _least_seconds(size, dtype, device) / 1e9)
    return best


def _least_seconds(size: int, dtype: torch.dtype, device: torch.device | str) -> float:
    """Of three products, after one that builds the kernel."""
    x = torch.ones(size, size, dtype=dtype, device=device)
    return min(_seconds(x) for _ in range(4))


def _seconds(x: torch.Tensor) -> float:
    _finish(x)
    began = time.perf_counter()
    tiled_linear(x, x, None)
    _finish(x)
    return max(time.perf_counter() - began, 1e-9)


def _finish(x: torch.Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
