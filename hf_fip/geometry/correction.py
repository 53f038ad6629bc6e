"""The drift corrector: a Gauss-Newton step back to the reference outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from .dual import DualForm, Metric, drift_gradient
from .krylov import NOT_FINITE, Operator


@dataclass(frozen=True)
class Correction:
    """
    A step back, and what it is expected to do.

    Args:
        theta (`torch.Tensor`): the step, `[n]`.
        before (`float`): functional distance `(1/N) sum_i |f_i - f_ref,i|^2_H` at these weights.
        after (`float`): the same after the step, to first order.
        residual (`float`): `|(g + damping I) theta + J^T H r / N|`, relative to its second part.
        products (`int`): products with `g` it took.
        vjps (`int`): further vjps: 1 for the gradient; for the dual form one for every output of every anchor too.
    """

    theta: Tensor
    before: float
    after: float
    residual: float
    products: int
    vjps: int


def drift_correction(
    g: Metric,
    drift: Tensor,
    *,
    damping: float = 0.0,
    method: str = "cg",
    tolerance: float = 1e-6,
    max_products: int = 20,
) -> Correction:
    """
    The step that undoes a drift of the outputs: `argmin (1/N) sum_i |r_i + J_i theta|^2_H + damping |theta|^2` with
    `r` the drift. It solves `(g + damping I) theta = -J^T H r / N`; without damping, and solved to the end, it is the
    shortest of all steps that undo the drift (to first order). Few products of conjugate gradients undo the stiff
    part of it, which is most of it, with a short step.

    Args:
        g ([`Metric`]): the metric at the drifted weights, such as a [`MetricTensor`].
        drift (`torch.Tensor`): outputs on the anchors minus the reference outputs, `[N, C]`.
        damping (`float`, *optional*, defaults to 0.0): Levenberg-Marquardt's, in the unit of `g`'s eigenvalues.
        method (`str`, *optional*, defaults to `"cg"`):
            `"cg"`: conjugate gradients on `g`. `"dual"`: exact, through `N C` vjps (see [`DualForm`]).
        tolerance (`float`, *optional*, defaults to 1e-6): largest relative residual of `"cg"`.
        max_products (`int`, *optional*, defaults to 20): most products of `"cg"`.

    Returns:
        [`Correction`]: a zero step where the drift is zero, or where no weight moves the drifted outputs.

    Raises:
        [`InputError`]: damping below 0, a drift of the wrong shape, values that are not finite.
    """
    if not 0 <= damping < math.inf:
        raise InputError(f"damping={damping!r} has to be 0 or above and finite")
    if method not in ("cg", "dual"):
        raise InputError(f"method={method!r} is unknown; choose one of: cg, dual")
    right = -drift_gradient(g, drift) / 2
    drift = drift.to(g.device, g.dtype)
    before = float((drift * g.weighting(drift)).sum() / len(drift))
    length = float(right.norm())
    products = vjps = 0
    if length == 0.0:
        theta = product = torch.zeros_like(right)
    elif method == "cg":
        theta, product, products = conjugate_gradients(
            g, right, damping=damping, tolerance=tolerance, max_products=max_products
        )
    else:
        dual = DualForm(g)
        theta = _solve_in_range(dual, right, damping)
        product, products, vjps = g @ theta, 1, dual.vjps
    residual = float((right - product - damping * theta).norm()) / length if length else 0.0
    after = before - 2 * float(torch.dot(right, theta)) + float(torch.dot(theta, product))
    return Correction(theta, before, max(0.0, after), residual, products, vjps + 1)


def _solve_in_range(dual: DualForm, right: Tensor, damping: float) -> Tensor:
    return dual.combine(dual.coefficients(right) / (dual.eigenvalues + damping))


def conjugate_gradients(
    g: Operator, right: Tensor, *, damping: float = 0.0, tolerance: float = 1e-6, max_products: int = 20
) -> tuple[Tensor, Tensor, int]:
    """
    Solves `(g + damping I) x = right` by conjugate gradients from zero: the shortest solution where `g` is singular.

    Args:
        g (operator): symmetric positive semidefinite, `[n, n]`.
        right (`torch.Tensor`): in the range of `g`, `[n]`.
        damping (`float`, *optional*, defaults to 0.0): added to every eigenvalue.
        tolerance (`float`, *optional*, defaults to 1e-6): largest residual, relative to `right`.
        max_products (`int`, *optional*, defaults to 20): most products with `g`.

    Returns:
        `tuple[torch.Tensor, torch.Tensor, int]`: `x`, `g @ x` and the number of products.

    Raises:
        [`InputError`]: if a product is not finite.
    """
    x, product = torch.zeros_like(right), torch.zeros_like(right)
    residual, direction = right.clone(), right.clone()
    squared = float(torch.dot(residual, residual))
    goal = tolerance**2 * squared
    products = 0
    while squared > goal and products < max_products:
        moved = g @ direction
        products += 1
        curvature = float(torch.dot(direction, moved)) + damping * float(torch.dot(direction, direction))
        if not math.isfinite(curvature):
            raise InputError(NOT_FINITE)
        if curvature <= 0.0:
            break
        step = squared / curvature
        x.add_(direction, alpha=step)
        product.add_(moved, alpha=step)
        residual.add_(moved + damping * direction, alpha=-step)
        previous, squared = squared, float(torch.dot(residual, residual))
        direction = residual + direction * (squared / previous)
    return x, product, products
