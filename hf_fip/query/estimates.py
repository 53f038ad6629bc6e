"""
Ratios of sums over examples, and how well a sample of the examples knows them.

Every query that can be raced is a ratio `R = sum(loss) / sum(weight)` over examples: nats per token, wrong answers per
example, distance per example. Losses and weights are float64 arrays `[..., examples]`. An example (a text with all its
tokens) is the unit that was sampled, so standard errors are clustered by example.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np


GROUPS = 20


def ratio(loss: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """`sum(loss) / sum(weight)` over the last axis, `[...]`."""
    return loss.sum(axis=-1) / weight.sum(axis=-1)


def influence(loss: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """
    What each example contributes to the ratio's deviation, `(loss - R * weight) / mean(weight)`, `[..., examples]`.

    The first-order (delta method) approximation of a ratio's sampling error is the mean of these, which sum to zero
    (Cochran, "Sampling Techniques", 3rd edition 1977, section 6.4). Differences of two models' influences on the same
    examples give the error of the *difference* of their ratios, with all that the examples' difficulty shares
    cancelled.
    """
    return (loss - ratio(loss, weight)[..., None] * weight) / weight.mean(axis=-1, keepdims=True)


def standard_error(loss: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """
    Standard error of the ratio, `[...]`, if the examples are a random sample of all texts like them; NaN for one
    example.
    """
    return mean_error(influence(loss, weight))


def mean_error(values: np.ndarray) -> np.ndarray:
    """Standard error of the mean over the last axis, `[...]`; NaN for one value."""
    number = values.shape[-1]
    if number < 2:
        return np.full(values.shape[:-1], math.nan)
    return values.std(axis=-1, ddof=1) / math.sqrt(number)


def estimate_from_part(
    loss: np.ndarray, weight: np.ndarray, leader_loss: np.ndarray, leader_weight: np.ndarray
) -> tuple[float, float]:
    """
    The ratio on all examples of a model that saw only the first of them, through one that saw all.

    The difference estimator (Cochran 1977, chapter 7): the leader's ratio on all examples plus the difference of the
    two on the examples both saw. Models of a family find the same examples hard, so this is far more exact than the
    model's own mean over its part.

    Args:
        loss, weight (`np.ndarray`): `[part]`, of the model.
        leader_loss, leader_weight (`np.ndarray`): `[all]`, of the leader, whose first examples are the model's.

    Returns:
        `tuple[float, float]`: the ratio and its standard error.
    """
    part, everything = len(loss), len(leader_loss)
    shared = (leader_loss[:part], leader_weight[:part])
    value = ratio(leader_loss, leader_weight) + ratio(loss, weight) - ratio(*shared)
    if part < 2:
        return float(value), math.nan
    leader, own = influence(*shared), influence(loss, weight)
    difference = own - leader
    whole = influence(leader_loss, leader_weight).var(ddof=1)
    covariance = np.cov(leader, difference)[0, 1]
    variance = (whole + 2 * covariance) / everything + difference.var(ddof=1) / part
    return float(value), math.sqrt(max(variance, 0.0))


def jackknife_error(statistic: Callable[[np.ndarray], float], examples: int, seed: int = 0) -> float:
    """
    Standard error of a statistic that is no ratio of sums, by the delete-a-group jackknife with 20 random groups
    (Kott, "The delete-a-group jackknife", Journal of Official Statistics 2001).

    Args:
        statistic (`Callable`): from the indices of the examples kept, `[kept]`, to the value.
        examples (`int`): how many there are.
        seed (`int`, *optional*, defaults to 0): of the groups.

    Returns:
        `float`: NaN for fewer than two examples.
    """
    groups = min(GROUPS, examples)
    if groups < 2:
        return math.nan
    group = np.random.default_rng(seed).permutation(np.arange(examples) % groups)
    values = np.array([statistic(np.flatnonzero(group != left_out)) for left_out in range(groups)])
    return float(np.sqrt((groups - 1) / groups * np.square(values - values.mean()).sum()))
