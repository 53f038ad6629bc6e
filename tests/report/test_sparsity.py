"""The report's sections on compressed nodes, on graphs that the operators made."""

import json

import numpy as np
import pytest
import torch

from hf_fip import ModelGraph
from hf_fip.objectives.prunable import prunable_weights
from hf_fip.report import connectivity, layers, sparsity
from hf_fip.report.scale import SparsityScale, sparsity_text

from .sample_graph import add, weights
from .test_report import page_of


def kept_in(node, **patterns):
    """What is left of each layer, counted in the loaded model; rows of structures that are gone count as zeros."""
    return {
        name.removesuffix(".weight"): int(torch.count_nonzero(weight))
        for name, weight in prunable_weights(node.load_model(), **patterns).items()
    }


@pytest.mark.parametrize("branch", ["sparse", "structured", "int8", "part", "then"])
def test_counts_from_the_files_are_those_of_the_loaded_model(lenet, branch):
    node = lenet[branch]
    found = layers.layers_of(lenet, node)
    assert {layer.name: layer.kept for layer in found} == kept_in(node, exclude=node.parameters.get("exclude", []))
    dense = {name.removesuffix(".weight"): w.shape for name, w in prunable_weights(lenet.root.load_model()).items()}
    assert all(layer.shape == dense[layer.name] for layer in found), "sizes are those before structures went"


def test_names_that_transformers_stores_otherwise_are_found(vit):
    for node in (vit["sparse"], vit["structured"]):
        found = layers.layers_of(vit, node)
        assert {layer.name: layer.kept for layer in found} == kept_in(node)
        assert layers.sparsity(found) == pytest.approx(node.protocol["compression"]["sparsity"], abs=1e-9)


def test_all_sections_stand_before_the_table_of_nodes_and_are_absent_without_compression(lenet, tmp_path):
    ids = ["sparsity", "sparsity-layers", "sparsity-runs", "structures", "ranks", "connectivity"]
    found = page_of(lenet, output=tmp_path / "report.html").values("id", "section")
    assert [name for name in found if name in ids] == ids and found.index("connectivity") < found.index("nodes")
    graph = ModelGraph(tmp_path / "dense")
    add(graph, weights(0, 0, 2), id="root", metrics={"a/accuracy": 0.5})
    add(graph, weights(1, 1, 2), id="child", parent="root", name="fip", metrics={"a/accuracy": 0.4})
    assert not set(ids) & set(page_of(graph, output=tmp_path / "dense.html").values("id", "section"))


def test_the_table_tells_what_is_left_and_what_the_files_take(lenet):
    table = sparsity.overview(lenet).table
    rows = dict(zip(table.row_ids, table.rows, strict=True))
    sparse = lenet["sparse"]
    shown = {column: cell for column, cell in zip(table.columns, rows[sparse.id], strict=True)}
    size = sum(w.numel() for w in prunable_weights(lenet.root.load_model()).values())
    file = (sparse.folder / "model.safetensors").stat().st_size
    whole = (lenet.root.folder / "model.safetensors").stat().st_size
    assert shown["sparsity"].text == "95.0%"
    assert shown["weights left"].sort == round(0.05 * size) and shown["weights left"].detail == f"of {size:,}"
    assert shown["file of weights"].sort == file and f"{file / whole:.1%} of dense" == shown["file of weights"].detail
    stored = {
        lenet[name].id: rows[lenet[name].id][table.columns.index("stored as")].text
        for name in lenet.endpoints
        if lenet[name].id in rows
    }
    assert stored[sparse.id] == "gaps" and stored[lenet["int8"].id] == "8-bit integers"
    assert stored[lenet["structured"].id].startswith("structures removed")
    assert lenet["then"].id in rows and lenet.root.id not in rows


def test_accuracy_starts_at_the_dense_node_and_can_be_seen_against_file_size(lenet):
    figure = sparsity.accuracy(lenet)
    line = next(trace for trace in figure.data if trace.name == "sparse")
    nodes = [lenet.root, *(node for node in lenet if node.name == "sparse")]
    assert list(line.customdata[:3]) == [node.id for node in nodes]
    assert list(line.y[:3]) == [node.metrics["low/accuracy"] for node in nodes]
    scale = SparsityScale.of([0.95])
    assert list(line.x[:3]) == pytest.approx([scale.place(share) for share in (0, 0.5, 0.95)], abs=1e-2)
    by_size = figure.layout.meta["controls"][0]["options"][1]["updates"][0][0]["x"][list(figure.data).index(line)]
    bytes_of = [(node.folder / "model.safetensors").stat().st_size for node in nodes]
    assert by_size[:3] == pytest.approx([bytes_of[0] / size for size in bytes_of])


def test_each_layer_of_each_sparse_node_has_its_cell(lenet):
    cells = sparsity.layer_grid(lenet).data[0]
    column = [node for node in cells.customdata[0]].index(lenet["sparse"].id)
    found = layers.layers_of(lenet, lenet["sparse"])
    assert [line[column] for line in cells.text] == [sparsity_text(layer.sparsity) for layer in found]
    assert lenet["int8"].id not in cells.customdata[0]
    table = sparsity.per_layer(lenet).table
    assert [row[0].text for row in table.rows] == ["hidden.0", "hidden.1"]
    assert [row[1].sort for row in table.rows] == [layer.size for layer in found]


def test_runs_of_one_target_and_method_share_a_box(lenet):
    figure = sparsity.over_runs(lenet)
    assert [trace.name for trace in figure.data] == ["fip"]
    assert set(figure.data[0].customdata) == {lenet["sparse"].id, lenet["again"].id}
    options = figure.layout.meta["controls"][0]["options"]
    assert [option["label"] for option in options] == ["95.0%", "50.0%"], "the sparsest first"
    assert len(options[1]["updates"][0][0]["x"][0]) == 2 * 2 + 1, "of two layers in two runs, and of one in `part`"


def test_structures_left_are_counted_where_they_are(vit):
    node = vit["structured"]
    model = node.load_model()
    cells = sparsity.structure_grid(vit).data[0]
    assert list(cells.customdata[0]) == [node.id]
    groups = layers.structures_of(node)
    assert [line[0] for line in cells.text] == [f"{len(g.kept):,} of {g.count:,}" for g in groups]
    for group in groups:
        for name, unit in group.rows.items():
            assert model.get_submodule(name).out_features == unit * len(group.kept)
    assert layers.structures_of(vit["sparse"]) == []


def test_the_connections_drawn_are_the_weights_left(lenet):
    node = lenet["sparse"]
    network = connectivity.network_of(node)
    matrices = [w.detach() for name, w in node.load_model().named_parameters() if w.ndim == 2]
    assert network.widths == (64, 48, 32, 5)
    for weight, ends, signs in zip(matrices, network.ends, network.signs, strict=True):
        drawn = torch.zeros_like(weight)
        drawn[tuple(ends)] = torch.from_numpy(signs)
        assert torch.equal(drawn, weight.sign())
    per_pixel = (matrices[0] != 0).sum(0).reshape(8, 8).numpy()
    np.testing.assert_array_equal(network.per_pixel(), per_pixel)
    lines = [t for t in connectivity.connections(lenet).data if t.type == "scatter" and t.mode == "lines"]
    assert [trace.name for trace in lines if trace.showlegend] == list(connectivity.SIGNS)
    first = max((n for n in connectivity._networks(lenet)), key=lambda name: lenet[name].sparsity)
    weights_left = sum(int(torch.count_nonzero(w)) for w in lenet[first].load_model().parameters() if w.ndim == 2)
    assert sum(len(trace.x) // 3 for trace in lines) == weights_left


def test_lines_of_a_dense_head_are_the_faintest(lenet):
    network = connectivity.network_of(lenet["sparse"])
    assert network.ends[2].shape[1] == 32 * 5
    strengths = [network.strength(layer) for layer in range(3)]
    assert strengths[2] == connectivity.FAINTEST < min(strengths[:2])
    options = connectivity.connections(lenet).layout.meta["controls"][0]["options"]
    for option, node in zip(options, connectivity._networks(lenet).values(), strict=True):
        changed, traces = option["updates"][0]
        assert traces == list(range(6)) and changed["opacity"] == 2 * [node.strength(layer) for layer in range(3)]


def test_ranks_are_those_of_the_weights(lenet):
    cells = sparsity.rank_grid(lenet).data[0]
    nodes = [node for node in lenet if node.name == "low_rank"]
    assert list(cells.customdata[0]) == [node.id for node in nodes]
    for column, node in enumerate(nodes):
        found = {n: int(torch.linalg.matrix_rank(w)) for n, w in prunable_weights(node.load_model()).items()}
        assert [line[column] for line in cells.text] == [
            f"{found['hidden.0.weight']} of 48",
            f"{found['hidden.1.weight']} of 32",
        ]
        assert layers.ranks_of(node) == {name.removesuffix(".weight"): rank for name, rank in found.items()}
    assert sparsity.rank_grid(ModelGraph.load(lenet.folder)) is not None and layers.ranks_of(lenet["sparse"]) == {}


def test_the_table_names_what_each_node_was_compressed_to(lenet):
    words = {name: layers.target_words(lenet[name]) for name in lenet.endpoints}
    assert words["sparse"] == "unstructured" and words["int8"] == "int8" and words["structured"] == "structured"
    assert words["low_rank"] == "low rank: 25% of it" and words["then"] == "zeros kept" and words["base"] == "–"
    table = sparsity.overview(lenet).table
    column = table.columns.index("compressed to")
    rows = dict(zip(table.row_ids, table.rows, strict=True))
    assert rows[lenet["low_rank"].id][column].text == words["low_rank"]


def test_networks_that_are_not_fully_connected_or_not_sparse_enough_have_no_connections(vit, lenet, monkeypatch):
    assert connectivity.connectivity(vit) is None
    monkeypatch.setattr(connectivity, "MOST_WEIGHTS", 10)
    assert connectivity.connectivity(lenet) is None


@pytest.mark.parametrize("damage", ["config", "weights", "architecture"])
def test_a_damaged_node_does_not_cost_the_report(tmp_path, damage):
    graph = ModelGraph(tmp_path / "graph")
    add(graph, weights(0, 0, 2), id="root", metrics={"a/accuracy": 0.5})
    tensors = weights(1, 0.1, 2)
    tensors["body.weight"][:12] = 0
    node = add(graph, tensors, id="child", parent="root", name="co", operator="Compression")
    if damage == "weights":
        (node.folder / "model.safetensors").write_bytes(b"cut")
    else:
        # Equal files of nodes are one file: it is replaced, not changed.
        (node.folder / "config.json").unlink()
        unknown = json.dumps({"model_type": "of-a-stranger", "quantization_config": 3})
        (node.folder / "config.json").write_text("{" if damage == "config" else unknown)
    page = page_of(graph)
    assert "child" in page.text
    if damage != "weights":
        assert "sparsity" in page.values("id"), "what can be counted is, from the tensors' names alone"


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0.0%"), (0.994, "99.4%"), (0.99964, "99.96%"), (0.999964, "99.996%"), (1.0, "100.0%")]
)
def test_only_a_layer_without_weights_reads_as_all_zeros(share, text):
    assert sparsity_text(share) == text


def test_layers_are_named_by_what_tells_them_apart():
    bert = [f"bert.encoder.layer.{i}.{part}" for i in range(12) for part in ("attention.self.query", "output.dense")]
    short = layers.short_names([*bert, "bert.pooler.dense"])
    assert short["bert.encoder.layer.3.attention.self.query"] == "3.attention.self.query"
    assert len(set(short.values())) == 25
    assert layers.short_names(["hidden.0", "hidden.1"]) == {"hidden.0": "hidden.0", "hidden.1": "hidden.1"}
