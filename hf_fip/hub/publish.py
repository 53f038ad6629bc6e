"""
Publishing a graph: node by node in the order of their lineage, then the Collection.

Each step is safe to repeat, and what is done is written in the ledger at once; so a push that failed, was killed or
runs twice at the same time ends as one clean push does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import Collection
from transformers.utils import logging

from ..errors import InputError
from ..graph import ModelGraph
from .card import CardContext
from .client import Hub
from .collection import DESCRIPTION, check_same_family, models_of, update_items
from .ledger import Ledger, Published
from .naming import looks_like_hub_id
from .plan import (
    Entry,
    Target,
    count_requests,
    estimate,
    make_addresses,
    make_entry,
    make_target,
    publish_view,
    readable_size,
)
from .repository import commit_node, ensure_repo
from .retry import AccessError, HubError
from .selection import Selected, select_nodes


logger = logging.get_logger(__name__)

_FAILURES_IN_A_ROW = 3
_LICENSE_FIELDS = ("license", "license_name", "license_link")


def push(
    graph: ModelGraph,
    hub: Hub | None = None,
    *,
    namespace: str | None = None,
    select: str = "all",
    dry_run: bool = False,
    **target: Any,
) -> dict[str, Any]:
    """
    Publishes a graph; [`ModelGraph.push_to_hub`] says what the arguments mean.

    Args:
        hub ([`Hub`], *optional*): where to, as whom, and how patiently.
        target: `collection`, `layout` and `private`, as [`make_target`] takes them.
    """
    if graph.folder is None:
        raise InputError(f"graph {graph.place!r} lies on the Hub; pull it to a folder before it is pushed again")
    hub = hub or Hub()
    selected = select_nodes(graph, select)
    namespace = hub.namespaces()[0] if namespace is None else namespace
    publisher = Publisher(graph, hub, make_target(graph, namespace, **target))
    return publisher.preview(selected) if dry_run else publisher.run(selected)


class Publisher:
    """
    Publishes the nodes of one graph under one name.

    Args:
        graph (`ModelGraph`): a local graph.
        hub (`Hub`): the Hub.
        target (`Target`): where the family goes.
    """

    def __init__(self, graph: ModelGraph, hub: Hub, target: Target) -> None:
        self.graph = graph
        self.hub = hub
        self.target = target
        name = f"{hub.endpoint} {target.namespace}/{target.family} {target.layout}"
        self.ledger = Ledger(graph.folder, name)
        self.collection: Collection | None = None

    # ---- The whole push ----------------------------------------------------------------------------------------

    def preview(self, selected: list[Selected]) -> dict[str, Any]:
        """What [`Publisher.run`] would do, as far as the ledger tells: the Hub is not asked."""
        published = self.ledger.read()
        entries, errors = self.entries(selected, published)
        pending = [entry for entry in entries if not self._is_done(entry, published)]
        logger.warning(f"Hub: would publish {estimate(pending, self.target.namespace)}")
        done = [entry for entry in entries if entry not in pending]
        return {
            **self._result([], done, errors, entries),
            "dry_run": True,
            "pending": [entry.node.id for entry in pending],
            "requests": count_requests(pending),
            "bytes": sum(entry.size for entry in pending),
        }

    def run(self, selected: list[Selected]) -> dict[str, Any]:
        """
        Publishes the nodes and the Collection.

        Returns:
            `dict`: see [`ModelGraph.push_to_hub`].

        Raises:
            `AccessError`: nothing may be published there.
            `HubError`: the Hub could not be reached before the first node.
        """
        self.prepare(selected)
        entries, errors = self.entries(selected, self.ledger.read())
        pushed, skipped = [], []
        published = self.ledger.read()
        if pending := [entry for entry in entries if not self._is_done(entry, published)]:
            logger.warning(f"Hub: publishing {estimate(pending, self.target.namespace)}")
        for entry, error in self.publish_all(entries):
            if isinstance(error, Exception):
                errors[entry.node.id] = str(error)
            else:
                (skipped if error is None else pushed).append(entry)
        self.finish(entries, changed=bool(pushed))
        return self._result(pushed, skipped, errors, entries)

    def publish_all(self, entries: list[Entry]) -> Iterator[tuple[Entry, Exception | bool | None]]:
        """Publishes nodes and yields each with `True`, `None` where it was published before, or what went wrong."""
        published = self.ledger.read()
        pending = [entry for entry in entries if not self._is_done(entry, published)]
        number = failures = successes = 0
        stopped: Exception | None = None
        for entry in entries:
            if entry not in pending:
                yield entry, None
                continue
            number += 1
            if stopped is not None:
                yield entry, HubError(f"not tried: {stopped}")
                continue
            try:
                logger.info(f"[{number}/{len(pending)}] {entry.address} ({readable_size(entry.size)})")
                done = self.publish(entry)
                failures, successes = 0, successes + 1
                yield entry, True if done else None
            except (HubError, InputError) as error:
                if isinstance(error, AccessError) and not successes:
                    raise
                failures = failures + 1 if getattr(error, "unreachable", False) else 0
                if getattr(error, "status", None) == 429 or failures == _FAILURES_IN_A_ROW:
                    stopped = error
                logger.warning(f"Hub: node {entry.node.id} is not published: {error}")
                yield entry, error

    # ---- Before the first node ---------------------------------------------------------------------------------

    def prepare(self, selected: list[Selected]) -> None:
        """Finds or makes the Collection, and takes out of the ledger what is no longer on the Hub."""
        addresses = make_addresses(selected, self.target)
        with self.ledger.hold() as published:
            if published.foundation is None:
                published.foundation = self._look_at_foundation()
            found = None if published.collection is None else self.hub.collection(published.collection)
            if found is None:
                found = self.hub.find_collection(self.target.namespace, self.target.title)
                if found is not None:
                    check_same_family(found, {address.repo for address in addresses.values()})
            if found is None:
                private = self.target.private
                if private is None:
                    # The account decides; a Collection shall not show what its repositories hide.
                    first = addresses[selected[0].node.id].repo
                    ensure_repo(self.hub, first, self.target.private, published)
                    private = self.hub.look(first).private
                found = self.hub.create_collection(self.target.namespace, self.target.title, DESCRIPTION, private)
            if self.target.private and not found.private:
                raise InputError(
                    f"private=True, but the Collection {found.slug!r} is public; make it private on the Hub, or give "
                    "another title"
                )
            self.collection, published.collection = found, found.slug
            there = models_of(found)
            for node, address in addresses.items():
                if address.repo not in there and published.nodes.pop(node, None) is not None:
                    published.repos.pop(address.repo, None)

    def _look_at_foundation(self) -> dict[str, Any] | None:
        """The model the root was made from, if it lies on the Hub, and its licence; `None` if that cannot be told."""
        root = self.graph.root
        name = root.protocol.get("model") or root.parameters.get("model")
        if not looks_like_hub_id(name) or Path(name).exists():
            return {}
        try:
            info = self.hub.info(name)
        except AccessError:
            return {}
        except HubError as error:
            return None if error.unreachable else {}
        card = info.card_data.to_dict() if info.card_data else {}
        fields = {key: card[key] for key in _LICENSE_FIELDS if isinstance(card.get(key), str)}
        return {"id": info.id, "license": fields if "license" in fields else {}}

    def entries(
        self, selected: list[Selected], published: Published, new_only: bool = False
    ) -> tuple[list[Entry], dict[str, str]]:
        """What is published for each node (that the ledger does not hold), and why some cannot be published."""
        foundation = published.foundation or {}
        context = CardContext(
            title=self.target.title,
            site=self.hub.site,
            layout=self.target.layout,
            addresses=make_addresses(selected, self.target),
            collection=published.collection,
            foundation=foundation.get("id"),
            license=foundation.get("license", {}),
        )
        view = publish_view(selected)
        entries, errors = [], {}
        for chosen in selected:
            if new_only and chosen.node.id in published.nodes:
                continue
            try:
                entries.append(make_entry(chosen, view, context))
            except InputError as error:
                errors[chosen.node.id] = str(error)
                logger.warning(f"Hub: node {chosen.node.id} is not published: {error}")
        return entries, errors

    # ---- One node ----------------------------------------------------------------------------------------------

    def publish(self, entry: Entry) -> bool:
        """Publishes one node. Returns `False` if it turns out to be published: by another process, or long ago."""
        with self.ledger.hold() as published:
            if self._is_done(entry, published):
                return False
            remote = ensure_repo(self.hub, entry.address.repo, self.target.private, published)
            self.ledger.write(published)
            try:
                commit, changed = commit_node(self.hub, entry, published, remote)
            except HubError as error:
                if error.status != 404:
                    raise
                # The repository was deleted on the Hub.
                published.repos.pop(entry.address.repo)
                remote = ensure_repo(self.hub, entry.address.repo, self.target.private, published)
                commit, changed = commit_node(self.hub, entry, published, remote)
            if entry.address.repo not in models_of(self.collection):
                self.collection = self.hub.add_item(self.collection.slug, entry.address.repo, entry.note)
                changed = True
            published.nodes[entry.node.id] = {"digest": entry.digest, "commit": commit}
        return changed

    def _is_done(self, entry: Entry, published: Published) -> bool:
        exposed = self.target.private and published.repos.get(entry.address.repo, {}).get("private") is not True
        return not exposed and published.nodes.get(entry.node.id, {}).get("digest") == entry.digest

    # ---- After the last node -----------------------------------------------------------------------------------

    def finish(self, entries: list[Entry], changed: bool) -> None:
        """Brings main branches to the end of their paths, and notes and order of the Collection's items up to date."""
        with self.ledger.hold() as published:
            ends = {entry.address.repo: entry for entry in entries if entry.node.id in published.nodes}
            for repo, entry in ends.items():
                record = published.repos.get(repo, {})
                if record.get("last", entry.node.id) != entry.node.id:
                    commit = self.hub.commit(
                        repo,
                        entry.files,
                        f"Back to {entry.node.id}",
                        head=record["head"],
                        remote_files=record["files"],
                    )
                    record |= {"head": commit, "files": list(entry.files), "last": entry.node.id}
            if changed:
                self.collection = self.hub.collection(self.collection.slug) or self.collection
            update_items(self.hub, self.collection, {repo: entry.note for repo, entry in ends.items()})

    def _result(
        self, pushed: list[Entry], skipped: list[Entry], errors: Mapping[str, str], entries: list[Entry]
    ) -> dict[str, Any]:
        slug = self.collection.slug if self.collection else self.ledger.read().collection
        return {
            "collection": slug,
            "url": None if slug is None else f"{self.hub.endpoint}/collections/{slug}",
            "title": self.target.title,
            "pushed": [entry.node.id for entry in pushed],
            "skipped": [entry.node.id for entry in skipped],
            "failed": list(errors),
            "errors": dict(errors),
            "repos": {entry.node.id: str(entry.address) for entry in entries},
        }
