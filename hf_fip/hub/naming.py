"""Names on the Hub: of a family, its repositories and its tags. They follow from the graph alone and never change."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import Any

from ..errors import InputError
from ..graph import ModelGraph, Node


LAYOUTS = ("repo", "revision")
TITLE_LENGTH = 60
_NAME_LENGTH = 96
_FAMILY_LENGTH = 48
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


def check_layout(layout: Any) -> str:
    """
    Raises:
        `InputError`: not one of `LAYOUTS`.
    """
    if layout not in LAYOUTS:
        raise InputError(f"layout={layout!r} is unknown; choose one of: {', '.join(LAYOUTS)}")
    return layout


def looks_like_hub_id(value: Any) -> bool:
    """
    Whether `value` has the form of a model's id on the Hub, `"name"` or `"owner/name"`. A relative path may have it.

    Args:
        value (`Any`): what a file or a user gave.
    """
    return (
        isinstance(value, str)
        and _HUB_ID.fullmatch(value) is not None
        and not any(part in value for part in ("--", ".."))
        and not value.endswith((".git", "-", "."))
        and len(value.split("/")[-1]) <= _NAME_LENGTH
    )


def default_title(graph: ModelGraph) -> str:
    """
    The title of the family's Collection unless the user gives one. It holds the root's id, so that two families that
    were made in folders of one name are not mixed up.
    """
    return f"{_folder_name(graph)[: TITLE_LENGTH // 2]} ({graph.root.id})"[:TITLE_LENGTH]


def check_title(title: str) -> str:
    """
    Raises:
        `InputError`: empty, or longer than the Hub takes.
    """
    title = " ".join(title.split())
    if not 0 < len(title) <= TITLE_LENGTH:
        raise InputError(f"collection={title!r} has {len(title)} characters; give a title of 1 to {TITLE_LENGTH}")
    return title


def family_name(graph: ModelGraph, title: str | None) -> str:
    """
    What the names of a family's repositories begin with.

    Args:
        graph (`ModelGraph`): a local graph.
        title (`str`, *optional*): the Collection's title, if the user gave one; the folder's name otherwise.

    Returns:
        `str`: of `a-z 0-9 -`.
    """
    text = unicodedata.normalize("NFKD", title or _folder_name(graph)).encode("ascii", "ignore").decode().lower()
    name = re.sub(r"[^a-z0-9]+", "-", text).strip("-")[:_FAMILY_LENGTH].strip("-")
    # A title in another script leaves nothing: its digest keeps two such families apart.
    return name or f"family-{_digest(title or '')}"


def repo_name(family: str, part: str) -> str:
    """
    Name of a repository.

    Args:
        family (`str`): as [`family_name`] gives it.
        part (`str`): a node's id, or a branch's name where a repository holds a path.

    Returns:
        `str`: a name the Hub takes, different for different parts.
    """
    return _safe(f"{family}-{part}", _NAME_LENGTH)


def tag_name(node: Node) -> str:
    """Name of the tag that marks a node's commit in the repository of its path."""
    name = _safe(node.id, _NAME_LENGTH)
    # The Hub would take these for its main branch, or for a commit.
    clashes = name.lower() in ("main", "head") or re.fullmatch(r"[0-9a-f]{7,40}", name)
    return f"node-{name}"[:_NAME_LENGTH] if clashes else name


def _folder_name(graph: ModelGraph) -> str:
    folder = graph.folder.resolve()
    return (folder.parent if folder.name == "graph" else folder).name or "family"


def _safe(name: str, length: int) -> str:
    safe = re.sub(r"[^\w.-]", "-", name, flags=re.ASCII)
    safe = re.sub(r"-{2,}", "-", re.sub(r"\.{2,}", ".", safe)).strip("-.")
    safe = re.sub(r"\.(git|lock)$", "", safe)
    if safe == name and len(safe) <= length:
        return safe
    return f"{safe[: length - 9].rstrip('-.')}-{_digest(name)}".lstrip("-.")


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
