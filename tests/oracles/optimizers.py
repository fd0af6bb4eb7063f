"""Optimisers in plain loops over numbers, from their papers.  Matrices are nested lists, and every step makes new ones.

Lion        Chen et al. 2023, arXiv:2302.06675, algorithm 2
Adafactor   Shazeer & Stern 2018, arXiv:1804.04235, algorithms 4 (matrices) and 5 (vectors), with the hyperparameters of
            section 9: eps1 = 1e-30, eps2 = 1e-3, d = 1, beta2_t = 1 - t^-0.8; the step is rho_t max(eps2, RMS(X)), or
            rho_t alone where the sizes of steps are absolute (section 8 of the paper is what makes them relative)
Muon        Jordan et al. 2024: the quintic Newton-Schulz iteration on a normalised matrix, here in double precision
"""

import math

Vector = list[float]
Matrix = list[Vector]


def lion(X: Matrix, gradients: list[Matrix], lr: float, b1: float, b2: float, decay: float) -> Matrix:
    m = [[0.0] * len(row) for row in X]
    for G in gradients:
        new = []
        for i, row in enumerate(X):
            moved = []
            for j, x in enumerate(row):
                c = b1 * m[i][j] + (1 - b1) * G[i][j]
                moved.append(x - lr * ((c > 0) - (c < 0) + decay * x))
                m[i][j] = b2 * m[i][j] + (1 - b2) * G[i][j]
            new.append(moved)
        X = new
    return X


def rms(X: Matrix) -> float:
    values = [x for row in X for x in row]
    return math.sqrt(math.fsum(x * x for x in values) / len(values))


def adafactor(X: Matrix, gradients: list[Matrix], rho: float, relative: bool, d: float = 1.0) -> Matrix:
    n, m = len(X), len(X[0])
    R, C = [0.0] * n, [0.0] * m
    for t, G in enumerate(gradients, 1):
        b = 1 - t**-0.8
        alpha = rho * max(1e-3, rms(X)) if relative else rho
        squared = [[g * g + 1e-30 for g in row] for row in G]
        R = [b * R[i] + (1 - b) * math.fsum(squared[i]) for i in range(n)]
        C = [b * C[j] + (1 - b) * math.fsum(squared[i][j] for i in range(n)) for j in range(m)]
        V = [[R[i] * C[j] / math.fsum(R) for j in range(m)] for i in range(n)]
        U = [[G[i][j] / math.sqrt(V[i][j]) for j in range(m)] for i in range(n)]
        clip = max(1.0, rms(U) / d)
        X = [[X[i][j] - alpha * U[i][j] / clip for j in range(m)] for i in range(n)]
    return X


def adafactor_vector(x: Vector, gradients: list[Vector], rho: float, relative: bool, d: float = 1.0) -> Vector:
    V = [0.0] * len(x)
    for t, g in enumerate(gradients, 1):
        b = 1 - t**-0.8
        alpha = rho * max(1e-3, rms([x])) if relative else rho
        V = [b * v + (1 - b) * (e * e + 1e-30) for v, e in zip(V, g, strict=True)]
        u = [e / math.sqrt(v) for v, e in zip(V, g, strict=True)]
        clip = max(1.0, rms([u]) / d)
        x = [e - alpha * step / clip for e, step in zip(x, u, strict=True)]
    return x


def product(P: Matrix, Q: Matrix) -> Matrix:
    return [[math.fsum(p * Q[k][j] for k, p in enumerate(row)) for j in range(len(Q[0]))] for row in P]


def transposed(X: Matrix) -> Matrix:
    return [list(column) for column in zip(*X, strict=True)]


def newton_schulz(G: Matrix, steps: int = 5) -> Matrix:
    if len(G) > len(G[0]):
        return transposed(newton_schulz(transposed(G), steps))
    a, b, c = 3.4445, -4.7750, 2.0315
    norm = math.sqrt(math.fsum(g * g for row in G for g in row))
    X = [[g / norm for g in row] for row in G]
    for _ in range(steps):
        S = product(X, transposed(X))
        SS = product(S, S)
        P = [[b * S[i][j] + c * SS[i][j] for j in range(len(S))] for i in range(len(S))]
        PX = product(P, X)
        X = [[a * X[i][j] + PX[i][j] for j in range(len(X[0]))] for i in range(len(X))]
    return X
