"""Few shapes: row counts rounded up, where the matrix library builds and keeps a kernel for every shape it meets.

oneDNN's bfloat16 products on CPU take 0.3 to 1 ms to build for a shape, as long as such a product of 2,000 rows itself
runs, and are kept: a run over ragged rows grew by 2 GB.
"""

from torch import Tensor, bfloat16, nn

STEP = 32


def rounded(rows: int, like: Tensor) -> int:
    """`rows` as a product over them should be given, for a matrix of `like`'s device and dtype."""
    builds_kernels = like.device.type == "cpu" and like.dtype == bfloat16
    return -(-rows // STEP) * STEP if builds_kernels else rows


def with_rows(x: Tensor, rows: int) -> Tensor:
    """x (n, ...) -> (rows, ...), zeros behind."""
    missing = rows - x.shape[0]
    return x if missing == 0 else nn.functional.pad(x, (0,) * (2 * x.dim() - 1) + (missing,))
