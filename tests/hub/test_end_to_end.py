"""A family goes to the Hub and comes back to somebody else, by the commands and loaders that people use."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hf_fip.graph import ModelGraph

from .commands import files_with, run, run_json
from .masked_family import masked_family
from .server import HubServer


LOAD = """
import sys
from transformers import AutoModelForMaskedLM, AutoTokenizer

for repo in sys.argv[1:]:
    model, words = AutoModelForMaskedLM.from_pretrained(repo), AutoTokenizer.from_pretrained(repo)
    print(repo, float(sum(value.double().abs().sum() for value in model.state_dict().values())), len(words))
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> tuple[HubServer, ModelGraph, dict]:
    """A Hub to which a family was pushed privately from the command line, with the answer of the command."""
    folder = tmp_path_factory.mktemp("published")
    graph = masked_family(folder / "graph")
    with HubServer() as hub:
        arguments = ("--namespace", "tester", "--collection", "demo family", "--private")
        yield hub, graph, run_json(hub, folder / "home", "push", graph.folder, *arguments)


def repos(hub: HubServer) -> dict[str, str]:
    """Node id to repository, as the node descriptions on the Hub have it."""
    found = {}
    for name in hub.state()["repos"]:
        repo_id = name.removeprefix("models/")
        found[json.loads(hub.file(repo_id, "fip_node.json"))["id"]] = repo_id
    return found


def card(hub: HubServer, repo_id: str) -> dict:
    return ModelCard(hub.file(repo_id, "README.md").decode()).data.to_dict()


def test_all_nodes_are_there_in_one_collection_in_order(published):
    hub, graph, result = published
    state = hub.state()
    assert (len(result["pushed"]), result["skipped"], result["failed"]) == (5, [], [])
    assert set(repos(hub)) == {node.id for node in graph}
    (collection,) = state["collections"]
    assert collection["title"] == "demo family" and collection["private"]
    assert [item["id"] for item in collection["items"]] == [repos(hub)[node.id] for node in graph]
    assert all(repo["private"] for repo in state["repos"].values())
    assert result["collection"].startswith("tester/demo-family-")


def test_lineage_and_metrics_are_on_the_cards(published):
    hub, graph, _ = published
    repo_of, (collection,) = repos(hub), hub.state()["collections"]
    notes = {item["id"]: item["note"] for item in collection["items"]}
    for node in graph:
        data = card(hub, repo_of[node.id])
        assert data.get("base_model") == (repo_of[node.parent] if node.parent else None), node.id
        results = {result["metrics"][0]["value"] for model in data["model-index"] for result in model["results"]}
        assert set(node.metrics.values()) <= results
        assert data["fip"].get("parent") == node.parent
        # The note shows each metric, rounded.
        numbers = [float(number) for number in re.findall(r"\d+\.?\d*", notes[repo_of[node.id]])]
        for value in node.metrics.values():
            assert any(abs(number - value) <= 0.051 for number in numbers), notes[repo_of[node.id]]


def test_only_what_a_model_needs_is_uploaded(published):
    hub, graph, _ = published
    allowed = {".gitattributes", "README.md", "config.json", "fip_node.json", "model.safetensors",
               "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}  # fmt: skip
    for name, repo in hub.state()["repos"].items():
        files = set(repo["branches"]["main"]["files"])
        pictures = {file for file in files if file.endswith((".svg", ".png"))}
        assert files - pictures <= allowed and {"model.safetensors", "README.md", "fip_node.json"} <= files, name


def test_show_and_pull_rebuild_the_graph(published, tmp_path: Path):
    hub, graph, result = published
    run(hub, tmp_path / "home", "pull", result["collection"], tmp_path / "pulled")
    pulled = ModelGraph.load(tmp_path / "pulled")
    assert [(node.id, node.parent, node.metrics) for node in pulled] == [
        (node.id, node.parent, node.metrics) for node in graph
    ]
    for node in graph:
        weights = (graph.nodes[node.id].folder / "model.safetensors").read_bytes()
        assert (pulled.nodes[node.id].folder / "model.safetensors").read_bytes() == weights
    hub.requests.clear()
    shown = run(hub, tmp_path / "empty", "show", result["collection"]).stdout
    assert all(node.id in shown for node in graph)
    assert hub.count("safetensors") == 0, "the tree needs no weights"


def test_a_query_of_the_collection_ranks_as_one_of_the_folder(published, tmp_path: Path):
    hub, graph, result = published
    data = tmp_path / "texts.json"
    rows = [{"text": " ".join(f"w{3 + (7 * i + j * j) % 60}" for j in range(8))} for i in range(40)]
    data.write_text("\n".join(json.dumps(row) for row in rows))
    remote = run_json(hub, tmp_path / "home", "query", result["collection"], "--dataset", data)
    local = run_json(hub, tmp_path / "home", "query", graph.folder, "--dataset", data)
    assert len(remote["ranking"]) == 5
    assert [row["value"] for row in remote["ranking"]] == pytest.approx([row["value"] for row in local["ranking"]])


def test_every_node_loads_by_its_repository(published, tmp_path: Path):
    hub, graph, _ = published
    repo_of = repos(hub)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *repo_of.values()],
        env=hub.environment(tmp_path / "home"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    sums = {line.split()[0]: float(line.split()[1]) for line in done.stdout.splitlines()}
    for node in graph:
        expected = sum(value.double().abs().sum() for value in node.load_model().state_dict().values())
        assert sums[repo_of[node.id]] == pytest.approx(float(expected)), node.id


def test_the_token_is_written_nowhere(published, tmp_path: Path):
    hub, graph, _ = published
    assert files_with(hub.token, graph.folder.parent) == []
    for name, repo in hub.state()["repos"].items():
        for path in repo["branches"]["main"]["files"]:
            assert hub.token.encode() not in hub.file(name.removeprefix("models/"), path), (name, path)
    hub.fault("POST /api/collections$", status=400)
    again = run(hub, tmp_path / "home", "push", graph.folder, "--namespace", "tester", "--collection", "other",
                "--debug", expect=None)  # fmt: skip
    assert hub.token not in again.stdout + again.stderr
    hub.clear_faults()


def test_somebody_without_access_is_told_so_in_one_line(published, tmp_path: Path):
    hub, _, result = published
    hub_token, hub.token = hub.token, hub.add_user("stranger")
    try:
        refused = run(hub, tmp_path / "home", "show", result["collection"], expect=None)
    finally:
        hub.token = hub_token
    assert refused.returncode in (1, 2) and refused.stdout == ""
    assert "demo-family" in refused.stderr and "Traceback" not in refused.stderr
