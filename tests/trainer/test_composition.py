"""CL and Co in both orders, as recipes say it: on texts and on images, from the built-in files."""

from __future__ import annotations

import pytest

from hf_fip import ModelGraph
from hf_fip.recipes import load_recipe, run

from .test_compression import zero_share


QUICK = ["report=false", "max_length=24", "anchors=24", "base={max_steps: 2, batch_size: 8}"]
QUICK += ["training={max_steps: 2, batch_size: 8, learning_rate: 1e-3}"]
REVIEWS = [f"tasks.{task}.{size}=24" for task in ("yelp", "imdb") for size in ("max_train", "max_test")]
REVIEWS += ["tasks.yelp.dataset=embedded:restaurants", "tasks.imdb.dataset=embedded:films"]
IMAGES = """\
model: embedded:lenet
tasks:
  low: {dataset: embedded:digits, classes: [0, 1, 2], max_train: 96, max_test: 60}
  high: {dataset: embedded:digits, classes: [3, 4], max_train: 64, max_test: 40}
base: {epochs: 2, learning_rate: 1e-3, batch_size: 32}
training: {epochs: 2, learning_rate: 1e-3, batch_size: 32}
anchors: 96
path:
  - &learn {operator: ContinualLearning, task: high, path_points: 1}
  - {operator: Compression, sparsity: [0.3, 0.6], steps: 8, anchors: 96}
branches:
  at_60: [{operator: Compression, sparsity: 0.6, steps: 8, anchors: 96}, *learn]
report: false
"""


def graph_of(name, overrides, folder):
    return ModelGraph.load(run(load_recipe(name, overrides), folder)["graph"])


def test_cl_then_co_records_every_sparsity_on_one_path(tmp_path):
    step = ["path.1.steps=6", "path.1.anchors=24", "model=embedded:bert-demo"]
    graph = graph_of("cl_then_co", [*QUICK, *REVIEWS, *step], tmp_path)
    _, learned, *sparse = graph.lineage("fip")
    assert zero_share(learned) == 0 and "imdb/accuracy" in learned.metrics
    targets = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert [zero_share(node) for node in sparse] == pytest.approx(targets, abs=1e-3)
    for node in sparse:
        assert node.protocol["anchors"]["tasks"] == ["yelp", "imdb"], "the anchors are of both tasks"
        assert {"yelp/accuracy", "imdb/accuracy"} <= node.metrics.keys()


def test_co_then_cl_learns_at_every_sparsity(tmp_path):
    short = [f"branches.at_{share}.0.{key}" for share in (10, 20, 30, 40, 50) for key in ("steps=1", "anchors=24")]
    step = ["path.0.steps=1", "path.0.anchors=24", "model=embedded:bert-demo"]
    graph = graph_of("co_then_cl", [*QUICK, *REVIEWS, *step, *short], tmp_path)
    ends = {name: graph[name] for name in graph.endpoints if name != "base"}
    found = {name: (node.operator, round(zero_share(node), 2)) for name, node in ends.items()}
    shares = {"fip": 0.6, "at_10": 0.1, "at_20": 0.2, "at_30": 0.3, "at_40": 0.4, "at_50": 0.5}
    assert found == {name: ("ContinualLearning", share) for name, share in shares.items()}
    assert all("imdb/accuracy" in node.metrics for node in ends.values())


def test_a_masked_language_model_becomes_sparse_beside_its_rival(tmp_path):
    text = ["tasks.wikitext={dataset: embedded:restaurants, kind: fill-mask, max_train: 24, max_test: 16}"]
    step = ["model=embedded:bert-demo", "path.0.steps=8", "path.0.anchors=24"]
    graph = graph_of("bert_fill_mask", [*QUICK, *text, *step], tmp_path)
    targets = [0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95]
    for branch, uses_labels in (("fip", False), ("gmp", True)):
        path = graph.lineage(branch)[1:]
        assert [zero_share(node) for node in path] == pytest.approx(targets, abs=1e-3)
        assert all(node.metrics["wikitext/perplexity"] > 1 for node in path)
        assert path[-1].protocol["training_labels_used"] is uses_labels


def test_both_orders_on_images_and_the_distance_between_them(tmp_path):
    file = tmp_path / "both.yaml"
    file.write_text(IMAGES, encoding="utf-8")
    graph = graph_of(file, [], tmp_path / "run")
    first, last = graph["fip"], graph["at_60"]
    for node in (first, last):
        assert zero_share(node) == pytest.approx(0.6, abs=1e-3)
        assert {"low/accuracy", "high/accuracy"} <= node.metrics.keys()
        assert node.load_model().config.num_labels == 5
    found = graph.distance(last, first, "embedded:digits", max_samples=40, progress=False)
    assert found.functional > 0 and found.euclidean > 0
    assert graph.distance(first, first, "embedded:digits", max_samples=40, progress=False).functional == 0
