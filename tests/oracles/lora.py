"""LoRA in plain loops, from Hu et al. 2021, arXiv:2106.09685, equation 3 and section 4.1.

    h = W0 x + (alpha / r) B A x        W0 (d_out, d_in), B (d_out, r), A (r, d_in)

Dropout, where the authors' code has it, is on the x that A reads.  rsLoRA (Kalajdzievski 2023, arXiv:2312.03732) has
alpha / sqrt(r) instead.  Numbers in and out are nested lists.
"""

import math

Vector = list[float]
Matrix = list[Vector]


def times(matrix: Matrix, vector: Vector) -> Vector:
    return [math.fsum(entry * x for entry, x in zip(row, vector, strict=True)) for row in matrix]


def scale(alpha: float, r: int, rank_stabilised: bool = False) -> float:
    return alpha / math.sqrt(r) if rank_stabilised else alpha / r


def lora(x: Vector, W: Matrix, bias: Vector, A: Matrix, B: Matrix, s: float, mask: Vector | None = None) -> Vector:
    """One token: x (d_in) -> (d_out); `mask` is the dropout mask of that token."""
    dropped = x if mask is None else [value * kept for value, kept in zip(x, mask, strict=True)]
    update = times(B, times(A, dropped))
    return [base + b + s * u for base, b, u in zip(times(W, x), bias, update, strict=True)]


def embedding(token: int, W: Matrix, A: Matrix, B: Matrix, s: float) -> Vector:
    """One token id: W (rows, d), A (r, rows), B (d, r) -> W[token] + s B A[:, token]."""
    update = times(B, [row[token] for row in A])
    return [base + s * u for base, u in zip(W[token], update, strict=True)]
