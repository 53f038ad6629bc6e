"""Forgetting control: the largest drift on the anchors that the user accepts, and what was kept of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from .statistics import Certificate, certify_changed_share, certify_disagreement, certify_distance


# The penalty weight that meets a budget of delta without tuning, and the weight without a budget; both were measured
# on digits and on reviews (docs/measurements.md). Where the anchors' predictions are kept too, the distance of the
# class scores needs less weight.
WEIGHT_TIMES_BUDGET = 0.1
DEFAULT_BETA = 0.2
DEFAULT_BETA_WITH_PREDICTIONS = 1.0
# What a disagreement budget means for the penalty: the drift, in shares of the outputs' variance, at which about that
# share of predictions changes.
DRIFT_PER_DISAGREEMENT = 1.0


@dataclass(frozen=True)
class Budget:
    """
    What the user allows to change on the anchors.

    Args:
        distance (`float`, *optional*):
            Largest mean functional distance, as a share of the outputs' variance (for distances of probabilities: in
            the distance's own unit). 0.02 is a good start.
        disagreement (`float`, *optional*):
            Largest share of anchors whose prediction may differ from the reference network's.

    Raises:
        [`InputError`]: if a budget is not positive, or a disagreement budget is not below 1.
    """

    distance: float | None = None
    disagreement: float | None = None

    def __post_init__(self):
        if self.distance is not None and not self.distance > 0:
            raise InputError(
                f"distance_budget={self.distance!r} has to be above 0 (a share of the outputs' variance; 0.02 is a "
                "good start); a budget of 0 would forbid every step"
            )
        if self.disagreement is not None and not 0 < self.disagreement < 1:
            raise InputError(
                f"disagreement_budget={self.disagreement!r} has to lie between 0 and 1: the share of inputs whose "
                "prediction may change, 0.02 for 2 %"
            )

    def __bool__(self) -> bool:
        return self.distance is not None or self.disagreement is not None

    @property
    def weight(self) -> float:
        """Weight of the functional distance that meets the budget without tuning."""
        budgets = [b for b in (self.distance, self._drift_of_disagreement) if b is not None]
        return WEIGHT_TIMES_BUDGET / min(budgets)

    @property
    def _drift_of_disagreement(self) -> float | None:
        return None if self.disagreement is None else DRIFT_PER_DISAGREEMENT * self.disagreement

    def exceeded(self, drift: Drift) -> bool:
        """Whether `drift` is above what is allowed."""
        too_far = self.distance is not None and drift.distance > self.distance
        too_many = self.disagreement is not None and (drift.disagreement or 0.0) > self.disagreement
        return too_far or too_many


@dataclass(frozen=True)
class Drift:
    """
    How far the function has moved on a set of inputs.

    Args:
        distances (`torch.Tensor`): Distance per example, in shares of the outputs' variance.
        changed (`torch.Tensor`, *optional*):
            Per example, whether its prediction changed (`bool`), or the share of its predictions that did where it has
            several; `None` for regression.
        outputs (`torch.Tensor`, *optional*): The outputs themselves, on the first of the inputs, where kept.
        tasks (sequence of `int`, *optional*): Which earlier task each example is of.
    """

    distances: Tensor
    changed: Tensor | None
    outputs: Tensor | None = None
    tasks: Sequence[int] = ()

    @property
    def distance(self) -> float:
        """Mean distance."""
        return self.distances.mean().item()

    @property
    def disagreement(self) -> float | None:
        """Share of changed predictions."""
        return None if self.changed is None else self.changed.float().mean().item()

    @property
    def distance_by_task(self) -> list[float | None]:
        """Mean distance on each earlier task's examples, oldest task first; `None` for a task without any."""
        tasks = torch.tensor(self.tasks, dtype=torch.long)
        found = [self.distances[tasks == task] for task in range(1 + max(self.tasks, default=-1))]
        return [distances.mean().item() if len(distances) else None for distances in found]

    def to_dict(self) -> dict:
        """Numbers for a node's record."""
        return {"inputs": len(self.distances), "distance": self.distance, "disagreement": self.disagreement}

    def certificates(self, budget: Budget, confidence: float = 0.95) -> list[Certificate]:
        """
        What these inputs, unseen in training, say about the budget; without a budget only the intervals.

        Args:
            budget ([`Budget`]): What is asked.
            confidence (`float`, *optional*, defaults to 0.95): Of the two-sided intervals.

        Returns:
            `list[Certificate]`: one for each kind of drift.
        """
        found = []
        if self.changed is not None and self.changed.dtype == torch.bool:
            changed = int(self.changed.sum())
            found.append(certify_disagreement(changed, len(self.changed), budget.disagreement, confidence))
        elif self.changed is not None:
            found.append(certify_changed_share(self.changed, budget.disagreement, confidence))
        found.append(certify_distance(self.distances, budget.distance, confidence))
        return found


def predictions_changed(outputs: Tensor, reference: Tensor) -> Tensor | None:
    """
    Per row, whether the predicted class differs; `None` for outputs that are no class scores.

    Args:
        outputs (`torch.Tensor`): `[rows, classes]`.
        reference (`torch.Tensor`): `[rows, classes]`, or fewer classes where the head has grown since.
    """
    if outputs.ndim < 2 or outputs.shape[-1] < 2:
        return None
    return torch.ne(outputs.argmax(-1), reference.to(outputs.device).argmax(-1))
