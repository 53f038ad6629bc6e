"""The local Hub serves the real clients as the Hub does: what the other tests of this folder rest on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download, metadata_update, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session, parse_ratelimit_headers

from tests.testing_utils import ROOT, classifier, tokenizer

from .clients import connected
from .server import HubServer


MEGABYTE = 1_000_000


def card(**values) -> str:
    lines = "\n".join(f"{name}: {json.dumps(value)}" for name, value in values.items())
    return f"---\n{lines}\n---\n# A model\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a small text file, a card, a file in a subfolder and a 5 MB file for LFS."""
    folder = tmp_path / "model"
    (folder / "deep").mkdir(parents=True)
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "README.md").write_text(card(license="mit", base_model="tester/parent", tags=["fip"]))
    (folder / "deep" / "notes.txt").write_text("notes")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * (5 * MEGABYTE // 256))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """The files of a folder, without what the Hub and its client add."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    return {name: value for name, value in found.items() if not name.startswith((".cache", ".gitattributes"))}


def test_what_is_uploaded_is_downloaded(hub: HubServer, folder: Path, tmp_path: Path):
    HfApi().create_repo("tester/one", private=True)
    HfApi().upload_folder(repo_id="tester/one", folder_path=folder, commit_message="all of it")
    assert content(Path(snapshot_download("tester/one", local_dir=tmp_path / "back"))) == content(folder)
    state = hub.state()["repos"]["models/tester/one"]
    assert state["private"] is True
    assert state["branches"]["main"]["commits"] == ["all of it", "initial commit"]
    # Create, validate twice, preupload, LFS batch, PUT, verify, commit: the figure the pushes are planned with.
    assert hub.count("^(POST|PUT) ") == 8


def test_uploading_the_same_again_changes_nothing(hub: HubServer, folder: Path):
    hub.api.create_repo("tester/one")
    hub.api.upload_folder(repo_id="tester/one", folder_path=folder)
    before, uploads = hub.state(), hub.count("PUT /lfs/")
    hub.api.create_repo("tester/one", exist_ok=True)
    hub.api.upload_folder(repo_id="tester/one", folder_path=folder)
    assert hub.state() == before and hub.count("PUT /lfs/") == uploads == 1
    with pytest.raises(HfHubHTTPError) as error:
        hub.api.create_repo("tester/one")
    assert error.value.response.status_code == 409


def test_files_are_deleted_and_listed(hub: HubServer, folder: Path):
    hub.api.create_repo("tester/one")
    hub.api.upload_folder(repo_id="tester/one", folder_path=folder)
    hub.api.delete_file("config.json", "tester/one")
    hub.page_size = 2
    names = sorted(entry.path for entry in hub.api.list_repo_tree("tester/one", recursive=True))
    assert names == [".gitattributes", "README.md", "deep", "deep/notes.txt", "model.safetensors"]
    assert [entry.path for entry in hub.api.list_repo_tree("tester/one", "deep")] == ["deep/notes.txt"]
    weights, notes, *rest = hub.api.get_paths_info("tester/one", ["model.safetensors", "deep/notes.txt", "none"])
    assert (weights.lfs.size, weights.lfs.sha256 is not None, notes.lfs, rest) == (
        (folder / "model.safetensors").stat().st_size,
        True,
        None,
        [],
    )


def test_information_comes_from_the_card(hub: HubServer, folder: Path):
    for name in ("one", "two", "three"):
        hub.api.create_repo(f"tester/{name}", private=name == "two")
        hub.api.upload_folder(repo_id=f"tester/{name}", folder_path=folder, ignore_patterns="*.safetensors")
    info = hub.api.model_info("tester/two", files_metadata=True)
    assert info.card_data["base_model"] == "tester/parent" and "base_model:tester/parent" in info.tags
    assert info.private and {file.rfilename: file.size for file in info.siblings}["config.json"] == 8
    hub.page_size = 1
    assert [model.id for model in hub.api.list_models(author="tester")] == ["tester/one", "tester/three", "tester/two"]
    assert len(list(hub.api.list_models(filter="base_model:tester/parent"))) == 3
    stranger = HfApi(endpoint=hub.endpoint, token=False)
    assert [model.id for model in stranger.list_models(author="tester")] == ["tester/one", "tester/three"]
    metadata_update("tester/one", {"license": "apache-2.0"}, overwrite=True)
    assert hub.api.model_info("tester/one").card_data["license"] == "apache-2.0"


@pytest.mark.parametrize("bad", [{"license": "my-own"}, {"base_model": "./my/own/model"}, {"model-index": [{}]}])
def test_a_card_the_hub_rejects_is_rejected(hub: HubServer, bad: dict, tmp_path: Path):
    (tmp_path / "README.md").write_text(card(**bad))
    hub.api.create_repo("tester/one")
    with pytest.raises(ValueError, match="Invalid metadata in README.md"):
        hub.api.upload_folder(repo_id="tester/one", folder_path=tmp_path, allow_patterns="README.md")
    assert hub.state()["repos"]["models/tester/one"]["branches"]["main"]["commits"] == ["initial commit"]


def test_branches_tags_and_optimistic_locking(hub: HubServer):
    api = hub.api
    api.create_repo("tester/one")
    first = api.upload_file(path_or_fileobj=b"1", path_in_repo="a/b.txt", repo_id="tester/one").oid
    api.create_tag("tester/one", tag="node/1")
    api.create_branch("tester/one", branch="side")
    api.upload_file(path_or_fileobj=b"2", path_in_repo="a/b.txt", repo_id="tester/one", parent_commit=first)
    for revision, expected in {"node/1": "1", "side": "1", "main": "2", first: "1"}.items():
        path = hf_hub_download("tester/one", "a/b.txt", revision=revision)
        assert Path(path).read_text() == expected, revision
    with pytest.raises(HfHubHTTPError) as error:
        api.create_tag("tester/one", tag="node/1")
    assert error.value.response.status_code == 409
    with pytest.raises(HfHubHTTPError) as error:
        api.upload_file(path_or_fileobj=b"3", path_in_repo="c", repo_id="tester/one", parent_commit=first)
    assert error.value.response.status_code == 412
    refs = api.list_repo_refs("tester/one")
    assert ([ref.name for ref in refs.branches], [ref.name for ref in refs.tags]) == (["main", "side"], ["node/1"])
    assert [commit.commit_id for commit in api.list_repo_commits("tester/one")][1] == first
    api.delete_tag("tester/one", tag="node/1")
    assert api.list_repo_refs("tester/one").tags == []


def test_errors_are_those_of_the_hub(hub: HubServer):
    api = hub.api
    api.create_repo("tester/secret", private=True)
    stranger, nobody = HfApi(hub.endpoint, hub.add_user("other")), HfApi(hub.endpoint, False)
    for client in (stranger, nobody):
        with pytest.raises(RepositoryNotFoundError):
            client.model_info("tester/secret")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("tester/absent")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("tester/secret", "absent.json")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("tester/secret", "config.json", revision="absent")
    for client, status in ((stranger, 403), (nobody, 401), (HfApi(hub.endpoint, "hf_wrong"), 401)):
        with pytest.raises(HfHubHTTPError) as error:
            client.create_repo("tester/mine")
        assert error.value.response.status_code == status
    with pytest.raises(HfHubHTTPError) as error:
        HfApi(hub.endpoint, hub.add_user("tester", role="read")).create_repo("tester/mine")
    assert error.value.response.status_code == 403
    assert HfApi(hub.endpoint, hub.add_user("member", organizations=["lab"])).create_repo("lab/x").repo_id == "lab/x"
    assert api.whoami()["name"] == "tester"
    api.delete_repo("tester/secret")
    assert not api.repo_exists("tester/secret")


def test_collections(hub: HubServer):
    api = hub.api
    for number in range(6):
        api.create_repo(f"tester/{number}")
    made = api.create_collection("A family", namespace="tester", description="six", private=True)
    for number in range(6):
        api.add_collection_item(made.slug, f"tester/{number}", "model", note=f"note {number}")
    with pytest.raises(HfHubHTTPError) as error:
        api.add_collection_item(made.slug, "tester/3", "model")
    assert error.value.response.status_code == 409
    (listed,) = api.list_collections(owner="tester")
    assert (listed.slug, len(listed.items)) == (made.slug, 4)
    assert api.create_collection("A family", namespace="tester", exists_ok=True).slug == made.slug
    whole = api.get_collection(made.slug)
    assert [(item.item_id, item.note) for item in whole.items] == [(f"tester/{n}", f"note {n}") for n in range(6)]
    api.create_repo("tester/hidden", private=True)
    api.add_collection_item(made.slug, "tester/hidden", "model")
    api.update_collection_metadata(made.slug, private=False)
    assert len(HfApi(hub.endpoint, False).get_collection(made.slug).items) == 6
    api.delete_repo("tester/hidden")
    api.update_collection_metadata(made.slug, private=True)
    api.update_collection_item(made.slug, whole.items[5].item_object_id, position=0, note="first")
    api.delete_collection_item(made.slug, whole.items[0].item_object_id)
    renamed = api.update_collection_metadata(made.slug, title="Another name")
    items = api.get_collection(made.slug).items
    assert renamed.slug != made.slug and [item.item_id for item in items] == [f"tester/{n}" for n in (5, 1, 2, 3, 4)]
    assert items[0].note == "first"
    for arguments in ({"description": "x" * 151}, {"title": "x" * 61}):
        with pytest.raises(HfHubHTTPError):
            api.update_collection_metadata(made.slug, **arguments)
    with pytest.raises(HfHubHTTPError):
        HfApi(hub.endpoint, False).get_collection(made.slug)


def test_an_interrupted_download_goes_on_where_it_stopped(hub: HubServer, folder: Path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", MEGABYTE // 10)
    hub.api.create_repo("tester/one")
    hub.api.upload_folder(repo_id="tester/one", folder_path=folder)
    fault = hub.fault(r"GET .*model\.safetensors", cut="download")
    path = hf_hub_download("tester/one", "model.safetensors")
    size = (folder / "model.safetensors").stat().st_size
    assert Path(path).read_bytes() == (folder / "model.safetensors").read_bytes()
    sent = [entry.sent for entry in hub.requests if entry.method == "GET" and "model.safetensors" in entry.path]
    assert fault.hits == 1 and len(sent) == 2 and sum(sent) <= 1.1 * size


@pytest.mark.parametrize(
    ("fault", "commits", "repeated"),
    [
        ({"match": "/preupload/", "status": 429, "headers": {"RateLimit": '"api";r=0;t=0'}}, 2, 2),
        ({"match": "PUT /lfs", "cut": "upload"}, 2, 2),
        ({"match": "PUT /lfs", "cut": "before"}, 2, 2),
        ({"match": "/verify", "cut": "answer"}, 2, 2),
        ({"match": "/commit/", "status": 503}, 1, 1),
        ({"match": "/commit/", "cut": "answer"}, 2, 1),
    ],
)
def test_faults_strike_on_command(hub: HubServer, folder: Path, fault: dict, commits: int, repeated: int):
    """What the client repeats by itself it repeats; a lost answer to a commit leaves the commit."""
    hub.api.create_repo("tester/one")
    struck = hub.fault(**fault)
    if repeated == 1:
        with pytest.raises(Exception, match="503|disconnected|reset|Connection"):
            hub.api.upload_folder(repo_id="tester/one", folder_path=folder)
    else:
        hub.api.upload_folder(repo_id="tester/one", folder_path=folder)
    assert struck.hits == 1 and hub.count(fault["match"]) == repeated
    assert len(hub.state()["repos"]["models/tester/one"]["branches"]["main"]["commits"]) == commits


def test_a_rate_limit_holds_until_its_window_ends(hub: HubServer):
    hub.rate.limit, hub.rate.seconds = 3, 1.5
    statuses = []
    for _ in range(5):
        response = get_session().get(f"{hub.endpoint}/api/models")
        statuses.append(response.status_code)
    limit = parse_ratelimit_headers(response.headers)
    assert statuses == [200, 200, 200, 429, 429] and hub.rate.refused == 2
    assert (limit.remaining, limit.limit, limit.window_seconds) == (0, 3, 2) and limit.reset_in_seconds <= 2
    # The client's own repetition waits for the window to end.
    assert list(hub.api.list_models()) == []


def test_random_faults_follow_the_seed(hub: HubServer):
    outcomes = []
    for _ in range(2):
        hub.clear_faults()
        hub.fault("whoami", status=503, probability=0.5, seed=4, times=None)
        statuses = []
        for _ in range(12):
            try:
                hub.api.whoami()
                statuses.append(200)
            except HfHubHTTPError as error:
                statuses.append(error.response.status_code)
        outcomes.append(statuses)
    assert outcomes[0] == outcomes[1] and set(outcomes[0]) == {200, 503}


def test_state_in_a_folder_outlives_the_server(folder: Path, tmp_path: Path):
    """A server of its own process is killed; the next one on the same folder holds the same."""
    states = []
    for round_number in range(2):
        command = [sys.executable, "-m", "tests.hub.server", "--folder", str(tmp_path / "state")]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        try:
            where = json.loads(process.stdout.readline())
            api = HfApi(where["endpoint"], where["token"])
            with connected(where["endpoint"], where["token"], tmp_path / "cache"):
                if round_number == 0:
                    api.create_repo("tester/one")
                    api.upload_folder(repo_id="tester/one", folder_path=folder)
                    collection = api.create_collection("Family", namespace="tester")
                    api.add_collection_item(collection.slug, "tester/one", "model", note="kept")
                snapshot = Path(snapshot_download("tester/one", local_dir=tmp_path / f"back{round_number}"))
                states.append((content(snapshot), [item.note for item in api.get_collection(collection.slug).items]))
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
    assert states == [(content(folder), ["kept"])] * 2


SCRIPT = """
import torch
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("tester/bert")
words = AutoTokenizer.from_pretrained("tester/bert")
data = load_dataset("tester/texts")
rows = {name: split.num_rows for name, split in data.items()}
print(model.config.hidden_size, len(words), rows, data["test"][1]["text"])
"""


def test_transformers_and_datasets_load_from_it(hub: HubServer, tmp_path: Path):
    """A private model and a private data set in a process with empty caches, as a user has it."""
    import datasets

    classifier().push_to_hub("tester/bert", private=True)
    tokenizer().push_to_hub("tester/bert")
    hub.api.create_repo("tester/texts", repo_type="dataset", private=True)
    (tmp_path / "data").mkdir()
    for split, number in {"train": 5, "test": 3}.items():
        rows = datasets.Dataset.from_dict({"text": [f"{split} {i}" for i in range(number)], "label": [0] * number})
        rows.to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    hub.api.upload_folder(
        repo_id="tester/texts", repo_type="dataset", folder_path=tmp_path / "data", path_in_repo="data"
    )
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=hub.environment(tmp_path / "home"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[-2] == "16 64 {'train': 5, 'test': 3} test 1"
