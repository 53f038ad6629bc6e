"""A family of models: nodes, the edges between them, and the questions one asks of them, wherever they lie."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InputError
from .node import NODE_FILE, Node


if TYPE_CHECKING:
    import networkx


class UnknownNodeError(KeyError, InputError):
    """No node of that name; the message lists what there is."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Edge:
    """
    One application of an operator: from a node to the one made from it.

    Args:
        source (`str`): id of the parent.
        target (`str`): id of the child.
        operator (`str`): what was applied.
        euclidean (`float`, *optional*): distance of the two in weight space.
        functional (`float`, *optional*): distance of the two functions on the anchors.
    """

    source: str
    target: str
    operator: str
    euclidean: float | None
    functional: float | None


class Family:
    """
    Nodes and the lineage between them. Nothing here reads or writes files.

    Attributes:
        place (`str`): where the family lies, for messages.
        nodes (`dict[str, Node]`): id to node, parents before their children.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        self.nodes: dict[str, Node] = {}
        self._children: dict[str, list[str]] = {}

    def _set_nodes(self, nodes: Mapping[str, Node], listed: Sequence[str] = ()) -> None:
        """Takes these nodes, in the order of `listed` as far as it goes."""
        order = creation_order(nodes, listed)
        if len(order) < len(nodes):
            name = min(nodes.keys() - set(order))
            where = nodes[name].folder / NODE_FILE if nodes[name].folder else f"{self.place}: node {name!r}"
            raise InputError(
                f"{where}: field 'parent' is {nodes[name].parent!r}; parents form a cycle, so {self.place} has no "
                "root above it."
            )
        self.nodes = {name: nodes[name] for name in order}
        self._children = {name: [] for name in self.nodes}
        for node in self.nodes.values():
            if node.parent in self.nodes:
                self._children[node.parent].append(node.id)

    @property
    def edges(self) -> list[Edge]:
        """The edges, in the order in which their targets were made."""
        return [
            Edge(
                source=node.parent,
                target=node.id,
                operator=node.operator,
                euclidean=node.euclidean_distance["parent"],
                functional=node.functional_distance["parent"],
            )
            for node in self.nodes.values()
            if node.parent in self.nodes
        ]

    @property
    def root(self) -> Node:
        """
        The node all others come from.

        Raises:
            `UnknownNodeError`: the graph is empty.
        """
        for node in self.nodes.values():
            if node.parent is None:
                return node
        if self.nodes:
            return next(iter(self.nodes.values()))
        raise UnknownNodeError(f"the graph in {self.place} has no nodes yet.")

    @property
    def endpoints(self) -> dict[str, str]:
        """Branch name to the id of the branch's last node, in the order in which the branches began."""
        return {node.name: node.id for node in self.nodes.values()}

    @property
    def leaves(self) -> list[Node]:
        """The nodes from which none was made."""
        return [node for node in self.nodes.values() if not self._children[node.id]]

    def children(self, node: Node | str) -> list[Node]:
        """
        Args:
            node (`Node` or `str`): a node, or any key that `graph[key]` takes.

        Returns:
            `list[Node]`: the nodes made from it, in order.
        """
        return [self.nodes[name] for name in self._children[self[node].id]]

    def lineage(self, node: Node | str) -> list[Node]:
        """
        Args:
            node (`Node` or `str`): a node, or any key that `graph[key]` takes.

        Returns:
            `list[Node]`: from the root to the node, both included.
        """
        line = [self[node]]
        while line[-1].parent in self.nodes:
            line.append(self.nodes[line[-1].parent])
        return line[::-1]

    def __getitem__(self, key: Node | str) -> Node:
        """
        Args:
            key (`str` or `Node`):
                A node's id, a branch's name (its last node is meant) or the beginning of an id, if only one begins so.
                They are tried in this order.

        Raises:
            `UnknownNodeError`: a `KeyError` that lists the branches.
        """
        name = key.id if isinstance(key, Node) else key
        if name in self.nodes:
            return self.nodes[name]
        if isinstance(key, str):
            endpoints = self.endpoints
            if key in endpoints:
                return self.nodes[endpoints[key]]
            matches = [node for node_id, node in self.nodes.items() if key and node_id.startswith(key)]
            if len(matches) == 1:
                return matches[0]
            if matches:
                some = ", ".join(node.id for node in matches[:5]) + (", …" if len(matches) > 5 else "")
                raise UnknownNodeError(f"{key!r} begins the ids of {len(matches)} nodes ({some}); write more of it.")
        branches = ", ".join(repr(branch) for branch in self.endpoints) or "none"
        raise UnknownNodeError(
            f"no node {name!r} in {self.place}; give a branch ({branches}), a node's id or the beginning of one."
        )

    def __contains__(self, key: object) -> bool:
        """Whether there is a node of exactly this id."""
        return (key.id if isinstance(key, Node) else key) in self.nodes

    def __len__(self) -> int:
        return len(self.nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes.values())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.place!r}, nodes={len(self)}, branches={list(self.endpoints)})"

    def to_networkx(self) -> networkx.DiGraph:
        """
        Returns:
            `networkx.DiGraph`: nodes and edges with all their fields as attributes.
        """
        import networkx

        view = networkx.DiGraph()
        for node in self:
            view.add_node(node.id, **{**node.to_dict(), **node.location})
        for edge in self.edges:
            view.add_edge(
                edge.source, edge.target, operator=edge.operator, euclidean=edge.euclidean, functional=edge.functional
            )
        return view


def creation_order(nodes: Mapping[str, Node], listed: Sequence[str] = ()) -> list[str]:
    """
    Args:
        nodes (`Mapping[str, Node]`): id to node.
        listed (`Sequence[str]`, *optional*): ids in the order they should have.

    Returns:
        `list[str]`: ids in the order of `listed`, then of their times; parents always before their children. Nodes
        whose parents form a cycle are left out.
    """
    position = {name: number for number, name in enumerate(listed)}

    def rank(name: str) -> tuple[int, str, int, str]:
        return position.get(name, len(position)), nodes[name].created, nodes[name].step, name

    children: dict[str, list[str]] = {}
    ready = []
    for name, node in nodes.items():
        if node.parent in nodes:
            children.setdefault(node.parent, []).append(name)
        else:
            ready.append(rank(name))
    heapq.heapify(ready)
    order: list[str] = []
    while ready:
        name = heapq.heappop(ready)[-1]
        order.append(name)
        for child in children.get(name, []):
            heapq.heappush(ready, rank(child))
    return order
