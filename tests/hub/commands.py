"""What a user of a Hub does on the command line, and what may happen to the process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from .server import HubServer


def start(hub: HubServer, home: Path, *arguments: str | Path) -> subprocess.Popen:
    """Starts `hf-fip ARGUMENTS` as a user of `hub` in a process group of its own, with its caches in `home`."""
    return subprocess.Popen(
        [sys.executable, "-m", "hf_fip", *map(str, arguments)],
        env=hub.environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(hub: HubServer, home: Path, *arguments: str | Path, expect: int | None = 0) -> subprocess.CompletedProcess:
    """Runs `hf-fip ARGUMENTS` to its end."""
    process = start(hub, home, *arguments)
    output, errors = process.communicate(timeout=300)
    assert expect is None or process.returncode == expect, errors
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def run_json(hub: HubServer, home: Path, *arguments: str | Path) -> dict:
    """Runs `hf-fip ARGUMENTS --json`; its whole standard output is the object."""
    return json.loads(run(hub, home, *arguments, "--json").stdout)


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to a process and all it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def files_with(text: str, *folders: Path) -> list[str]:
    """The files below `folders` whose bytes hold `text`."""
    paths = (path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file())
    return [str(path) for path in paths if text.encode() in path.read_bytes()]
