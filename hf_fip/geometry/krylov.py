"""A Krylov basis of a symmetric operator that may be started more than once, and the operator restricted to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError


NOT_FINITE = "g: a product is not finite; the weights or the anchors hold NaN, infinite or far too large values"
ZERO = "g is zero: no output depends on the trainable weights at these anchors; check both"
# Vectors multiplied at a time: one by one takes three times as long, and one tensor would be copied as it grows.
BLOCK = 8


class Operator(Protocol):
    """What is asked of a symmetric positive semidefinite operator: its shape, precision, place and products."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    def __matmul__(self, vectors: Tensor) -> Tensor: ...


@dataclass
class _Candidate:
    """A vector to be added: a start (`column` is `None`), or what of `g q_column` lies outside the basis."""

    vector: Tensor
    column: int | None
    scale: float


class Krylov:
    """
    An orthonormal basis `Q` grown by one product at a time, with `H = Q^T g Q`: Lanczos with full
    reorthogonalisation, from one start vector or, where it has to see more than that vector's Krylov space, from
    several (band Lanczos). One start gives the tridiagonal `H` of GLTR (Gould, Lucidi, Roma and Toint, 1999); a
    second, generic one reaches the eigenspaces to which the first is orthogonal.

    Args:
        g (operator): symmetric positive semidefinite, `[n, n]`.
    """

    def __init__(self, g: Operator):
        self.g = g
        self.products = 0
        self._blocks: list[Tensor] = []
        self._size = 0
        self._h = np.zeros((0, 0))
        self._queue: list[_Candidate] = []
        self._epsilon = 10.0 * torch.finfo(g.dtype).eps

    def __len__(self) -> int:
        return self._size

    @property
    def matrix(self) -> np.ndarray:
        """`H = Q^T g Q`, `[k, k]`, in float64."""
        return self._h

    @property
    def scale(self) -> float:
        """The largest absolute row sum of `H`: about the largest eigenvalue of `g` that the basis has met."""
        return float(np.abs(self._h).sum(axis=1).max(initial=0.0))

    @property
    def noise(self) -> float:
        """What a product with a unit vector may be off by in the operator's precision."""
        return self._epsilon * self.scale

    def start(self, vector: Tensor) -> None:
        """Has the Krylov space of `vector` (not zero) added."""
        self._queue.append(_Candidate(self._outside(vector), None, float(vector.norm())))

    def expand(self, towards: np.ndarray | None = None) -> bool:
        """
        Adds one vector at the cost of one product: of a new start, or of what `g` moves out of the basis.

        Args:
            towards (`numpy.ndarray`, *optional*):
                Coefficients of the vector of the basis whose product is wanted inside, `[k]`: of what lies outside,
                the part that it has most of is added. By default the oldest.

        Returns:
            `bool`: `False` where the basis is invariant: nothing is left of the starts and their products.

        Raises:
            [`InputError`]: if the product is not finite.
        """
        while self._queue and len(self) < self.g.shape[0]:
            candidate = self._queue.pop(self._next(towards))
            vector = self._outside(candidate.vector)
            length = float(vector.norm())
            floor = self._epsilon * candidate.scale if candidate.column is None else self.noise
            if length <= floor:
                continue
            self._add(self._outside(vector / length))
            return True
        self._queue.clear()
        return False

    def _next(self, towards: np.ndarray | None) -> int:
        if towards is None:
            return 0
        shares = [np.inf if c.column is None else abs(towards[c.column]) * float(c.vector.norm()) for c in self._queue]
        return int(np.argmax(shares))

    def _add(self, vector: Tensor) -> None:
        q = vector / vector.norm()
        product = self.g @ q
        self.products += 1
        if not torch.isfinite(product).all():
            raise InputError(NOT_FINITE)
        place = self._size % BLOCK
        if place == 0:
            self._blocks.append(torch.empty(BLOCK, len(q), dtype=q.dtype, device=q.device))
        self._blocks[-1][place] = q
        self._size += 1
        for candidate in self._queue:
            candidate.vector = candidate.vector - q * torch.dot(q, candidate.vector)
        column = self.coefficients(product)
        grown = np.zeros((len(self), len(self)))
        grown[:-1, :-1] = self._h
        grown[-1, :] = grown[:, -1] = column
        self._h = grown
        self._queue.append(_Candidate(self._outside(product), len(self) - 1, self.scale))

    def coefficients(self, vector: Tensor) -> np.ndarray:
        """`Q^T v`, `[k]`, in float64."""
        if not self._size:
            return np.zeros(0)
        return torch.cat([rows @ vector for rows in self._rows()]).to("cpu", torch.float64).numpy()

    def combine(self, coefficients: np.ndarray) -> Tensor:
        """`Q y`, `[n]`."""
        total = torch.zeros(self.g.shape[0], dtype=self.g.dtype, device=self.g.device)
        y = torch.from_numpy(coefficients).to(total)
        for rows, part in zip(self._rows(), y.split(BLOCK), strict=True):
            total.addmv_(rows.T, part)
        return total

    def leak(self, coefficients: np.ndarray) -> float:
        """`|(I - Q Q^T) g Q y|`: what `g` moves out of the basis. It costs no product."""
        out: Tensor | float = 0.0
        for candidate in self._queue:
            if candidate.column is not None:
                out = out + candidate.vector * float(coefficients[candidate.column])
        return float(out.norm()) if isinstance(out, Tensor) else out

    def _outside(self, vector: Tensor) -> Tensor:
        """The part of `vector` that is orthogonal to the basis."""
        for rows in self._rows():
            vector = torch.addmv(vector, rows.T, rows @ vector, alpha=-1)
        return vector

    def _rows(self) -> Iterator[Tensor]:
        """The basis in parts, each of them vectors as rows."""
        for number, block in enumerate(self._blocks):
            yield block[: self._size - number * BLOCK]
