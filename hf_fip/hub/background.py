"""Publishing a path while it is travelled: recorded nodes go up from one thread, training does not wait."""

from __future__ import annotations

import shlex
from pathlib import Path
from threading import Event, Thread

from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging

from ..errors import InputError
from ..graph import ModelGraph
from .client import Hub
from .ledger import Published
from .plan import make_target
from .publish import Publisher
from .retry import HubError
from .selection import select_nodes


logger = logging.get_logger(__name__)

_SECONDS_BETWEEN_MESSAGES = 30


class BackgroundPublisher:
    """
    Publishes the nodes of a graph from a thread as they are recorded. What it has not published when the process ends,
    however it ends, the next run or `hf-fip push` publishes: the ledger knows.

    Args:
        folder (`Path`): the graph's folder.
        hub (`Hub`): the Hub.
        namespace (`str`, *optional*): user or organisation; the one logged in by default.
        collection (`str`, *optional*): title of the Collection.
        layout (`str`, *optional*, defaults to `"repo"`): `"repo"` or `"revision"`.
        private (`bool`, *optional*): whether others cannot see what is published.
    """

    def __init__(
        self,
        folder: Path,
        hub: Hub,
        namespace: str | None = None,
        collection: str | None = None,
        layout: str = "repo",
        private: bool | None = None,
    ) -> None:
        self.folder = folder
        self.hub = hub
        self.namespace = namespace
        self._options = (collection, layout, private)
        self._graph = ModelGraph(folder)
        self._publisher: Publisher | None = None
        self._errors: dict[str, str] = {}
        self._changed = False
        self._bars_were_shown = False
        self._wake, self._closing = Event(), Event()
        self._thread = Thread(target=self._work, name="hf_fip-publish", daemon=True)

    def check(self) -> None:
        """
        Whether the namespace can be written to, as far as the Hub tells.

        Raises:
            `InputError`: not logged in, or another's namespace.
            `HubError`: the Hub cannot be reached.
        """
        mine = self.hub.namespaces()
        if self.namespace is not None and self.namespace not in mine:
            raise InputError(
                f"hub_namespace={self.namespace!r}: you are {mine[0]!r} on the Hub and can write to {', '.join(mine)}"
            )
        self.namespace = self.namespace or mine[0]

    def start(self) -> None:
        """Begins to publish what the graph holds already."""
        # An upload's bar would cut the one of training in two; the client's bars can only be switched off all at once.
        self._bars_were_shown = not are_progress_bars_disabled()
        if self._bars_were_shown:
            disable_progress_bars()
        self._thread.start()
        self.notify()

    def notify(self) -> None:
        """A node was recorded. Returns at once."""
        self._wake.set()

    def leave(self) -> None:
        """Lets the thread end after what it has to do; for a training that was interrupted. Returns at once."""
        self._closing.set()
        self._wake.set()

    def close(self) -> dict[str, str]:
        """
        Waits until everything is published or has failed, and says what has.

        Returns:
            `dict[str, str]`: id of a node that is not published to the reason.
        """
        self.leave()
        while self._thread.is_alive():
            self._thread.join(_SECONDS_BETWEEN_MESSAGES)
            if self._thread.is_alive():
                logger.warning(f"Hub: waiting for {len(self._missing())} nodes to be published; they are safe on disk")
        if self._bars_were_shown:
            enable_progress_bars()
        self._graph.refresh()
        reason = next(iter(self._errors.values()), "publishing stopped")
        missing = {name: self._errors.get(name, reason) for name in self._missing()}
        if missing:
            logger.warning(
                f"Hub: {len(missing)} of {len(self._graph)} nodes are not published ({reason}); they are whole in "
                f"{self.folder}, and `{self._command()}` publishes them"
            )
        return missing

    def _command(self) -> str:
        collection, layout, private = self._options
        words = ["hf-fip", "push", str(self.folder)]
        words += ["--namespace", self.namespace] if self.namespace else []
        words += ["--collection", collection] if collection else []
        words += ["--layout", layout] if layout != "repo" else []
        return shlex.join(words + ["--private"] * bool(private))

    def _work(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            last = self._closing.is_set()
            try:
                self._publish(last)
            except (HubError, InputError, OSError) as error:
                if str(error) not in self._errors.values():
                    logger.warning(f"Hub: {error}; training goes on, it is tried again at the next point")
                self._errors[""] = str(error)
            if last:
                return

    def _publish(self, last: bool) -> None:
        """Publishes what the ledger does not hold."""
        self._graph.refresh()
        if not len(self._graph):
            return
        selected = select_nodes(self._graph)
        if self._publisher is None:
            if self.namespace is None:
                self.check()
            publisher = Publisher(self._graph, self.hub, make_target(self._graph, self.namespace, *self._options))
            publisher.prepare(selected)
            self._publisher = publisher
        entries, self._errors = self._publisher.entries(selected, self._read(), new_only=True)
        for entry, outcome in self._publisher.publish_all(entries):
            if isinstance(outcome, Exception):
                self._errors[entry.node.id] = str(outcome)
            self._changed |= outcome is True
        if last and self._changed:
            entries, _ = self._publisher.entries(selected, self._read())
            self._publisher.finish(entries, changed=True)

    def _read(self) -> Published:
        return self._publisher.ledger.read()

    def _missing(self) -> list[str]:
        done = self._read().nodes if self._publisher is not None else {}
        return [name for name in self._graph.nodes if name not in done]
