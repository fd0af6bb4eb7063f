"""VeRA in plain loops, from Kopiczko et al. 2024, arXiv:2310.11454, equation 2.

dW_ij = b_i sum_k B_ik d_k A_kj      A and B frozen and shared: layers smaller than the pair read its first part
"""

import math

Matrix = list[list[float]]


def weight(W: Matrix, A: Matrix, B: Matrix, b: list[float], d: list[float]) -> Matrix:
    ranks = range(len(d))
    return [
        [w + b[i] * math.fsum(B[i][k] * d[k] * A[k][j] for k in ranks) for j, w in enumerate(row)]
        for i, row in enumerate(W)
    ]
