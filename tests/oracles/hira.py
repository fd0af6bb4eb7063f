"""HiRA in plain loops, from Huang et al. 2025 (ICLR): W'_ij = W_ij + W_ij sum_k B_ik A_kj."""

import math

Matrix = list[list[float]]


def weight(W: Matrix, A: Matrix, B: Matrix) -> Matrix:
    return [
        [w + w * math.fsum(B[i][k] * A[k][j] for k in range(len(A))) for j, w in enumerate(row)]
        for i, row in enumerate(W)
    ]
