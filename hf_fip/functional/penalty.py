"""The functional distance as a term of the step: ⟨θ, θ⟩_g of eq. 4, taken at finite distance from the reference."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy

from ..errors import InputError
from ..terms import OutputBatch, Step, Term
from .distances import Distance
from .task_nodes import within


class FunctionalDistance(Term):
    """
    Mean distance between the outputs on the anchors and the reference network's cached outputs there.

    Its second-order expansion around the reference is the metric of eq. 2, averaged over anchors; minimising
    `objective + weight * distance` is eq. 4 with `weight = 1 / beta`, solved by the optimizer instead of in an ε ball.

    Args:
        distance (`Distance`): What "the same outputs" means.
        unit (`float`): The distance is divided by it: the outputs' variance for `l2`, 1 for distances of
        probabilities.
        weight (`float`): 1 / beta.
    """

    name = "functional_distance"

    def __init__(self, distance: Distance, *, unit: float, weight: float):
        self.distance = distance
        self.unit = unit
        self.weight = weight

    def loss(self, step: Step) -> Tensor | None:
        if step.anchors is None:
            return None
        return step.anchors.mean(self.per_example(step.anchors.outputs, step.anchors.reference, step.anchors))

    def per_example(self, outputs: Tensor, reference: Tensor, batch) -> Tensor:
        """
        Distance of each example, `[examples]`, in the unit above; where its task is known, between the task's outputs.
        """
        if batch.nodes is not None:
            outputs = outputs.where(batch.nodes, reference)
        distances = self.distance.per_example(outputs, reference) / self.unit
        return distances if batch.example_index is None else mean_by_example(distances, batch)


class AnchorLabels(Term):
    """
    Cross-entropy on the labels of the anchors, where they have any: added to the functional distance it is DER++
    (Buzzega et al., 2020); without it, experience replay.

    Args:
        weight (`float`): Factor of the mean cross-entropy.
    """

    name = "loss_anchor_labels"

    def __init__(self, weight: float):
        self.weight = weight

    def loss(self, step: Step) -> Tensor | None:
        return None if step.anchors is None else step.anchors.mean(anchor_label_losses(step.anchors))

    def report(self) -> dict[str, Any]:
        return {"anchor_labels": {"weight": self.weight}}


class AnchorPredictions(Term):
    """
    Cross-entropy to the class probabilities that the reference network gave the anchors: no labels. Output nodes that
    it did not have yet had probability 0, so a network that grows is told that no anchor is of a new class, which the
    distance of class scores alone leaves open.

    Args:
        weight (`float`): Factor of the mean cross-entropy.
    """

    name = "loss_anchor_predictions"

    def __init__(self, weight: float):
        self.weight = weight

    def loss(self, step: Step) -> Tensor | None:
        return None if step.anchors is None else step.anchors.mean(anchor_prediction_losses(step.anchors))

    def report(self) -> dict[str, Any]:
        return {"anchor_predictions": {"weight": self.weight}}


def anchor_prediction_losses(anchors: OutputBatch) -> Tensor:
    """Cross-entropy of each anchor's class probabilities to its reference's, `[examples]`, in float32."""
    expected = within(anchors.reference.float(), anchors.reference_nodes).softmax(dim=-1)
    log_p = within(anchors.outputs.float(), anchors.nodes).log_softmax(dim=-1)
    losses = -(expected * log_p.where(expected > 0, 0.0)).sum(dim=-1)
    return losses if anchors.example_index is None else mean_by_example(losses, anchors)


def anchor_label_losses(anchors: OutputBatch) -> Tensor:
    """
    Cross-entropy of each anchor's labels, `[examples]`, in float32; over the nodes of its task, where that is known.

    Raises:
        [`InputError`]: the anchors have no labels.
    """
    if anchors.labels is None:
        raise InputError("anchor_dataset has no labels, which this method replays; add a label column to it")
    losses = cross_entropy(within(anchors.outputs.float(), anchors.nodes), anchors.labels, reduction="none")
    return losses if anchors.example_index is None else mean_by_example(losses, anchors)


def mean_by_example(values: Tensor, batch) -> Tensor:
    """Means of per-position `values` over each example's scored positions, `[examples]`; 0 where it has none."""
    totals = values.new_zeros(batch.examples).index_add(0, batch.example_index, values)
    counts = values.new_zeros(batch.examples).index_add(0, batch.example_index, values.new_ones(len(values)))
    return totals / counts.clamp(min=1)
