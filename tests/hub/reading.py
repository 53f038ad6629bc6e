"""Routes that read: who am I, what a repository holds, and its files."""

from __future__ import annotations

import re
from urllib.parse import unquote

from .exchange import REPO, HubError, Reply, Request, answer, route
from .model_card import derived_tags, metadata
from .storage import Commit, File, Repo, pointer


TREE_PAGE = 1000


@route("GET", "/api/whoami-v2")
def whoami(request: Request) -> Reply:
    user = request.signed_in()
    access = {"type": "access_token", "accessToken": {"displayName": "tests", "role": user.role}}
    organizations = [{"type": "org", "name": name, "roleInOrg": "write"} for name in user.organizations]
    return answer({"type": "user", "id": user.name, "name": user.name, "fullname": user.name, "auth": access} | {
        "orgs": organizations, "isPro": False, "canPay": False, "periodEnd": None
    })  # fmt: skip


@route("GET", "/api/(?P<kind>models|datasets)")
def list_repos(request: Request, kind: str) -> Reply:
    author, words = request.argument("author"), request.argument("search").lower()
    wanted = set(request.arguments("filter"))
    found = []
    for repo in sorted(request.hub.storage.repos.values(), key=lambda repo: repo.id):
        visible = not repo.private or (request.user is not None and request.user.may_read(repo.namespace))
        if repo.kind != kind or not visible or (author and repo.namespace != author) or words not in repo.id.lower():
            continue
        info = describe(request, repo, repo.head)
        if wanted <= set(info["tags"]):
            info.pop("siblings" if not request.flag("full") else "", None)
            found.append(info)
    limit = int(request.argument("limit", "1000"))
    return request.page(found, min(limit, request.hub.page_size))


@route("GET", f"/api/{REPO}")
def info(request: Request, kind: str, repo_id: str) -> Reply:
    repo = request.repo(kind, repo_id)
    return _info(request, repo, repo.head)


@route("GET", f"/api/{REPO}/revision/(?P<revision>[^/]+)")
def info_at(request: Request, kind: str, repo_id: str, revision: str) -> Reply:
    return _info(request, *request.commit(kind, repo_id, revision))


def _info(request: Request, repo: Repo, commit: Commit) -> Reply:
    values = describe(request, repo, commit)
    if expand := request.arguments("expand") + request.arguments("expand[]"):
        values = {name: value for name, value in values.items() if name in (*expand, "_id", "id")}
    return answer(values)


def describe(request: Request, repo: Repo, commit: Commit) -> dict:
    """The information on a repository that the Hub gives for one of its commits."""
    readme = commit.files.get("README.md")
    card = metadata(request.hub.storage.content(readme.sha256).decode())[0] if readme else {}
    siblings = [{"rfilename": path} for path in sorted(commit.files)]
    if request.flag("blobs"):
        siblings = [
            {"rfilename": path, "size": file.size, "blobId": file.blob_id, **({"lfs": _lfs(file)} if file.lfs else {})}
            for path, file in sorted(commit.files.items())
        ]
    return {
        "_id": repo.id,
        "id": repo.id,
        "modelId": repo.id,
        "author": repo.namespace,
        "sha": commit.id,
        "lastModified": commit.date,
        "createdAt": repo.created,
        "private": repo.private,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": derived_tags(card),
        "pipeline_tag": card.get("pipeline_tag"),
        "library_name": card.get("library_name"),
        "cardData": card,
        "model-index": card.get("model-index"),
        "siblings": siblings,
        "spaces": [],
        "usedStorage": sum(file.size for file in commit.files.values()),
    }


def _lfs(file: File) -> dict:
    return {"oid": file.sha256, "sha256": file.sha256, "size": file.size,
            "pointerSize": len(pointer(file.sha256, file.size))}  # fmt: skip


def entry(path: str, file: File) -> dict:
    """A file as listings give it."""
    found = {"type": "file", "oid": file.blob_id, "size": file.size, "path": path}
    return found | ({"lfs": _lfs(file)} if file.lfs else {})


def folder_entry(path: str) -> dict:
    return {"type": "directory", "oid": "0" * 40, "size": 0, "path": path}


@route("GET", f"/api/{REPO}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.*))?")
def tree(request: Request, kind: str, repo_id: str, revision: str, folder: str | None) -> Reply:
    _, commit = request.commit(kind, repo_id, revision)
    prefix = f"{unquote(folder).strip('/')}/" if folder else ""
    inside = {path: file for path, file in commit.files.items() if path.startswith(prefix)}
    if prefix and not inside:
        raise HubError(404, f"{prefix} does not exist on {unquote(revision)}", "EntryNotFound")
    parents = {prefix + "/".join(path[len(prefix) :].split("/")[:depth])
               for path in inside for depth in range(1, path[len(prefix) :].count("/") + 1)}  # fmt: skip
    entries = [folder_entry(path) for path in parents] + [entry(path, file) for path, file in inside.items()]
    if not request.flag("recursive"):
        entries = [found for found in entries if "/" not in found["path"][len(prefix) :]]
    return request.page(sorted(entries, key=lambda found: found["path"]), min(TREE_PAGE, request.hub.page_size))


@route("POST", f"/api/{REPO}/paths-info/(?P<revision>[^/]+)")
def paths_info(request: Request, kind: str, repo_id: str, revision: str) -> Reply:
    _, commit = request.commit(kind, repo_id, revision)
    found = []
    for path in request.form().get("paths", []):
        if path in commit.files:
            found.append(entry(path, commit.files[path]))
        elif any(known.startswith(f"{path.rstrip('/')}/") for known in commit.files):
            found.append(folder_entry(path))
    return answer(found)


@route("GET", f"/api/{REPO}/refs")
def refs(request: Request, kind: str, repo_id: str) -> Reply:
    repo = request.repo(kind, repo_id)
    kinds = {"branches": ("heads", repo.branches), "tags": ("tags", repo.tags)}
    return answer({"converts": [], "pullRequests": []} | {
        name: [{"name": ref, "ref": f"refs/{folder}/{ref}", "targetCommit": sha} for ref, sha in sorted(known.items())]
        for name, (folder, known) in kinds.items()
    })  # fmt: skip


@route("GET", f"/api/{REPO}/commits/(?P<revision>[^/]+)")
def commits(request: Request, kind: str, repo_id: str, revision: str) -> Reply:
    repo, commit = request.commit(kind, repo_id, revision)
    history = [{"id": c.id, "title": c.title, "message": c.message, "date": c.date, "authors": [{"user": c.author}]}
               for c in repo.history(commit)]  # fmt: skip
    return request.page(history, request.hub.page_size)


@route("GET", f"/api/{REPO}/auth-check")
def auth_check(request: Request, kind: str, repo_id: str) -> Reply:
    request.repo(kind, repo_id)
    return answer({})


@route("GET", r"/(?:(?P<kind>datasets)/)?(?P<repo_id>[^/]+/[^/]+)/(?:resolve|raw)/(?P<revision>[^/]+)/(?P<path>.+)")
@route("GET", f"/api/resolve-cache/{REPO}/(?P<revision>[^/]+)/(?P<path>.+)")
def resolve(request: Request, kind: str | None, repo_id: str, revision: str, path: str) -> Reply:
    """A file's content, whole or the range asked for, with the headers by which clients cache it."""
    _, commit = request.commit(kind or "models", repo_id, revision)
    file = commit.files.get(unquote(path))
    if file is None:
        error = HubError(404, "Entry not found", "EntryNotFound").reply()
        error.headers["X-Repo-Commit"] = commit.id
        return error
    headers = {"ETag": f'"{file.oid}"', "X-Repo-Commit": commit.id, "Accept-Ranges": "bytes"}
    headers["Content-Type"] = "application/octet-stream" if file.lfs else "text/plain; charset=utf-8"
    if file.lfs:
        headers |= {"X-Linked-Size": str(file.size), "X-Linked-ETag": f'"{file.sha256}"'}
    content = request.hub.storage.content(file.sha256)
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if not asked or asked.groups() == ("", ""):
        return Reply(200, content, headers)
    first, last = asked.groups()
    start = int(first) if first else max(0, file.size - int(last))
    end = min(int(last), file.size - 1) if first and last else file.size - 1
    if start > end:
        return Reply(416, b"", {"Content-Range": f"bytes */{file.size}"})
    headers["Content-Range"] = f"bytes {start}-{end}/{file.size}"
    return Reply(206, content[start : end + 1], headers)
