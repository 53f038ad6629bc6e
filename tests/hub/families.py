"""Small families of real models, for publishing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hf_fip.graph import ModelGraph, Node
from hf_fip.graph.card import write_card
from hf_fip.graph.distances import measure
from hf_fip.models.loading import save_model
from tests.testing_utils import classifier, tokenizer


def add_model(graph: ModelGraph, model: Any, **fields: Any) -> Node:
    """Records `model` with a tokenizer, as a path does."""
    fields = {"task": "sequence-classification", "created": f"2026-01-01T00:00:{len(graph):02d}", **fields}
    node = Node(**fields)

    def write(folder: Path) -> dict[str, Any]:
        save_model(model, folder)
        tokenizer().save_pretrained(folder)
        parent = graph.nodes[node.parent].folder if node.parent else None
        write_card(node, folder)
        return measure(folder, parent, graph.root.folder if len(graph) else None)

    return graph.add(node, write)


def small_family(folder: Path, points: int = 2, branches: tuple[str, ...] = ("fip",)) -> ModelGraph:
    """A root `base` and branches of `points` nodes: `fip-1`, `fip-2`, …"""
    graph = ModelGraph(folder)
    model = classifier()
    tasks = [{"name": "yelp", "dataset": "fancyzhx/yelp_polarity"}, {"name": "imdb", "dataset": "stanfordnlp/imdb"}]
    root = add_model(graph, model, id="base", metrics={"yelp/accuracy": 0.9}, protocol={"tasks": tasks[:1]})
    for number, branch in enumerate(branches):
        model, parent = classifier(), root.id
        for point in range(1, points + 1):
            with torch.no_grad():
                model.classifier.weight += 0.01 * (number + 1)
            parent = add_model(
                graph,
                model,
                id=f"{branch}-{point}",
                parent=parent,
                name=branch,
                operator="ContinualLearning",
                parameters={"task": "imdb", "method": branch},
                step=10 * point,
                metrics={"yelp/accuracy": 0.9 - 0.01 * point, "imdb/accuracy": 0.5 + 0.1 * point},
                functional_distance={"parent": 0.01, "root": 0.01 * point, "name": "l2", "unit": "share"},
                protocol={"tasks": tasks, "seed": 0},
            ).id
    return graph
