"""One request and its answer, the table of routes, and the errors the Hub answers with."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlencode

from .storage import Commit, Repo, User


if TYPE_CHECKING:
    from .server import HubServer


REPO = r"(?P<kind>models|datasets)/(?P<repo_id>[^/]+/[^/]+)"
ROUTES: list[tuple[str, re.Pattern[str], Callable]] = []


@dataclass
class Reply:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class HubError(Exception):
    """An answer that is not a success. `code` becomes the header `X-Error-Code`."""

    def __init__(self, status: int, message: str, code: str | None = None, **values) -> None:
        super().__init__(message)
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self.status, self.values = status, {"error": message, **values}

    def reply(self) -> Reply:
        return answer(self.values, self.status, self.headers)


@dataclass
class Request:
    """What a client asked, as the routes see it; `path` is still percent-encoded."""

    hub: HubServer
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    user: User | None

    def json(self) -> dict:
        return json.loads(self.body or b"{}")

    def form(self) -> dict[str, list[str]]:
        """The fields of a form, or of a JSON body in its place."""
        if "json" in self.headers.get("content-type", ""):
            return {key: value if isinstance(value, list) else [value] for key, value in self.json().items()}
        return parse_qs(self.body.decode())

    def arguments(self, name: str) -> list[str]:
        return parse_qs(self.query).get(name, [])

    def argument(self, name: str, default: str = "") -> str:
        return (self.arguments(name) or [default])[-1]

    def flag(self, name: str) -> bool:
        return self.argument(name).lower() in ("true", "1")

    def signed_in(self) -> User:
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        return self.user

    def writer(self, namespace: str | None) -> User:
        user = self.signed_in()
        if not user.may_write(namespace):
            raise HubError(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
        return user

    def repo(self, kind: str, repo_id: str, *, write: bool = False) -> Repo:
        """The repository, if the user may see it: what one may not see does not exist."""
        repo = self.hub.storage.repos.get((kind, unquote(repo_id)))
        seen = repo is not None and (not repo.private or (self.user and self.user.may_read(repo.namespace)))
        if not seen:
            if self.user is None:
                raise HubError(401, "Invalid username or password.", "RepoNotFound")
            raise HubError(404, "Repository not found", "RepoNotFound")
        if write:
            self.writer(repo.namespace)
        return repo

    def commit(self, kind: str, repo_id: str, revision: str) -> tuple[Repo, Commit]:
        repo = self.repo(kind, repo_id)
        commit = repo.find(unquote(revision))
        if commit is None:
            raise HubError(404, f"Invalid rev id: {unquote(revision)}", "RevisionNotFound")
        return repo, commit

    def page(self, values: list, size: int) -> Reply:
        """One page of `values`, with the link to the next as the Hub gives it."""
        start = int(self.argument("cursor", "0"))
        reply = answer(values[start : start + size])
        if start + size < len(values):
            parameters = {**parse_qs(self.query), "cursor": [str(start + size)]}
            url = f"{self.hub.endpoint}{self.path}?{urlencode(parameters, doseq=True)}"
            reply.headers["Link"] = f'<{url}>; rel="next"'
        return reply


def answer(value, status: int = 200, headers: dict[str, str] | None = None) -> Reply:
    """A JSON answer."""
    body = json.dumps(value).encode()
    return Reply(status, body, {"Content-Type": "application/json; charset=utf-8", **(headers or {})})


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def route(method: str, pattern: str) -> Callable[[Callable], Callable]:
    """Registers a function `(request, **groups) -> Reply` for the paths that match `pattern` completely."""

    def register(function: Callable) -> Callable:
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return register


def dispatch(request: Request) -> Reply:
    """The answer to a request: that of the first route that matches it."""
    method = "GET" if request.method == "HEAD" else request.method
    for known, pattern, function in ROUTES:
        match = pattern.fullmatch(request.path) if known == method else None
        if match:
            try:
                return function(request, **match.groupdict())
            except HubError as error:
                return error.reply()
    if re.match(r"/api/(models|datasets|spaces)/", request.path):
        return HubError(404, "Repository not found", "RepoNotFound").reply()
    return HubError(404, f"Sorry, we can't find the page {request.path}").reply()
