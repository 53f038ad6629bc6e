import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hf_fip.errors import InputError
from hf_fip.graph import ModelGraph, Node
from hf_fip.report import MissingExtraError, figures, layout, sections, write_report
from hf_fip.report.budget import verdict
from hf_fip.report.pca import weight_pca

from .sample_graph import CHANGED, DRIFT, RECIPE, YELP, add, budget_report, sample_graph, weights


HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>{{ 7 * 7 }}"


@pytest.fixture
def graph(tmp_path):
    return sample_graph(tmp_path / "yelp_imdb" / "graph")


class Page(HTMLParser):
    """What a browser makes of a page: its elements, and the text that is no script."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self._inside = [], [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside not in ("script", "style"):
            self.text += data

    def values(self, attribute, tag=None):
        return [found[attribute] for name, found in self.attributes if attribute in found and tag in (None, name)]


def page_of(graph, **kwargs):
    return Page(write_report(graph, **kwargs).read_text(encoding="utf-8"))


def chain(graph, parent, name, steps, **fields):
    for step in steps:
        made = f"{re.sub('[^a-z0-9]', '', name)}-{step}"
        add(graph, weights(1, 0.1, 2), id=made, parent=parent, name=name, operator="op", step=step, **fields)
        parent = made
    return parent


# Principal components


def folders_with(tmp_path, models):
    folders = {}
    for name, tensors in models.items():
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
        folders[name] = tmp_path / name
    return folders


def random_models(count, generator=None):
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (7, 5), "b": (3,), "scale": (), "head": (4, 6)}
    return {
        f"n{i}": {name: (1 + i) * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        for i in range(count)
    }


def dense_pca(models):
    names = sorted({name for tensors in models.values() for name in tensors})
    size = {name: max(t[name].numel() for t in models.values() if name in t) for name in names}

    def flat(tensors, name):
        values = tensors[name].double().flatten() if name in tensors else torch.zeros(0, dtype=torch.float64)
        return torch.nn.functional.pad(values, (0, size[name] - values.numel()))

    rows = torch.stack([torch.cat([flat(tensors, name) for name in names]) for tensors in models.values()]).numpy()
    left, values, _ = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    scores = left[:, :2] * values[:2]
    return scores - scores[0], (values**2 / (values**2).sum())[:2]


def assert_equal_up_to_sign(found, expected):
    for ours, theirs in zip(found.T, expected.T, strict=True):
        assert min(np.abs(ours - theirs).max(), np.abs(ours + theirs).max()) < 1e-8


@pytest.mark.parametrize("block_bytes", [1, 400, None], ids=["a row at a time", "some rows", "default"])
def test_components_equal_a_dense_analysis_whatever_the_block(tmp_path, block_bytes):
    models = random_models(6)
    result = weight_pca(folders_with(tmp_path, models), "n0", block_bytes=block_bytes)
    expected, explained = dense_pca(models)
    assert result.ids == list(models) and result.left_out == {}
    assert_equal_up_to_sign(result.coordinates, expected)
    np.testing.assert_allclose(result.explained, explained, atol=1e-10)


def test_rows_of_a_grown_head_count_from_zero(tmp_path):
    models = random_models(5)
    for name in ("n2", "n3"):
        models[name]["head"] = torch.cat([models[name]["head"], torch.randn(2, 6)])
    result = weight_pca(folders_with(tmp_path, models), "n0", block_bytes=100)
    expected, explained = dense_pca(models)
    assert_equal_up_to_sign(result.coordinates, expected)
    np.testing.assert_allclose(result.explained, explained, atol=1e-10)


def test_half_precision_and_shards_are_read(tmp_path):
    models = {name: {key: t.bfloat16() for key, t in tensors.items()} for name, tensors in random_models(4).items()}
    folders = folders_with(tmp_path, models)
    whole = folders["n1"] / "model.safetensors"
    whole.unlink()
    parts = [{key: models["n1"][key] for key in keys} for keys in (("a", "scale"), ("b", "head"))]
    index = {key: f"part-{i}.safetensors" for i, part in enumerate(parts) for key in part}
    for i, part in enumerate(parts):
        save_file(part, whole.with_name(f"part-{i}.safetensors"))
    whole.with_name("model.safetensors.index.json").write_text(f'{{"weight_map": {index}}}'.replace("'", '"'))
    assert_equal_up_to_sign(weight_pca(folders, "n0").coordinates, dense_pca(models)[0])


def test_nodes_that_cannot_be_compared_are_left_out_and_named(tmp_path):
    models = random_models(6)
    models["n1"]["a"] = torch.randn(7, 6)
    models["n2"] = {"lora": torch.randn(2, 2)}
    models["n3"]["b"][0] = float("nan")
    folders = folders_with(tmp_path, models)
    (folders["n4"] / "model.safetensors").write_bytes(b"not safetensors")
    result = weight_pca(folders, "n0")
    assert result.ids == ["n0", "n5"]
    assert result.left_out.keys() == {"n1", "n2", "n3", "n4"}
    assert "[7, 6]" in result.left_out["n1"] and "finite" in result.left_out["n3"]


def test_components_of_large_models_hold_less_than_two_in_memory(tmp_path):
    megabytes = 32
    rows = megabytes * 2**18 // 1024
    folders_with(tmp_path, {f"n{i}": {"a": torch.randn(rows, 1024)} for i in range(6)})
    # In a process of its own, whose peak is not that of other tests.
    script = f"""
import resource, torch
from pathlib import Path
from hf_fip.report.pca import weight_pca
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
folders = {{f"n{{i}}": Path({str(tmp_path)!r}) / f"n{{i}}" for i in range(6)}}
torch.randn(200, 200, dtype=torch.float64) @ torch.randn(200, 200, dtype=torch.float64)
before = peak()
assert weight_pca(folders, "n0").coordinates.any()
print(peak() - before)
"""
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(answer.stdout) < 2 * megabytes


# Layout


def test_steps_count_from_the_root_through_composed_branches(tmp_path):
    graph = ModelGraph(tmp_path / "graph")
    add(graph, weights(0, 0, 2), id="root")
    end = chain(graph, "root", "cl", [10, 20])
    chain(graph, end, "co", [5, 15])
    chain(graph, "root", "naive", [30])
    steps = layout.steps_from_root(graph)
    assert steps == {"root": 0, "cl-10": 10, "cl-20": 20, "co-5": 25, "co-15": 35, "naive-30": 30}


def test_steps_add_up_where_a_branch_is_the_work_of_two_operators(tmp_path):
    graph = ModelGraph(tmp_path / "graph")
    add(graph, weights(0, 0, 2), id="root")
    parent = "root"
    for task, step in (("b", 10), ("b", 20), ("c", 20), ("c", 40)):
        made = f"fip-{task}-{step}"
        shared = {"name": "fip", "operator": "ContinualLearning", "parameters": {"task": task}}
        add(graph, weights(1, 0.1, 2), id=made, parent=parent, step=step, **shared)
        parent = made
    assert list(layout.steps_from_root(graph).values()) == [0, 10, 20, 40, 60]


def test_each_branch_has_a_lane_and_a_colour_of_its_own(tmp_path):
    graph = ModelGraph(tmp_path / "graph")
    add(graph, weights(0, 0, 2), id="root")
    for name in ("naive", "joint", "er", "fip"):
        chain(graph, "root", name, [10, 20])
    chain(graph, "naive-20", "pruned", [10])
    drawn = layout.branches(graph)
    assert list(layout.lanes(graph)) == ["base", "naive", "pruned", "joint", "er", "fip"]
    assert len({branch.color for branch in drawn.values()}) == 6
    assert drawn["fip"].color == layout.PALETTE[0]


def test_a_line_leaves_its_origin_and_follows_forks(tmp_path):
    graph = ModelGraph(tmp_path / "graph")
    add(graph, weights(0, 0, 2), id="root")
    chain(graph, "root", "fip", [10])
    for leaf in ("x", "y"):
        add(graph, weights(1, 0.1, 2), id=leaf, parent="fip-10", name="fip", step=20)
    lines = layout.chains(graph, layout.branches(graph)["fip"])
    assert lines == [["root", "fip-10"], ["fip-10", "x"], ["fip-10", "y"]]


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0.0%"), (0.123456, "12.3%"), (1.36, "136.0%"), (0.00042, "0.04%"), (None, "–")]
)
def test_small_shares_do_not_read_as_none(value, text):
    assert layout.percent(value) == text


# Budget


def node_with_budget(**report):
    unit = {"unit": "share of output variance"}
    return Node(id="n", functional_distance=unit, protocol={"budget": report} if report else {})


def test_without_a_report_no_budget_is_claimed():
    assert verdict(node_with_budget()).status == "none"
    assert verdict(Node(id="n", protocol={"budget": "damaged"})).status == "none"


def test_a_budget_kept_on_anchors_is_not_called_certified():
    kept = verdict(node_with_budget(**budget_report("fip", 3)))
    assert CHANGED["fip"][3] == 16 and kept.status == "kept" and "not certified" in kept.label
    assert "0.8% on the anchors, 1.6% held out (0.9% to 2.6%)" in kept.detail


def test_a_certificate_below_the_budget_certifies_and_few_inputs_name_how_many_would_do():
    report = budget_report("fip", 0)
    report["asked"] = {"distance": None, "disagreement": 0.02}
    assert verdict(node_with_budget(**report)).status == "certified"
    few = {"kind": "disagreement", "asked": 0.02, "value": 0.0, "low": 0.0, "high": 0.05, "inputs": 70}
    report["held_out"] = [{**few, "certified": False, "inputs_needed": 183, "message": ""}]
    assert "183 held-out inputs would do" in verdict(node_with_budget(**report)).detail


def test_a_budget_that_the_anchors_exceed_is_called_exceeded():
    report = budget_report("fip", 0)
    report["anchors"]["distance"] = 0.021
    assert verdict(node_with_budget(**report)).status == "exceeded"


# Figures


def test_paths_show_every_measured_value_and_the_budget(graph):
    figure = figures.paths(graph)
    naive = [trace for trace in figure.data if trace.name == "naive"]
    assert len(naive) == 3
    assert list(naive[0].x[:5]) == [0, 125, 250, 375, 500]
    assert list(naive[0].y[:5]) == [0.912, *YELP["naive"]]
    assert list(naive[2].y[:4]) == DRIFT["naive"]
    assert [shape.y0 for shape in figure.layout.shapes] == [0.02]
    assert any("budget 2.0%" in note.text for note in figure.layout.annotations)


def test_distances_of_another_kind_get_a_panel_of_their_own(tmp_path):
    graph = ModelGraph(tmp_path / "graph")
    add(graph, weights(0, 0, 2), id="root")
    for name, unit, value in (("l2", "share of output variance", 0.1), ("kl", "nats", 3.0)):
        chain(graph, "root", name, [10], functional_distance={"root": value, "name": name, "unit": unit})
    assert [panel.title for panel in figures.panels(graph)] == ["l2 distance to the root", "kl distance to the root"]
    kl = [trace for trace in figures.paths(graph).data if trace.yaxis == "y2" and trace.name == "kl"]
    assert list(kl[0].y[:2]) == [0.0, 3.0]
    text = page_of(graph).text
    assert "10.0%" in text and "300.0%" not in text and "kl, nats" in text


def test_lineage_can_be_coloured_by_every_metric_and_by_the_distances(graph):
    color, width = figures.lineage(graph).layout.meta["controls"]
    labels = [option["label"] for option in color["options"]]
    assert labels[:3] == ["Branch", "yelp/accuracy", "imdb/accuracy"]
    assert {"functional distance to the root", "Euclidean distance to the root"} <= set(labels)
    assert [option["label"] for option in width["options"]] == ["Equal", "Functional length", "Euclidean length"]


def test_weight_space_keeps_the_measured_distances_it_has_room_for(graph):
    components = figures.weight_components(graph)
    distances = np.linalg.norm(components.coordinates, axis=1)
    for node, distance in zip(components.ids, distances, strict=True):
        # A projection shortens, and two components hold nearly all of this graph.
        assert distance <= (graph[node].euclidean_distance["root"] or 0) * (1 + 1e-6)
    assert components.explained.sum() > 0.9
    assert f"{components.explained[0]:.1%}" in figures.weight_space(graph, components).layout.xaxis.title.text


# Page


def test_the_report_lies_beside_the_graph_and_shows_every_node(graph):
    file = write_report(graph, recipe=RECIPE)
    assert file == graph.folder.parent / "report.html"
    page = Page(file.read_text(encoding="utf-8"))
    assert all(node.id in page.text for node in graph)
    for words in ("yelp_imdb", "keeps the first", "fancyzhx/yelp_polarity", "89.3%", "baselines: [naive]", "2.13.0"):
        assert words in page.text
    assert {"summary", "lineage", "paths", "weight-space", "budget", "nodes", "recipe", "versions"} <= set(
        page.values("id")
    )


def test_the_page_refers_to_nothing_outside_itself(graph):
    page = page_of(graph)
    assert not page.values("src") and not page.values("href") and "link" not in page.tags
    assert "default-src 'none'" in page.values("content")[1]


def test_the_line_of_each_node_loads_its_graph(graph, monkeypatch):
    monkeypatch.chdir(graph.folder.parent.parent)
    lines = re.findall(r"hf_fip\.ModelGraph\.load\(\"(.*?)\"\)\[\"(.*?)\"\]", page_of(graph).text)
    assert [node for _, node in lines] == list(graph.nodes)
    assert all(node in ModelGraph.load(folder) for folder, node in lines)


def test_transformers_is_named_only_where_it_can_load_the_node(graph):
    assert "AutoModelForSequenceClassification.from_pretrained(" in page_of(graph).text
    (graph.root.folder / "config.json").write_text('{"model_type": "fip_five_layer_cnn"}')
    assert "from_pretrained" not in page_of(graph).text


def test_strings_of_strangers_stay_text(tmp_path):
    graph = ModelGraph(tmp_path / "graph")
    add(
        graph,
        weights(0, 0, 2),
        id="root",
        metrics={f"{HOSTILE}/accuracy": 0.5},
        operator=HOSTILE,
        protocol={"tasks": [{"name": HOSTILE}, HOSTILE], "label_space": HOSTILE, "anchors": {HOSTILE: HOSTILE}},
    )
    chain(graph, "root", HOSTILE, [1], functional_distance={"root": 0.1, "unit": HOSTILE})
    expected = page_of(sample_graph(tmp_path / "other" / "graph"), recipe=RECIPE)
    page = page_of(graph, recipe=f"name: {HOSTILE!r}")
    assert page.tags.count("script") <= expected.tags.count("script") and "img" not in page.tags
    assert HOSTILE in page.text


@pytest.mark.parametrize("nodes", [0, 1])
def test_graphs_without_a_path_have_a_report_too(tmp_path, nodes):
    graph = ModelGraph(tmp_path / "graph")
    for _ in range(nodes):
        add(graph, weights(0, 0, 2), id="root", metrics={"yelp/accuracy": 0.9})
    page = page_of(graph, output=tmp_path / "page" / "report.html")
    assert "Summary" in page.text and ("root" in page.text) == bool(nodes)


def test_a_page_of_three_hundred_nodes_shows_them_all(tmp_path):
    for count in range(300):
        folder = tmp_path / "graph" / "nodes" / f"n{count}"
        folder.mkdir(parents=True)
        save_file(weights(count, 0.1 * count, 2), folder / "model.safetensors")
        branch = {"parent": f"n{max(0, count - 20)}", "name": f"branch {count % 20}"} if count else {}
        node = Node(id=folder.name, step=count, metrics={"a/accuracy": 0.5, "b/perplexity": 3.2}, **branch)
        (folder / "fip_node.json").write_text(node.to_json())
    graph = ModelGraph.load(tmp_path / "graph")
    page = page_of(graph)
    assert len(set(page.values("data-node")) & set(graph.nodes)) == 300


def test_a_section_is_one_function(graph, monkeypatch):
    def spectrum(graph):
        return sections.Section("spectrum", "Spectrum", f"of {len(graph)} nodes")

    monkeypatch.setattr(sections, "SECTIONS", [*sections.SECTIONS, spectrum, lambda graph: None])
    page = page_of(graph)
    assert "spectrum" in page.values("id") and "of 9 nodes" in page.text


def test_without_the_extra_the_message_says_how_to_get_it(graph, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(MissingExtraError, match=r'pip install "hf_fip\[report\]"') as raised:
        write_report(graph)
    assert isinstance(raised.value, ImportError) and isinstance(raised.value, InputError)
    assert not (graph.folder.parent / "report.html").exists()
