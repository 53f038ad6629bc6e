"""The local Hub as a fixture; how to use it is written at the top of server.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .clients import connected
from .server import HubServer


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    """A Hub with the user `tester`, to which this process's clients point for the length of the test."""
    with HubServer() as server, connected(server.endpoint, server.token, tmp_path / "hub-cache"):
        yield server
