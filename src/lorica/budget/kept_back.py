"""What a CPU process holds beside its tensors.

With the pool (`kernels/native/pool.cpp`): its spare pages, and what libraries read, build and lay out on the way.

    kept back = LIBRARIES + A_TENSOR n + A_TOKEN length + held / SPARED                n trained tensors

Without it: freed blocks that glibc has not given back, and oneDNN's kernels.

    kept back = FIXED + A_LENGTH length + OF_ACTIVATIONS activations + (OF_RECOMPUTED n + churn) block

n blocks are computed again.  Of activations and of a block only what is in tensors below LARGEST_IN_HEAP counts: larger
ones are mappings of their own, which go back as they are freed.  What comes does not fit into what went, because a
tensor asks for 112 bytes more than it keeps (glibc 2.36) and small objects settle in the gaps.

The numbers are fitted to runs of seeds 100 to 102 of `benchmarks/memory_forecast.py`, with the pool of 18 to 20 as
well, which no published table uses, on one machine: Intel with AMX, glibc 2.36, torch 2.13.  They are all of the
forecast that depends on the machine.
"""

from collections.abc import Sequence
from typing import Literal

from lorica.kernels.native.pool import SPARED

LIBRARIES = {"bfloat16": 19_000_000, "float32": 50_000_000}
"""By the type of products; in float32 matrices are packed for them.  A half of it is pages of torch's own files."""
OF_MADE = 8_000_000
"""Kernels of the library for products with weights that are made dense, or with what a method makes of them."""
A_TENSOR = 25_000
"""Of a trained one: gradient and moments are too small for the pool, and objects stand around them."""
A_TOKEN = {"bfloat16": 4_000, "float32": 0}
"""Of a document: what its attention lays out, in each thread."""

FIXED = 50_000_000
"""Kernels that are built, and pages of the libraries that a first step reads."""
A_LENGTH = 32_000
"""Kernels of attention for each token of a document in bfloat16: eight of 252 kB for every 64."""
LARGEST_IN_HEAP = 32 << 20
"""glibc's DEFAULT_MMAP_THRESHOLD_MAX, which its threshold rises to as such blocks are freed."""
OF_ACTIVATIONS = 0.35
OF_RECOMPUTED = 0.12
APART, GAINED = 2.9, 5.3
"""Blocks that churn where a method's layers are not one function with the base's, and where that function has gains."""


def beside_pool(held: int, tensors: int, products: Literal["bfloat16", "float32"], *, length: int, made: bool) -> int:
    """Bytes.  held: by what comes and goes in a step; tensors: how many are trained; length: of the longest document;
    made: whether the library multiplies with matrices that are made for it."""
    of_products = LIBRARIES[products] + OF_MADE * made + A_TOKEN[products] * length
    return of_products + A_TENSOR * tensors + held // SPARED


def kept_back(
    *,
    activations: int,
    block: Sequence[tuple[int, int]],
    recomputed: int,
    length: int,
    apart: bool,
    gained: bool,
) -> int:
    """Bytes.  activations: all that is kept; block: (how many, bytes of each) of the tensors of one; recomputed: how
    many blocks are; length: of the longest document, 0 where its attention builds no kernels for each.
    """
    whole = sum(count * size for count, size in block)
    in_heap = sum(count * size for count, size in block if size < LARGEST_IN_HEAP)
    share = in_heap / whole if whole else 1.0
    churn = APART if apart else GAINED if gained else 0.0
    freed = share * OF_ACTIVATIONS * activations + (OF_RECOMPUTED * recomputed + churn) * in_heap
    return int(FIXED + A_LENGTH * length + freed)
