"""How sure an ensemble is, from its members' probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError


def predictive_entropy(log_probabilities: Tensor) -> Tensor:
    """
    Entropy of the ensemble's prediction, `H[p̄]` with `p̄ = (1/K) Σ_k p_k`: all its uncertainty.

    Args:
        log_probabilities (`torch.Tensor`): `[members, examples, classes]`, as
            [`~hf_fip.ensembles.Ensemble.member_log_probabilities`] gives them.

    Returns:
        `torch.Tensor`: `[examples]`, in nats, from 0 to the logarithm of the number of classes.
    """
    return _entropy(_log_mean(log_probabilities))


def mutual_information(log_probabilities: Tensor) -> Tensor:
    """
    What the members disagree about: `H[p̄] - (1/K) Σ_k H[p_k]`, the mutual information between prediction and member,
    which is Houlsby et al.'s BALD score ("Bayesian active learning for classification and preference learning", 2011).

    Args:
        log_probabilities (`torch.Tensor`): `[members, examples, classes]`.

    Returns:
        `torch.Tensor`: `[examples]`, in nats; 0 where all members agree.
    """
    values = predictive_entropy(log_probabilities) - _entropy(log_probabilities).mean(0)
    return values.clamp(min=0)


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """
    How far confidence is from accuracy: `Σ_b |B_b| / n · |accuracy(B_b) - confidence(B_b)|` over bins of equal width
    of the largest probability (Guo et al., "On calibration of modern neural networks", 2017, eq. 3, their 15 bins).

    Args:
        probabilities (`torch.Tensor`): `[examples, classes]`.
        labels (`torch.Tensor`): `[examples]`, the right classes.
        bins (`int`, *optional*, defaults to 15): number of bins from 0 to 1.

    Returns:
        `float`: from 0 to 1.

    Raises:
        [`InputError`]: no examples, rows that are no probabilities, labels that do not fit, or no bins.
    """
    if probabilities.ndim != 2 or not len(probabilities) or labels.shape != probabilities.shape[:1]:
        raise InputError(
            f"probabilities {tuple(probabilities.shape)}, labels {tuple(labels.shape)}: expected (examples, classes) "
            "and (examples,), with at least one example."
        )
    if bins < 1:
        raise InputError(f"bins={bins}: give at least 1.")
    probabilities = probabilities.double()
    if float(probabilities.min()) < 0 or float((probabilities.sum(-1) - 1).abs().max()) > 1e-3:
        raise InputError("probabilities: its rows do not sum to 1; give the softmax of the logits.")
    confidence, predicted = probabilities.max(-1)
    gap = (predicted == labels).double() - confidence
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    sums = torch.zeros(bins, dtype=torch.double, device=gap.device).index_add_(0, place, gap)
    return float(sums.abs().sum() / len(gap))


def calibration_error(probabilities: Sequence[Sequence[float]], labels: Sequence[int], bins: int = 15) -> float:
    """[`expected_calibration_error`] of tables of numbers."""
    table, right = (torch.as_tensor(np.asarray(values)) for values in (probabilities, labels))
    return expected_calibration_error(table, right, bins)


def _log_mean(log_probabilities: Tensor) -> Tensor:
    return log_probabilities.logsumexp(0) - math.log(len(log_probabilities))


def _entropy(log_probabilities: Tensor) -> Tensor:
    # xlogy: a probability of zero adds nothing.
    probabilities = log_probabilities.exp()
    return -torch.special.xlogy(probabilities, probabilities).sum(-1)
