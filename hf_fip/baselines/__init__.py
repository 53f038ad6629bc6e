"""
What the functionally invariant path is compared with. Every method runs in [`FIPTrainer`] on the same batches, the
same anchors and the same number of steps; it differs from the path in the terms alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError
from ..functional.penalty import AnchorLabels
from ..terms import Term


@dataclass(frozen=True)
class Method:
    """
    A way to learn a new task.

    Args:
        summary (`str`): What it does, with its source.
        preserve (`bool`): Whether the functional distance on the anchors is minimised.
        uses_labels (`bool`): Whether it needs the anchors' labels.
        all_data (`bool`): Whether it trains on the data of all tasks (an upper bound, not a rival).
        terms (`Callable`): Makes its further terms.
        arguments (`dict`): [`FIPConfig`] fields it sets, unless the user did.
    """

    summary: str
    preserve: bool = False
    uses_labels: bool = False
    all_data: bool = False
    terms: Callable[[], list[Term]] = list
    arguments: dict[str, Any] = field(default_factory=dict)


METHODS = {
    "fip": Method("functionally invariant path: task loss + functional distance to cached outputs", preserve=True),
    "naive": Method("fine-tuning on the new task alone"),
    "joint": Method("training on the data of all tasks: the upper bound", all_data=True),
    "er": Method(
        "experience replay: cross-entropy on the anchors' labels (Chaudhry et al., 2019)",
        uses_labels=True,
        terms=lambda: [AnchorLabels(1.0)],
    ),
    "derpp": Method(
        "dark experience replay ++: squared logit distance and anchor labels (Buzzega et al., 2020)",
        preserve=True,
        uses_labels=True,
        arguments={"functional_distance": "l2", "anchor_label_weight": 0.5},
    ),
    # The public code's weight is that of a sum over 50 anchors; a fifth of it did better on MNIST then Fashion-MNIST.
    "bhattacharyya": Method(
        "the distance of the paper's public code, with the better of the weights tried",
        preserve=True,
        arguments={"functional_distance": "bhattacharyya", "beta": 0.1},
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
