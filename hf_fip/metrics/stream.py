"""What a stream of tasks did to a network, read from the nodes of a branch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from .accuracy_matrix import continual_learning_metrics


if TYPE_CHECKING:
    from ..graph import Node
    from ..graph.family import Family


def learned_at(lineage: Sequence[Node]) -> list[Node]:
    """
    Of each task the node that had just learned it: the end of the path on which it was learned, before it was
    compressed, say, or the next task was learned.

    Args:
        lineage (sequence of `Node`): Nodes from the root down, as `graph.lineage(node)` gives them.

    Returns:
        `list[Node]`: one for each task of the last node, oldest task first.
    """
    ends: list[Node] = []
    for node, after in zip(lineage, [*lineage[1:], None], strict=True):
        new = len(node.tasks) - len(ends)
        if new > 0 and (after is None or after.parameters != node.parameters):
            ends += [node] * new
    return ends


def accuracy_matrix(graph: Family, branch: str) -> tuple[list[str], list[list[float | None]]]:
    """
    The accuracies on every task after each task.

    Args:
        graph (`ModelGraph`): The graph.
        branch (`str`): Name of the branch, or any key that `graph[key]` takes.

    Returns:
        `tuple[list[str], list[list[float | None]]]`: the tasks in the order in which they were learned, and a square
        matrix with a row after each task learned and a column for each task, as
        [`~hf_fip.metrics.accuracy_matrix.continual_learning_metrics`] takes it; `None` where nothing was measured. Of
        the tasks to come a row knows the next alone, where it has the labels of the tasks before.
    """
    node = graph[branch]
    names = [task.name for task in node.tasks]
    ends = learned_at(graph.lineage(node))
    # What a network makes of the next task is written down by the path that learns it.
    next_tasks = [_part(end.protocol, "before") for end in ends[1:]]
    rows = [{**before, **end.metrics} for end, before in zip(ends, [*next_tasks, {}], strict=False)]
    return names, [[_finite(metrics.get(f"{name}/accuracy")) for name in names] for metrics in rows]


def stream_summary(graph: Family, branch: str) -> dict[str, float]:
    """
    The figures of a stream of tasks after its last task.

    Args:
        graph (`ModelGraph`): The graph.
        branch (`str`): Name of the branch, or any key that `graph[key]` takes.

    Returns:
        `dict[str, float]`, each entry where it was measured: `average_accuracy`, `backward_transfer`, `forgetting` and
        `forward_transfer` (above chance, the accuracy of a model that learned nothing; where tasks share their labels)
        of [`~hf_fip.metrics.accuracy_matrix.continual_learning_metrics`]; `functional_distance`, the mean over the
        earlier tasks of the distance on their anchors; `seconds` of all of the branch's paths; `peak_memory_gib`, the
        largest of theirs.
    """
    names, matrix = accuracy_matrix(graph, branch)
    known = [[math.nan if value is None else value for value in row] for row in matrix]
    complete = names and len(matrix) == len(names)
    measured = complete and all(matrix[i][j] is not None for i in range(len(names)) for j in range(i + 1))
    summary = continual_learning_metrics(known, _chances(graph[branch], names)) if measured else {}
    distances = [value for value in functional_distance_by_task(graph[branch]).values() if value is not None]
    if distances:
        summary["functional_distance"] = fmean(distances)
    costs = [_part(node.extra, "cost") for node in _path_ends(graph, branch)]
    for name, combine in (("seconds", sum), ("peak_memory_gib", max)):
        values = [cost[name] for cost in costs if cost.get(name) is not None]
        if values:
            summary[name] = combine(values)
    return summary


def functional_distance_by_task(node: Node) -> dict[str, float | None]:
    """
    How far the function moved on each earlier task's anchors since the reference that its path kept.

    Args:
        node (`Node`): The node.

    Returns:
        `dict[str, float | None]`: by the earlier tasks' names; empty for a node without anchors.
    """
    distances = _part(_part(node.protocol, "budget"), "anchors").get("distance_by_task") or []
    return {task.name: _finite(distance) for task, distance in zip(node.tasks, distances, strict=False)}


def _chances(node: Node, tasks: list[str]) -> list[float]:
    """The accuracy on each task of guessing among its labels."""
    labels = [len(_part(node.protocol, "label_space").get(task) or ()) for task in tasks]
    return [1 / number if number else math.nan for number in labels]


def _path_ends(graph: Family, branch: str) -> list[Node]:
    """The last node of each path of the branch, whose seconds are those of the whole path."""
    lineage = graph.lineage(branch)
    return [
        node
        for node, after in zip(lineage, [*lineage[1:], None], strict=True)
        if after is None or after.parameters != node.parameters
    ]


def _part(data: dict[str, Any], key: str) -> dict[str, Any]:
    value = data.get(key)
    return value if isinstance(value, dict) else {}


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
