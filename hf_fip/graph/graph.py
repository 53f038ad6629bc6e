"""The model graph: complete models as nodes, the operators that made them as edges, in one local folder."""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from ..errors import InputError
from . import store
from .files import storage_error
from .node import Node


if TYPE_CHECKING:
    import networkx

logger = logging.get_logger(__name__)


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


class ModelGraph:
    """
    A family of models in a local folder. Nodes are added once and never change.

    Args:
        folder (`str` or `Path`): the graph's folder. What it holds is read; nothing is written before the first `add`.

    Attributes:
        folder (`Path`): the graph's folder.
        nodes (`dict[str, Node]`): id to node, in creation order. A node whose parent's folder was removed stays.

    Raises:
        `InputError`: the folder is a file, or a node's description is damaged; the message names file and field.

    Example:

    ```python
    graph = ModelGraph.load("out/graph")
    model = graph["fip"].load_model()
    ```
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).expanduser()
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"folder {str(folder)!r} is a file; give a folder.")
        self.nodes: dict[str, Node] = {}
        self._children: dict[str, list[str]] = {}
        # The index as it was read last, the ids it listed, and the lines it should have: for graphs of many nodes,
        # parsing and writing them again at each `add` would take longer than writing a small model.
        self._index: str | None = None
        self._listed: list[str] = []
        self._lines: dict[str, str] = {}
        store.sweep(self.folder)
        self.refresh()

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> ModelGraph:
        """
        Opens a graph that exists. Its index is made again from the nodes if it is lost, corrupt or out of date; what
        killed processes left behind is removed. Weights are not read.

        Args:
            folder (`str` or `Path`): the graph's folder.

        Returns:
            `ModelGraph`

        Raises:
            `InputError`: there is no graph, or a node's description is damaged.
        """
        path = Path(folder).expanduser()
        if not _is_graph(path):
            advice = f"; did you mean {str(path / 'graph')!r}?" if _is_graph(path / "graph") else "."
            state = "holds no model graph" if path.is_dir() else "does not exist"
            raise InputError(f"folder {str(folder)!r} {state}{advice}")
        return cls(folder)

    def refresh(self) -> None:
        """
        Takes in what other processes have added. Nodes that are known already are not read again.

        Raises:
            `InputError`: a node's description is damaged, or parents form a cycle.
        """
        self._read()
        if not self.nodes or self._index == self._index_text():
            return
        try:
            # If the lock is taken, another process is about to write the index itself.
            with store.locked(self.folder, timeout=0):
                self._read()
                self._write_index()
        except OSError as error:
            logger.debug(f"{self.folder}: index not written: {error}")

    def add(self, node: Node, write_files: Callable[[Path], Any]) -> Node:
        """
        Records a model: all of it or nothing, whatever happens to the process.

        Args:
            node (`Node`):
                The description. Its parent must be in the graph; only the first node has none.
            write_files (`Callable[[Path], Any]`):
                Fills the folder it is given with model, tokenizer and so on. It may return a dict of `Node` fields
                that are known only now (such as what [`~hf_fip.graph.distances.measure`] returns); anything else it
                returns is ignored. Files equal to the parent's become hard links, except `README.md`; so change a
                node's files by replacing them, never in place.

        Returns:
            `Node`: the node as stored, with its folder. If the graph has a node of this id it is returned, and
            `write_files` is not called.

        Raises:
            `InputError`: no such parent, or a second root.
            `OSError`: the disk is full, read-only or failing. The graph is as before, and the call can be repeated.
            `TimeoutError`: another process held the graph's lock for ten minutes.
        """
        try:
            return self._add(node, write_files)
        except Exception as error:
            # Libraries in Rust report a full disk by exceptions of their own; all else is raised again as it is.
            if (number := storage_error(error)) is None:
                raise
            message = (
                f"cannot record node {node.id!r} in {self.folder}: {os.strerror(number)}. "
                "What was recorded before is whole: make room (or choose another folder) and run again"
            )
            raise OSError(number, message) from error

    def _add(self, node: Node, write_files: Callable[[Path], Any]) -> Node:
        self.refresh()
        if node.id in self.nodes:
            return self.nodes[node.id]
        self._check_place(node)
        (self.folder / store.NODES_FOLDER).mkdir(parents=True, exist_ok=True)
        with store.staged(self.folder, node.id) as folder:
            fields = write_files(folder)
            if isinstance(fields, dict):
                node = _with_fields(node, fields)
            store.finish(folder, node, self.nodes[node.parent].folder if node.parent else None)
            with store.locked(self.folder):
                self._read()
                if node.id not in self.nodes:
                    self._check_place(node)
                    store.publish(self.folder, folder, node.id)
                    self._read()
                self._write_index()
        return self.nodes[node.id]

    def _check_place(self, node: Node) -> None:
        if not _is_graph(self.folder) and (self.folder / store.INDEX_FILE).exists():
            raise InputError(
                f"folder {str(self.folder)!r} has a {store.INDEX_FILE} without {store.NODES_FOLDER}/; "
                "choose another folder."
            )
        if node.parent is None:
            if self.nodes:
                raise InputError(
                    f"folder {str(self.folder)!r} holds another graph (its root is {self.root.id!r}, "
                    f"not {node.id!r}); choose another folder."
                )
        elif node.parent not in self.nodes:
            raise InputError(f"parent {node.parent!r} of node {node.id!r} is not in {self.folder}; add it first.")

    def _read(self) -> None:
        """Takes in the nodes, in the order of the index as far as it goes."""
        index = store.read_index(self.folder)
        nodes = store.read_nodes(self.folder, self.nodes)
        if index != self._index:
            self._index, self._listed = index, store.listed_ids(index, self.folder)
        elif nodes.keys() == self.nodes.keys():
            return
        self.nodes = {name: nodes[name] for name in _creation_order(nodes, self._listed, self.folder)}
        self._lines = {name: self._lines.get(name) or node.to_json() for name, node in self.nodes.items()}
        self._children = {name: [] for name in self.nodes}
        for node in self.nodes.values():
            if node.parent in self.nodes:
                self._children[node.parent].append(node.id)
            elif node.parent is not None:
                logger.warning_once(f"{node.folder}: its parent {node.parent!r} is not in the graph any more.")

    def _index_text(self) -> str:
        return store.index_text(self._lines.values(), map(vars, self.edges))

    def _write_index(self) -> None:
        """Makes the index what the nodes say. The caller holds the lock and has read them."""
        text = self._index_text()
        if text != self._index:
            store.write_index(self.folder, text)
            self._index, self._listed = text, list(self.nodes)

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
        raise UnknownNodeError(f"the graph in {self.folder} has no nodes yet.")

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
            f"no node {name!r} in {self.folder}; give a branch ({branches}), a node's id or the beginning of one."
        )

    def __contains__(self, key: object) -> bool:
        """Whether there is a node of exactly this id."""
        return (key.id if isinstance(key, Node) else key) in self.nodes

    def __len__(self) -> int:
        return len(self.nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes.values())

    def __repr__(self) -> str:
        return f"ModelGraph({str(self.folder)!r}, nodes={len(self)}, branches={list(self.endpoints)})"

    def to_networkx(self) -> networkx.DiGraph:
        """
        Returns:
            `networkx.DiGraph`: nodes and edges with all their fields as attributes.
        """
        import networkx

        view = networkx.DiGraph()
        for node in self:
            view.add_node(node.id, **{**node.to_dict(), "folder": str(node.folder)})
        for edge in self.edges:
            view.add_edge(
                edge.source, edge.target, operator=edge.operator, euclidean=edge.euclidean, functional=edge.functional
            )
        return view


def _is_graph(folder: Path) -> bool:
    return (folder / store.NODES_FOLDER).is_dir()


def _with_fields(node: Node, fields: dict[str, Any]) -> Node:
    if fixed := {"id", "parent", "folder"} & fields.keys():
        raise InputError(f"write_files returned {sorted(fixed)}; these fields of node {node.id!r} cannot change.")
    try:
        return replace(node, **fields)
    except TypeError:
        raise InputError(f"write_files returned {sorted(map(str, fields))}; not all are fields of Node.") from None


def _creation_order(nodes: Mapping[str, Node], listed: list[str], folder: Path) -> list[str]:
    """Ids in the order of the index, then of their times; parents always before their children."""
    place = {name: position for position, name in enumerate(listed)}

    def rank(name: str) -> tuple[int, str, int, str]:
        return place.get(name, len(place)), nodes[name].created, nodes[name].step, name

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
    if len(order) < len(nodes):
        name = min(nodes.keys() - set(order))
        raise InputError(
            f"{nodes[name].folder / 'fip_node.json'}: field 'parent' is {nodes[name].parent!r}; parents form a cycle, "
            f"so {folder} has no root above it."
        )
    return order
