"""
What has been published, in `hub_ledger.json` beside the graph. It only saves requests: a lost or corrupt ledger is
made again from what the Hub shows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from transformers.utils import logging

from ..graph.files import replace_text


logger = logging.get_logger(__name__)

LEDGER_FILE = "hub_ledger.json"
LOCK_FILE = ".hub_ledger.lock"
FORMAT_VERSION = 1
_SECONDS_BETWEEN_MESSAGES = 60


@dataclass
class Published:
    """
    A family as far as it has been published under one name.

    Args:
        collection (`str`, *optional*): slug of its Collection.
        foundation (`dict`, *optional*):
            What the Hub says of the model the root was made from: `{"id": ..., "license": {...}}`, both may lack.
        repos (`dict`): repository to `{"private", "new"}`, and, where it holds a path, `head`, `files` and `last` (the
            last commit, its files and its node) and `tags`. What is not there has to be looked up.
        nodes (`dict`): node id to `{"digest": ..., "commit": oid}`.
    """

    collection: str | None = None
    foundation: dict[str, Any] | None = None
    repos: dict[str, dict[str, Any]] = field(default_factory=dict)
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)


class Ledger:
    """
    The ledger of a graph, for one family name on one Hub.

    Args:
        folder (`Path`): the graph's folder.
        family (`str`): the endpoint, namespace, name and layout the graph is published under.
    """

    def __init__(self, folder: Path, family: str) -> None:
        self.folder = folder
        self.family = family

    def read(self) -> Published:
        """What is known to be published; nothing if the file is lost or damaged."""
        data = self._families().get(self.family)
        types = {"collection": (str, type(None)), "foundation": (dict, type(None)), "repos": dict, "nodes": dict}
        values = {key: data[key] for key in types if key in data} if isinstance(data, dict) else {}
        if not all(isinstance(value, types[key]) for key, value in values.items()):
            return Published()
        inner = (entry for key in ("repos", "nodes") for entry in values.get(key, {}).values())
        return Published(**values) if all(isinstance(entry, dict) for entry in inner) else Published()

    @contextmanager
    def hold(self) -> Iterator[Published]:
        """
        The ledger, for this process alone: what is changed in it is written at the end, also after an error. Waits
        while another process publishes a node of the graph, and says so.
        """
        lock = FileLock(self.folder / LOCK_FILE)
        seconds = 1.0
        while True:
            try:
                lock.acquire(timeout=seconds)
                break
            except Timeout:
                logger.warning(f"{self.folder}: another process is publishing a node of this graph; waiting for it")
                seconds = _SECONDS_BETWEEN_MESSAGES
        try:
            published = self.read()
            before = json.dumps(asdict(published))
            try:
                yield published
            finally:
                if json.dumps(asdict(published)) != before:
                    self.write(published)
        finally:
            lock.release()

    def write(self, published: Published) -> None:
        """Replaces the file in one step. The caller holds the ledger."""
        families = {**self._families(), self.family: asdict(published)}
        text = json.dumps({"format_version": FORMAT_VERSION, "families": families}, indent=1)
        replace_text(self.folder / LEDGER_FILE, text + "\n")

    def _families(self) -> dict[str, Any]:
        try:
            data = json.loads((self.folder / LEDGER_FILE).read_bytes())
            families = data["families"]
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError, KeyError, TypeError):
            logger.warning_once(f"{self.folder / LEDGER_FILE} is damaged; what is published is looked up on the Hub")
            return {}
        return families if isinstance(families, dict) else {}
