"""Starts of LoRA in plain float64, each by another route than the fast one.

    PiSSA     arXiv:2404.02948, equations 2 and 3     eigenvectors of W^T W
    OLoRA     arXiv:2406.01775                        Gram-Schmidt, column by column
    LoRA-GA   arXiv:2407.05000, section 3             eigenvectors of G^T G and G G^T
    LoftQ     arXiv:2310.08659, algorithm 1            eigenvectors of (W - Q)^T (W - Q)
    EVA       arXiv:2410.07170, section 3             eigenvectors of X^T X; ranks dealt out one at a time

W and G are (d_out, d_in), X is (tokens, d_in), A (r, d_in), B (d_out, r).
"""

from collections.abc import Callable

import torch
from torch import Tensor


def eigenvectors(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Largest first: values (n,), vectors as columns (n, n)."""
    values, vectors = torch.linalg.eigh(symmetric)
    return values.flip(0).clamp_min(0), vectors.flip(1)


def pissa(W: Tensor, r: int, s: float) -> tuple[Tensor, Tensor]:
    squares, V = eigenvectors(W.T @ W)
    sizes, V = squares[:r].sqrt(), V[:, :r]
    U = (W @ V) / sizes
    return (sizes / s).sqrt()[:, None] * V.T, U * (sizes / s).sqrt()


def loftq(W: Tensor, q: Callable[[Tensor], Tensor], r: int, s: float, T: int) -> tuple[Tensor, Tensor, Tensor]:
    """Q, A and B after T rounds; q quantises and gives the numbers that are then stored."""
    Q, A, B = W, torch.zeros(r, W.shape[1]).to(W), torch.zeros(W.shape[0], r).to(W)
    for _ in range(T):
        Q = q(W - s * B @ A)
        A, B = pissa(W - Q, r, s)
    return Q, A, B


def olora(W: Tensor, r: int) -> tuple[Tensor, Tensor]:
    columns: list[Tensor] = []
    for column in W.T:
        rest = column
        for _ in range(2):  # once more, against rounding
            for done in columns:
                rest = rest - (done @ rest) * done
        if rest.norm() > 1e-9:
            columns.append(rest / rest.norm())
    B = torch.stack(columns[:r], dim=1)
    return B.T @ W, B


def lora_ga(G: Tensor, r: int, gamma: float) -> tuple[Tensor, Tensor]:
    k = G.shape[0] ** 0.25 / gamma**0.5
    _, V = eigenvectors(G.T @ G)
    _, U = eigenvectors(G @ G.T)
    return k * V[:, :r].T, k * U[:, r : 2 * r]


def residual(W: Tensor, A0: Tensor, B0: Tensor, A: Tensor, B: Tensor, s: float) -> Tensor:
    """What the papers train: the base without its starting product, and the product beside it."""
    return (W - s * B0 @ A0) + s * B @ A


def directions(X: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """V^T (r, d_in), and the share of |X|^2 that each of the directions explains (d_in,)."""
    squares, V = eigenvectors(X.T @ X)
    return V[:, :r].T, squares / squares.sum()


def ranks(shares: dict[str, list[float]], r: int, rho: float) -> dict[str, int]:
    """r for each layer on average and rho r at most: the largest share that is left takes the next."""
    taken = dict.fromkeys(shares, 0)
    for _ in range(r * len(shares)):
        open_ = [name for name in shares if taken[name] < min(round(rho * r), len(shares[name]))]
        best = max(open_, key=lambda name: shares[name][taken[name]])
        taken[best] += 1
    return taken
