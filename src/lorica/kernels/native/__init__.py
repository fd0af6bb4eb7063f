"""The ops of this room again as C, for processors with AVX2 or more.  Without a compiler nothing here is taken.

Each file gives its op under the signature of the torch path beside it; `kernels/choice.py` says when it is taken.
Sums are float32; every result is the same at every call, whatever the number of rows beside it or of threads.
"""

from lorica.kernels.native.attention import document_attention
from lorica.kernels.native.block import Reading as BlockReading
from lorica.kernels.native.block import block_
from lorica.kernels.native.build import Library, library

__all__ = ["BlockReading", "Library", "block_", "document_attention", "library"]
