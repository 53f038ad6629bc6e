"""The model graph: complete models as nodes, the operators that made them as edges, in one local folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from ..errors import InputError
from . import store
from .family import Family
from .files import storage_error
from .node import Node


if TYPE_CHECKING:
    from datasets import Dataset

    from ..query import QueryResult
    from ..query.distance import NodeDistance

logger = logging.get_logger(__name__)


class ModelGraph(Family):
    """
    A family of models in a local folder. Nodes are added once and never change.

    Args:
        folder (`str` or `Path`): the graph's folder. What it holds is read; nothing is written before the first `add`.

    Attributes:
        folder (`Path`): the graph's folder; `None` for a graph on the Hub.
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
        self.folder: Path = Path(folder).expanduser()
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"folder {str(folder)!r} is a file; give a folder.")
        super().__init__(str(self.folder))
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

    @classmethod
    def from_hub(
        cls,
        source: str,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        endpoint: str | None = None,
    ) -> ModelGraph:
        """
        Opens a family on the Hub. Only descriptions are downloaded; a node's files follow when they are needed first,
        by [`Node.files`], `load_model` or `load_processor`. To train from its nodes, pull it with
        [`~hf_fip.hub.pull`].

        Collections that hf_fip did not make are read too: lineage from the cards' `base_model`, metrics from their
        results. Items that cannot be read are left out; `graph.unreadable` says why.

        Args:
            source (`str`):
                A Collection (`"me/title-…"`), one of its repositories, or the address of either.
            revision (`str`, *optional*): branch, tag or commit, for a single repository.
            token (`str` or `bool`, *optional*): as huggingface_hub takes it; the one logged in with by default.
            cache_dir (`str` or `Path`, *optional*): where downloads are kept; huggingface_hub's cache by default.
            endpoint (`str`, *optional*): address of the Hub; `HF_ENDPOINT` or huggingface.co by default.

        Returns:
            `ModelGraph`: one that cannot be added to.

        Raises:
            `InputError`: no such Collection or repository, or nothing readable in it.
            `OSError`: the Hub cannot be reached.
        """
        from ..hub.client import Hub
        from ..hub.remote import READING, HubGraph

        cache = None if cache_dir is None else str(cache_dir)
        return HubGraph.open(source, Hub(token, endpoint, READING, cache), revision=revision)

    def query(self, dataset: str | Dataset | list[str], **options: Any) -> QueryResult:
        """
        Ranks the nodes by how well they suit data: by perplexity, or another metric.

        Args:
            dataset (`str`, `datasets.Dataset` or `list[str]`): the data; see [`~hf_fip.query.query`].
            options: as [`~hf_fip.query.query`] takes them: `metric`, `strategy`, `max_samples`, `top`, ….

        Returns:
            `QueryResult`: the ranking, best first, and what it took.

        Raises:
            `InputError`: an unknown metric or strategy, data that cannot be scored.
        """
        from ..query import query

        return query(self, dataset, **options)

    def distance(
        self, node: Node | str, reference: Node | str, dataset: str | Dataset | list[str], **options: Any
    ) -> NodeDistance:
        """
        How far a node is from another, as functions on these inputs and in weight space: `functional`, `euclidean`.

        Args:
            node (`Node` or `str`): a node, or any key that `graph[key]` takes.
            reference (`Node` or `str`): the one it is compared with, of this graph or another.
            dataset (`str`, `datasets.Dataset` or `list[str]`): inputs; labels are not used.
            options: as [`~hf_fip.query.distance.distance`] takes them: `functional_distance`, `max_samples`, ….

        Returns:
            [`~hf_fip.query.distance.NodeDistance`]

        Raises:
            `InputError`: no such node, or models that cannot be compared on the data.
        """
        from ..query.distance import distance

        node, reference = (key if isinstance(key, Node) else self[key] for key in (node, reference))
        return distance(node, reference, dataset, **options)

    def push_to_hub(
        self,
        namespace: str | None = None,
        *,
        collection: str | None = None,
        private: bool | None = None,
        select: str = "all",
        layout: str = "repo",
        dry_run: bool = False,
        token: str | bool | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """
        Publishes the graph: a model repository per node, whose cards tell the lineage, and a Collection that holds
        them. Run again, it publishes what is missing or new, and nothing twice, however the run before ended: what is
        done stands in `hub_ledger.json` beside the graph.

        Args:
            namespace (`str`, *optional*): user or organisation; yourself by default.
            collection (`str`, *optional*):
                Title of the Collection, to which the repositories' names follow. By default it is made of the folder's
                name and the root's id, the repositories' names of the folder's name.
            private (`bool`, *optional*):
                Whether others cannot see repositories and Collection; by default what the account is set to.
            select (`str`, *optional*, defaults to `"all"`):
                Which nodes: `"all"`, `"endpoints"` (roots and branch ends) or `"every:N"` (besides, every N-th).
            layout (`str`, *optional*, defaults to `"repo"`):
                `"repo"`: a repository per node; `"revision"`: one per branch, with a tag per node.
            dry_run (`bool`, *optional*, defaults to `False`): change nothing, say what would be done.
            token (`str` or `bool`, *optional*): as huggingface_hub takes it; the one logged in with by default.
            endpoint (`str`, *optional*): address of the Hub; `HF_ENDPOINT` or huggingface.co by default.

        Returns:
            `dict`: `collection` (its slug) and `url`; `pushed`, `skipped` (published before) and `failed` (ids);
            `errors` (id of a failed node to the reason); `repos` (id to repository). With `dry_run` also `pending`
            (ids), `requests` and `bytes`.

        Raises:
            `InputError`: bad arguments, not logged in, or no permission.
            `OSError`: the Hub cannot be reached.
        """
        from ..hub.client import Hub
        from ..hub.publish import push

        target = {"namespace": namespace, "collection": collection, "layout": layout, "private": private}
        return push(self, Hub(token, endpoint), select=select, dry_run=dry_run, **target)

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

    def add(self, node: Node, write_files: Callable[[Path], Any], *, several_roots: bool = False) -> Node:
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
            several_roots (`bool`, *optional*, defaults to `False`):
                Take a node whose parent is not in the graph, too: families that were made elsewhere have such nodes.

        Returns:
            `Node`: the node as stored, with its folder. If the graph has a node of this id it is returned, and
            `write_files` is not called.

        Raises:
            `InputError`: no such parent, or a second root.
            `OSError`: the disk is full, read-only or failing. The graph is as before, and the call can be repeated.
            `TimeoutError`: another process held the graph's lock for ten minutes.
        """
        try:
            return self._add(node, write_files, several_roots)
        except Exception as error:
            # Libraries in Rust report a full disk by exceptions of their own; all else is raised again as it is.
            if (number := storage_error(error)) is None:
                raise
            message = (
                f"cannot record node {node.id!r} in {self.folder}: {os.strerror(number)}. "
                "What was recorded before is whole: make room (or choose another folder) and run again"
            )
            raise OSError(number, message) from error

    def _add(self, node: Node, write_files: Callable[[Path], Any], several_roots: bool) -> Node:
        self.refresh()
        if node.id in self.nodes:
            return self.nodes[node.id]
        self._check_place(node, several_roots)
        (self.folder / store.NODES_FOLDER).mkdir(parents=True, exist_ok=True)
        with store.staged(self.folder, node.id) as folder:
            fields = write_files(folder)
            if isinstance(fields, dict):
                node = _with_fields(node, fields)
            parent = self.nodes.get(node.parent or "")
            store.finish(folder, node, parent.folder if parent else None)
            with store.locked(self.folder):
                self._read()
                if node.id not in self.nodes:
                    self._check_place(node, several_roots)
                    store.publish(self.folder, folder, node.id)
                    self._read()
                self._write_index()
        return self.nodes[node.id]

    def _check_place(self, node: Node, several_roots: bool) -> None:
        if not _is_graph(self.folder) and (self.folder / store.INDEX_FILE).exists():
            raise InputError(
                f"folder {str(self.folder)!r} has a {store.INDEX_FILE} without {store.NODES_FOLDER}/; "
                "choose another folder."
            )
        if several_roots:
            return
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
        self._set_nodes(nodes, self._listed)
        self._lines = {name: self._lines.get(name) or node.to_json() for name, node in self.nodes.items()}
        for node in self.nodes.values():
            if node.parent is not None and node.parent not in self.nodes:
                logger.warning_once(f"{node.folder}: its parent {node.parent!r} is not in the graph any more.")

    def _index_text(self) -> str:
        return store.index_text(self._lines.values(), map(vars, self.edges))

    def _write_index(self) -> None:
        """Makes the index what the nodes say. The caller holds the lock and has read them."""
        text = self._index_text()
        if text != self._index:
            store.write_index(self.folder, text)
            self._index, self._listed = text, list(self.nodes)


def _is_graph(folder: Path) -> bool:
    return (folder / store.NODES_FOLDER).is_dir()


def _with_fields(node: Node, fields: dict[str, Any]) -> Node:
    if fixed := {"id", "parent", "folder", "source"} & fields.keys():
        raise InputError(f"write_files returned {sorted(fixed)}; these fields of node {node.id!r} cannot change.")
    try:
        return replace(node, **fields)
    except TypeError:
        raise InputError(f"write_files returned {sorted(map(str, fields))}; not all are fields of Node.") from None
