"""
Where a path lies: a weight space with the metric that a function's outputs give it, or with a metric that is given.

A [`Surface`] answers what a path asks: the length of a chord, inner products, and the connection that says how a
straight line in the weights curves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.func import jacrev, jvp, vjp

from .correction import drift_correction
from .network import Inputs, Network


class Surface(ABC):
    """A metric on a weight space, `g(w)`, positive semidefinite."""

    @abstractmethod
    def inner(self, point: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """`first^T g(point) second`, a scalar."""

    @abstractmethod
    def chord(self, start: Tensor, end: Tensor) -> Tensor:
        """Squared length of the straight line between two near points: a scalar that can be differentiated."""

    def chords(self, points: Tensor) -> Tensor:
        """[`chord`] of each point of a path `[T + 1, n]` to the next, `[T]`."""
        return torch.stack([self.chord(a, b) for a, b in zip(points[:-1], points[1:], strict=True)])

    @abstractmethod
    def connection(self, point: Tensor, velocity: Tensor) -> Tensor:
        """`Γ(v, v)` of the Levi-Civita connection, `[n]`: a path is a geodesic where `w'' + Γ(w', w') = 0`."""


class OutputSurface(Surface):
    """
    The weight space with the metric of eq. 2, `g = J^T J / N`: the pull-back of the flat metric of the outputs.

    Its connection is `Γ(v, v) = g^+ J^T f''(v, v) / N` with `f''(v, v)` the second derivative of the outputs along
    `v`, taken as a jvp of a jvp. `g^+` is the pseudo-inverse, through conjugate gradients (products with J and J^T
    alone): where `g` is singular Γ has no part in its null space, along which lengths do not depend on the weights
    and any path is as good as any other. `damping` replaces `g^+` by `(g + damping I)^-1`.

    Args:
        function (`Callable`): from weights `[n]` to outputs `[N, C]` (or `[m]`, one anchor), differentiable twice.
        damping (`float`, *optional*, defaults to 0.0): in the unit of `g`'s eigenvalues.
        tolerance (`float`, *optional*, defaults to 1e-10): relative residual of the conjugate gradients.
        max_products (`int`, *optional*, defaults to 100): most products of each.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        *,
        damping: float = 0.0,
        tolerance: float = 1e-10,
        max_products: int = 100,
    ):
        self._function = function
        self._damping = damping
        self._tolerance = tolerance
        self._max_products = max_products

    def outputs(self, point: Tensor) -> Tensor:
        """`f(w)`, `[N, C]`."""
        outputs = self._function(point)
        return outputs.unsqueeze(0) if outputs.ndim == 1 else outputs.flatten(1)

    def chord(self, start: Tensor, end: Tensor) -> Tensor:
        return self.chords(torch.stack([start, end]))[0]

    def chords(self, points: Tensor) -> Tensor:
        outputs = torch.stack([self.outputs(point) for point in points])
        return outputs.diff(dim=0).square().sum(-1).mean(-1)

    def inner(self, point: Tensor, first: Tensor, second: Tensor) -> Tensor:
        moved = [jvp(self.outputs, (point,), (v,))[1] for v in (first, second)]
        return (moved[0] * moved[1]).sum() / len(moved[0])

    def connection(self, point: Tensor, velocity: Tensor) -> Tensor:
        def speed(w: Tensor) -> Tensor:
            return jvp(self.outputs, (w,), (velocity,))[1]

        curvature = jvp(speed, (point,), (velocity,))[1]
        return self.pull_back(point, curvature)

    def pull_back(self, point: Tensor, change: Tensor) -> Tensor:
        """The shortest change of the weights that changes the outputs by `change` `[N, C]`, in least squares."""
        return drift_correction(
            _Linearised(self, point),
            -change,
            damping=self._damping,
            tolerance=self._tolerance,
            max_products=self._max_products,
        ).theta


class MetricSurface(Surface):
    """
    A space whose metric is given as a matrix at each point, for surfaces that are not the image of a function.

    `Γ^k(v, v) = g^kl (d_v g_lj v^j - (1/2) d_l g_ij v^i v^j)`, by automatic differentiation; chords are measured with
    the metric at their middle.

    Args:
        metric (`Callable`): from a point `[n]` to the symmetric, positive definite matrix `[n, n]`.
    """

    def __init__(self, metric: Callable[[Tensor], Tensor]):
        self._metric = metric

    def inner(self, point: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return first @ self._metric(point) @ second

    def chord(self, start: Tensor, end: Tensor) -> Tensor:
        return self.inner((start + end) / 2, end - start, end - start)

    def connection(self, point: Tensor, velocity: Tensor) -> Tensor:
        slopes = jacrev(self._metric)(point)
        along = torch.einsum("ljk,k,j->l", slopes, velocity, velocity)
        across = torch.einsum("ijl,i,j->l", slopes, velocity, velocity)
        return torch.linalg.solve(self._metric(point), along - across / 2)


class _Linearised:
    """`J^T J / N` of a surface at a point, by its products."""

    def __init__(self, surface: OutputSurface, point: Tensor):
        self._surface = surface
        self._point = point.detach()
        outputs, self._pull = vjp(surface.outputs, self._point)
        self._number = len(outputs)
        self.shape, self.dtype, self.device = (len(point), len(point)), point.dtype, point.device

    def jvp(self, vectors: Tensor) -> Tensor:
        return jvp(self._surface.outputs, (self._point,), (vectors,))[1]

    def vjp(self, changes: Tensor) -> Tensor:
        return self._pull(changes)[0]

    def weighting(self, changes: Tensor) -> Tensor:
        return changes

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return self.vjp(self.jvp(vectors)) / self._number


def network_surface(
    model: nn.Module,
    anchors: Inputs | Iterable[Inputs],
    *,
    dtype: torch.dtype | None = None,
    damping: float = 0.0,
    max_products: int = 100,
) -> tuple[OutputSurface, Tensor]:
    """
    The weight space of a network, with the metric of its outputs on anchors.

    Args:
        model, anchors, dtype: see [`MetricTensor`].
        damping, max_products: see [`OutputSurface`].

    Returns:
        `tuple[OutputSurface, torch.Tensor]`: the surface, and where the model is on it: its trainable weights, `[n]`.

    Raises:
        [`InputError`]: if no weight is trainable, or the model gives no logits for the anchors.
    """
    network = Network(model, dtype)
    chunks = network.chunks(anchors)
    sizes = [p.numel() for p in network.parameters.values()]

    def outputs(point: Tensor) -> Tensor:
        parts = zip(network.parameters.items(), point.split(sizes), strict=True)
        weights = {name: part.view_as(p) for (name, p), part in parts}
        return torch.cat([network(weights, chunk) for chunk in chunks])

    start = torch.cat([p.reshape(-1) for p in network.parameters.values()])
    return OutputSurface(outputs, damping=damping, max_products=max_products), start
