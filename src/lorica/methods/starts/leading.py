"""The leading singular triplets of a matrix, whole or by random projection.

    Y = M Omega,  Omega (n, q) Gaussian;  Q = orth((M M^T)^niter Y);  SVD of Q^T M        U = Q U~

Halko, Martinsson and Tropp 2011, arXiv:0909.4061, algorithms 4.4 and 5.1, with QR between the products.  The random
matrix is drawn on the CPU from a generator of the caller's, so that a seed means the same on every device.
"""

import torch
from torch import Tensor

OVERSAMPLED = 8
"""Random directions beyond k: with none, as PEFT's fast SVD has it, the last of the k are the worst."""


def wide(M: Tensor) -> Tensor:
    """In float32 or better."""
    return M.detach().to(torch.promote_types(M.dtype, torch.float32))


def leading(M: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """M (m, n) -> U (m, k), S (k,) descending, V^T (k, n)."""
    U, S, Vt = torch.linalg.svd(wide(M), full_matrices=False)
    return U[:, :k], S[:k], Vt[:k]


def leading_projected(
    M: Tensor, k: int, *, q: int, niter: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """As `leading`, from q >= k random directions; whole where q directions are all there are."""
    M = wide(M)
    if q >= min(M.shape):
        return leading(M, k)
    drawn = torch.randn(M.shape[1], q, generator=generator, dtype=torch.float32)
    Q = torch.linalg.qr(M @ drawn.to(M))[0]
    for _ in range(niter):
        Q = torch.linalg.qr(M @ torch.linalg.qr(M.T @ Q)[0])[0]
    U, S, Vt = leading(Q.T @ M, k)
    return Q @ U, S, Vt


def leading_or_fast(M: Tensor, k: int, niter: int | None, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """As `leading`; with `niter` by so many power iterations from a few more than k random directions."""
    if niter is None:
        return leading(M, k)
    return leading_projected(M, k, q=k + OVERSAMPLED, niter=niter, generator=generator)


def halves(U: Tensor, S: Tensor, Vt: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """A = (S / s)^1/2 V^T and B = U (S / s)^1/2, so that s B A = U S V^T."""
    root = (S / scale).sqrt()
    return root[:, None] * Vt, U * root
