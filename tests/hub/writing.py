"""Routes that change repositories: create and delete, upload, commit, branches and tags."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from urllib.parse import unquote

from .exchange import REPO, HubError, Reply, Request, answer, now, route
from .model_card import metadata
from .storage import File, Repo, pointer


LARGE = 10_000_000
BINARY = (".safetensors", ".bin", ".parquet", ".arrow", ".gz", ".zip", ".npy", ".npz", ".onnx", ".pt", ".png", ".jpg")
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}")
SHA = "(?P<sha256>[0-9a-f]{64})"


@route("POST", "/api/repos/create")
def create_repo(request: Request) -> Reply:
    asked = request.json()
    user = request.signed_in()
    namespace, name = asked.get("organization") or user.name, asked.get("name")
    kind = f"{asked.get('type') or 'model'}s"
    request.writer(namespace)
    if kind not in ("models", "datasets"):
        raise HubError(400, f"type {asked['type']} is not served here")
    if not isinstance(name, str) or not NAME.fullmatch(name) or "--" in name or ".." in name or name.endswith(".git"):
        raise HubError(400, f"Invalid repo name: {name!r}")
    repo_id = f"{namespace}/{name}"
    url = f"{request.hub.endpoint}/{'datasets/' if kind == 'datasets' else ''}{repo_id}"
    if (kind, repo_id) in request.hub.storage.repos:
        raise HubError(409, "You already created this repo", url=url)
    visibility = asked.get("visibility") or ("private" if asked.get("private") else "public")
    request.hub.storage.create_repo(kind, repo_id, visibility == "private", user.name, now())
    return answer({"url": url, "name": repo_id, "id": repo_id})


@route("DELETE", "/api/repos/delete")
def delete_repo(request: Request) -> Reply:
    asked = request.json()
    user = request.signed_in()
    kind = f"{asked.get('type') or 'model'}s"
    repo = request.repo(kind, f"{asked.get('organization') or user.name}/{asked['name']}", write=True)
    del request.hub.storage.repos[kind, repo.id]
    for collection in request.hub.storage.collections.values():
        collection.items = [item for item in collection.items if (item.type, item.id) != (kind[:-1], repo.id)]
    return answer({})


@route("PUT", f"/api/{REPO}/settings")
def settings(request: Request, kind: str, repo_id: str) -> Reply:
    repo = request.repo(kind, repo_id, write=True)
    asked = request.json()
    repo.private = asked["visibility"] == "private" if "visibility" in asked else asked.get("private", repo.private)
    return answer({"private": repo.private})


@route("POST", "/api/validate-yaml")
def validate_yaml(request: Request) -> Reply:
    data, errors = metadata(request.json()["content"])
    warnings = [] if data or errors else [{"message": "empty or missing yaml metadata in repo card"}]
    return answer({"errors": [{"message": error} for error in errors], "warnings": warnings}, 400 if errors else 200)


@route("POST", f"/api/{REPO}/preupload/(?P<revision>[^/]+)")
def preupload(request: Request, kind: str, repo_id: str, revision: str) -> Reply:
    repo = _branch(request, kind, repo_id, revision)
    present = repo.commits[repo.branches[unquote(revision)]].files
    return answer({"files": [
        {
            "path": file["path"],
            "uploadMode": "lfs" if _is_large(file) else "regular",
            "shouldIgnore": False,
            "oid": present[file["path"]].oid if file["path"] in present else None,
        }
        for file in request.json()["files"]
    ]})  # fmt: skip


def _is_large(file: dict) -> bool:
    """Whether the Hub wants the file through LFS: large, of a binary kind, or not text."""
    binary = b"\0" in base64.b64decode(file["sample"])
    return file["size"] > LARGE or file["path"].lower().endswith(BINARY) or binary


def _branch(request: Request, kind: str, repo_id: str, revision: str) -> Repo:
    """The repository, if the user may write to it and it has this branch."""
    repo = request.repo(kind, repo_id, write=True)
    if unquote(revision) not in repo.branches:
        raise HubError(404, f"Invalid rev id: {unquote(revision)}", "RevisionNotFound")
    return repo


@route("POST", r"/(?:(?P<kind>datasets)/)?(?P<repo_id>[^/]+/[^/]+)\.git/info/lfs/objects/batch")
def lfs_batch(request: Request, kind: str | None, repo_id: str) -> Reply:
    kind = kind or "models"
    repo = request.repo(kind, repo_id, write=True)
    objects = []
    for asked in request.json()["objects"]:
        found = {"oid": asked["oid"], "size": asked["size"]}
        if asked["oid"] not in repo.lfs:
            # Like the Hub's storage, the upload link carries its own permission: no token is sent along with it.
            place = f"{request.hub.endpoint}/lfs/{kind}/{repo.id}/{asked['oid']}"
            found["actions"] = {
                "upload": {"href": f"{place}?{_signature(request, asked)}"},
                "verify": {"href": f"{place}/verify"},
            }
        objects.append(found)
    return answer({"transfer": "basic", "objects": objects})


def _signature(request: Request, asked: dict) -> str:
    secret = hashlib.sha256(f"{request.hub.secret}{asked['oid']}".encode()).hexdigest()[:32]
    return f"size={asked['size']}&signature={secret}"


@route("PUT", f"/lfs/{REPO}/{SHA}")
def lfs_upload(request: Request, kind: str, repo_id: str, sha256: str) -> Reply:
    size = int(request.argument("size"))
    if request.query != _signature(request, {"oid": sha256, "size": size}):
        raise HubError(403, "The signature of the upload link is wrong")
    if len(request.body) != size or hashlib.sha256(request.body).hexdigest() != sha256:
        raise HubError(400, "The content is not what was announced")
    request.hub.storage.put(request.body, lfs=True)
    request.hub.storage.repos[kind, unquote(repo_id)].lfs.add(sha256)
    return Reply(200, b"", {"ETag": f'"{sha256}"'})


@route("POST", f"/lfs/{REPO}/{SHA}/verify")
def lfs_verify(request: Request, kind: str, repo_id: str, sha256: str) -> Reply:
    if sha256 not in request.repo(kind, repo_id, write=True).lfs:
        raise HubError(404, "Object does not exist")
    return answer({})


@route("POST", f"/api/{REPO}/commit/(?P<revision>[^/]+)")
def commit(request: Request, kind: str, repo_id: str, revision: str) -> Reply:
    if request.argument("create_pr"):
        raise HubError(400, "Pull requests are not served here")
    repo, branch = _branch(request, kind, repo_id, revision), unquote(revision)
    lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    parent = header.get("parentCommit")
    if parent and not repo.branches[branch].startswith(parent):
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    files = dict(repo.commits[repo.branches[branch]].files)
    for line in lines:
        _apply(request, repo, files, line["key"], line["value"])
    title, message = header.get("summary", ""), header.get("description", "")
    new = repo.commit(branch, files, title, message, request.signed_in().name, now())
    url = f"{request.hub.endpoint}/{'datasets/' if kind == 'datasets' else ''}{repo.id}/commit/{new.id}"
    return answer({"success": True, "commitOid": new.id, "commitUrl": url, "hookOutput": ""})


def _apply(request: Request, repo: Repo, files: dict[str, File], key: str, value: dict) -> None:
    """One line of a commit, applied to the files of its parent."""
    path = value.get("path", "")
    if key != "header" and (path.startswith(("/", ".git/")) or ".." in path.split("/") or not path):
        raise HubError(400, f"Invalid path: {path!r}")
    if key == "file":
        content = base64.b64decode(value["content"])
        errors = metadata(content.decode())[1] if path == "README.md" else []
        if errors:
            raise HubError(400, "Invalid metadata in README.md: " + "; ".join(errors))
        files[path] = request.hub.storage.put(content, lfs=False)
    elif key == "lfsFile":
        if value["oid"] not in repo.lfs:
            raise HubError(400, f"LFS object {value['oid']} of {path} does not exist")
        link = pointer(value["oid"], value["size"])
        files[path] = request.hub.storage.describe(value["oid"], link, value["size"], True)
    elif key == "deletedFile":
        files.pop(path, None)
    elif key == "deletedFolder":
        for name in [name for name in files if name.startswith(f"{path.rstrip('/')}/")]:
            del files[name]
    elif key != "header":
        raise HubError(400, f"{key} is not served here")


@route("POST", f"/api/{REPO}/(?P<what>branch|tag)/(?P<name>[^/]+)")
def create_reference(request: Request, kind: str, repo_id: str, what: str, name: str) -> Reply:
    """A branch is named by the path and starts where the body says; a tag the other way round."""
    repo = request.repo(kind, repo_id, write=True)
    asked = request.json()
    new = unquote(name) if what == "branch" else asked["tag"]
    start = asked.get("startingPoint", "main") if what == "branch" else unquote(name)
    known = repo.branches if what == "branch" else repo.tags
    if new in repo.branches or new in repo.tags:
        raise HubError(409, f"Reference already exists: {new}")
    _, target = request.commit(kind, repo_id, start)
    known[new] = target.id
    return answer({})


@route("DELETE", f"/api/{REPO}/(?P<what>branch|tag)/(?P<name>[^/]+)")
def delete_reference(request: Request, kind: str, repo_id: str, what: str, name: str) -> Reply:
    repo = request.repo(kind, repo_id, write=True)
    known = repo.branches if what == "branch" else repo.tags
    if known.pop(unquote(name) if unquote(name) != "main" else "", None) is None:
        raise HubError(404, f"No {what} {unquote(name)}", "RevisionNotFound")
    return answer({})
