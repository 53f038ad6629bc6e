"""A Hub on this machine, over real HTTP, for the real clients: huggingface_hub, transformers and datasets.

In a test, take the fixture `hub` (tests/hub/conftest.py): a started `HubServer` with the user `tester`. For the length
of the test this process's huggingface_hub points there, online, without Xet, with an empty cache and the `HF_TOKEN` of
`tester`, so `HfApi()`, `snapshot_download(...)` and `push_to_hub(...)` need no endpoint and no token.

    def test_x(hub, tmp_path):
        hub.endpoint, hub.token             # "http://127.0.0.1:PORT", token of tester
        hub.api                             # a real HfApi(endpoint=..., token=...)
        hub.add_user("other", organizations=["lab"])    # returns the token; role="read": a token that cannot write
        hub.environment(tmp_path / "home")  # complete environment of a subprocess, with empty caches in that folder

What the tests look at:

    hub.requests        # list of Entry(method, path, query, status, received, sent, …, user); status 0: cut
    hub.count(r"POST .*/commit/")           # how many lines "METHOD /path?query" the pattern finds
    hub.state()         # plain values, equal for equal histories on two servers:
                        # {"repos": {"models/tester/x": {"private",
                        # "branches": {"main": {"files": {path: sha256}, "commits": [titles, newest first]}},
                        # "tags": {tag: {path: sha256}}}}, "collections": [{"owner", "title", "description",
                        # "private", "items": [{"id", "type", "note"}]}]}
    hub.file("tester/x", "README.md", revision="main", kind="models")      # bytes

What goes wrong, on command (faults.py has all arguments):

    hub.fault(r"POST /api/repos/create", status=429, headers={"RateLimit": '"api";r=0;t=1'}, times=2)
    hub.fault(r"/commit/", cut="answer")    # it happens, its answer is lost; also "before", "upload", "download"
    hub.fault(r"POST", status=503, probability=0.1, seed=3, times=None)
    hub.fault(r"PUT /lfs", cut="upload", skip=3, action=process.kill)      # the fourth: the client dies in the middle
    hub.clear_faults()
    hub.link.speed = 1e6                    # bytes per second over all connections; hub.link.busy: seconds in use
    hub.link.latency = 0.1                  # seconds that each request waits
    hub.rate.limit, hub.rate.seconds = 60, 2    # API requests in a window; hub.rate.refused: answers 429 so far
    hub.page_size = 2                       # listings come in pages of this many
    hub.duplicate_titles = True             # two Collections of one owner may have one title (default: 409)

Like the Hub: who is not signed in gets 401 `RepoNotFound` for a private or missing repository, who is gets 404;
invalid tokens get 401, other namespaces 403; a new repository has a first commit with `.gitattributes`; licenses
outside the Hub's list are refused; listings of Collections show 4 items; notes hold 500 characters, descriptions 150,
titles 60. Not served: Xet, multipart LFS, pull requests, Spaces, redirects to a CDN.

As a process of its own, with its state in a folder: `python -m tests.hub.server --port 0 --folder DIR`. It prints one
line of JSON with the endpoint and the token of `tester`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import socket
import struct
import sys
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from . import collecting, reading, writing  # noqa: F401  (they register their routes)
from .exchange import HubError, Reply, Request, dispatch
from .faults import Fault, Faults, Link, RateLimit
from .storage import Storage, User


@dataclass
class Entry:
    """A line of the request log."""

    method: str
    path: str
    query: str
    status: int
    received: int
    sent: int
    started: float
    seconds: float
    user: str | None

    @property
    def line(self) -> str:
        return f"{self.method} {self.path}{'?' if self.query else ''}{self.query}"


class HubServer:
    """The server, its state and its controls; see the module's text.

    Args:
        folder (`Path`, *optional*): Where the state is kept; in memory without it.
        port (`int`): 0 takes a free one.
        user (`str`): The first account, which writes to the namespace of its name.
    """

    def __init__(self, folder: Path | None = None, *, port: int = 0, user: str = "tester") -> None:
        self.storage = Storage(folder)
        self.lock = threading.RLock()
        self.faults = Faults()
        self.link = Link()
        self.rate = RateLimit()
        self.requests: list[Entry] = []
        self.page_size = 1000
        self.duplicate_titles = False
        self.secret = secrets.token_hex(16)
        self.token = self.add_user(user)
        self.http = _HTTPServer(("127.0.0.1", port), _Handler)
        self.http.hub = self
        self.endpoint = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.thread: threading.Thread | None = None

    def start(self) -> HubServer:
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.thread.start()
        return self

    def stop(self) -> None:
        if self.thread is not None:
            self.http.shutdown()
        self.http.server_close()

    def __enter__(self) -> HubServer:
        return self.start()

    def __exit__(self, *_) -> None:
        self.stop()

    @property
    def api(self):
        """A real client of this server, signed in as its first user."""
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.endpoint, token=self.token)

    def environment(self, home: Path | str, token: str | None = None) -> dict[str, str]:
        """The environment of a subprocess that uses this server, with its caches in `home`."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))
        }
        return inherited | {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": self.token if token is None else token,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        }

    def add_user(self, name: str, *, role: str = "write", organizations: tuple[str, ...] | list[str] = ()) -> str:
        """A new account; returns its token."""
        token = f"hf_{secrets.token_hex(17)}"
        self.storage.users[token] = User(name, token, role, list(organizations))
        return token

    def fault(self, match: str, **arguments) -> Fault:
        """Turns on a `Fault`; several may be on, the first that strikes counts."""
        fault = Fault(match, **arguments)
        with self.faults.lock:
            self.faults.active.append(fault)
        return fault

    def clear_faults(self) -> None:
        with self.faults.lock:
            self.faults.active.clear()
            self.faults.seen.clear()

    def count(self, pattern: str) -> int:
        """How many of the requests so far the pattern finds in `METHOD /path?query`."""
        return sum(bool(re.search(pattern, entry.line)) for entry in list(self.requests))

    def state(self) -> dict:
        """All that the server holds, to compare with that of another."""
        with self.lock:
            return self.storage.snapshot(self.endpoint)

    def file(self, repo_id: str, path: str, *, revision: str = "main", kind: str = "models") -> bytes:
        """The content of a file, without a request."""
        with self.lock:
            commit = self.storage.repos[kind, repo_id].find(revision)
            return self.storage.content(commit.files[path].sha256)


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    hub: HubServer

    def handle_error(self, request, client_address) -> None:
        """A client that goes away in the middle is nothing to report; all else is."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Cut(OSError):
    """The connection is to be cut now."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _HTTPServer

    def handle_method(self) -> None:
        hub, started = self.server.hub, time.monotonic()
        path, _, query = self.path.partition("?")
        entry = Entry(self.command, path, query, 0, 0, 0, started, 0.0, None)
        fault = hub.faults.strike(entry.line)
        # Logged when it arrives: a client that was killed meanwhile has asked all the same.
        hub.requests.append(entry)
        time.sleep(hub.link.latency)
        try:
            if fault is not None:
                time.sleep(fault.delay)
                if fault.cut in (None, "before"):
                    fault.act()
                if fault.cut == "before":
                    raise _Cut
            body = self._body(entry, cut=fault is not None and fault.cut == "upload")
            reply = self._reply(entry, body, fault)
            if fault is not None and fault.cut == "answer":
                raise _Cut
            self._send(entry, reply, cut=fault is not None and fault.cut == "download")
            if fault is not None and fault.cut == "download":
                fault.act()
        except _Cut:
            if fault.cut in ("upload", "answer"):
                fault.act()
            self._reset()
        finally:
            entry.seconds = time.monotonic() - started

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = handle_method

    def _reply(self, entry: Entry, body: bytes, fault: Fault | None) -> Reply:
        hub = self.server.hub
        if fault is not None and fault.status is not None:
            reply = HubError(fault.status, "This went wrong on command", fault.code).reply()
            reply.headers |= fault.headers
            return reply
        passes, rate = hub.rate.check(entry.path)
        if not passes:
            reply = HubError(429, "You have reached your 'api' rate limit").reply()
            reply.headers |= rate
            return reply
        headers = {name.lower(): value for name, value in self.headers.items()}
        token = headers.get("authorization", "").removeprefix("Bearer ")
        user = hub.storage.users.get(token)
        if token and user is None:
            return HubError(401, "Invalid credentials in Authorization header").reply()
        entry.user = user.name if user else None
        with hub.lock:
            reply = dispatch(Request(hub, entry.method, entry.path, entry.query, headers, body, user))
            if entry.method not in ("GET", "HEAD"):
                hub.storage.save()
        reply.headers |= rate
        return reply

    def _body(self, entry: Entry, *, cut: bool) -> bytes:
        """The body of the request, plain or in chunks, at the speed of the link."""
        parts: list[bytes] = []
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self._read(size, entry))
                self.rfile.readline()
                if cut:
                    raise _Cut
            self.rfile.readline()
        else:
            left = int(self.headers.get("Content-Length") or 0)
            half = left // 2
            while left:
                parts.append(self._read(min(left, self.server.hub.link.chunk), entry))
                left -= len(parts[-1])
                if cut and left <= half:
                    raise _Cut
        if cut:
            raise _Cut
        return b"".join(parts)

    def _read(self, size: int, entry: Entry) -> bytes:
        part = self.rfile.read(size)
        if len(part) < size:
            raise ConnectionError("the client went away")
        entry.received += size
        self.server.hub.link.carry(size)
        return part

    def _send(self, entry: Entry, reply: Reply, *, cut: bool) -> None:
        entry.status = reply.status
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Content-Length": str(len(reply.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        body = memoryview(b"" if self.command == "HEAD" else reply.body)
        end = len(body) // 2 if cut else len(body)
        for start in range(0, end, self.server.hub.link.chunk):
            part = body[start : min(end, start + self.server.hub.link.chunk)]
            self.server.hub.link.carry(len(part))
            self.wfile.write(part)
            entry.sent += len(part)
        self.wfile.flush()
        if cut:
            entry.status = 0
            # An orderly end: what was sent still arrives, as when a proxy gives up in the middle.
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def _reset(self) -> None:
        """Ends the connection at once, without the farewell that an orderly end sends."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, *_) -> None:
        """The log is `HubServer.requests`."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hub.server", description="A Hub on this machine.")
    parser.add_argument("--port", type=int, default=0, help="0 (default): a free one")
    parser.add_argument("--folder", type=Path, help="where the state is kept; default: in memory")
    parser.add_argument("--user", default="tester")
    arguments = parser.parse_args()
    hub = HubServer(arguments.folder, port=arguments.port, user=arguments.user)
    sys.stdout.write(json.dumps({"endpoint": hub.endpoint, "token": hub.token}) + "\n")
    sys.stdout.flush()
    hub.http.serve_forever()


if __name__ == "__main__":
    main()
