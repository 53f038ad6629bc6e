"""The calls to the Hub that a family needs, each repeated until it succeeds and safe to repeat."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import (
    Collection,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelInfo,
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError

from ..errors import InputError
from .retry import HubError, RetryPolicy, call


T = TypeVar("T")

_PUBLIC = "https://huggingface.co"
# Two commits at once, or one whose answer was lost: the head has moved.
_THREADS = 4
_MOVED = frozenset({409, 412})


@dataclass(frozen=True)
class Remote:
    """
    What a repository holds.

    Args:
        head (`str`): id of the commit.
        private (`bool`): whether others cannot see it.
        files (`dict[str, str | None]`): file name to git blob id.
        large (`dict[str, str]`): file name to SHA-256, for the files in large file storage.
    """

    head: str
    private: bool
    files: dict[str, str | None]
    large: dict[str, str]


class Hub:
    """
    A Hub as one user sees it.

    Args:
        token (`str` or `bool`, *optional*): as huggingface_hub takes it; the one logged in with by default.
        endpoint (`str`, *optional*): the Hub's address; `HF_ENDPOINT` or huggingface.co by default.
        policy (`RetryPolicy`, *optional*): how patient calls are.
        cache_dir (`str`, *optional*): where downloads are kept; huggingface_hub's cache by default.
    """

    def __init__(
        self,
        token: str | bool | None = None,
        endpoint: str | None = None,
        policy: RetryPolicy | None = None,
        cache_dir: str | None = None,
    ) -> None:
        self.api = HfApi(endpoint=endpoint or constants.ENDPOINT, token=token, library_name="hf_fip")
        self.token = token
        self.policy = policy or RetryPolicy()
        self.cache_dir = cache_dir

    @property
    def endpoint(self) -> str:
        """The Hub's address."""
        return self.api.endpoint

    @property
    def site(self) -> str:
        """What links in a card begin with. On other Hubs than huggingface.co, nothing: they lead to the same Hub."""
        return _PUBLIC if self.endpoint == _PUBLIC else ""

    def _call(self, action: str, function: Callable[[], T], passing: frozenset[int] = frozenset()) -> T:
        return call(action, function, self.policy, passing)

    # ---- Who ---------------------------------------------------------------------------------------------------

    def namespaces(self) -> list[str]:
        """The user's name, then the organisations that they may belong to."""
        who = self._call("log in to the Hub", lambda: self.api.whoami(cache=True))
        return [who["name"], *(org["name"] for org in who.get("orgs") or [])]

    # ---- Repositories ------------------------------------------------------------------------------------------

    def create_repo(self, repo: str, private: bool | None) -> bool:
        """Creates a model repository. Returns whether it is new: a lost answer makes it look as if it were not."""

        def create() -> bool:
            try:
                self.api.create_repo(repo, private=private)
                return True
            except HfHubHTTPError as error:
                if error.response.status_code == 409:
                    return False
                raise

        return self._call(f"create repository {repo}", create)

    def info(self, repo: str, revision: str | None = None) -> ModelInfo:
        """What the Hub says of a repository: its card, files with sizes, head."""

        def look() -> ModelInfo:
            try:
                return self.api.model_info(repo, revision=revision, files_metadata=True)
            except (TypeError, AttributeError, KeyError) as error:
                # The client trips over metadata of another form than it expects.
                raise HubError(f"cannot look at {repo}: its metadata are malformed ({error!r})") from error

        return self._call(f"look at {repo}", look)

    def look(self, repo: str, revision: str | None = None) -> Remote:
        """What a repository holds."""
        info = self.info(repo, revision)
        siblings = info.siblings or []
        large = {file.rfilename: file.lfs.sha256 for file in siblings if file.lfs}
        return Remote(info.sha, bool(info.private), {file.rfilename: file.blob_id for file in siblings}, large)

    def tags(self, repo: str) -> dict[str, str]:
        """Tag to the commit it marks."""
        refs = self._call(f"list the tags of {repo}", lambda: self.api.list_repo_refs(repo))
        return {tag.name: tag.target_commit for tag in refs.tags}

    def commit(
        self,
        repo: str,
        files: Mapping[str, Path | bytes],
        message: str,
        *,
        head: str | None = None,
        remote_files: Iterable[str] | None = None,
    ) -> str:
        """
        Commits files to the main branch, unless it holds them as they are: what is there already costs nothing, and
        a commit whose answer was lost is not made twice.

        Args:
            repo (`str`): the repository.
            files (`Mapping[str, Path | bytes]`): name to file or content.
            message (`str`): the commit's title.
            head (`str`, *optional*): the commit that has to be the last one.
            remote_files (`Iterable[str]`, *optional*):
                Names of the files the repository holds, if those that are not in `files` are to be removed.

        Returns:
            `str`: id of the commit that holds the files.
        """
        known: dict[str, Any] = {"head": head, "files": remote_files, "tried": False}

        def commit() -> str:
            if known["tried"]:
                remote = self.look(repo)
                known["head"] = remote.head
                known["files"] = None if remote_files is None else remote.files
            known["tried"] = True
            stale = sorted(set(known["files"] or ()) - files.keys() - {".gitattributes"})
            # Operations remember what the server said of them: fresh ones ask again.
            additions = [
                CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
                for name, content in files.items()
            ]
            done = self.api.create_commit(
                repo,
                [*additions, *(CommitOperationDelete(name) for name in stale)],
                commit_message=message,
                parent_commit=known["head"],
            )
            return done.oid

        return self._call(f"upload to {repo}", commit, _MOVED)

    def tag(self, repo: str, tag: str, commit: str, move: bool) -> None:
        """Marks a commit. With `move`, a tag of this name that marks another one is replaced."""

        def create() -> None:
            if move and self.tags(repo).get(tag, commit) != commit:
                self.api.delete_tag(repo, tag=tag)
            self.api.create_tag(repo, tag=tag, revision=commit, exist_ok=True)

        self._call(f"tag {repo}", create)

    # ---- Collections -------------------------------------------------------------------------------------------

    def collection(self, slug: str) -> Collection | None:
        """A Collection with all of its items; `None` if there is none."""
        try:
            return self._call(f"read the Collection {slug}", lambda: self.api.get_collection(slug))
        except HubError as error:
            if error.status == 404:
                return None
            raise

    def find_collection(self, namespace: str, title: str) -> Collection | None:
        """The Collection of this owner and title, the oldest if there are several; `None` if there is none."""
        listed = self._call(
            f"list the Collections of {namespace}", lambda: list(self.api.list_collections(owner=namespace))
        )
        slugs = sorted(entry.slug for entry in listed if entry.title == title)
        # A slug ends with a hexadecimal number that begins with the time.
        oldest = min(slugs, key=lambda slug: slug.rpartition("-")[2], default=None)
        return None if oldest is None else self.collection(oldest)

    def create_collection(self, namespace: str, title: str, description: str, private: bool) -> Collection:
        """Creates a Collection; nobody may have made one of this owner and title before."""
        known = {"tried": False}

        def create() -> Collection:
            # Two Collections may have one title: if an answer was lost, look before asking again.
            found = self.find_collection(namespace, title) if known["tried"] else None
            known["tried"] = True
            return found or self.api.create_collection(
                title, namespace=namespace, description=description, private=private, exists_ok=True
            )

        return self._call(f"create the Collection {title!r} of {namespace}", create)

    def add_item(self, slug: str, repo: str, note: str) -> Collection:
        """Adds a model to a Collection, unless it is there."""
        return self._call(
            f"add {repo} to the Collection {slug}",
            lambda: self.api.add_collection_item(slug, repo, "model", note=note, exists_ok=True),
        )

    def update_item(self, slug: str, item: str, *, note: str | None = None, position: int | None = None) -> None:
        """Changes the note or the place of an item."""
        self._call(
            f"update an item of the Collection {slug}",
            lambda: self.api.update_collection_item(slug, item, note=note, position=position),
        )

    # ---- Downloads ---------------------------------------------------------------------------------------------

    def download_small(self, repo: str, name: str, revision: str, limit: int, size: int | None = None) -> Path | None:
        """
        Downloads one file, which may come from anyone.

        Args:
            repo (`str`): the repository.
            name (`str`): the file.
            revision (`str`): a commit.
            limit (`int`): most bytes taken.
            size (`int`, *optional*): its size where it is known; the Hub is asked otherwise.

        Returns:
            `Path`: its place in the cache; `None` if the repository has no such file.

        Raises:
            `InputError`: the file is larger than `limit`.
        """
        url = hf_hub_url(repo, name, revision=revision, endpoint=self.endpoint)
        cached = try_to_load_from_cache(repo, name, cache_dir=self.cache_dir, revision=revision)
        if isinstance(cached, str) and Path(cached).stat().st_size <= limit:
            return Path(cached)
        try:
            if size is None:
                size = self._call(
                    f"read {name} of {repo}",
                    lambda: get_hf_file_metadata(url, token=self.token, endpoint=self.endpoint).size,
                )
            if size is None or size > limit:
                raise InputError(f"{name} has {size} bytes; at most {limit} are read")
            return self._download(repo, name, revision)
        except HubError as error:
            if isinstance(error.__cause__, RemoteEntryNotFoundError):
                return None
            raise

    def download(self, repo: str, revision: str, names: list[str]) -> Path:
        """Downloads files of a commit; what is in the cache is not asked for. Returns their folder."""
        with ThreadPoolExecutor(_THREADS) as threads:
            files = list(threads.map(lambda name: self._download(repo, name, revision), names))
        return files[0].parent

    def _download(self, repo: str, name: str, revision: str) -> Path:
        file = self._call(
            f"download {name} of {repo}",
            lambda: hf_hub_download(
                repo, name, revision=revision, cache_dir=self.cache_dir, token=self.token, endpoint=self.endpoint
            ),
        )
        return Path(file)
