"""The density of an operator's eigenvalues by stochastic Lanczos quadrature."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .krylov import Krylov
from .linear_operator import SymmetricOperator


def lanczos_density(
    g: SymmetricOperator, *, probes: int = 4, steps: int = 40, without: Tensor | None = None, seed: int = 0
) -> tuple[tuple[float, float], ...]:
    """
    The spectral density by stochastic Lanczos quadrature (Ubaru, Chen and Saad, "Fast estimation of tr(f(A)) via
    stochastic Lanczos quadrature", 2017), with full reorthogonalisation.

    From a random unit vector, `m` Lanczos steps give a tridiagonal `T` with eigenvalues `t_j` and eigenvectors `y_j`;
    with the weights `w_j = (e_1^T y_j)^2`, `sum_i f(l_i)` is about `n` times the mean over the probes of
    `sum_j w_j f(t_j)`. Two things make it fit a metric tensor, whose eigenvalues are mostly zero and a few huge. The
    last diagonal entry of `T` is chosen so that one node is exactly zero (Gauss-Radau quadrature, Golub and
    Meurant, "Matrices, moments and quadrature", 1994). And where eigenvectors are known, only the others are
    estimated: the large eigenvalues would hide them in the noise of the probes.

    Args:
        g ([`SymmetricOperator`]): the operator, `[n, n]`.
        probes (`int`, *optional*, defaults to 4): random vectors.
        steps (`int`, *optional*, defaults to 40): Lanczos steps, and products, for each.
        without (`torch.Tensor`, *optional*): orthonormal eigenvectors to leave out, `[n, k]`.
        seed (`int`, *optional*, defaults to 0): of the vectors.

    Returns:
        `tuple`: pairs (eigenvalue, expected number of eigenvalues there), descending; the numbers add up to `n - k`.
    """
    remaining = _Deflated(g, without) if without is not None else g
    others = g.shape[0] - (without.shape[1] if without is not None else 0)
    generator = torch.Generator().manual_seed(seed + 1)
    pairs: list[tuple[float, float]] = []
    for _ in range(probes):
        start = torch.randn(g.shape[0], generator=generator, dtype=torch.float64).to(g.device, g.dtype)
        krylov = Krylov(remaining)
        krylov.start(remaining.project(start) if isinstance(remaining, _Deflated) else start)
        while len(krylov) < min(steps, others) and krylov.expand():
            pass
        nodes, y = np.linalg.eigh(_with_node_at_zero(krylov.matrix))
        counts = y[0] ** 2 * others / probes
        pairs += zip(nodes.clip(min=0.0).tolist(), counts.tolist(), strict=True)
    return tuple(sorted(pairs, reverse=True))


def _with_node_at_zero(t: np.ndarray) -> np.ndarray:
    """A positive semidefinite tridiagonal matrix with its last entry lowered to where the matrix becomes singular."""
    lowered = t.copy()
    if len(t) > 1:
        lowered[-1, -1] = t[-1, :-1] @ np.linalg.pinv(t[:-1, :-1], hermitian=True) @ t[:-1, -1]
    return lowered


class _Deflated(SymmetricOperator):
    """An operator on the orthogonal complement of some of its eigenvectors."""

    def __init__(self, g: SymmetricOperator, vectors: Tensor) -> None:
        self.g, self.vectors = g, vectors
        self.shape, self.dtype, self.device = g.shape, g.dtype, g.device

    def project(self, vectors: Tensor) -> Tensor:
        for _ in range(2):
            vectors = vectors - self.vectors @ (self.vectors.T @ vectors)
        return vectors

    def product(self, vectors: Tensor) -> Tensor:
        return self.project(self.g @ self.project(vectors))
