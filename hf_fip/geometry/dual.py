"""The metric in its dual form: through the outputs, where they are fewer than the weights."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..functional.anchors import GIB
from .krylov import NOT_FINITE, ZERO, Operator
from .linear_operator import MEMORY_LIMIT_GB
from .metric_tensor import MetricTensor


class Metric(Operator, Protocol):
    """A metric that comes from a network: `g = J^T H J / N`, with J and H known by their products."""

    def jvp(self, vectors: Tensor) -> Tensor:
        """`J v`, `[n]` to `[N, C]`."""

    def vjp(self, changes: Tensor) -> Tensor:
        """`J^T u`, `[N, C]` to `[n]` (and `[N, C, k]` to `[n, k]`)."""

    def weighting(self, changes: Tensor) -> Tensor:
        """`H u`, `[N, C]` to `[N, C]` (and `[N, C, k]` alike)."""


def drift_gradient(g: Metric, drift: Tensor) -> Tensor:
    """
    Gradient of the functional distance `(1/N) sum_i |f_i - f_ref,i|^2_H` with respect to the weights, `[n]`.

    Args:
        g ([`Metric`]): the metric at these weights.
        drift (`torch.Tensor`): outputs on the anchors minus the reference outputs, `[N, C]`.

    Raises:
        [`InputError`]: if `drift` is no matrix of finite values.
    """
    if drift.ndim != 2 or not torch.isfinite(drift).all():
        raise InputError(
            f"drift of shape {list(drift.shape)}: pass outputs minus reference outputs [N, C], all finite values"
        )
    gradient = g.vjp(g.weighting(drift.to(g.device, g.dtype))) * (2.0 / len(drift))
    if not torch.isfinite(gradient).all():
        raise InputError(NOT_FINITE)
    return gradient


class DualForm:
    """
    The range of the metric, of dimension `N C` at most; outside it no output moves, to first order. With
    `J^T = Q R`, `g = Q (R H R^T / N) Q^T`: after `N C` vjps everything is exact and small (Woodbury). Those of a
    [`MetricTensor`] take an anchor each, which is the work of `C` vjps on all. The Gram matrix `J J^T = R^T R` has the
    same nonzero eigenvalues (times N, for `"l2"`), but forming it would square their range.

    Holds `N C` vectors, and twice as many while it is made.

    Args:
        g ([`Metric`]): the metric; its `memory_limit_gb`, or 4 GiB, is what the vectors may take.

    Raises:
        [`InputError`]: if the vectors exceed the limit, a vjp is not finite, or `g` is zero.
    """

    def __init__(self, g: Metric):
        is_network = isinstance(g, MetricTensor)
        nothing = torch.zeros(g.shape[0], dtype=g.dtype, device=g.device)
        number, outputs = (g.num_rows, g.num_outputs) if is_network else g.jvp(nothing).shape
        self.vjps = number * outputs
        _refuse_too_many(g, number, outputs)
        units = torch.eye(self.vjps, dtype=g.dtype, device=g.device).view(number, outputs, -1)
        rows = g.rows() if is_network else torch.stack([g.vjp(unit) for unit in units.unbind(-1)])
        if not torch.isfinite(rows).all():
            raise InputError(NOT_FINITE)
        self._basis, r = torch.linalg.qr(rows.T)
        del rows
        inner = r @ g.weighting(units).reshape(self.vjps, self.vjps) @ r.T / number
        d, rotation = torch.linalg.eigh((inner + inner.T) / 2)
        # What lies below cannot be told from 0: it belongs to the rest of the weight space.
        kept = d > d.max() * len(d) * torch.finfo(g.dtype).eps
        if not kept.any():
            raise InputError(ZERO)
        self._rotation = rotation[:, kept]
        self.eigenvalues = d[kept].to(torch.float64).cpu().numpy()

    def __len__(self) -> int:
        return len(self.eigenvalues)

    def coefficients(self, vector: Tensor) -> np.ndarray:
        """Of a vector `[n]` along the eigenvectors, in the order of `eigenvalues` (ascending), in float64."""
        return (self._rotation.T @ (self._basis.T @ vector)).to(torch.float64).cpu().numpy()

    def combine(self, coefficients: np.ndarray) -> Tensor:
        """The sum of the eigenvectors with these coefficients, `[n]`."""
        return self._basis @ (self._rotation @ torch.from_numpy(coefficients).to(self._basis))

    def outside(self, vector: Tensor) -> Tensor:
        """The part of `vector` along which no output moves, to first order."""
        for _ in range(2):
            vector = vector - self.combine(self.coefficients(vector))
        return vector


def _refuse_too_many(g: Metric, number: int, outputs: int) -> None:
    limit = getattr(g, "memory_limit_gb", MEMORY_LIMIT_GB)
    # The vectors and their orthonormal basis.
    row = 2 * outputs * g.shape[0] * g.dtype.itemsize / GIB
    if number * row > limit:
        fewer = f"use at most {int(limit / row):,} rows, " if limit >= row else ""
        raise InputError(
            f"anchors: the dual form of {number:,} rows with {outputs:,} outputs takes {number * row:.3g} GiB, above "
            f"memory_limit_gb={limit:.3g}; {fewer}raise the limit, or choose method='lanczos' (of a drift: 'cg')"
        )
