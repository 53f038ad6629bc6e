"""A family of masked language models, of any size and number, which load and can be queried."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import BertConfig, BertForMaskedLM

from hf_fip.graph import ModelGraph
from tests.testing_utils import BERT

from .families import add_model


TASKS = [{"name": "yelp", "dataset": "fancyzhx/yelp_polarity"}, {"name": "imdb", "dataset": "stanfordnlp/imdb"}]


def masked_family(folder: Path, points: int = 2, branches: tuple[str, ...] = ("naive", "fip"), **config) -> ModelGraph:
    """A root and `points` nodes on each branch, each model moved a little from the one before."""
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(**{**BERT, **config}))
    origin = {name: value.clone() for name, value in model.state_dict().items()}
    graph = ModelGraph(folder)
    shared = {"task": "fill-mask", "versions": {"hf_fip": "0.1.0", "transformers": "5.23.0", "torch": "2.13.0"}}
    root = add_model(
        graph,
        model,
        id="base-000000",
        metrics={"yelp/perplexity": 9.5},
        protocol={"tasks": TASKS[:1], "seed": 0},
        **shared,
    )
    for branch in branches:
        model.load_state_dict(origin)
        parent = root.id
        for point in range(1, points + 1):
            with torch.no_grad():
                for value in model.parameters():
                    value += 0.02 * torch.randn_like(value)
            parent = add_model(
                graph,
                model,
                id=f"{branch}-{point:02d}-{point:06x}",
                parent=parent,
                name=branch,
                operator="ContinualLearning",
                parameters={"task": "imdb", "method": branch},
                step=10 * point,
                metrics={"yelp/perplexity": 9.5 + point, "imdb/perplexity": 12.0 - point / 10},
                functional_distance={"parent": 0.01, "root": 0.01 * point, "name": "l2", "unit": "share"},
                protocol={"tasks": TASKS, "seed": 0},
                **shared,
            ).id
    return graph
