"""
The files of a graph folder, and the rules that keep them whole when a process is killed at any moment.

A node is written to a temporary folder, synced and renamed, so that `nodes/<id>` is complete or absent. `graph.json`
is an index of what `nodes/` holds: it is replaced in one step, and made again whenever it does not match.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from transformers.utils import logging

from ..errors import InputError
from .files import link_equal, replace_text, sync, sync_folder, write_text
from .node import NODE_FILE, Node, is_node_id


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.get_logger(__name__)

FORMAT_VERSION = 1
INDEX_FILE = "graph.json"
NODES_FOLDER = "nodes"
LOCK_FILE = ".lock"
LOCK_SECONDS = 600
_TEMPORARY = ".tmp-"
_DAY = 24 * 3600
# A card may be edited where it lies, which must not reach the parent's copy.
_NEVER_LINKED = {"README.md", NODE_FILE}


@contextmanager
def locked(root: Path, timeout: float = LOCK_SECONDS) -> Iterator[None]:
    """
    Holds the graph's lock, which the operating system releases when a process dies.

    Args:
        root (`Path`): the graph's folder; it must exist.
        timeout (`float`, *optional*, defaults to 600): seconds to wait for another process.

    Raises:
        `TimeoutError`: another process held the lock all the time.
    """
    lock = FileLock(root / LOCK_FILE)
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        raise TimeoutError(
            f"{root}: another process has held {LOCK_FILE} for {timeout:g} s; stop that process and run again."
        ) from None
    try:
        yield
    finally:
        lock.release()


def read_node(folder: Path) -> Node:
    """
    Args:
        folder (`Path`): a node's folder inside a graph.

    Returns:
        `Node`: what its `fip_node.json` describes.

    Raises:
        `FileNotFoundError`: there is no such file.
        `InputError`: not JSON, a field of the wrong type, or an id that is not the folder's name.
    """
    path = folder / NODE_FILE
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); restore the file or remove its folder.") from None
    node = Node.from_dict(data, folder)
    if node.id != folder.name:
        raise InputError(f"{path}: field 'id' is {node.id!r}; expected the folder's name, {folder.name!r}.")
    return node


def read_nodes(root: Path, known: Mapping[str, Node]) -> dict[str, Node]:
    """
    The nodes in `nodes/`, in no particular order. Weights are not read.

    Args:
        root (`Path`): the graph's folder.
        known (`Mapping[str, Node]`): nodes read before; nodes are immutable, so their files are not read again.

    Returns:
        `dict[str, Node]`

    Raises:
        `InputError`: a `fip_node.json` that does not describe a node.
    """
    try:
        names = [name for name in os.listdir(root / NODES_FOLDER) if is_node_id(name)]
    except FileNotFoundError:
        return {}
    nodes = {name: known[name] for name in names if name in known}
    for name in sorted(set(names) - nodes.keys()):
        folder = root / NODES_FOLDER / name
        try:
            nodes[name] = read_node(folder)
        except (FileNotFoundError, NotADirectoryError):
            logger.warning_once(f"{folder}: skipped, it holds no {NODE_FILE}.")
    return nodes


def index_text(node_lines: Iterable[str], edges: Iterable[Mapping[str, Any]]) -> str:
    """
    Args:
        node_lines (`Iterable[str]`): the nodes in creation order, each as [`Node.to_json`] writes it.
        edges (`Iterable[Mapping]`): as `graph.json` holds them.

    Returns:
        `str`: `graph.json`, one node and one edge a line, so that a diff can be read.
    """
    nodes = ",\n".join(node_lines)
    lines = ",\n".join(json.dumps(edge, allow_nan=False) for edge in edges)
    return f'{{"format_version": {FORMAT_VERSION}, "nodes": [\n{nodes}\n], "edges": [\n{lines}\n]}}\n'


def read_index(root: Path) -> str | None:
    """
    Args:
        root (`Path`): the graph's folder.

    Returns:
        `str`, *optional*: the text of `graph.json`, unless it cannot be read.
    """
    try:
        return (root / INDEX_FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def listed_ids(text: str | None, root: Path) -> list[str]:
    """
    Args:
        text (`str`, *optional*): what `graph.json` holds.
        root (`Path`): the graph's folder, for the message.

    Returns:
        `list[str]`: the ids it lists, in order; none if it is lost or corrupt: the nodes know all that it held.

    Raises:
        `InputError`: a later version of the format.
    """
    try:
        index = json.loads(text or "")
        version = index["format_version"]
        listed = [entry["id"] for entry in index["nodes"]]
    except (ValueError, RecursionError, KeyError, TypeError):
        return []
    if isinstance(version, int) and version > FORMAT_VERSION:
        path = root / INDEX_FILE
        raise InputError(f"{path}: format_version is {version}; upgrade hf_fip, this one reads {FORMAT_VERSION}.")
    return [name for name in listed if is_node_id(name)]


def write_index(root: Path, text: str) -> None:
    """Replaces `graph.json` in one step. The caller holds the lock."""
    replace_text(root / INDEX_FILE, text)


@contextmanager
def staged(root: Path, node_id: str) -> Iterator[Path]:
    """
    A temporary folder for one node's files, on the graph's file system; removed at the end unless it was renamed.

    The folder stays locked while its process lives, so that `sweep` can tell a leftover from work under way.

    Args:
        root (`Path`): the graph's folder; it must exist.
        node_id (`str`): for whom the folder is.

    Yields:
        `Path`
    """
    folder = root / f"{_TEMPORARY}{node_id}-{uuid.uuid4().hex[:12]}"
    with locked(root):
        folder.mkdir()
        descriptor = _lock_folder(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def sweep(root: Path) -> None:
    """
    Removes what killed processes left behind: temporary folders whose process is gone, or that are older than a day.

    Args:
        root (`Path`): the graph's folder. A folder that cannot be written, or is in use, is left as it is.
    """
    if not any(root.glob(f"{_TEMPORARY}*")):
        return
    try:
        with locked(root, timeout=0):
            for path in root.glob(f"{_TEMPORARY}*"):
                if not path.is_dir():
                    path.unlink(missing_ok=True)
                elif _is_abandoned(path):
                    shutil.rmtree(path, ignore_errors=True)
    except OSError as error:
        logger.debug(f"{root}: leftovers not swept: {error}")


def finish(folder: Path, node: Node, parent_folder: Path | None) -> None:
    """
    Completes a node's temporary folder: links what it shares with its parent, writes `fip_node.json` and syncs all.

    Args:
        folder (`Path`): the temporary folder with the model's files.
        node (`Node`): described by `fip_node.json`.
        parent_folder (`Path`, *optional*): files equal to the parent's become hard links where possible.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    shareable = [path for path in files if path.name not in _NEVER_LINKED]
    shared = set() if parent_folder is None else link_equal(folder, shareable, parent_folder)
    for path in files:
        if path not in shared:
            sync(path)
    write_text(folder / NODE_FILE, json.dumps(node.to_dict(), indent=2, allow_nan=False) + "\n")
    for path in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        sync_folder(path)
    sync_folder(folder)


def publish(root: Path, folder: Path, node_id: str) -> Path:
    """
    Renames a finished temporary folder to `nodes/<node_id>`. The caller holds the lock.

    Returns:
        `Path`: the node's folder.

    Raises:
        `InputError`: something else lies there already.
    """
    target = root / NODES_FOLDER / node_id
    if os.path.lexists(target):
        raise InputError(f"{target}: exists but holds no {NODE_FILE}; remove it and run again.")
    os.rename(folder, target)
    sync_folder(target.parent)
    return target


def _lock_folder(folder: Path) -> int | None:
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        # Some network file systems cannot lock folders: only the folder's age tells there.
        pass
    return descriptor


def _is_abandoned(folder: Path) -> bool:
    try:
        if time.time() - folder.stat().st_mtime > _DAY:
            return True
        if fcntl is None:
            return False
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
