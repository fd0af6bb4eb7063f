"""LoHa in plain loops, from Hyeon-Woo et al. 2022 (FedPara), arXiv:2108.06098, proposition 1, with LyCORIS' scale.

dW_ij = s (sum_k B1_ik A1_kj) (sum_k B2_ik A2_kj)
"""

import math

Matrix = list[list[float]]


def weight(W: Matrix, s: float, B1: Matrix, A1: Matrix, B2: Matrix, A2: Matrix) -> Matrix:
    def entry(B: Matrix, A: Matrix, i: int, j: int) -> float:
        return math.fsum(B[i][k] * A[k][j] for k in range(len(A)))

    return [[w + s * entry(B1, A1, i, j) * entry(B2, A2, i, j) for j, w in enumerate(row)] for i, row in enumerate(W)]
