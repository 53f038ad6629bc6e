"""
What the functionally invariant path is compared with. Every method runs in [`FIPTrainer`] on the same batches, the
same anchors and the same number of steps; it differs from the path in the terms, and `lora` in what is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..errors import InputError
from ..functional.penalty import AnchorLabels
from ..terms import Term
from .distillation import LearningWithoutForgetting
from .lora import fresh_adapter
from .projection import GEM, AveragedGEM
from .regularization import L2, ElasticWeightConsolidation, OnlineEWC
from .subspace import OrthogonalSubspace


@dataclass(frozen=True)
class Method:
    """
    A way to learn a new task.

    Args:
        summary (`str`): What it does, with its source.
        preserve (`bool`): Whether the functional distance on the anchors is minimised.
        uses_labels (`bool`): Whether it needs the anchors' labels.
        all_data (`bool`): Whether it trains on the data of all tasks (an upper bound, not a rival).
        terms (`Callable`):
            Makes its further terms. Its keyword arguments are what can be tuned; the defaults did best in the grid
            that docs/measurements.md prints.
        prepare (`Callable`, *optional*):
            What the network becomes before the path, its head already grown. Its keyword arguments can be tuned too.
        own_weights (`bool`):
            Whether each task has weights of its own, beside those of the start, which stay as they are. Which ones an
            input needs has to be known, so results compare to those of others with the task given. Earlier tasks are
            not measured again: their metrics are those of the node the path starts from.
        arguments (`dict`): [`FIPConfig`] fields it sets, unless the user did.
    """

    summary: str
    preserve: bool = False
    uses_labels: bool = False
    all_data: bool = False
    terms: Callable[..., list[Term]] = list
    prepare: Callable[..., nn.Module] | None = None
    own_weights: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)


def _replay(functional_distance: str, beta: float, **fields: float) -> dict[str, Any]:
    """The fields of a rival that keeps its outputs on the anchors by a distance, and nothing else."""
    return {"functional_distance": functional_distance, "beta": beta, "anchor_prediction_weight": 0.0, **fields}


# Weights and margins: the best mean accuracy on validation images, MNIST then Fashion-MNIST on a small CNN, averaged
# over 50 and 500 anchors where it depends on their number.
METHODS = {
    "fip": Method("functionally invariant path: task loss + functional distance to cached outputs", preserve=True),
    "naive": Method("fine-tuning on the new task alone"),
    "joint": Method("training on the data of all tasks: the upper bound", all_data=True),
    "l2": Method(
        "L2: all weights are held near those of the earlier tasks (as in Kirkpatrick et al., 2017)",
        terms=lambda **options: [L2(**options)],
    ),
    "ewc": Method(
        "elastic weight consolidation: weights are held by their Fisher information on the anchors, without labels "
        "(Kirkpatrick et al., 2017)",
        terms=lambda **options: [ElasticWeightConsolidation(**options)],
    ),
    "online_ewc": Method(
        "online elastic weight consolidation: Fisher information scaled per task and fading (Schwarz et al., 2018)",
        terms=lambda **options: [OnlineEWC(**options)],
    ),
    "osf": Method(
        "orthogonal subspace fine-tuning: weights change outside of their largest singular directions alone "
        "(Nayak et al., 2025)",
        terms=lambda **options: [OrthogonalSubspace(**options)],
    ),
    "lwf": Method(
        "learning without forgetting: distillation of the first outputs on the new task's inputs (Li and Hoiem, 2016)",
        terms=lambda **options: [LearningWithoutForgetting(**options)],
    ),
    "er": Method(
        "experience replay: cross-entropy on the anchors' labels (Chaudhry et al., 2019)",
        uses_labels=True,
        terms=lambda weight=3.0: [AnchorLabels(weight)],
    ),
    "gem": Method(
        "gradient episodic memory: one constraint per earlier task (Lopez-Paz and Ranzato, 2017)",
        uses_labels=True,
        terms=lambda **options: [GEM(**options)],
    ),
    "agem": Method(
        "averaged gradient episodic memory: one constraint for all earlier tasks (Chaudhry et al., 2019)",
        uses_labels=True,
        terms=lambda **options: [AveragedGEM(**options)],
    ),
    # The distance of `fip`, without the predictions on the anchors and without a budget.
    "der": Method(
        "dark experience replay: squared logit distance to cached outputs, no labels (Buzzega et al., 2020)",
        preserve=True,
        arguments=_replay("l2", 0.5),
    ),
    "derpp": Method(
        "dark experience replay ++: squared logit distance and anchor labels (Buzzega et al., 2020)",
        preserve=True,
        uses_labels=True,
        arguments=_replay("l2", 0.5, anchor_label_weight=0.5),
    ),
    "fdr": Method(
        "function distance regularization: norm of the difference of probabilities (Benjamin et al., 2019)",
        preserve=True,
        arguments=_replay("fdr", 0.1),
    ),
    "lora": Method(
        "one low-rank adapter per task on the frozen base; the task is given at test (Hu et al., 2022)",
        prepare=fresh_adapter,
        own_weights=True,
    ),
    "bhattacharyya": Method(
        "the distance of the paper's public code, with the best of the weights tried",
        preserve=True,
        arguments=_replay("bhattacharyya", 0.03),
    ),
}


def get_method(name: str) -> Method:
    """
    The method of that name.

    Raises:
        [`InputError`]: if there is none; the message lists the known ones.
    """
    if name not in METHODS:
        raise InputError(f"method={name!r} is unknown; choose one of: {', '.join(METHODS)}")
    return METHODS[name]
