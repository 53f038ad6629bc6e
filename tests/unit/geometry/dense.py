"""A small metric whose Jacobian is known, and the sphere's minimum found another way."""

from __future__ import annotations

import torch
from torch import Tensor


class DenseMetric:
    """`g = J^T H J / N` for a given J `[N, C, n]`, and H `[N, C, C]` (default: the identity); counts its products."""

    def __init__(self, jacobian: Tensor, weights: Tensor | None = None):
        self.jacobian = jacobian
        outputs, size = jacobian.shape[1], jacobian.shape[2]
        self.weights = torch.eye(outputs, dtype=jacobian.dtype).expand(len(jacobian), -1, -1)
        if weights is not None:
            self.weights = weights
        self.shape, self.dtype, self.device = (size, size), jacobian.dtype, jacobian.device
        self.products = 0

    def matrix(self) -> Tensor:
        return torch.einsum("ncp,ncd,ndq->pq", self.jacobian, self.weights, self.jacobian) / len(self.jacobian)

    def jvp(self, vectors: Tensor) -> Tensor:
        return torch.einsum("ncp,p...->nc...", self.jacobian, vectors)

    def vjp(self, changes: Tensor) -> Tensor:
        return torch.einsum("ncp,nc...->p...", self.jacobian, changes)

    def weighting(self, changes: Tensor) -> Tensor:
        return torch.einsum("ncd,nd...->nc...", self.weights, changes)

    def __matmul__(self, vectors: Tensor) -> Tensor:
        self.products += 1
        return self.vjp(self.weighting(self.jvp(vectors))) / len(self.jacobian)


def minimum_on_sphere(matrix: Tensor, half: Tensor, radius: float) -> tuple[Tensor, float, bool]:
    """
    The dense solution of `min x^T A x + 2 b^T x` on `|x| = radius`: eigenvectors, and bisection for the multiplier.

    Returns:
        `tuple`: a minimiser, λ, and whether it is the hard case.
    """
    d, u = torch.linalg.eigh(matrix)
    c = u.T @ half
    bottom = d - d[0] <= 1e-12 * d.abs().max()
    hard = bool(c[bottom].norm() <= 1e-13 * c.norm())
    if hard:
        rest = torch.where(bottom, 0.0, -c / torch.where(bottom, 1.0, d - d[0]))
        if rest.norm() <= radius:
            missing = (radius**2 - rest.norm() ** 2).clamp(min=0.0).sqrt()
            return u @ rest + u[:, 0] * missing, float(-d[0]), True
        c = torch.where(bottom, 0.0, c)
    low, high = 0.0, float(c.norm()) / radius
    gaps = torch.where(bottom, 0.0, d - d[0])
    for _ in range(2000):
        middle = (low * high) ** 0.5 if low > 0 else high / 4
        if (c / (gaps + middle)).norm() > radius:
            low = middle
        else:
            high = middle
        if low > 0 and high / low - 1 < 1e-15:
            break
    x = u @ (-c / (gaps + high))
    return x * (radius / x.norm()), high - float(d[0]), False
