"""Philox-4x32-10 with Python's own integers, from Salmon et al. 2011, section 3.3 and figure 2 (Random123).

One round, with (hi, lo) of the 64-bit products M0 * c0 and M1 * c2:
    c0, c1, c2, c3  ->  hi1 ^ c1 ^ k0,  lo1,  hi0 ^ c3 ^ k1,  lo0
and the key is bumped by the Weyl constants between rounds.
"""

M0, M1 = 0xD2511F53, 0xCD9E8D57
W0, W1 = 0x9E3779B9, 0xBB67AE85
MASK = 2**32 - 1


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        hi0, lo0 = divmod(M0 * c0, 2**32)
        hi1, lo1 = divmod(M1 * c2, 2**32)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + W0) & MASK, (k1 + W1) & MASK
    return c0, c1, c2, c3


def kept(seed: int, step: int, row: int, position: int, site: int, width: int, p: float) -> list[float]:
    """The dropout mask of one token: 0, or 1 / (1 - p)."""
    words = [philox((channel // 4, position, row, site), (seed, step))[channel % 4] for channel in range(width)]
    return [1 / (1 - p) if word >= int(p * 2**32) else 0.0 for word in words]
