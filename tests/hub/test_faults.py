"""Whatever goes wrong while a family is pushed: run again, and the Hub holds what one clean push makes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hf_fip.graph import ModelGraph

from .clients import connected
from .commands import files_with, kill, run, start
from .masked_family import masked_family
from .server import HubServer


PUSH = ("--namespace", "tester", "--collection", "demo family", "--private")
NOW = {"RateLimit": '"api";r=0;t=0'}
SOON = {"Retry-After": "1"}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """The folder of a graph of three nodes; copied before it is pushed."""
    return masked_family(tmp_path_factory.mktemp("small") / "graph", points=1).folder


def push(folder: Path, layout: str = "repo") -> dict:
    graph = ModelGraph.load(folder)
    return graph.push_to_hub(namespace="tester", collection="demo family", private=True, layout=layout)


def state_after_a_clean_push(graph: Path, home: Path, layout: str) -> dict:
    """What one push of a graph leaves on a Hub where all goes well."""
    with HubServer() as hub, connected(hub.endpoint, hub.token, home / "cache"):
        push(shutil.copytree(graph, home / "graph"), layout)
        return hub.state()


@pytest.fixture(scope="module")
def clean(small: Path, tmp_path_factory) -> dict:
    return state_after_a_clean_push(small, tmp_path_factory.mktemp("clean"), "repo")


@pytest.fixture(scope="module")
def clean_paths(small: Path, tmp_path_factory) -> dict:
    return state_after_a_clean_push(small, tmp_path_factory.mktemp("clean"), "revision")


def has_whole_family(state: dict, nodes: int) -> bool:
    (collection,) = state["collections"]
    repos = {f"models/{item['id']}" for item in collection["items"]}
    return len(collection["items"]) == len(repos) == nodes and repos == set(state["repos"])


FAULTS = {
    "rate limit on create": {"match": "POST /api/repos/create", "status": 429, "headers": NOW},
    "unavailable on create": {"match": "POST /api/repos/create", "status": 503, "times": 2},
    "lost answer to create": {"match": "POST /api/repos/create", "cut": "answer"},
    "rate limit on card": {"match": "POST /api/validate-yaml", "status": 429, "headers": SOON},
    "upload cut": {"match": "PUT /lfs", "cut": "upload"},
    "lost answer to upload": {"match": "PUT /lfs", "cut": "answer"},
    "rate limit on commit": {"match": "/commit/", "status": 429, "headers": SOON},
    "bad gateway on commit": {"match": "/commit/", "status": 502},
    "commit cut": {"match": "/commit/", "cut": "upload"},
    "lost answer to commit": {"match": "/commit/", "cut": "answer"},
    "two lost answers to commits": {"match": "/commit/", "cut": "answer", "times": 2},
    "rate limit on Collection": {"match": "POST /api/collections$", "status": 429, "headers": NOW},
    "lost answer to Collection": {"match": "POST /api/collections$", "cut": "answer"},
    "unavailable Collections": {"match": "/api/collections", "status": 503, "times": 2},
    "lost answer to item": {"match": "POST .*/items", "cut": "answer"},
    "rate limit on item": {"match": "POST .*/items", "status": 429, "headers": SOON},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_push_gets_over_a_fault(hub: HubServer, small: Path, clean: dict, fault: str, tmp_path: Path):
    struck = hub.fault(**FAULTS[fault])
    result = push(shutil.copytree(small, tmp_path / "graph"))
    assert struck.hits == (struck.times or 1) and result["failed"] == []
    assert hub.state() == clean and has_whole_family(clean, 3)


@pytest.mark.parametrize(
    "fault",
    [
        {"match": "/commit/", "cut": "answer", "times": 2},
        {"match": "/commit/", "status": 503},
        {"match": "POST .*/tag/", "cut": "answer"},
        {"match": "POST .*/tag/", "status": 429, "headers": NOW},
        {"match": "POST .*/items", "cut": "answer"},
    ],
    ids=lambda fault: f"{fault['match']} {fault.get('status') or fault['cut']}",
)
def test_paths_with_tags_get_over_a_fault(hub: HubServer, small: Path, clean_paths: dict, fault: dict, tmp_path: Path):
    struck = hub.fault(**fault)
    folder = shutil.copytree(small, tmp_path / "graph")
    assert push(folder, "revision")["failed"] == [] and struck.hits == (struck.times or 1)
    assert hub.state() == clean_paths
    (folder / "hub_ledger.json").unlink()
    assert push(folder, "revision")["failed"] == []
    assert hub.state() == clean_paths
    assert sum(len(repo["tags"]) for repo in clean_paths["repos"].values()) == 3


def test_a_push_waits_for_the_rate_limit(hub: HubServer, small: Path, clean: dict, tmp_path: Path):
    hub.rate.limit, hub.rate.seconds = 12, 2
    assert push(shutil.copytree(small, tmp_path / "graph"))["failed"] == []
    assert 0 < hub.rate.refused <= 4 and hub.state() == clean


def test_titles_that_may_occur_twice_make_one_collection(hub: HubServer, small: Path, clean: dict, tmp_path: Path):
    """The Hub may accept a second Collection of one title: a lost answer must not make one."""
    hub.duplicate_titles = True
    hub.fault("POST /api/collections$", cut="answer")
    folder = shutil.copytree(small, tmp_path / "graph")
    push(folder)
    push(folder)
    assert hub.state() == clean


def test_a_lost_ledger_is_made_again_from_the_hub(hub: HubServer, small: Path, clean: dict, tmp_path: Path):
    folder = shutil.copytree(small, tmp_path / "graph")
    push(folder)
    (ledger,) = folder.glob("hub_ledger*.json")
    for damage in ("lost", "corrupt"):
        ledger.unlink() if damage == "lost" else ledger.write_text('{"format_ver')
        before = hub.count("PUT /lfs")
        assert push(folder)["failed"] == []
        assert hub.state() == clean and hub.count("PUT /lfs") == before, damage


def test_pushing_again_asks_for_almost_nothing(hub: HubServer, small: Path, clean: dict, tmp_path: Path):
    folder = shutil.copytree(small, tmp_path / "graph")
    first = push(folder)
    hub.requests.clear()
    second = push(folder)
    assert len(first["pushed"]) == len(second["skipped"]) == 3 and second["pushed"] == []
    assert hub.state() == clean and hub.count("^(POST|PUT|PATCH|DELETE)") == 0 and len(hub.requests) <= 6


def test_a_namespace_of_others_is_refused_in_one_line(hub: HubServer, small: Path, tmp_path: Path):
    folder = shutil.copytree(small, tmp_path / "graph")
    hub.add_user("stranger")
    foreign = run(hub, tmp_path / "home", "push", folder, "--namespace", "stranger", "--collection", "x", expect=None)
    assert foreign.returncode in (1, 2) and "Traceback" not in foreign.stderr
    assert "stranger" in foreign.stderr and "token" in foreign.stderr
    assert hub.state() == {"repos": {}, "collections": []}


def test_another_machine_pushes_the_same_between_two_requests(
    hub: HubServer, small: Path, clean: dict, tmp_path: Path
):
    """No ledger is shared: where the other one was faster, nothing is committed or added a second time."""
    ours, theirs = (shutil.copytree(small, tmp_path / name / "graph") for name in ("ours", "theirs"))
    for repo in clean["repos"]:
        hub.api.create_repo(repo.removeprefix("models/"), private=True)
    overtaken = hub.fault("/commit/", action=lambda: push(theirs))
    assert push(ours)["failed"] == [] and overtaken.hits == 1
    assert hub.state() == clean


@pytest.mark.slow
def test_two_pushes_of_one_folder_at_once(hub: HubServer, small: Path, clean: dict, tmp_path: Path):
    folder = shutil.copytree(small, tmp_path / "graph")
    processes = [start(hub, tmp_path / "home", "push", folder, *PUSH) for _ in range(2)]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert hub.state() == clean


@pytest.mark.slow
def test_forty_nodes_under_faults_and_kills_end_as_one_clean_push(tmp_path: Path):
    graph = masked_family(tmp_path / "graph", points=13, branches=("naive", "fip", "er"))
    assert len(graph) == 40
    copy = shutil.copytree(graph.folder, tmp_path / "copy" / "graph")
    with HubServer() as quiet:
        run(quiet, tmp_path / "home", "push", copy, *PUSH)
        expected = quiet.state()
        assert has_whole_family(expected, 40)

    with HubServer() as hub:
        process = None

        def stop() -> None:
            kill(process)

        faults = [
            hub.fault("PUT /lfs", cut="upload", skip=2, action=stop),
            hub.fault("/commit/", cut="answer", skip=6, action=stop),
            hub.fault("POST /api/repos/create", cut="answer", skip=16, action=stop),
            hub.fault("POST .*/items", cut="answer", skip=3, action=stop),
            hub.fault("(/commit/|/items)", cut="before", skip=40, action=stop),
            hub.fault("POST", status=429, headers=SOON, skip=20, times=4),
            hub.fault("/commit/", status=503, skip=4, times=2),
            hub.fault("/commit/", cut="answer", skip=9, times=2),
            hub.fault("PUT /lfs", cut="upload", skip=12, times=2),
            hub.fault("POST /api/repos/create", cut="answer", skip=8, times=1),
            hub.fault("POST .*/items", cut="answer", skip=9, times=2),
            hub.fault("POST", status=503, probability=0.02, seed=1, times=None),
        ]
        outcomes = []
        while 0 not in outcomes and len(outcomes) < 12:
            process = start(hub, tmp_path / "home", "push", graph.folder, *PUSH)
            _, errors = process.communicate(timeout=500)
            outcomes.append(process.returncode)
            assert "Traceback" not in errors, errors
        assert outcomes[-1] == 0 and outcomes.count(-9) == 5, outcomes
        assert [fault.match for fault in faults if fault.hits < (fault.times or 1)] == []
        hub.clear_faults()
        assert hub.state() == expected
        run(hub, tmp_path / "home", "push", graph.folder, *PUSH)
        assert hub.state() == expected
        assert files_with(hub.token, tmp_path) == []
