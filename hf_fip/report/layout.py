"""How a graph is laid out in every picture of the report: branches, their colours and lanes, steps, formats."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from hf_fip.graph import ModelGraph, Node

# Okabe and Ito's palette for colour-blind readers; its pale colours and its black are replaced, to suit both themes.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#B8609A", "#9A7B00", "#3C93C2", "#A65628", "#7A6FC4")
ROOT_COLOR = "#808590"
DASHES = ("solid", "dash", "dot", "dashdot")
SHARES = ("accuracy", "f1", "precision", "recall", "disagreement", "sparsity")


@dataclass(frozen=True)
class Branch:
    """
    A branch of the graph as it is drawn.

    Args:
        name (`str`): The branch's name.
        ids (`list[str]`): Its nodes, in the order they were made.
        color (`str`): Its colour in every picture.
        dash (`str`): Its line style, which tells branches apart once the colours run out.
        rank (`int`): Its place among the branches.
    """

    name: str
    ids: list[str]
    color: str
    dash: str
    rank: int


def branches(graph: ModelGraph) -> dict[str, Branch]:
    """The branches in the order they were begun; a lone root's is grey, `fip` always has the first colour."""
    members: dict[str, list[str]] = {}
    for node in graph.nodes.values():
        members.setdefault(node.name, []).append(node.id)
    root = graph.root.name if members and len(members[graph.root.name]) == 1 else None
    coloured = sorted((name for name in members if name != root), key=lambda name: name != "fip")
    result = {}
    for name, ids in members.items():
        place = 0 if name == root else coloured.index(name)
        color = ROOT_COLOR if name == root else PALETTE[place % len(PALETTE)]
        result[name] = Branch(name, ids, color, DASHES[place // len(PALETTE) % len(DASHES)], len(result))
    return result


def chains(graph: ModelGraph, branch: Branch) -> list[list[str]]:
    """
    The unbroken paths of a branch, each beginning with the node it grew from (so a drawn line touches its origin).
    """
    children = Counter(node.parent for node in graph.nodes.values() if node.name == branch.name)
    paths: list[list[str]] = []
    end_of: dict[str, list[str]] = {}
    for node_id in branch.ids:
        node = graph.nodes[node_id]
        path = end_of.get(node.parent) if node.parent and children[node.parent] == 1 else None
        if path is None:
            path = [node.parent] if node.parent in graph.nodes else []
            paths.append(path)
        path.append(node_id)
        end_of[node_id] = path
    return paths


def steps_from_root(graph: ModelGraph) -> dict[str, int]:
    """
    Optimizer steps from the root to each node. `Node.step` counts from where the node's operator began; a branch may
    be the work of several, one after the other.
    """
    steps: dict[str, int] = {}
    for node in graph.nodes.values():
        parent = graph.nodes.get(node.parent or "")
        if parent is None:
            steps[node.id] = 0
        else:
            continued = (parent.name, parent.parameters) == (node.name, node.parameters) and node.step >= parent.step
            steps[node.id] = steps[parent.id] + node.step - (parent.step if continued else 0)
    return steps


def lanes(graph: ModelGraph) -> dict[str, int]:
    """Each branch's lane in the lineage picture, from the top: a branch is followed by those that grew from it."""
    drawn = branches(graph)
    children: dict[str, list[str]] = {name: [] for name in drawn}
    waiting = []
    for name, branch in drawn.items():
        parent = graph.nodes.get(graph.nodes[branch.ids[0]].parent or "")
        (waiting if parent is None else children[parent.name]).append(name)
    order: list[str] = []
    waiting.reverse()
    while waiting:
        name = waiting.pop()
        order.append(name)
        waiting.extend(reversed(children[name]))
    return {name: lane for lane, name in enumerate(order)}


def metric_names(graph: ModelGraph) -> list[str]:
    """Names of all metrics any node has, in the order they first appear."""
    return list(dict.fromkeys(name for node in graph.nodes.values() for name in node.metrics))


def headline_metrics(graph: ModelGraph) -> list[str]:
    """The accuracy on each task; in a graph without accuracies, its most frequent kind of metric."""
    names = metric_names(graph)
    kinds = Counter(name.rpartition("/")[2] for name in names)
    if not kinds:
        return []
    kind = "accuracy" if "accuracy" in kinds else kinds.most_common(1)[0][0]
    return [name for name in names if name.rpartition("/")[2] == kind]


def is_share(name: str) -> bool:
    """Whether a metric is a share of 1, which readers expect in percent."""
    return name.rpartition("/")[2] in SHARES


def number(value: Any) -> float | None:
    """`value` as a finite float, or `None` where nothing was measured."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def percent(value: float | None) -> str:
    """A share as percent with one decimal (more below 0.1 %, so that a small distance does not read as none)."""
    if value is None:
        return "–"
    return f"{value:.1%}" if value == 0 or abs(value) >= 0.001 else f"{100 * value:.1g}%"


def plain(value: float | None) -> str:
    """A number with four significant digits."""
    return "–" if value is None else f"{value:,.4g}"


def metric_text(name: str, value: Any) -> str:
    """A metric's value as people read it."""
    return percent(number(value)) if is_share(name) else plain(number(value))


def functional_distance(node: Node, to: str = "root") -> float | None:
    """The node's functional distance to its `"root"` or `"parent"`, if measured."""
    return number(node.functional_distance.get(to))


def distance_is_share(node: Node) -> bool:
    """Whether the functional distances of a node are shares of the outputs' variance."""
    return str(node.functional_distance.get("unit") or "").startswith("share")


def distance_kinds(graph: ModelGraph) -> list[str]:
    """The functional distances that nodes were measured by; values of different kinds cannot be compared."""
    return list(dict.fromkeys(distance_kind(node) for node in graph.nodes.values() if functional_distance(node)))


def distance_kind(node: Node) -> str:
    """The name of the node's functional distance: `"l2"`, `"kl"`, …."""
    return str(node.functional_distance.get("name") or "")


def distance_text(node: Node, value: float | None) -> str:
    """A functional distance in the node's unit; more than ten times the outputs' variance is told as a multiple."""
    if value is None or not distance_is_share(node):
        return plain(value)
    return percent(value) if value < 10 else f"{value:,.0f}×"
