"""What the local Hub stores: users, repositories with their history, Collections. No HTTP here.

Identifiers (commits, Collection slugs, items) are digests of what they name, so two servers that were asked for the
same things hold the same state, identifiers included.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path


GITATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.parquet filter=lfs diff=lfs merge=lfs -text\n"
EMPTY_TREE = "0" * 40


@dataclass
class User:
    """An account. `organizations` are other namespaces it may write to."""

    name: str
    token: str
    role: str = "write"
    organizations: list[str] = field(default_factory=list)

    def may_write(self, namespace: str | None) -> bool:
        return self.role == "write" and namespace in (self.name, *self.organizations)

    def may_read(self, namespace: str | None) -> bool:
        return namespace in (self.name, *self.organizations)


@dataclass
class File:
    """A file of a commit: digest of its content, size, git blob id, and whether it went through LFS."""

    sha256: str
    size: int
    blob_id: str
    lfs: bool

    @property
    def oid(self) -> str:
        """What clients compare with their own file: sha256 of an LFS file, else the git blob id."""
        return self.sha256 if self.lfs else self.blob_id


@dataclass
class Commit:
    id: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: dict[str, File]


@dataclass
class Repo:
    """A model or dataset repository: commits, branches and tags, and the LFS objects uploaded to it."""

    kind: str  # "models" | "datasets"
    id: str
    private: bool
    created: str
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    lfs: set[str] = field(default_factory=set)

    @property
    def namespace(self) -> str:
        return self.id.split("/")[0]

    @property
    def head(self) -> Commit:
        return self.commits[self.branches["main"]]

    def find(self, revision: str) -> Commit | None:
        """The commit of a branch, a tag, a commit id or the beginning of one."""
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        sha = self.branches.get(name) or self.tags.get(name)
        if sha is None and re.fullmatch(r"[0-9a-f]{7,40}", name):
            sha = next((known for known in self.commits if known.startswith(name)), None)
        return self.commits.get(sha) if sha else None

    def history(self, commit: Commit | None) -> list[Commit]:
        """`commit` and its ancestors, newest first."""
        found: list[Commit] = []
        while commit is not None:
            found.append(commit)
            commit = self.commits.get(commit.parent) if commit.parent else None
        return found

    def commit(self, branch: str, files: dict[str, File], title: str, message: str, author: str, date: str) -> Commit:
        parent = self.branches.get(branch)
        tree = sorted((path, file.sha256) for path, file in files.items())
        digest = hashlib.sha1(json.dumps([self.kind, self.id, parent, tree, title, message]).encode()).hexdigest()
        commit = Commit(digest, parent, title, message, author, date, files)
        self.commits[digest] = commit
        self.branches[branch] = digest
        return commit


@dataclass
class Item:
    object_id: str
    id: str
    type: str
    note: str | None


@dataclass
class Collection:
    namespace: str
    title: str
    description: str | None
    private: bool
    object_id: str
    updated: str
    items: list[Item] = field(default_factory=list)

    @property
    def slug(self) -> str:
        words = re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")
        return f"{self.namespace}/{words}-{self.object_id}"


class Storage:
    """The whole state, kept in memory and, where a folder is given, written there after each change."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.users: dict[str, User] = {}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.collections: dict[str, Collection] = {}
        self.contents: dict[str, bytes] = {}
        if folder is not None:
            (folder / "contents").mkdir(parents=True, exist_ok=True)
            self._restore()

    def put(self, content: bytes, *, lfs: bool) -> File:
        """Stores `content` and describes it as a file."""
        sha256 = hashlib.sha256(content).hexdigest()
        if self.folder is None:
            self.contents[sha256] = content
        elif not (self.folder / "contents" / sha256).exists():
            (self.folder / "contents" / sha256).write_bytes(content)
        return self.describe(sha256, content if not lfs else pointer(sha256, len(content)), len(content), lfs)

    @staticmethod
    def describe(sha256: str, blob: bytes, size: int, lfs: bool) -> File:
        return File(sha256, size, hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest(), lfs)

    def content(self, sha256: str) -> bytes:
        if self.folder is None:
            return self.contents[sha256]
        return (self.folder / "contents" / sha256).read_bytes()

    def create_repo(self, kind: str, repo_id: str, private: bool, author: str, date: str) -> Repo:
        """A new repository, with the first commit that the Hub makes."""
        repo = self.repos[kind, repo_id] = Repo(kind, repo_id, private, date)
        files = {".gitattributes": self.put(GITATTRIBUTES, lfs=False)}
        repo.commit("main", files, "initial commit", "", author, date)
        return repo

    def find_collection(self, slug: str) -> Collection | None:
        """By the 24 hexadecimal digits at the end, so a slug still works after a change of title."""
        return self.collections.get(slug[-24:])

    def titled(self, namespace: str, title: str) -> list[Collection]:
        return [c for c in self.collections.values() if (c.namespace, c.title) == (namespace, title)]

    def create_collection(
        self, namespace: str, title: str, description: str | None, private: bool, date: str
    ) -> Collection:
        number = len(self.titled(namespace, title))
        # The Hub's begin with the time: of two with one title, the older one has the smaller.
        object_id = f"{number:08x}{hashlib.sha256(f'{namespace}/{title}'.encode()).hexdigest()[:16]}"
        self.collections[object_id] = Collection(namespace, title, description, private, object_id, date)
        return self.collections[object_id]

    def save(self) -> None:
        """Writes everything but the contents (written as they come) to the folder."""
        if self.folder is None:
            return
        state = {
            "repos": [{**asdict(repo), "lfs": sorted(repo.lfs)} for repo in self.repos.values()],
            "collections": [asdict(collection) for collection in self.collections.values()],
        }
        temporary = self.folder / "state.json.tmp"
        temporary.write_text(json.dumps(state), encoding="utf-8")
        os.replace(temporary, self.folder / "state.json")

    def _restore(self) -> None:
        path = self.folder / "state.json"
        if not path.exists():
            return
        state = json.loads(path.read_text(encoding="utf-8"))
        for data in state["repos"]:
            commits = {
                sha: Commit(**{**commit, "files": {name: File(**file) for name, file in commit["files"].items()}})
                for sha, commit in data["commits"].items()
            }
            repo = Repo(**{**data, "commits": commits, "lfs": set(data["lfs"])})
            self.repos[repo.kind, repo.id] = repo
        for data in state["collections"]:
            collection = Collection(**{**data, "items": [Item(**item) for item in data["items"]]})
            self.collections[collection.object_id] = collection

    def snapshot(self, endpoint: str) -> dict:
        """
        The state as plain values that do not depend on time, on the order of requests between repositories, or on the
        server's address: the digest of a text file is that of the text with another name in place of `endpoint`.
        """

        def digests(commit: Commit) -> dict[str, str]:
            return {path: digest(file) for path, file in sorted(commit.files.items())}

        def digest(file: File) -> str:
            if file.lfs:
                return file.sha256
            return hashlib.sha256(self.content(file.sha256).replace(endpoint.encode(), b"https://hub")).hexdigest()

        return {
            "repos": {
                f"{repo.kind}/{repo.id}": {
                    "private": repo.private,
                    "branches": {
                        name: {
                            "files": digests(repo.commits[sha]),
                            "commits": [commit.title for commit in repo.history(repo.commits[sha])],
                        }
                        for name, sha in sorted(repo.branches.items())
                    },
                    "tags": {name: digests(repo.commits[sha]) for name, sha in sorted(repo.tags.items())},
                }
                for repo in sorted(self.repos.values(), key=lambda repo: (repo.kind, repo.id))
            },
            "collections": [
                {
                    "owner": collection.namespace,
                    "title": collection.title,
                    "description": collection.description,
                    "private": collection.private,
                    "items": [{"id": item.id, "type": item.type, "note": item.note} for item in collection.items],
                }
                for collection in sorted(self.collections.values(), key=lambda c: (c.namespace, c.title, c.object_id))
            ],
        }


def pointer(sha256: str, size: int) -> bytes:
    """The text that git stores in place of an LFS file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
