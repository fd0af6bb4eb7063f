"""NF4 with double quantisation in plain loops of numpy, from the paper's construction and the published table.

Dettmers et al. 2023, arXiv:2305.14314, section 3 and appendix E.  Equation 4 as printed gives another grid than the
table: the table is what everybody uses, and `constructed` is how it comes about.
"""

from statistics import NormalDist

import numpy as np

TABLE = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    dtype=np.float32,
)
BLOCK, SCALES = 64, 256


def constructed() -> np.ndarray:
    """Quantiles of the normal distribution, eight above zero and seven below, divided by the largest."""
    offset = 0.9677083  # (29 / 30 + 31 / 32) / 2, as it was printed
    above = [NormalDist().inv_cdf(p) for p in np.linspace(offset, 0.5, 9)[:-1]]
    below = [-NormalDist().inv_cdf(p) for p in np.linspace(offset, 0.5, 8)[:-1]]
    levels = np.sort(np.array([*above, 0.0, *below]))
    return levels / levels.max()


def dynamic_map() -> np.ndarray:
    """The 256 signed values of the 8-bit dynamic type: seven decades, each finer than the one below."""
    values = [0.0, 1.0]
    for decade in range(7):
        edges = np.linspace(0.1, 1, 2**decade + 1)
        means = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - 6)
        values += [*means, *-means]
    return np.sort(np.array(values, dtype=np.float32))


def nearest(x: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """The index of the nearest of sorted levels; half way between two, the lower."""
    middles = (levels[:-1] + levels[1:]) / np.float32(2)
    return np.array([sum(bool(value > middle) for middle in middles) for value in x], dtype=np.uint8)


def quantised(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """w (N,) float32 -> codes (ceil(N / 2),), absmax (ceil(N / 64),): two codes a byte, the first in the high half."""
    codes, scales = [], []
    for start in range(0, len(w), BLOCK):
        part = w[start : start + BLOCK]
        absmax = np.abs(part).max()
        scales.append(absmax)
        codes.append(nearest(part * (np.float32(1) / max(absmax, np.float32(1e-38))), TABLE))
    flat = np.concatenate(codes)
    flat = np.append(flat, np.uint8(7)) if len(flat) % 2 else flat
    return (flat[::2] << 4) | flat[1::2], np.array(scales, dtype=np.float32)


def dequantised(codes: np.ndarray, absmax: np.ndarray, count: int) -> np.ndarray:
    """(N,) float32"""
    flat = np.stack([codes >> 4, codes & 15], axis=1).reshape(-1)[:count]
    return np.array([TABLE[code] * absmax[index // BLOCK] for index, code in enumerate(flat)], dtype=np.float32)


def quantised_scales(absmax: np.ndarray, offset: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """absmax (M,) less their mean -> bytes (M,), and a float32 for every 256 of them.

    bitsandbytes looks the level up in a table of 65,536 values on a CPU: each is rounded to one of them first.
    """
    levels, found, scales = dynamic_map(), [], []
    for start in range(0, len(absmax), SCALES):
        part = absmax[start : start + SCALES] - offset
        largest = np.abs(part).max()
        scales.append(largest)
        found.append(np.array([np.abs(levels - looked_up(value / largest)).argmin() for value in part], dtype=np.uint8))
    return np.concatenate(found), np.array(scales, dtype=np.float32)


def looked_up(value: np.float32) -> float:
    return int((float(value) + 1) / 2 * 65535 + 0.5) / 65535 * 2 - 1


def dequantised_scales(
    found: np.ndarray, scales: np.ndarray, offset: np.float32, levels: np.ndarray | None = None
) -> np.ndarray:
    levels = dynamic_map() if levels is None else levels
    values = [levels[byte] * scales[index // SCALES] for index, byte in enumerate(found)]
    return np.array(values, dtype=np.float32) + offset
