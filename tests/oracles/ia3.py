"""(IA)^3 in plain loops, from Liu et al. 2022, arXiv:2205.05638, section 3.3.

l_k * K and l_v * V      K = W x + b, so that output i is l_i (sum_j W_ij x_j + b_i)
l_ff * activations       the layer that reads them: sum_j W_ij (l_j x_j) + b_i
"""

Matrix = list[list[float]]


def on_outputs(W: Matrix, b: list[float], gain: Matrix) -> tuple[Matrix, list[float]]:
    """gain (d_out, 1)."""
    rows = range(len(W))
    return [[gain[i][0] * entry for entry in W[i]] for i in rows], [gain[i][0] * b[i] for i in rows]


def on_inputs(W: Matrix, b: list[float], gain: Matrix) -> tuple[Matrix, list[float]]:
    """gain (1, d_in)."""
    return [[entry * gain[0][j] for j, entry in enumerate(row)] for row in W], b
