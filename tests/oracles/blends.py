"""Task vectors made one in plain loops: task arithmetic, TIES and DARE, from their papers.

    task arithmetic     lambda sum over t of tau_t                           Ilharco et al. 2023, arXiv:2212.04089
    TIES                trim, elect, disjoint mean, times lambda             Yadav et al. 2023, arXiv:2306.01708, alg. 1
    DARE                m ~ Bernoulli(p);  (1 - m) delta / (1 - p)           Yu et al. 2024, arXiv:2311.03099, eq. 3, 4

Vectors are lists of numbers.
"""

import math

Vector = list[float]


def sign(value: float) -> int:
    return (value > 0) - (value < 0)


def arithmetic(taus: list[Vector], weights: list[float]) -> Vector:
    return [math.fsum(w * tau[p] for w, tau in zip(weights, taus, strict=True)) for p in range(len(taus[0]))]


def trim(tau: Vector, share: float) -> Vector:
    """Step 1: the top share by magnitude stays, the rest is zero."""
    kept = sorted(range(len(tau)), key=lambda p: -abs(tau[p]))[: int(share * len(tau))]
    return [value if p in set(kept) else 0.0 for p, value in enumerate(tau)]


def elect(taus: list[Vector]) -> list[int]:
    """Step 2: gamma = sgn(sum over t of tau_t), the sign with the greater total magnitude."""
    return [sign(math.fsum(tau[p] for tau in taus)) for p in range(len(taus[0]))]


def disjoint_mean(taus: list[Vector], gamma: list[int]) -> Vector:
    """Step 3: the mean over the tasks that have the elected sign; zeros are not counted."""
    agreeing = [[tau[p] for tau in taus if g != 0 and sign(tau[p]) == g] for p, g in enumerate(gamma)]
    return [math.fsum(values) / len(values) if values else 0.0 for values in agreeing]


def ties(taus: list[Vector], share: float, scale: float) -> Vector:
    trimmed = [trim(tau, share) for tau in taus]
    return [scale * value for value in disjoint_mean(trimmed, elect(trimmed))]


def dare(delta: Vector, dropped: list[bool], p: float) -> Vector:
    return [0.0 if gone else value / (1 - p) for value, gone in zip(delta, dropped, strict=True)]
