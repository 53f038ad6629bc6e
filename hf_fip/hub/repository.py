"""One node in its repository: created, compared with what is there, committed, tagged."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from .client import Hub, Remote
from .files import is_weight
from .ledger import Published
from .plan import Entry
from .retry import HubError


def ensure_repo(hub: Hub, repo: str, private: bool | None, published: Published) -> Remote | None:
    """
    Creates a repository unless the ledger has it.

    Args:
        hub (`Hub`): the Hub.
        repo (`str`): the repository.
        private (`bool`, *optional*): whether others shall not see it; `None` leaves it to the account.
        published (`Published`): the ledger, which learns of the repository.

    Returns:
        `Remote`: what a repository holds that existed, if it had to be looked at.

    Raises:
        `HubError`: it shall be private but exists and is public.
    """
    record = published.repos.get(repo)
    if record is not None and not (private and record.get("private") is not True):
        return None
    remote, record = None, {"private": private, "new": True, "tags": {}, "files": []}
    if not hub.create_repo(repo, private):
        remote = hub.look(repo)
        if private and not remote.private:
            raise HubError(
                f"private=True, but the repository {repo} exists and is public; make it private on the Hub, or "
                "give another title"
            )
        record = {"private": remote.private, "new": False}
    published.repos[repo] = record
    return remote


def commit_node(hub: Hub, entry: Entry, published: Published, remote: Remote | None = None) -> tuple[str, bool]:
    """
    Brings a node's files to its repository.

    Args:
        hub (`Hub`): the Hub.
        entry (`Entry`): the node.
        published (`Published`): the ledger, which knows the repository.
        remote (`Remote`, *optional*): what the repository holds, if that was just looked at.

    Returns:
        `tuple[str, bool]`: id of the commit that holds the node, and whether that was made now.

    Raises:
        `HubError`: the repository holds another model, or the Hub refuses.
    """
    repo, record = entry.address.repo, published.repos[entry.address.repo]
    message = f"Add {entry.node.id}"
    if entry.address.revision is not None:
        return _commit_to_path(hub, entry, published, message)
    if not record["new"] and entry.node.id not in published.nodes:
        remote = remote or hub.look(repo)
        _check_same_weights(entry, remote)
        if _holds(remote, entry.files):
            return remote.head, False
    # Who did not create the repository may push beside who did: if that one commits first, the files are compared and
    # not committed twice.
    return hub.commit(repo, entry.files, message, head=remote.head if remote else None), True


def _commit_to_path(hub: Hub, entry: Entry, published: Published, message: str) -> tuple[str, bool]:
    """Commits a node on top of those before it in the repository of their path, and tags the commit."""
    repo, tag = entry.address.repo, entry.address.revision
    record = published.repos[repo]
    if "tags" not in record:
        record["tags"] = hub.tags(repo)
    if tagged := record["tags"].get(tag):
        remote = hub.look(repo, tagged)
        _check_same_weights(entry, remote)
        if _holds(remote, entry.files):
            return tagged, False
    if "files" not in record:
        remote = hub.look(repo)
        record |= {"head": remote.head, "files": list(remote.files)}
    commit = hub.commit(repo, entry.files, message, head=record.get("head"), remote_files=record["files"])
    record |= {"head": commit, "files": list(entry.files), "last": entry.node.id}
    hub.tag(repo, tag, commit, move=tagged is not None)
    record["tags"][tag] = commit
    return commit, True


def _check_same_weights(entry: Entry, remote: Remote) -> None:
    for name, file in entry.files.items():
        known = remote.large.get(name)
        if is_weight(name) and known is not None and known != _sha256(file):
            raise HubError(
                f"the repository {entry.address} holds the weights of another model; give another title for the "
                "Collection"
            )


def _holds(remote: Remote, files: Mapping[str, Path | bytes]) -> bool:
    """Whether a commit holds these files and no others."""
    if set(remote.files) - {".gitattributes"} != set(files):
        return False
    return all(
        _sha256(file) == remote.large[name] if name in remote.large else _blob_id(file) == remote.files[name]
        for name, file in files.items()
    )


def _sha256(file: Path | bytes) -> str:
    found = hashlib.sha256(file if isinstance(file, bytes) else b"")
    if isinstance(file, Path):
        with open(file, "rb") as stream:
            while block := stream.read(1 << 20):
                found.update(block)
    return found.hexdigest()


def _blob_id(file: Path | bytes) -> str:
    content = file if isinstance(file, bytes) else file.read_bytes()
    return hashlib.sha1(b"blob %d\0%s" % (len(content), content), usedforsecurity=False).hexdigest()
