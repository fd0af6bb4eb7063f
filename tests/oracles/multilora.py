"""MultiLoRA in plain loops, after Wang et al. 2023, arXiv:2311.11501: n LoRAs one after the other, each with its scale.

y_i = sum_j W_ij x_j + sum_m c_im sum_k B^m_ik sum_j A^m_kj x_j      A (n r, d_in) and B (d_out, n r) hold the n pairs
"""

import math

Matrix = list[list[float]]


def weight(W: Matrix, n: int, A: Matrix, B: Matrix, c: Matrix) -> Matrix:
    r = len(A) // n
    after = [row[:] for row in W]
    for m in range(n):
        own = range(m * r, (m + 1) * r)
        for i, row in enumerate(after):
            for j in range(len(row)):
                row[j] += c[i][m] * math.fsum(B[i][k] * A[k][j] for k in own)
    return after
