"""LoRA-FA in plain loops, from Zhang et al. 2023, arXiv:2308.03303: A stays as drawn, B is trained.

    y = W x + s B A x          g_B = dL/dB = s (sum over tokens of g_y (A x)^T)

The later version's corrected gradient is the minimiser over g of || s g A - dL/dW ||_F, with dL/dW = sum g_y x^T:
setting the derivative to zero, s^2 g A A^T = s dL/dW A^T = g_B.  Here that system is solved by elimination.
"""

from dora import product, transposed
from lora import Matrix


def gradient_of_B(xs: Matrix, gs: Matrix, A: Matrix, s: float) -> Matrix:
    """xs (T, d_in), gs (T, d_out) -> (d_out, r)"""
    return [[s * entry for entry in row] for row in product(transposed(gs), product(xs, transposed(A)))]


def corrected(g_B: Matrix, A: Matrix, s: float) -> Matrix:
    """The g with s^2 g A A^T = g_B."""
    metric = [[s * s * entry for entry in row] for row in product(A, transposed(A))]
    return [solved(metric, row) for row in g_B]


def solved(matrix: Matrix, right: list[float]) -> list[float]:
    """The v with v M = right for a symmetric M, by Gauss and Jordan with pivots."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    size = len(rows)
    for column in range(size):
        pivot = max(range(column, size), key=lambda index: abs(rows[index][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for index in range(size):
            if index != column:
                factor = rows[index][column] / rows[column][column]
                rows[index] = [a - factor * b for a, b in zip(rows[index], rows[column], strict=True)]
    return [row[-1] / row[index] for index, row in enumerate(rows)]
