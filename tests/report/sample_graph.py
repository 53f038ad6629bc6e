"""A small graph with the fields of a real run: a root, naive fine-tuning that forgets, a path with a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from hf_fip.baselines import METHODS
from hf_fip.functional.statistics import certify_disagreement, certify_distance
from hf_fip.graph import ModelGraph, Node
from hf_fip.graph.distances import measure


RECIPE = """\
name: yelp_imdb
description: A small BERT learns Yelp polarity, then IMDB, and keeps the first.
model: embedded:bert-mini
label_space: append
anchors: 2000
disagreement_budget: 0.02
baselines: [naive]
"""
TASKS = [
    {"name": "yelp", "dataset": "fancyzhx/yelp_polarity", "label_column": "label"},
    {"name": "imdb", "dataset": "stanfordnlp/imdb", "label_column": "label"},
]
YELP = {"naive": [0.41, 0.08, 0.013, 0.0], "fip": [0.904, 0.899, 0.897, 0.893]}
IMDB = {"naive": [0.79, 0.842, 0.861, 0.868], "fip": [0.61, 0.72, 0.8, 0.812]}
DRIFT = {"naive": [0.31, 0.74, 1.12, 1.36], "fip": [0.0061, 0.0093, 0.0121, 0.0164]}
CHANGED = {"naive": [540, 910, 980, 1000], "fip": [4, 6, 9, 16]}


def protocol(tasks: int, **more: Any) -> dict[str, Any]:
    shared = {"tasks": TASKS[:tasks], "label_space": {"yelp": [0, 1], "imdb": [2, 3]}, "seed": 0}
    anchors = {"number": 2000, "labels_used": False, "tasks": ["yelp"], "held_out": 1000}
    return {**shared, **({"label_policy": "append", "anchors": anchors} if tasks > 1 else {}), **more}


def budget_report(name: str, point: int) -> dict[str, Any]:
    budget = 0.02 if name == "fip" else None
    distances = DRIFT[name][point] * torch.linspace(0.4, 1.6, 1000)
    certificates = [certify_disagreement(CHANGED[name][point], 1000, budget), certify_distance(distances, budget)]
    return {
        "asked": {"distance": budget, "disagreement": budget},
        "anchors": {
            "inputs": 2000,
            "distance": DRIFT[name][point],
            "disagreement": CHANGED[name][point] / (2000 if budget else 1000),
        },
        "held_out": [certificate.to_dict() for certificate in certificates],
        **({"restoration_steps": 12, "cap_hit": False} if budget else {}),
    }


def weights(seed: int, distance: float, classes: int) -> dict[str, torch.Tensor]:
    """The root's weights, moved by `distance` along a bent line of their own, under a head of `classes` outputs."""
    root, move = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in {"body.weight": (24, 16), "body.bias": (24,), "classifier.weight": (classes, 24)}.items():
        full = (4, *shape[1:]) if name.startswith("classifier") else shape
        first, bend = torch.randn((2, *full), generator=move)
        values = torch.randn(full, generator=root) + distance * first + 0.5 * distance**2 * bend
        tensors[name] = values[: shape[0]].contiguous()
    return tensors


def add(graph: ModelGraph, tensors: dict[str, torch.Tensor], **fields: Any) -> Node:
    def write(folder: Path) -> dict[str, Any]:
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text('{"model_type": "bert"}')
        nodes = graph.nodes
        parent = nodes[fields["parent"]].folder if fields.get("parent") else None
        return measure(folder, parent, graph.root.folder if nodes else None)

    versions = {"hf_fip": "0.1.0", "transformers": "5.23.0", "torch": "2.13.0"}
    return graph.add(Node(task="sequence-classification", versions=versions, **fields), write)


def sample_graph(folder: Path, points: int = 4) -> ModelGraph:
    """Root, then the branches `naive` and `fip` with `points` (1 to 4) nodes each."""
    graph = ModelGraph(folder)
    root = add(graph, weights(0, 0.0, 2), id="base-3f9a1c", metrics={"yelp/accuracy": 0.912}, protocol=protocol(1))
    for seed, name in enumerate(("naive", "fip"), 1):
        parent = root.id
        for point in range(points):
            report = {"budget": budget_report(name, point)}
            before = DRIFT[name][point - 1] if point else 0.0
            parent = add(
                graph,
                weights(seed, 0.25 * (point + 1), 4),
                id=f"{name}-{point + 1:02d}-{'7c1e90' if name == 'fip' else 'b04d22'}",
                parent=parent,
                name=name,
                operator="ContinualLearning",
                parameters={"task": "imdb", "method": name},
                step=125 * (point + 1),
                metrics={"yelp/accuracy": YELP[name][point], "imdb/accuracy": IMDB[name][point]},
                functional_distance={
                    "parent": DRIFT[name][point] - before,
                    "root": DRIFT[name][point],
                    "name": "l2",
                    "unit": "share of output variance",
                },
                protocol=protocol(2, method=METHODS[name].summary, **report),
            ).id
    return graph
