"""The trust-region subproblem in its own eigenbasis: one equation in one unknown, the hard case included."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq


@dataclass(frozen=True)
class SphereSolution:
    """
    The minimiser of `sum_i d_i y_i^2 + 2 c_i y_i` on the sphere `|y| = radius`.

    Args:
        y (`numpy.ndarray`): the minimiser, `[k]`.
        multiplier (`float`): λ, with `(d_i + λ) y_i = -c_i` and `d_i + λ >= 0` for every i.
        hard_case (`bool`): whether `λ = -d_min`, where a direction of the smallest `d` had to be added.
    """

    y: np.ndarray
    multiplier: float
    hard_case: bool


def minimise_on_sphere(d: np.ndarray, c: np.ndarray, radius: float) -> SphereSolution:
    """
    Solves `min sum_i d_i y_i^2 + 2 c_i y_i` subject to `|y| = radius`, to the global minimum.

    The multiplier λ is the rightmost root of `|y(λ)| = radius` with `y_i = -c_i / (d_i + λ)`: at `-d_min` or to the
    right of it, so that it is negative where the unconstrained minimiser is shorter than the radius. If `c` has no
    part along the smallest `d` and `y(-d_min)` is too short (the *hard case*: Moré and Sorensen, 1983), λ is `-d_min`
    and the missing length is made up along the first of the smallest `d`, of which either sign would do; it gets the
    positive one.

    Args:
        d (`numpy.ndarray`): eigenvalues in ascending order, `[k]`.
        c (`numpy.ndarray`): half the linear term, in the eigenbasis, `[k]`.
        radius (`float`): of the sphere, above 0.

    Returns:
        [`SphereSolution`]
    """
    # In s = λ + d_min the gaps are differences of eigenvalues, and nothing cancels near the pole.
    gaps = d - d[0]
    bottom = float(np.linalg.norm(c[gaps == 0.0]))

    def excess(log_s: float) -> float:
        return float(np.log(np.linalg.norm(c / (gaps + np.exp(log_s))) / radius))

    if bottom < np.finfo(float).tiny * max(1.0, radius):
        y = np.zeros_like(c)
        above = gaps > 0.0
        with np.errstate(over="ignore"):
            y[above] = -c[above] / gaps[above]
        length = float(np.linalg.norm(y))
        if length <= radius:
            y[0] = radius * float(np.sqrt(max(0.0, (1.0 - length / radius) * (1.0 + length / radius))))
            return SphereSolution(y, -float(d[0]), True)
        c = np.where(above, c, 0.0)
        # Below this shift the length is what it is at the pole, above the radius.
        low = max(float(gaps[above].min()) * 1e-17, float(np.finfo(float).tiny))
    else:
        low = bottom / radius
    high = max(low, float(np.linalg.norm(c)) / radius)
    low, high = np.log(low) - 1e-9, np.log(high) + 1e-9
    log_s = low if excess(low) <= 0 else brentq(excess, low, high, xtol=1e-15, rtol=4 * np.finfo(float).eps)
    s = float(np.exp(log_s))
    y = -c / (gaps + s)
    return SphereSolution(y * (radius / np.linalg.norm(y)), s - float(d[0]), False)
