"""LoKr in plain loops, from Yeh et al. 2024 (LyCORIS), arXiv:2309.14859, section 3.2.

dW[i b + k, j d + l] = s C[i, j] D[k, l]      C (a, c), D (b, d)
"""

import math

Matrix = list[list[float]]


def times(B: Matrix, A: Matrix) -> Matrix:
    return [[math.fsum(row[k] * A[k][j] for k in range(len(A))) for j in range(len(A[0]))] for row in B]


def weight(W: Matrix, s: float, C: Matrix, D: Matrix) -> Matrix:
    after = [row[:] for row in W]
    for i, outer in enumerate(C):
        for j, left in enumerate(outer):
            for k, inner in enumerate(D):
                for m, right in enumerate(inner):
                    after[i * len(D) + k][j * len(inner) + m] += s * left * right
    return after
