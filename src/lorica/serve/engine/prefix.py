"""Keys under which full blocks of keys and values are found again.

    key_0 = H(base, adapter generations with digests and weights, tenant);   key_i = H(key_{i-1}, tokens of block i)

A block is found by a document that has the same tokens from its beginning on, under the same adapters and for the same
tenant, and by no other.  H is BLAKE2b of 256 bits; every part is preceded by its kind and its length, so that no two
lists of parts have one text.
"""

import struct
from array import array
from collections.abc import Sequence
from hashlib import blake2b

KINDS = ("base", "generation", "digest", "weight", "tenant")


def root(base: str, adapters: Sequence[tuple[str, str, float]], tenant: str) -> bytes:
    """adapters: (generation, digest of its content, weight) of each that is blended."""
    parts = [("base", base.encode())]
    for generation, digest, weight in adapters:
        parts += [
            ("generation", generation.encode()),
            ("digest", digest.encode()),
            ("weight", struct.pack("<d", weight)),
        ]
    return _hashed([*parts, ("tenant", tenant.encode("utf-8", "surrogatepass"))])


def chained(before: bytes, tokens: Sequence[int]) -> bytes:
    """The key of the block with these tokens that comes after the block of key `before`."""
    return blake2b(b"block" + before + array("q", tokens).tobytes(), digest_size=32).digest()


def _hashed(parts: Sequence[tuple[str, bytes]]) -> bytes:
    made = blake2b(b"root", digest_size=32)
    for kind, content in parts:
        made.update(struct.pack("<BQ", KINDS.index(kind), len(content)))
        made.update(content)
    return made.digest()
