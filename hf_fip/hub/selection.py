"""Which nodes of a graph are published, and what their lineage is when some are left out."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ..errors import InputError
from ..graph import Family, Node


@dataclass(frozen=True)
class Selected:
    """
    A node to be published.

    Args:
        node (`Node`): the node.
        parent (`Node`, *optional*): its nearest ancestor that is published, too.
    """

    node: Node
    parent: Node | None


def select_nodes(graph: Family, select: str = "all") -> list[Selected]:
    """
    Chooses nodes. The roots and the last node of each branch are always among them.

    Args:
        graph (`ModelGraph`): the graph.
        select (`str`, *optional*, defaults to `"all"`):
            `"all"`, `"endpoints"` (the roots and the last node of each branch), or `"every:N"` (besides these, every
            N-th node of a branch).

    Returns:
        `list[Selected]`: parents before their children.

    Raises:
        `InputError`: another `select`, or a graph without nodes.
    """
    if not len(graph):
        raise InputError(f"graph {graph.place!r} has no nodes yet; record some before it is published.")
    chosen = _chosen(graph, select)
    selected: dict[str, Selected] = {}
    for node in graph:
        if node.id in chosen:
            ancestors = (ancestor for ancestor in reversed(graph.lineage(node)[:-1]) if ancestor.id in chosen)
            selected[node.id] = Selected(node, next(ancestors, None))
    return list(selected.values())


def as_published(selected: Selected) -> Node:
    """
    What the published `fip_node.json` says: the node itself, or, where nodes between it and its parent are left out,
    the node as a child of its nearest published ancestor. Distances to that one are given where they are known.

    Args:
        selected (`Selected`): the node and its published parent.

    Returns:
        `Node`
    """
    node, parent = selected.node, selected.parent
    if (parent.id if parent else None) == node.parent:
        return node
    known = parent is not None and parent.parent is None
    distances = {
        name: {**value, "parent": value["root"] if known else None}
        for name in ("functional_distance", "euclidean_distance")
        for value in [getattr(node, name)]
    }
    return replace(
        node,
        parent=parent.id if parent else None,
        extra={**node.extra, "recorded_parent": node.parent},
        **distances,
    )


def _chosen(graph: Family, select: str) -> set[str]:
    match = re.fullmatch(r"all|endpoints|every:([1-9]\d*)", select) if isinstance(select, str) else None
    if match is None:
        raise InputError(f"select={select!r} is unknown; use all, endpoints, or every:N with a whole number N")
    if select == "all":
        return set(graph.nodes)
    ends = {node.id for node in graph if node.parent not in graph} | set(graph.endpoints.values())
    if select == "endpoints":
        return ends
    step = int(match[1])
    place: dict[str, int] = {}
    for node in graph:
        parent = graph.nodes.get(node.parent or "")
        # Counted from where the branch begins, so that a growing path keeps what was published.
        place[node.id] = place[parent.id] + 1 if parent is not None and parent.name == node.name else 1
    return ends | {name for name, number in place.items() if number % step == 0}
