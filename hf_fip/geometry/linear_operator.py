"""Symmetric linear operators: matrices known by their products alone."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from ..errors import InputError


# In GiB, where an operator has no limit of its own.
MEMORY_LIMIT_GB = 4.0


class SymmetricOperator(ABC):
    """
    A symmetric positive semidefinite matrix `[n, n]` that is never stored: only its products are known.

    Subclasses give `shape`, `dtype`, `device` and `product`, and `memory_limit_gb` where it is not 4 GiB.
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    memory_limit_gb: float = MEMORY_LIMIT_GB

    @abstractmethod
    def product(self, vectors: Tensor) -> Tensor:
        """The product with the columns of `vectors`, `[n, k]` to `[n, k]`."""

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """
        The product with a vector or with a block of vectors.

        Args:
            vectors (`torch.Tensor`): `[n]`, or `[n, k]` for `k` vectors (columns).

        Returns:
            `torch.Tensor`: of the same shape, in the operator's `dtype` and on its `device`.

        Raises:
            [`InputError`]: if the shape does not fit, or the product is not finite.
        """
        block = self._block(vectors)
        result = self.product(block)
        if not torch.isfinite(result).all():
            raise InputError(
                f"{type(self).__name__}: a product is not finite; the vector or the weights hold NaN, infinite or "
                "far too large values"
            )
        return result[:, 0] if vectors.ndim == 1 else result

    def _block(self, vectors: Tensor) -> Tensor:
        if vectors.ndim not in (1, 2) or vectors.shape[0] != self.shape[1]:
            raise InputError(
                f"vector of shape {list(vectors.shape)} does not fit the operator of shape {list(self.shape)}: pass "
                f"[{self.shape[1]}] or [{self.shape[1]}, k]"
            )
        block = vectors.to(self.device, self.dtype)
        return block.unsqueeze(1) if vectors.ndim == 1 else block

    def as_scipy(self) -> LinearOperator:
        """The operator for SciPy's solvers; arrays live on the CPU, in the operator's precision."""
        dtype = torch.empty(0, dtype=self.dtype).numpy().dtype

        def multiply(array: np.ndarray) -> np.ndarray:
            # A column of SciPy's may come as [n, 1]; it expects the shape it gave.
            vectors = torch.from_numpy(np.ascontiguousarray(array, dtype=dtype))
            return (self @ vectors).cpu().numpy()

        return LinearOperator(self.shape, matvec=multiply, rmatvec=multiply, matmat=multiply, dtype=dtype)


class DenseOperator(SymmetricOperator):
    """
    A matrix that is stored, with the interface of one that is not; for small problems and for tests.

    Args:
        matrix (`torch.Tensor`): symmetric, `[n, n]`.
    """

    def __init__(self, matrix: Tensor) -> None:
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise InputError(f"matrix of shape {list(matrix.shape)} is not square: pass a symmetric matrix [n, n]")
        self.matrix = matrix
        self.shape = (matrix.shape[0], matrix.shape[1])
        self.dtype = matrix.dtype
        self.device = matrix.device

    def product(self, vectors: Tensor) -> Tensor:
        return self.matrix @ vectors
