"""Nodes and their files, what a graph answers, and how it is shown."""

from __future__ import annotations

import json
import math
from pathlib import Path

import networkx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from hf_fip.errors import InputError
from hf_fip.graph import Edge, ModelGraph, Node, describe, render_tree
from hf_fip.graph.show import plain_text
from hf_fip.tasks import Task


def nothing(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def node_on_disk(root: Path, **data) -> Path:
    folder = root / "nodes" / data["id"]
    folder.mkdir(parents=True)
    (folder / "fip_node.json").write_text(json.dumps(data))
    return folder


@pytest.fixture
def graph(tmp_path: Path) -> ModelGraph:
    """base ─┬─ fip-1 ── fip-2 ── co-1;  └─ naive-1"""
    graph = ModelGraph(tmp_path / "graph")

    def add(node_id, parent, name, step, operator="ContinualLearning", **fields):
        graph.add(Node(node_id, parent=parent, name=name, step=step, operator=operator, **fields), nothing)

    add("base", None, "base", 0, "origin", metrics={"yelp/accuracy": 0.931})
    distance = {"parent": 0.01, "root": 0.01, "name": "l2", "unit": "share of output variance"}
    metrics = {"yelp/accuracy": 0.93, "imdb/accuracy": 0.7}
    add("fip-1", "base", "fip", 20, metrics=metrics, functional_distance=distance)
    add("naive-1", "base", "naive", 20, metrics={"yelp/accuracy": 0.0, "imdb/accuracy": math.nan})
    add("fip-2", "fip-1", "fip", 40, euclidean_distance={"parent": 1.5, "root": 2.25})
    add("co-1", "fip-2", "co", 10, "Compression", sparsity=0.6)
    return graph


# Nodes


def test_a_node_survives_the_way_through_its_file(tmp_path):
    node = Node(
        "fip-1.step_20",
        parent="base",
        parameters={"path_points": (1, 2), "rate": np.float32(0.5)},
        step=np.int64(20),
        metrics={"yelp/accuracy": np.float32(0.5), "imdb/perplexity": math.inf},
        protocol={"budget": {"reached": math.nan}, "label_names": ["gut", "böse"]},
        sparsity=0.25,
    )
    graph = ModelGraph(tmp_path)
    graph.add(Node("base"), nothing)
    graph.add(node, nothing)
    text = (tmp_path / "nodes" / node.id / "fip_node.json").read_text()
    data = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert data["metrics"] == {"yelp/accuracy": 0.5, "imdb/perplexity": None}
    found = ModelGraph.load(tmp_path)[node.id]
    assert found.to_dict() == node.to_dict() == data
    assert math.isnan(found.metrics["imdb/perplexity"])
    assert found.folder == tmp_path / "nodes" / node.id


def test_keys_of_a_later_version_are_kept():
    data = {"id": "a", "pruned_heads": {"0": [1]}, "extra": 1}
    node = Node.from_dict(data)
    assert node.extra == {"pruned_heads": {"0": [1]}, "extra": 1}
    assert Node.from_dict(node.to_dict()) == node and node.to_dict()["pruned_heads"] == {"0": [1]}


@given(st.one_of(st.text(max_size=120), st.none(), st.integers(), st.lists(st.text(), max_size=2)))
def test_no_id_leads_out_of_the_graph(value):
    try:
        Node(value)
    except InputError:
        return
    assert len(value) <= 96 and not value.startswith(".") and set(value).isdisjoint("/\\:\0\n ")


@pytest.mark.parametrize("node_id", ["", ".", "..", ".git", "../x", "a/b", "a\\b", "a\n", "a\0", "é", "x" * 97])
def test_ids_that_no_node_may_have(node_id):
    with pytest.raises(InputError, match="field 'id'"):
        Node(node_id)
    with pytest.raises(InputError, match="field 'parent'"):
        Node("a", parent=node_id)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", 7),
        ("id", "../../etc"),
        ("parent", ["base"]),
        ("name", None),
        ("operator", 1),
        ("parameters", []),
        ("step", "3"),
        ("step", -1),
        ("step", True),
        ("metrics", ["accuracy"]),
        ("metrics", {"accuracy": "high"}),
        ("metrics", {"accuracy": 10**400}),
        ("functional_distance", {"root": "far"}),
        ("euclidean_distance", 3.0),
        ("sparsity", 1.5),
        ("sparsity", None),
        ("task", {}),
        ("protocol", "none"),
        ("versions", None),
        ("created", 2026),
    ],
)
def test_a_damaged_description_names_file_and_field(tmp_path, field, value):
    folder = node_on_disk(tmp_path, id="a")
    (folder / "fip_node.json").write_text(json.dumps({"id": "a", field: value}))
    with pytest.raises(InputError, match=f"field '{field}'") as caught:
        ModelGraph.load(tmp_path)
    assert str(folder / "fip_node.json") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000, '{"id": "b"}', "{}", "\udcff"])
def test_a_description_that_is_none_names_the_file(tmp_path, text):
    folder = node_on_disk(tmp_path, id="a")
    (folder / "fip_node.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match="fip_node.json"):
        ModelGraph.load(tmp_path)


def test_a_value_that_json_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="'parameters'.*JSON"):
        Node("a", parameters={"data_root": tmp_path})


# Questions to the graph


def test_order_edges_endpoints_lineage(graph):
    assert list(graph.nodes) == ["base", "fip-1", "naive-1", "fip-2", "co-1"] == [node.id for node in graph]
    assert graph.root.id == "base"
    assert graph.endpoints == {"base": "base", "fip": "fip-2", "naive": "naive-1", "co": "co-1"}
    assert [node.id for node in graph.children("base")] == ["fip-1", "naive-1"]
    assert [node.id for node in graph.lineage("co-1")] == ["base", "fip-1", "fip-2", "co-1"]
    assert [node.id for node in graph.leaves] == ["naive-1", "co-1"]
    assert graph.edges[0] == Edge("base", "fip-1", "ContinualLearning", euclidean=None, functional=0.01)
    assert graph.edges[2] == Edge("fip-1", "fip-2", "ContinualLearning", euclidean=1.5, functional=None)


def test_the_order_is_kept_when_the_graph_is_read_again_and_when_its_index_is_lost(graph):
    assert list(ModelGraph.load(graph.folder).nodes) == list(graph.nodes)
    (graph.folder / "graph.json").unlink()
    found = ModelGraph.load(graph.folder)
    assert list(found) == list(graph) and found.edges == graph.edges


def test_a_node_is_found_by_id_branch_or_beginning(graph):
    assert graph["fip-1"].id == "fip-1"
    assert graph["fip"].id == "fip-2"
    assert graph["nai"].id == "naive-1"
    assert graph[graph["co"]].id == "co-1"
    with pytest.raises(KeyError, match="'base', 'fip', 'naive', 'co'"):
        graph["joint"]
    with pytest.raises(KeyError, match="fip-1, fip-2"):
        graph["fip-"]
    with pytest.raises(InputError):
        graph[""]


def test_only_whole_ids_are_contained(graph):
    """A resumed run asks whether a node is recorded: `fip-1` must not be taken for `fip-10`."""
    assert "fip-1" in graph and graph["fip-1"] in graph
    assert "fip" not in graph and "nai" not in graph and None not in graph


def test_networkx_view_has_every_field(graph):
    view = graph.to_networkx()
    assert networkx.is_tree(view) and list(networkx.topological_sort(view))[0] == "base"
    assert view.nodes["fip-1"]["metrics"] == graph["fip-1"].metrics
    assert view.nodes["co-1"]["sparsity"] == 0.6
    assert view.edges["fip-1", "fip-2"] == {"operator": "ContinualLearning", "euclidean": 1.5, "functional": None}


def test_a_node_needs_its_parent_and_a_graph_has_one_root(graph):
    before = sorted(graph.folder.rglob("*"))
    with pytest.raises(InputError, match="'missing'.*add it first"):
        graph.add(Node("orphan", parent="missing"), nothing)
    with pytest.raises(InputError, match="holds another graph"):
        graph.add(Node("other"), nothing)
    assert sorted(graph.folder.rglob("*")) == before


@pytest.mark.parametrize("parents", [{"a": "a"}, {"root": None, "a": "c", "b": "a", "c": "b"}])
def test_parents_in_a_circle_are_refused(tmp_path, parents):
    for name, parent in parents.items():
        node_on_disk(tmp_path, id=name, parent=parent)
    with pytest.raises(InputError, match=r"nodes/a/fip_node.json: field 'parent' is .* cycle"):
        ModelGraph.load(tmp_path)


def test_folders_that_hold_no_graph_are_refused(tmp_path, graph):
    for folder in (tmp_path / "nowhere", tmp_path / "graph" / "nodes"):
        with pytest.raises(InputError, match=str(folder)):
            ModelGraph.load(folder)
    with pytest.raises(InputError, match="did you mean .*graph"):
        ModelGraph.load(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        ModelGraph(tmp_path / "file")


def test_a_later_format_is_refused(graph):
    (graph.folder / "graph.json").write_text('{"format_version": 2, "nodes": [], "edges": []}')
    with pytest.raises(InputError, match="format_version is 2; upgrade"):
        ModelGraph.load(graph.folder)


def test_a_graph_json_of_another_program_is_not_overwritten(tmp_path):
    (tmp_path / "graph.json").write_text("{}")
    with pytest.raises(InputError, match="choose another folder"):
        ModelGraph(tmp_path).add(Node("root"), nothing)
    assert (tmp_path / "graph.json").read_text() == "{}"


def test_what_the_writer_measures_is_recorded(graph):
    node = graph.add(Node("co-2", parent="co-1", name="co"), lambda folder: nothing(folder) or {"sparsity": 0.75})
    assert node.sparsity == 0.75 and ModelGraph.load(graph.folder)["co-2"].sparsity == 0.75
    with pytest.raises(InputError, match="'parent'"):
        graph.add(Node("co-3", parent="co-2"), lambda folder: {"parent": "base"})
    with pytest.raises(InputError, match="sparseness"):
        graph.add(Node("co-3", parent="co-2"), lambda folder: {"sparseness": 0.5})
    assert "co-3" not in ModelGraph.load(graph.folder)


def test_a_node_gives_its_model_and_its_tasks(tmp_path):
    task = Task("yelp", "fancyzhx/yelp_polarity", max_train=2000)
    node = Node("base", protocol={"tasks": [task.to_dict()]})
    with pytest.raises(InputError, match="'base' has no folder"):
        node.load_model()
    config = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    ModelGraph(tmp_path).add(node, BertForSequenceClassification(config).save_pretrained)
    found = ModelGraph.load(tmp_path)["base"]
    assert found.tasks == [task]
    assert isinstance(found.load_model(), BertForSequenceClassification)
    assert found.load_processor() is None


def test_every_node_loads_as_a_transformers_model(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertForSequenceClassification(BertConfig(vocab_size=40, num_labels=3, **sizes))
    node = ModelGraph(tmp_path).add(Node("base"), model.save_pretrained)
    found = AutoModelForSequenceClassification.from_pretrained(node.folder)
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)


# Text


def test_the_tree_shows_branches_and_metrics(graph):
    assert render_tree(graph).splitlines() == [
        f"{graph.folder}: 5 nodes, 4 branches",
        "",
        "node        branch  step  yelp/accuracy  imdb/accuracy  functional  euclidean  sparsity",
        "base        base       0          0.931              –           –          –         0",
        "├─ fip-1    fip       20           0.93            0.7        0.01          –         0",
        "│  fip-2    fip       40              –              –           –       2.25         0",
        "│  └─ co-1  co        10              –              –           –          –       0.6",
        "└─ naive-1  naive     20              0              –           –          –         0",
        "",
        "functional: distance to the root (l2, share of output variance)",
    ]


def test_a_path_of_thousands_of_nodes_is_shown(tmp_path):
    for number in range(2000):
        node_on_disk(tmp_path, id=f"n{number}", parent=f"n{number - 1}" if number else None)
    graph = ModelGraph.load(tmp_path)
    lines = render_tree(graph).splitlines()
    assert len(lines) == 2003 and lines[-1].split() == ["n1999", "base", "0"]
    assert len(graph.lineage("n1999")) == 2000


HOSTILE = [
    "\x1b[2J\x1b[1;31mred",
    "\x1b]0;title\x07red",
    "\x1b]8;;http://x\x1b\\red",
    "\x9b31mred",
    "\x1bPq#0\x1b\\red",
    "red\x1b",
    "r\x00e\x08\x7fd",
    "\u202ered",
    "\ud800red",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_terminal_escapes_in_a_graph_are_not_shown(tmp_path, text):
    distance = {"root": 1.0, "name": text, "unit": text}
    node_on_disk(tmp_path, id="a", name=text, metrics={text: 1}, functional_distance=distance)
    shown = render_tree(ModelGraph.load(tmp_path))
    assert all(character.isprintable() or character == "\n" for character in shown)
    assert "a     red" in shown and shown.count("red") == 4 and "[" not in shown and len(shown.splitlines()) == 6


@given(st.text())
def test_no_text_breaks_a_line_or_the_terminal(text):
    assert plain_text(text).isprintable()


def test_an_empty_graph_is_shown(tmp_path):
    graph = ModelGraph(tmp_path / "graph")
    assert "no nodes yet" in render_tree(graph)
    assert describe(graph)["nodes"] == [] and describe(graph)["root"] is None
    with pytest.raises(KeyError, match="no nodes yet"):
        _ = graph.root


def test_the_description_is_strict_json_and_complete(graph):
    data = json.loads(json.dumps(describe(graph), allow_nan=False))
    assert data["root"] == "base" and data["endpoints"] == graph.endpoints
    assert [node["id"] for node in data["nodes"]] == list(graph.nodes)
    assert data["nodes"][2]["metrics"] == {"yelp/accuracy": 0.0, "imdb/accuracy": None}
    assert data["edges"][0]["functional"] == 0.01
    assert Path(data["nodes"][0]["folder"]).is_dir()
