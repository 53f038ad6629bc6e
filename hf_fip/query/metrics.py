"""
What a query measures. A metric turns the scored rows of a model's logits into one loss per example, and the losses of
all examples into a value with its standard error.

- `perplexity`: `exp(sum of nats / number of scored tokens)`; for classifiers `exp(mean cross-entropy of the labels)`.
- `accuracy`, `f1`, `precision`, `recall`, `matthews_correlation`, `balanced_accuracy`: of the labels (`accuracy` of
  language models: of the scored tokens). With more than two classes `f1`, `precision` and `recall` are means over the
  classes; with two they are the second class's.
- any other name or path: a metric of `evaluate`, given predicted and true class numbers.
- `functional_distance:NODE` or `functional_distance:NODE:NAME`: mean functional distance (`l2`, `kl`, …) of the
  outputs to those of a node, in the distance's unit; `changed_predictions` is the share that is predicted otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..errors import InputError
from ..functional.budget import predictions_changed
from ..functional.distances import Distance, get_distance
from .batches import Batch
from .estimates import jackknife_error, ratio, standard_error


DISTANCE = "functional_distance"
CHANGED = "changed_predictions"
OTHER = -1
_LOWER_IS_BETTER = ("brier_score", "mse", "mae", "mape", "wer", "cer", "zero_one_loss", "hamming_loss")


@dataclass(frozen=True)
class Head:
    """
    What a model's outputs stand for.

    Args:
        labels (`list[list[int]]`, *optional*): for each class of the data the outputs that stand for it; `None` for
            language models.
        truth (`Tensor`, *optional*): `[examples]`, each example's class.
    """

    labels: list[list[int]] | None = None
    truth: Tensor | None = None


@dataclass(frozen=True)
class Metric:
    """
    A metric: [`row_losses`] sums into a loss per example, and [`Metric.value`] makes a value of these.

    Args:
        name (`str`): as it was asked for.
        kind (`str`): `"perplexity"`, `"accuracy"`, `"predictions"` or `"distance"`.
        greater_is_better (`bool`): the order of the ranking.
        score (`Callable`, *optional*): for `"predictions"`: `(predictions, truth, classes)` to the value.
        distance (`Distance`, *optional*): for `"distance"`.
        reference (`str`, *optional*): for `"distance"`: the node compared with, as it was given.
        scale (`float`, *optional*, defaults to 1.0): for `"distance"`: what its unit is worth.
    """

    name: str
    kind: str
    greater_is_better: bool
    score: Callable[[np.ndarray, np.ndarray, int], float] | None = None
    distance: Distance | None = None
    reference: str | None = None
    scale: float = 1.0

    @property
    def needs_labels(self) -> bool:
        """Whether only classifiers have this metric."""
        return self.kind == "predictions"

    @property
    def can_race(self) -> bool:
        """Whether the metric is a ratio of sums over examples."""
        return self.kind != "predictions"

    @property
    def per_token(self) -> bool:
        """Whether a language model's examples count by their tokens (else each counts as one)."""
        return self.kind in ("perplexity", "accuracy")

    def from_ratio(self, value: float, error: float) -> tuple[float, float]:
        """A ratio of losses (the lower, the better) and its standard error as the metric's value and its own."""
        if self.kind == "perplexity":
            try:
                perplexity = math.exp(value)
            except OverflowError:
                return math.inf, math.inf
            # Delta method: d exp(R) = exp(R) dR.
            return perplexity, perplexity * error
        if self.kind == "accuracy":
            return 1 - value, error
        return value / self.scale, error / self.scale

    def value(
        self, loss: np.ndarray, weight: np.ndarray, truth: np.ndarray | None, classes: int
    ) -> tuple[float, float]:
        """
        Value and standard error.

        Args:
            loss (`np.ndarray`): `[examples]`; for `"predictions"` the predicted classes.
            weight (`np.ndarray`): `[examples]`.
            truth (`np.ndarray`, *optional*): `[examples]`, the true classes.
            classes (`int`): how many there are.
        """
        if self.kind != "predictions":
            return self.from_ratio(float(ratio(loss, weight)), float(standard_error(loss, weight)))
        predictions = loss.astype(np.int64)
        value = self.score(predictions, truth, classes)

        def left(kept: np.ndarray) -> float:
            return self.score(predictions[kept], truth[kept], classes)

        return value, jackknife_error(left, len(loss))


def get_metric(name: str, greater_is_better: bool | None = None) -> Metric:
    """
    The metric of that name; see the head of this module.

    Args:
        name (`str`): the name.
        greater_is_better (`bool`, *optional*): for metrics of `evaluate` whose order is not known here: by default
            greater is better, except for the usual names of errors.

    Raises:
        [`InputError`]: no such metric; the message says what there is.
    """
    if not isinstance(name, str) or not name:
        raise InputError(f"metric={name!r}: give a name, for example 'perplexity'.")
    if name == "perplexity":
        return Metric(name, "perplexity", greater_is_better=False)
    if name == "accuracy":
        return Metric(name, "accuracy", greater_is_better=True)
    if name.partition(":")[0] == DISTANCE:
        _, _, rest = name.partition(":")
        reference, _, kind = rest.partition(":")
        if not reference:
            raise InputError(f"metric={name!r} names no node: give {DISTANCE}:NODE or {DISTANCE}:NODE:NAME.")
        return Metric(name, "distance", False, distance=_compared_by(kind or "l2"), reference=reference)
    if name in _SKLEARN:
        return Metric(name, "predictions", True, score=_sklearn_metric(name))
    is_better = name.rsplit("/")[-1] not in _LOWER_IS_BETTER if greater_is_better is None else greater_is_better
    return Metric(name, "predictions", is_better, score=_evaluate_metric(name))


def _compared_by(name: str) -> Distance:
    if name != CHANGED:
        return get_distance(name)
    # Not registered with the others: it has no gradient to train by.
    return Distance(CHANGED, _changed, compares="probabilities", unit="share of predictions")


def _changed(outputs: Tensor, reference: Tensor) -> Tensor:
    return predictions_changed(outputs, reference).to(outputs.dtype)


def row_losses(
    metric: Metric, logits: Tensor, batch: Batch, head: Head, reference: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """
    The loss of each scored row of logits, and the share with which it enters its example's loss.

    Args:
        metric (`Metric`): what is measured.
        logits (`Tensor`): `[scored, classes]` in float32.
        batch (`Batch`): whose they are.
        head (`Head`): what the classes are.
        reference (`Tensor`, *optional*): for distances: the reference's logits of the same rows.

    Returns:
        `tuple[Tensor, Tensor]`: `[scored]` each. For `"predictions"` the losses are predicted classes, `-1` for an
        output that stands for none of the data's.
    """
    whole = torch.ones(len(logits), dtype=torch.float64)
    if metric.kind == "distance":
        counts = torch.bincount(batch.examples)
        return metric.distance.per_example(logits, reference.to(logits)), 1 / counts[batch.examples].double()
    if head.labels is None:
        targets = batch.targets.to(logits.device)
        if metric.kind == "accuracy":
            return logits.argmax(-1).ne(targets), whole
        return cross_entropy(logits, targets, reduction="none"), whole
    truth = head.truth[batch.examples].to(logits.device)
    scores = label_scores(logits, head.labels)
    if metric.kind == "perplexity":
        return -scores.gather(1, truth[:, None])[:, 0], whole
    predicted = scores.argmax(-1)
    predicted[predicted >= len(head.labels)] = OTHER
    return (predicted.ne(truth) if metric.kind == "accuracy" else predicted), whole


def label_scores(logits: Tensor, labels: list[list[int]]) -> Tensor:
    """
    Log-probabilities of the data's classes, then of the outputs that stand for none of them.

    Args:
        logits (`Tensor`): `[examples, outputs]`.
        labels (`list[list[int]]`): for each class the outputs that stand for it; their probabilities are added.

    Returns:
        `Tensor`: `[examples, classes + other outputs]`.
    """
    log_probabilities = logits.log_softmax(-1)
    used = {output for outputs in labels for output in outputs}
    others = [output for output in range(logits.shape[-1]) if output not in used]
    nothing = logits.new_full((len(logits),), -math.inf)
    columns = [log_probabilities[:, outputs].logsumexp(-1) if outputs else nothing for outputs in labels]
    return torch.cat([torch.stack(columns, dim=1), log_probabilities[:, others]], dim=1)


_SKLEARN = {
    "f1": ("f1_score", True),
    "precision": ("precision_score", True),
    "recall": ("recall_score", True),
    "matthews_correlation": ("matthews_corrcoef", False),
    "matthews": ("matthews_corrcoef", False),
    "balanced_accuracy": ("balanced_accuracy_score", False),
}
METRICS = ("perplexity", "accuracy", *_SKLEARN, f"{DISTANCE}:NODE")


def _sklearn_metric(name: str) -> Callable[[np.ndarray, np.ndarray, int], float]:
    try:
        from sklearn import metrics
    except ImportError:
        raise InputError(f"metric={name!r} needs scikit-learn: pip install scikit-learn.") from None
    function, averaged = getattr(metrics, _SKLEARN[name][0]), _SKLEARN[name][1]

    def score(predictions: np.ndarray, truth: np.ndarray, classes: int) -> float:
        if not averaged:
            return float(function(truth, predictions))
        labels = [1] if classes == 2 else sorted(set(truth.tolist()))
        return float(function(truth, predictions, labels=labels, average="macro", zero_division=0))

    return score


def _evaluate_metric(name: str) -> Callable[[np.ndarray, np.ndarray, int], float]:
    import evaluate

    known = ", ".join(METRICS)
    try:
        module = evaluate.load(name)
    except (OSError, ImportError, ValueError, TypeError) as error:
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
        raise InputError(f"metric={name!r} is none of {known}, and evaluate cannot load it ({reason}).") from None

    def score(predictions: np.ndarray, truth: np.ndarray, classes: int) -> float:
        try:
            found: dict[str, Any] = module.compute(predictions=predictions.tolist(), references=truth.tolist())
        except (ValueError, TypeError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"metric={name!r} does not take class numbers ({reason}).") from None
        numbers = {key: value for key, value in found.items() if isinstance(value, (int, float, np.number))}
        key = module.name if module.name in numbers else next(iter(numbers), None)
        if key is None:
            raise InputError(f"metric={name!r} gives no number, only {', '.join(found)}.")
        return float(numbers[key])

    return score
