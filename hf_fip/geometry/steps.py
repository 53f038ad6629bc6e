"""
Exact steps: the isofunctional direction (eq. 3) and the step along a functionally invariant path (eq. 4).

Along a path they are for small and faithful moves, for analysis, and to verify what an optimizer does: at equal time
and at equal numbers of samples, Adam on L + D / beta travels much farther. Few products resolve the stiff directions
of `g` only, while progress lies in the flat ones; and steps that are exact in themselves add up to a drift, unless
each also aims back at the reference outputs (`drift` below).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .dual import DualForm, Metric, drift_gradient
from .krylov import ZERO, Krylov, Operator
from .secular import SphereSolution, minimise_on_sphere


METHODS = ("lanczos", "dual")


@dataclass(frozen=True)
class ExactStep:
    """
    A step `theta` of a given length, and what it is expected to do.

    Args:
        theta (`torch.Tensor`): the step, `[n]`.
        multiplier (`float`): λ of `(g + λ I) theta = -(beta / 2) grad L`; at least minus the smallest eigenvalue.
        output_change (`float`): `theta^T g theta`: the mean squared change of the outputs (eq. 2), to first order.
        objective_change (`float`): `theta^T grad L`: the change of L, to first order.
        residual (`float`): `|(g + λ I) theta + (beta / 2) grad L|`.
        products (`int`): products with `g` (each a jvp and a vjp) it took.
        vjps (`int`): further vjps (dual form: one for every output of every anchor; of a [`MetricTensor`], each on
            that anchor alone).
        converged (`bool`): whether it is the minimum to the tolerance, not only in the space searched so far.
        hard_case (`bool`):
            Whether `grad L` says nothing about the flattest directions, one of which had to be chosen: eq. 3 always.
    """

    theta: Tensor
    multiplier: float
    output_change: float
    objective_change: float
    residual: float
    products: int
    vjps: int
    converged: bool
    hard_case: bool


def isofunctional_step(
    g: Operator,
    epsilon: float,
    *,
    start: Tensor | None = None,
    method: str = "lanczos",
    tolerance: float = 1e-6,
    max_products: int = 100,
    generator: torch.Generator | None = None,
) -> ExactStep:
    """
    Eq. 3: the `theta` of length epsilon that changes the outputs least, `argmin theta^T g theta`.

    It is an eigenvector of the smallest eigenvalue. Where that eigenvalue is multiple (it is 0, n - N C times at
    least, for the metric of N anchors and C outputs), the minimum is a whole sphere of steps; the one returned is
    the projection of `start` on that eigenspace, brought to length: without `start`, a random direction. Eigenvalues
    that differ by less than `tolerance` times the largest count as equal.

    Args: see [`fip_step`].

    Returns:
        [`ExactStep`]: its `objective_change` is 0; its `tolerance` is relative to the largest eigenvalue.

    Raises:
        [`InputError`]: epsilon not above 0, a `start` that does not fit, `g` zero or its products not finite.
    """
    _check(epsilon, method, max_products)
    nothing = torch.zeros(g.shape[0], dtype=g.dtype, device=g.device)
    start = _direction(g, start, generator)
    return _solved(g, _Problem(nothing, nothing, 0.0, float(epsilon), start, tolerance, 0.0), method, max_products)


def fip_step(
    g: Operator,
    gradient: Tensor,
    epsilon: float,
    *,
    beta: float = 1.0,
    drift: Tensor | None = None,
    start: Tensor | None = None,
    method: str = "lanczos",
    flatness: float = 0.0,
    tolerance: float = 1e-6,
    max_products: int = 100,
    generator: torch.Generator | None = None,
) -> ExactStep:
    """
    Eq. 4: `argmin theta^T g theta + beta theta^T grad L` subject to `|theta| = epsilon`, to the global minimum.

    The minimum is characterised by `(g + λ I) theta = -(beta / 2) grad L` with `g + λ I` positive semidefinite. `g`
    being so itself, any λ >= 0 with a small residual proves it. λ is negative only where `g` is regular and the
    unconstrained minimiser is shorter than epsilon; and 0 (the hard case) where `grad L` lies in the range of a
    singular `g` and the way down is shorter than epsilon: the rest of the length is made up within the null space.
    Only while λ is not above 0 is the bottom of the spectrum looked for, from a second start vector.

    With `drift` the first term is `|f(w) + J theta - f_ref|^2`, averaged over the anchors: the step also goes back
    towards the reference outputs. A path of many steps needs it, or what each step leaves adds up.

    Where nothing says which way is down (a gradient of 0, or beta 0, and no drift), or which way the outputs stay
    (`g = 0`), the step would be one of chance, and is refused; the first is what [`isofunctional_step`] is for.

    Args:
        g (operator): the metric, `[n, n]`, such as a [`MetricTensor`]; needs `g @ v`, `shape`, `dtype`, `device`
            (and `jvp`, `vjp`, `weighting` for `method="dual"` and for `drift`).
        gradient (`torch.Tensor`): `grad L`, `[n]`.
        epsilon (`float`): length of the step, in units of the weights.
        beta (`float`, *optional*, defaults to 1.0): weight of L.
        drift (`torch.Tensor`, *optional*): outputs on the anchors minus the reference outputs, `[N, C]`.
        start (`torch.Tensor`, *optional*):
            Which of the flattest directions to take where they are equal, `[n]`: its projection; random by default.
        method (`str`, *optional*, defaults to `"lanczos"`):
            `"lanczos"`: GLTR, one product at a time. `"dual"`: through the Gram matrix J J^T `[N C, N C]`, where
            N C is small beside n; it takes N C vjps and holds that many vectors, within `g.memory_limit_gb`.
        flatness (`float`, *optional*, defaults to 0.0):
            Eigenvalues up to this share of the largest count as 0, and what the gradient asks along them is ignored:
            those directions are free for `start`. For walks with L = 0, whose gradient is that of the drift alone:
            exact steps would follow what little of it lies in flat directions, back and forth.
        tolerance (`float`, *optional*, defaults to 1e-6):
            Largest residual, relative to `|(beta / 2) grad L|` (of eq. 3: to the largest eigenvalue times epsilon).
        max_products (`int`, *optional*, defaults to 100):
            Most products of `"lanczos"`, and vectors `[n]` that it holds; the best step in the space they span is
            returned, not `converged`.
        generator (`torch.Generator`, *optional*): of the random direction, on the CPU.

    Returns:
        [`ExactStep`]

    Raises:
        [`InputError`]: epsilon not above 0, beta below 0, shapes that do not fit, values that are not finite, a
            gradient that is zero, `g` zero, or a dual form that exceeds `g.memory_limit_gb`.
    """
    _check(epsilon, method, max_products)
    if not 0 <= beta < math.inf:
        raise InputError(f"beta={beta!r} has to be 0 or above and finite: it is the weight of the objective")
    if not 0 <= flatness < 1:
        raise InputError(f"flatness={flatness!r} has to be from 0 to below 1: a share of the largest eigenvalue")
    if gradient.ndim != 1 or len(gradient) != g.shape[0]:
        raise InputError(f"gradient of shape {list(gradient.shape)} does not fit g: pass a flat vector [{g.shape[0]}]")
    gradient = gradient.to(g.device, g.dtype)
    half = gradient * (beta / 2)
    if drift is not None:
        half = half + drift_gradient(g, drift) / 2
    if not torch.isfinite(half).all():
        raise InputError("gradient holds NaN or infinite values (or beta times it does); check the loss")
    if not half.any():
        raise InputError(
            f"gradient is zero (times beta={beta!r}, and with the drift's), which says of no direction that it leads "
            "down: check the loss, or take isofunctional_step (eq. 3)"
        )
    start = _direction(g, start, generator)
    problem = _Problem(gradient, half, float(half.norm()), float(epsilon), start, tolerance, flatness)
    return _solved(g, problem, method, max_products)


@dataclass(frozen=True)
class _Problem:
    gradient: Tensor
    half: Tensor
    length: float
    epsilon: float
    start: Tensor
    tolerance: float
    flatness: float

    def threshold(self, scale: float, noise: float) -> float:
        """The largest residual, where `scale` is the largest eigenvalue and products are off by `noise`."""
        return self.tolerance * (self.length or scale * self.epsilon) + noise * self.epsilon

    def solve(
        self, d: np.ndarray, c: np.ndarray, threshold: float, wanted: np.ndarray | None = None
    ) -> SphereSolution:
        """In the hard case, of all directions whose eigenvalue equals the smallest the one nearest to `wanted`."""
        free = d - d[0] <= max(threshold / self.epsilon if wanted is not None else 0.0, self.flatness * d[-1])
        if self.flatness:
            c = np.where(free, 0.0, c)
        solution = minimise_on_sphere(d, c, self.epsilon)
        if wanted is None or not solution.hard_case:
            return solution
        way = np.where(free, wanted, 0.0)
        width = float(np.linalg.norm(way))
        if width == 0.0:
            return solution
        y = np.where(free, 0.0, solution.y)
        missing = math.sqrt(max(0.0, self.epsilon**2 - float(y @ y)))
        return replace(solution, y=y + way * (missing / width))


def _solved(g: Operator, problem: _Problem, method: str, max_products: int) -> ExactStep:
    return _by_lanczos(g, problem, max_products) if method == "lanczos" else _by_dual(g, problem)


def _by_lanczos(g: Operator, problem: _Problem, max_products: int) -> ExactStep:
    length, epsilon, start = problem.length, problem.epsilon, problem.start
    basis = Krylov(g)
    probing = length == 0.0
    basis.start(start if probing else problem.half)
    converged = False
    towards: np.ndarray | None = None
    while basis.products < max_products:
        if not basis.expand(towards):
            if probing or len(basis) == g.shape[0]:
                # Invariant under g, with a part of each eigenspace: the minimum lies in it.
                converged = True
                break
            probing = True
            basis.start(start)
            continue
        d, u = np.linalg.eigh(basis.matrix)
        threshold = problem.threshold(basis.scale, basis.noise)
        solution = problem.solve(d, length * _without_rounding(u[0]), threshold)
        towards = u @ solution.y
        if solution.multiplier < -basis.noise and not probing:
            # The basis is not flat enough for the length of the step, which would go into its stiff directions.
            probing = True
            basis.start(start)
        elif basis.leak(towards) <= threshold:
            certain = solution.multiplier >= -basis.noise and not solution.hard_case
            if certain or (probing and basis.leak(u[:, 0]) <= problem.tolerance * basis.scale + basis.noise):
                converged = True
                break
            towards = u[:, 0]
    if basis.scale == 0.0:
        _refuse_zero(g)
    d, u = np.linalg.eigh(basis.matrix)
    c = length * _without_rounding(u[0])
    threshold = problem.threshold(basis.scale, basis.noise)
    solution = problem.solve(d, c, threshold, u.T @ basis.coefficients(start))
    theta = basis.combine(u @ solution.y)
    theta = theta * (epsilon / float(theta.norm()))
    inside = np.linalg.norm((d + solution.multiplier) * solution.y + c)
    return ExactStep(
        theta=theta,
        multiplier=solution.multiplier,
        output_change=float(d @ solution.y**2),
        objective_change=float(torch.dot(theta, problem.gradient)),
        residual=math.hypot(float(inside), basis.leak(u @ solution.y)),
        products=basis.products,
        vjps=0,
        converged=converged,
        hard_case=solution.hard_case,
    )


def _by_dual(g: Metric, problem: _Problem) -> ExactStep:
    dual = DualForm(g)
    half, start = problem.half, problem.start
    d, c, wanted = dual.eigenvalues, dual.coefficients(half), dual.coefficients(start)
    # All that lies outside the range has eigenvalue 0: one direction stands for it, the way down if there is one.
    flat = dual.outside(half)
    down = float(flat.norm())
    epsilon = torch.finfo(g.dtype).eps
    if down <= 100 * epsilon * problem.length or problem.flatness:
        flat, down = dual.outside(start), 0.0
    has_flat = len(dual) < g.shape[0] and bool(flat.any())
    if has_flat:
        flat = flat / flat.norm()
        along = float(torch.dot(flat, start))
        d, c, wanted = (np.insert(values, 0, first) for values, first in ((d, 0.0), (c, down), (wanted, along)))
    scale = float(d[-1])
    threshold = problem.threshold(scale, 10 * epsilon * scale)
    solution = problem.solve(d, c, threshold, wanted)
    y = solution.y
    theta = dual.combine(y[1:]) + flat * float(y[0]) if has_flat else dual.combine(y)
    theta = theta * (problem.epsilon / theta.norm())
    product = g @ theta
    residual = float((product + solution.multiplier * theta + half).norm())
    return ExactStep(
        theta=theta,
        multiplier=solution.multiplier,
        output_change=float(torch.dot(theta, product)),
        objective_change=float(torch.dot(theta, problem.gradient)),
        residual=residual,
        products=1,
        vjps=dual.vjps,
        converged=residual <= threshold,
        hard_case=solution.hard_case,
    )


def _without_rounding(components: np.ndarray) -> np.ndarray:
    """Components of a unit vector; those that are nothing but rounding would hide the hard case."""
    return np.where(np.abs(components) > 10 * np.finfo(float).eps, components, 0.0)


def _refuse_zero(g: Operator) -> None:
    """All products were zero. They may have been with vectors of the null space; a random one has a part outside."""
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(g.shape[0], dtype=torch.float64, generator=generator).to(g.device, g.dtype)
    if not (g @ probe).any():
        raise InputError(ZERO)


def _direction(g: Operator, start: Tensor | None, generator: torch.Generator | None) -> Tensor:
    if start is None:
        start = torch.randn(g.shape[0], dtype=torch.float64, generator=generator)
    start = start.to(g.device, g.dtype)
    if start.shape != g.shape[:1] or not torch.isfinite(start).all() or not start.any():
        raise InputError(f"start of shape {list(start.shape)}: pass [{g.shape[0]}] finite values, not all zero")
    return start


def _check(epsilon: float, method: str, max_products: int) -> None:
    if method not in METHODS:
        raise InputError(f"method={method!r} is unknown; choose one of: {', '.join(METHODS)}")
    if not 0 < epsilon < math.inf:
        raise InputError(f"epsilon={epsilon!r} has to be above 0 and finite: it is the length of the step")
    if max_products < 1:
        raise InputError(f"max_products={max_products!r} has to be at least 1")
