"""A family on the Hub as a model graph: descriptions at once, files when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlparse

from transformers.utils import logging

from ..errors import InputError
from ..graph import ModelGraph, Node
from ..graph.family import Family, creation_order
from ..graph.show import plain_text
from .client import Hub
from .naming import looks_like_hub_id
from .reading import SLUG, read_family
from .retry import RetryPolicy


logger = logging.get_logger(__name__)

# Whoever asks for a family waits for it.
READING = RetryPolicy(attempts=5)
_SITES = {"huggingface.co", "www.huggingface.co", "hf.co"}


class HubGraph(ModelGraph):
    """
    A model graph whose nodes lie on the Hub. It cannot be added to, and has no folder.

    Args:
        place (`str`): the Collection's slug, or the repository.
        nodes (`Iterable[Node]`): the nodes.
        unreadable (`Mapping[str, str]`, *optional*): item to the reason why it is not among the nodes.

    Attributes:
        unreadable (`dict[str, str]`): as above, with the nodes that do not fit with the others.
    """

    def __init__(self, place: str, nodes: Iterable[Node], unreadable: Mapping[str, str] | None = None) -> None:
        Family.__init__(self, place)
        self.folder = None
        self.unreadable = dict(unreadable or {})
        unique: dict[str, Node] = {}
        for node in nodes:
            if node.id in unique:
                where = unique[node.id].location.get("repo")
                self._leave_out(node, f"{where} describes a node of the same id, {node.id!r}")
            else:
                unique[node.id] = node
        order = creation_order(unique, list(unique))
        for name in unique.keys() - set(order):
            self._leave_out(unique[name], "parents form a cycle")
        self._set_nodes({name: unique[name] for name in order}, list(unique))

    @classmethod
    def open(cls, source: str, hub: Hub | None = None, *, revision: str | None = None) -> HubGraph:
        """See [`ModelGraph.from_hub`]; `hub` says where, as whom, and how patiently."""
        hub = hub or Hub(policy=READING)
        found = read_family(hub, parse_source(source, hub.endpoint), revision)
        graph = cls(found.place, found.nodes, found.unreadable)
        for item, reason in graph.unreadable.items():
            logger.warning(f"{graph.place}: {plain_text(item)} is left out: {reason}")
        if not len(graph):
            reasons = "; ".join(f"{plain_text(item)}: {reason}" for item, reason in list(graph.unreadable.items())[:3])
            raise InputError(f"{graph.place!r} holds no model that can be read{f' ({reasons})' if reasons else ''}")
        return graph

    def _leave_out(self, node: Node, reason: str) -> None:
        location = node.location
        self.unreadable[f"{location.get('repo')}@{location.get('revision')}"] = reason

    def refresh(self) -> None:
        """Nothing to take in: the graph is what was read."""

    def add(self, node: Node, write_files: Callable[[Path], Any], *, several_roots: bool = False) -> NoReturn:
        """
        Raises:
            `InputError`: a graph on the Hub cannot be added to.
        """
        raise InputError(f"graph {self.place!r} lies on the Hub; pull it to a folder to add nodes to it")


def parse_source(source: str, endpoint: str) -> str:
    """
    The Collection or repository that a user means.

    Args:
        source (`str`): a slug, an id, or an address on the Hub.
        endpoint (`str`): address of the Hub.

    Returns:
        `str`: `"owner/name"`, or a name alone.

    Raises:
        `InputError`: anything else.
    """
    text = source.strip() if isinstance(source, str) else ""
    if "://" in text or text.split("/")[0].lower() in _SITES:
        url = urlparse(text if "://" in text else f"https://{text}")
        if url.netloc.lower() not in _SITES | {urlparse(endpoint).netloc.lower()}:
            raise InputError(f"{source!r} is not an address on {endpoint}; set HF_ENDPOINT to use another Hub")
        parts = [part for part in url.path.split("/") if part]
        text = "/".join(parts[1:3] if parts[:1] in (["collections"], ["models"]) else parts[:2])
    if not looks_like_hub_id(text) and SLUG.fullmatch(text) is None:
        raise InputError(f"{source!r} is neither a folder nor a Collection or model on the Hub (owner/name)")
    return text
