"""
What a Collection or a repository on the Hub holds, as nodes.

Everything read here comes from strangers: sizes are looked at before a download, every field is checked, and what
cannot be read is left out with its reason.
"""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

from huggingface_hub import ModelInfo
from transformers.utils import logging

from ..errors import InputError
from ..graph import Node
from ..graph.node import NODE_FILE
from ..graph.show import plain_text
from .client import Hub
from .files import is_allowed, is_weight
from .foreign import foreign_ids, foreign_node
from .retry import AccessError, HubError


logger = logging.get_logger(__name__)

SLUG = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]*[0-9a-f]{16,24}", re.ASCII)
LARGEST_DESCRIPTION = 1 << 20
LARGEST_FAMILY = 5000
_THREADS = 8


@dataclass
class Found:
    """
    What was found under a name.

    Args:
        place (`str`): the Collection's slug, or the repository.
        nodes (`list[Node]`): the nodes, in the order of the items.
        unreadable (`dict[str, str]`): item to the reason why it is not among the nodes.
    """

    place: str
    nodes: list[Node] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)


class HubSource:
    """
    A node's files on the Hub.

    Args:
        hub (`Hub`): the Hub.
        repo (`str`): the repository.
        revision (`str`): the commit.
        names (`list[str]`, *optional*): the files in it that belong to the node; looked up if not given.
    """

    def __init__(self, hub: Hub, repo: str, revision: str, names: list[str] | None = None) -> None:
        self.hub = hub
        self.repo = repo
        self.revision = revision
        self._names = names
        self._fetched: dict[bool, Path] = {}
        self._lock = Lock()

    def fetch(self, *, weights: bool = True) -> Path:
        """
        Downloads the files, unless they are in the cache.

        Args:
            weights (`bool`, *optional*, defaults to `True`): the weights too.

        Returns:
            `Path`: the folder that holds them.

        Raises:
            `InputError`: the repository holds no safetensors weights.
            `HubError`: the download failed.
        """
        with self._lock:
            if weights not in self._fetched:
                if self._names is None:
                    self._names = allowed_files(self.hub.look(self.repo, self.revision).files)
                if not any(name.endswith(".safetensors") for name in self._names):
                    raise InputError(f"{self.repo} holds no safetensors weights, and hf_fip loads no others")
                names = [name for name in self._names if weights or not is_weight(name)] or self._names
                self._fetched[weights] = self.hub.download(self.repo, self.revision, names)
            return self._fetched[weights]


def allowed_files(names: Any) -> list[str]:
    """The files of a repository that belong to a node."""
    return sorted(name for name in names if is_allowed(name))


def read_family(hub: Hub, name: str, revision: str | None = None) -> Found:
    """
    Reads a Collection; or the one that a repository's card names, if the repository is in it; or the repository alone.

    Args:
        hub (`Hub`): the Hub.
        name (`str`): a slug or a repository.
        revision (`str`, *optional*): of the repository, which is then read alone.

    Returns:
        `Found`

    Raises:
        `InputError`: neither a Collection nor a repository, or hidden.
        `HubError`: the Hub cannot be reached.
    """
    may_be_collection = revision is None and "/" in name
    if may_be_collection and SLUG.fullmatch(name) and (found := _read_collection(hub, name)):
        return found
    try:
        info = hub.info(name, revision)
    except HubError as error:
        if error.status not in (401, 404):
            raise
        if may_be_collection and (found := _read_collection(hub, name)):
            return found
        raise InputError(
            f"{name!r} is neither a Collection nor a model on {hub.endpoint}, or it is private; check the name, or "
            "log in (`hf auth login`)"
        ) from error
    slug = fip_block(info).get("collection")
    if revision is None and isinstance(slug, str) and SLUG.fullmatch(slug):
        if found := _read_collection(hub, slug, member=info.id):
            return found
    return _read_repositories(hub, info.id if revision is None else f"{info.id}@{revision}", [info], revision is None)


def fip_block(info: ModelInfo) -> dict[str, Any]:
    """What a repository's card says under `fip:`."""
    block = info.card_data.to_dict().get("fip") if info.card_data else None
    return block if isinstance(block, dict) else {}


def _read_collection(hub: Hub, slug: str, member: str | None = None) -> Found | None:
    """The family in a Collection; `None` if there is no such Collection, or `member` is not in it."""
    try:
        collection = hub.collection(slug)
    except AccessError:
        return None
    if collection is None:
        return None
    repos = list(dict.fromkeys(item.item_id for item in collection.items if item.item_type == "model"))
    if member is not None and member not in repos:
        return None
    for item in collection.items:
        if item.item_type != "model":
            logger.info(f"{slug}: {plain_text(item.item_id)} is a {plain_text(item.item_type)}, passed over")

    def look(repo: str) -> ModelInfo | str:
        try:
            return hub.info(repo)
        except (HubError, ValueError) as error:
            return _reason(error)

    with ThreadPoolExecutor(_THREADS) as threads:
        answers = dict(zip(repos, threads.map(look, repos[:LARGEST_FAMILY]), strict=False))
    found = _read_repositories(
        hub, collection.slug, [info for info in answers.values() if isinstance(info, ModelInfo)], all_tags=True
    )
    found.unreadable |= {repo: answer for repo, answer in answers.items() if isinstance(answer, str)}
    found.unreadable |= {repo: f"only {LARGEST_FAMILY} items are read" for repo in repos[LARGEST_FAMILY:]}
    return found


def _read_repositories(hub: Hub, place: str, infos: list[ModelInfo], all_tags: bool) -> Found:
    with ThreadPoolExecutor(_THREADS) as threads:
        answers = list(threads.map(lambda info: _own_nodes(hub, info, all_tags), infos))
    own = {info.id: nodes[-1].id for info, (nodes, _) in zip(infos, answers, strict=True) if nodes}
    others = [info for info, (nodes, reasons) in zip(infos, answers, strict=True) if not nodes and not reasons]
    ids = {**foreign_ids([info.id for info in others]), **own}
    found = Found(place)
    for info, (nodes, reasons) in zip(infos, answers, strict=True):
        found.unreadable |= reasons
        found.nodes += nodes
        if not nodes and not reasons:
            names = allowed_files(file.rfilename for file in info.siblings or [])
            found.nodes.append(foreign_node(info, ids, HubSource(hub, info.id, info.sha, names)))
    return found


def _own_nodes(hub: Hub, info: ModelInfo, all_tags: bool) -> tuple[list[Node], dict[str, str]]:
    """The nodes that hf_fip has put into a repository, and what could not be read of it."""
    sizes = {file.rfilename: file.size for file in info.siblings or []}
    if NODE_FILE not in sizes:
        return [], {}
    try:
        if all_tags and fip_block(info).get("layout") == "revision":
            # A repository for a path, with a tag per node; its main branch is the last of them.
            nodes, unreadable = [], {}
            for tag, commit in list(hub.tags(info.id).items())[:LARGEST_FAMILY]:
                try:
                    nodes.append(_read_node(hub, info.id, commit))
                except (HubError, ValueError) as error:
                    unreadable[f"{info.id}@{tag}"] = _reason(error)
            if nodes or unreadable:
                return sorted(nodes, key=lambda node: (node.created, node.step)), unreadable
        names = allowed_files(sizes)
        return [_read_node(hub, info.id, info.sha, sizes[NODE_FILE], names)], {}
    except (HubError, ValueError) as error:
        return [], {info.id: _reason(error)}


def _read_node(hub: Hub, repo: str, commit: str, size: int | None = None, names: list[str] | None = None) -> Node:
    file = hub.download_small(repo, NODE_FILE, commit, LARGEST_DESCRIPTION, size)
    if file is None:
        raise InputError(f"the commit {commit[:12]} holds no {NODE_FILE}")
    if file.stat().st_size > LARGEST_DESCRIPTION:
        raise InputError(f"{NODE_FILE} has more than {LARGEST_DESCRIPTION} bytes")
    try:
        data = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        raise InputError(f"{NODE_FILE} is not valid JSON") from None
    return replace(Node.from_dict(data), source=HubSource(hub, repo, commit, names))


def _reason(error: HubError | ValueError) -> str:
    """Why one item cannot be read. A Hub that cannot be reached says nothing about the item: that is raised."""
    if isinstance(error, HubError) and error.unreachable:
        raise error
    return plain_text(error, 300)
