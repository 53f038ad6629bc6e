"""How far apart two nodes are: as functions on given inputs, and in weight space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..graph.distances import euclidean_distance
from .metrics import DISTANCE
from .queries import query


if TYPE_CHECKING:
    from datasets import Dataset

    from ..graph import Node


@dataclass(frozen=True)
class NodeDistance:
    """
    The distance of two nodes.

    Args:
        functional (`float`): mean functional distance of their outputs, in `unit`.
        standard_error (`float`): of that mean over the examples.
        unit (`str`): of the functional distance.
        samples (`int`): number of examples.
        euclidean (`float`, *optional*):
            Distance in weight space, as [`~hf_fip.graph.distances.euclidean_distance`] takes it; `None` for models of
            different architectures.
    """

    functional: float
    standard_error: float
    unit: str
    samples: int
    euclidean: float | None


def distance(
    node: Node,
    reference: Node,
    dataset: str | Dataset | Sequence[str],
    *,
    functional_distance: str = "l2",
    **options: Any,
) -> NodeDistance:
    """
    How far a node is from another. Of the two orders of composition, Co(CL(w)) and CL(Co(w)), it is the size of the
    operators' commutator (paper, Fig. 5C and D).

    Args:
        node (`Node`): the node, of any graph.
        reference (`Node`): the one it is compared with. Its head may be narrower, as before a new task.
        dataset (`str`, `Dataset` or `Sequence[str]`):
            Inputs on which the functions are compared: a data set's SPEC, a data set, or texts. Labels are not used.
        functional_distance (`str`, *optional*, defaults to `"l2"`):
            A registered distance; `"l2"` is a share of the reference outputs' variance. Or `"changed_predictions"`:
            the share of the inputs that the two predict differently.
        options: as [`~hf_fip.query.query`] takes them: `split`, `max_samples`, `max_length`, `data_root`, ….

    Returns:
        [`NodeDistance`]

    Raises:
        [`InputError`]: models whose outputs or tokens cannot be compared, or arguments that `query` refuses.
    """
    if node.id == reference.id:
        # A query tells nodes by their ids, and those of two graphs may be alike.
        reference = replace(reference, id=f"{reference.id[:80]}-reference")
    metric = f"{DISTANCE}:{reference.id}:{functional_distance}"
    result = query([node, reference], dataset, metric=metric, nodes=[node.id], **options)
    row = result.ranking[0]
    return NodeDistance(
        functional=row["value"],
        standard_error=row["standard_error"],
        unit=result.protocol["unit"],
        samples=row["samples"],
        euclidean=_euclidean(node, reference),
    )


def _euclidean(node: Node, reference: Node) -> float | None:
    try:
        return euclidean_distance(node.files(), reference.files())
    except InputError:
        return None
