"""What a push would put on the Hub: repositories, files, cards, notes. Nothing here talks to the Hub."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from ..errors import InputError
from ..graph import ModelGraph, Node
from ..graph.node import NODE_FILE
from ..storage.layout import METHOD
from .card import Address, CardContext, model_card, note
from .files import CARD_FILE, is_weight, node_files
from .naming import check_layout, check_title, default_title, family_name, looks_like_hub_id, repo_name, tag_name
from .selection import Selected, as_published


ADAPTER_CONFIG = "adapter_config.json"
BASE_FIELD = "base_model_name_or_path"
# The rate limit of free accounts, as the Hub documents it: calls in a window of seconds.
RATE_LIMIT, RATE_WINDOW = 1000, 300


@dataclass(frozen=True)
class Target:
    """
    Where a family goes.

    Args:
        namespace (`str`): user or organisation.
        title (`str`): title of the Collection.
        family (`str`): what the names of the repositories begin with.
        layout (`str`): `"repo"` or `"revision"`.
        private (`bool`, *optional*): whether others cannot see it; `None` leaves it to the account.
    """

    namespace: str
    title: str
    family: str
    layout: str
    private: bool | None

    def address(self, node: Node) -> Address:
        """Where a node goes."""
        if self.layout == "repo":
            return Address(f"{self.namespace}/{repo_name(self.family, node.id)}")
        return Address(f"{self.namespace}/{repo_name(self.family, node.name)}", tag_name(node))


@dataclass(frozen=True)
class Entry:
    """
    A node as it is published.

    Args:
        node (`Node`): as the published `fip_node.json` describes it.
        address (`Address`): where it goes.
        files (`Mapping[str, Path | bytes]`): name to file or content.
        digest (`str`): changes with what is published.
        size (`int`): bytes in all.
        note (`str`): of its item in the Collection.
    """

    node: Node
    address: Address
    files: Mapping[str, Path | bytes]
    digest: str
    size: int
    note: str


def make_target(
    graph: ModelGraph,
    namespace: str,
    collection: str | None = None,
    layout: str = "repo",
    private: bool | None = None,
) -> Target:
    """
    Args:
        graph (`ModelGraph`): a local graph.
        namespace (`str`): user or organisation.
        collection (`str`, *optional*): the Collection's title; by default it follows from folder and root.
        layout (`str`, *optional*, defaults to `"repo"`): `"repo"` or `"revision"`.
        private (`bool`, *optional*): see [`Target`].

    Raises:
        `InputError`: a bad namespace, title or layout.
    """
    check_layout(layout)
    if not looks_like_hub_id(namespace) or "/" in namespace:
        raise InputError(f"namespace={namespace!r} is not the name of a user or an organisation on the Hub")
    title = default_title(graph) if collection is None else check_title(collection)
    return Target(namespace, title, family_name(graph, collection), layout, private)


def make_addresses(selected: list[Selected], target: Target) -> dict[str, Address]:
    """
    Args:
        selected (`list[Selected]`): the nodes.
        target (`Target`): where they go.

    Returns:
        `dict[str, Address]`: node id to its place.

    Raises:
        `InputError`: two nodes would get one place, since the Hub takes `A` for `a`.
    """
    addresses = {entry.node.id: target.address(entry.node) for entry in selected}
    owners: dict[tuple[str, str | None], str] = {}
    for entry in selected:
        address = addresses[entry.node.id]
        place = (address.repo.lower(), (address.revision or "").lower() or None)
        if place in owners:
            raise InputError(f"nodes {owners[place]!r} and {entry.node.id!r} would both be {address} on the Hub")
        owners[place] = entry.node.id
    return addresses


def make_entry(chosen: Selected, published: Mapping[str, Node], context: CardContext) -> Entry:
    """
    Args:
        chosen (`Selected`): the node.
        published (`Mapping[str, Node]`): all published nodes as [`as_published`] describes them, by id.
        context (`CardContext`): what the cards say of the family.

    Returns:
        `Entry`

    Raises:
        `InputError`: an adapter whose base model nobody else could load.
    """
    node = published[chosen.node.id]
    files: dict[str, Path | bytes] = dict(node_files(chosen.node.files()))
    if node != chosen.node:
        files[NODE_FILE] = (json.dumps(node.to_dict(), indent=2, allow_nan=False) + "\n").encode()
    base = None
    if ADAPTER_CONFIG in files:
        base, files[ADAPTER_CONFIG] = _adapter_config(chosen.node, files[ADAPTER_CONFIG], context)
    needs_hf_fip = _needs_hf_fip(chosen.node.files() / "config.json")
    files[CARD_FILE] = model_card(node, _lineage(node, published), context, base, needs_hf_fip).encode()
    files = dict(sorted(files.items()))
    size = sum(len(file) if isinstance(file, bytes) else file.stat().st_size for file in files.values())
    return Entry(node, context.addresses[node.id], files, _digest(files), size, note(node))


def publish_view(selected: list[Selected]) -> dict[str, Node]:
    """The chosen nodes as their published `fip_node.json` describes them, by id."""
    return {entry.node.id: as_published(entry) for entry in selected}


def count_requests(entries: list[Entry]) -> int:
    """
    Requests that publishing these nodes takes when nothing goes wrong: to create the repository, validate the card,
    ask how files go up and whether large ones are there, to send and verify each of these, to commit, and to add the
    item or the tag; and four for the Collection.
    """
    large = sum(sum(is_weight(name) for name in entry.files) for entry in entries)
    repos = len({entry.address.repo for entry in entries})
    tags_and_items = len(entries) if all(e.address.revision is None for e in entries) else len(entries) + repos
    return 4 + repos + 4 * len(entries) + 2 * large + tags_and_items if entries else 0


def estimate(entries: list[Entry], namespace: str) -> str:
    """The line that is shown before the first upload."""
    requests, repos = count_requests(entries), len({entry.address.repo for entry in entries})
    text = (
        f"{len(entries)} node{'s' * (len(entries) != 1)}, {readable_size(sum(entry.size for entry in entries))}, to "
        f"{repos} repositor{'ies' if repos != 1 else 'y'} of {namespace}; about {requests} requests"
    )
    if requests > RATE_LIMIT:
        minutes = requests / RATE_LIMIT * RATE_WINDOW / 60
        text += f", at least {minutes:.0f} minutes for a free account ({RATE_LIMIT} requests in {RATE_WINDOW} s)"
    return text


def readable_size(size: float) -> str:
    """Bytes in the largest unit that leaves a digit before the point."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.0f} B" if units[0] == "B" else f"{size:.1f} {units[0]}"


def _lineage(node: Node, published: Mapping[str, Node]) -> list[Node]:
    line = [node]
    while line[-1].parent in published:
        line.append(published[line[-1].parent])
    return line[::-1]


def _needs_hf_fip(config_file: Path) -> bool:
    """Whether the files are of an architecture or in a format that hf_fip registers with transformers."""
    try:
        config = json.loads(config_file.read_bytes())
        method = (config.get("quantization_config") or {}).get("quant_method")
        return method == METHOD or config["model_type"] not in CONFIG_MAPPING_NAMES
    except (OSError, ValueError, RecursionError, KeyError, AttributeError):
        return False


def _digest(files: Mapping[str, Path | bytes]) -> str:
    """Of names and contents; of weights the size only, since nodes never change."""
    found = hashlib.blake2b(digest_size=16)
    for name, file in files.items():
        found.update(f"{name}\0".encode())
        if isinstance(file, Path) and is_weight(name):
            found.update(str(file.stat().st_size).encode())
        else:
            found.update(hashlib.blake2b(file if isinstance(file, bytes) else file.read_bytes()).digest())
    return found.hexdigest()


def _adapter_config(node: Node, file: Path | bytes, context: CardContext) -> tuple[str, Path | bytes]:
    """The Hub id of an adapter's base model, and its configuration with that id in place of a folder's name."""
    text = file if isinstance(file, bytes) else file.read_bytes()
    try:
        config: dict[str, Any] = json.loads(text)
        base = config[BASE_FIELD]
    except (ValueError, RecursionError, KeyError, TypeError):
        raise InputError(f"node {node.id!r}: its {ADAPTER_CONFIG} names no base model") from None
    name = Path(base).name if isinstance(base, str) else ""
    beside = node.files().parent / name
    if name and beside.is_dir() and (not os.path.isdir(base) or os.path.samefile(base, beside)):
        if name not in context.addresses:
            raise InputError(
                f"node {node.id!r} is an adapter on node {name!r}, which is not among the nodes to be published; "
                "select it too"
            )
        address = context.addresses[name]
        changed = {**config, BASE_FIELD: address.repo, "revision": address.revision}
        return address.repo, (json.dumps(changed, indent=2) + "\n").encode()
    if not looks_like_hub_id(base) or os.path.isdir(base):
        raise InputError(
            f"node {node.id!r} is an adapter on the local folder {base!r}, which nobody else can load; publish that "
            "model first and train from its Hub id"
        )
    return base, file
