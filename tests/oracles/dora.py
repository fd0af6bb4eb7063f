"""DoRA in plain loops, from Liu et al. 2024, arXiv:2402.09353v6, equations 5, 6 and 11.

    V = W0 + s B A        W' = m V / ||V||, the norm over each output's row, m (d_out)

Equation 11: for the gradient the norm is a constant C, so that grad_V = (m / C) grad_W'.  With dropout, as in the
authors' code (NVlabs/DoRA, commonsense_reasoning/peft/src/peft/tuners/dora.py):

    y = W0 x + b + (m/C - 1) W0 drop(x) + (m/C) s B A drop(x)

Numbers in and out are nested lists.
"""

import math

from lora import Matrix, Vector, times


def transposed(matrix: Matrix) -> Matrix:
    return [list(column) for column in zip(*matrix, strict=True)]


def product(left: Matrix, right: Matrix) -> Matrix:
    return transposed([times(left, column) for column in transposed(right)])


def direction(W: Matrix, A: Matrix, B: Matrix, s: float) -> Matrix:
    """V"""
    update = product(B, A)
    return [[w + s * u for w, u in zip(*rows, strict=True)] for rows in zip(W, update, strict=True)]


def norms(matrix: Matrix) -> Vector:
    return [math.sqrt(math.fsum(entry * entry for entry in row)) for row in matrix]


def dora(x: Vector, W: Matrix, bias: Vector, A: Matrix, B: Matrix, m: Vector, s: float, mask: Vector) -> Vector:
    """One token: x (d_in) -> (d_out); `mask` is the dropout mask of that token, ones without dropout."""
    gain = [length / norm for length, norm in zip(m, norms(direction(W, A, B, s)), strict=True)]
    dropped = [value * kept for value, kept in zip(x, mask, strict=True)]
    whole, part, update = times(W, x), times(W, dropped), times(B, times(A, dropped))
    terms = zip(whole, bias, gain, part, update, strict=True)
    return [y + b + (g - 1) * p + g * s * u for y, b, g, p, u in terms]


def gradients(
    x: Vector, W: Matrix, A: Matrix, B: Matrix, m: Vector, s: float, g: Vector
) -> tuple[Matrix, Matrix, Vector]:
    """Of A, B and m for one token without dropout, where the output's gradient is g (d_out): equation 11."""
    V = direction(W, A, B, s)
    C = norms(V)
    grad_V = [[m_i / c * g_i * x_j for x_j in x] for m_i, c, g_i in zip(m, C, g, strict=True)]
    grad_B = [[s * entry for entry in row] for row in product(grad_V, transposed(A))]
    grad_A = [[s * entry for entry in row] for row in product(transposed(B), grad_V)]
    return grad_A, grad_B, [g_i * z / c for g_i, z, c in zip(g, times(V, x), C, strict=True)]
