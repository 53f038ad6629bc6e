"""A family from the Hub as a complete graph in a folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..errors import InputError
from ..graph import ModelGraph, Node
from ..graph.node import NODE_FILE
from .files import is_allowed
from .plan import ADAPTER_CONFIG, BASE_FIELD
from .remote import HubGraph


logger = logging.get_logger(__name__)


def pull(source: str | HubGraph, folder: str | os.PathLike[str], **kwargs: Any) -> ModelGraph:
    """
    Downloads a family into a folder. Run again after an interruption, it continues with the first node that is
    missing; files that are in huggingface_hub's cache are not downloaded again.

    Args:
        source (`str` or `HubGraph`): a Collection, a repository in it, or the graph that `from_hub` returned.
        folder (`str` or `Path`): the graph's folder; made if missing.
        kwargs: as [`ModelGraph.from_hub`] takes them.

    Returns:
        `ModelGraph`: the graph in the folder.

    Raises:
        `InputError`: no such family, or the folder holds another graph.
        `OSError`: the Hub cannot be reached, or the disk is full.
    """
    target = Path(folder).expanduser()
    if (target / "graph" / "nodes").is_dir():
        raise InputError(f"folder {str(folder)!r} is the output folder of a run; give another folder")
    if target.is_dir() and not (target / "nodes").is_dir() and any(target.iterdir()):
        raise InputError(f"folder {str(folder)!r} holds other files; give a new or empty folder")
    graph = ModelGraph(target)
    remote = source if isinstance(source, HubGraph) else ModelGraph.from_hub(source, **kwargs)
    others = [node.id for node in graph if node.id not in remote]
    if len(others) == len(graph) > 0:
        raise InputError(f"folder {str(folder)!r} holds another graph (its root is {graph.root.id!r})")
    repos = {node.location["repo"]: node.id for node in remote}
    for number, node in enumerate(remote, 1):
        if node.id in graph:
            continue
        logger.info(f"[{number}/{len(remote)}] {node.id}")
        _pull_node(graph, node, repos)
    return graph


def _pull_node(graph: ModelGraph, node: Node, repos: dict[str, str]) -> None:
    files = node.files()

    def write(folder: Path) -> None:
        for path in sorted(files.iterdir()):
            if is_allowed(path.name) and path.name != NODE_FILE:
                _copy(path.resolve(), folder / path.name)
        _rebase_adapter(folder / ADAPTER_CONFIG, node, repos)

    graph.add(node, write, several_roots=True)


def _copy(file: Path, target: Path) -> None:
    """A hard link to the cache where that works: both are only ever replaced, never changed in place."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


def _rebase_adapter(file: Path, node: Node, repos: dict[str, str]) -> None:
    """An adapter on another node of the family is loaded on that node's folder, which lies beside its own."""
    if not file.is_file():
        return
    try:
        config = json.loads(file.read_bytes())
        base = config.get(BASE_FIELD)
    except (ValueError, RecursionError, AttributeError):
        raise InputError(f"node {node.id!r}: its {ADAPTER_CONFIG} is damaged") from None
    if isinstance(base, str) and base in repos:
        # A link to the cache is replaced, not written through.
        file.unlink()
        changed = {**config, BASE_FIELD: repos[base], "revision": None}
        file.write_text(json.dumps(changed, indent=2) + "\n", encoding="utf-8")
