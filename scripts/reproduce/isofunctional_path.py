"""
Isofunctional paths (paper: networks far apart in weight space with the same outputs, L = 0): the 5-layer CNN on MNIST
turns its weights away while its outputs on unlabelled training images are held. `fip` repels each layer in angle;
`distance` in length; `no_repulsion` follows nothing at all; `random` goes as far as `fip` at each point in a random
direction, without a step of training.

    python scripts/reproduce/isofunctional_path.py --scale full --seeds 0 1 2 [--data_root DIR]

All walks of a seed start from the same network and take the same steps on the same anchors. A distance alone flatters,
so the table tells the norm and the cosine to the start beside it. `changed` are test images whose prediction differs
from the start's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from experiment import Measurement, Options, reproduce, run_recipe


if TYPE_CHECKING:
    import plotly.graph_objects as go
    import torch
    from transformers import PreTrainedModel

    from hf_fip import Node

RANDOM = "random"
SMALL = ["tasks.mnist.max_train=1000", "tasks.mnist.max_test=500", "base.epochs=2", "anchors=300", "path_points=2"]
SMALL += ["path.0.steps=20", "branches.distance.0.steps=20", "branches.no_repulsion.0.steps=20"]
PAPER = [{"finding": "paths with L = 0 lead to networks of other weights with the same outputs; no figures are given"}]
TITLES = {
    "changed": "changed test predictions (%)",
    "cosine": "cosine to the start",
    "norm ratio": "‖w‖ / ‖w₀‖",
}


def measure(seed: int, options: Options) -> list[Measurement]:
    from drawing import save

    from hf_fip import ModelGraph
    from hf_fip.report.figures import weight_space
    from hf_fip.tasks import features

    folder = options.output_dir / f"{options.scale}-seed-{seed}"
    overrides = [f"seed={seed}", *([] if options.is_full else SMALL)]
    graph = ModelGraph.load(run_recipe("isofunctional", overrides, folder, options.data_root)["graph"])
    save({"weight-space": weight_space(graph)}, folder)
    root = graph.root
    start = root.load_model()
    test = features(root.tasks[0].load("test", options.data_root, seed), root.load_processor())[:]
    predicted = _predictions(start, test["pixel_values"])
    found = [Measurement("start", "accuracy", _percent(predicted == test["labels"]), {"point": 0})]

    def add(method: str, point: int, network: PreTrainedModel, record: dict[str, Any]) -> None:
        now = _predictions(network, test["pixel_values"])
        values = {
            "changed": _percent(now != predicted),
            "accuracy": _percent(now == test["labels"]),
            "cosine": record["cosine"],
            "largest cosine of a layer": max(layer["cosine"] for layer in record["layers"].values()),
            "norm ratio": record["norm_ratio"],
            "distance": record["distance"],
        }
        found.extend(Measurement(method, metric, value, {"point": point}) for metric, value in values.items())

    points: dict[str, int] = {}
    for node in graph:
        if node.id == root.id:
            continue
        points[node.name] = points.get(node.name, 0) + 1
        add(node.name, points[node.name], node.load_model(), node.protocol["displacement"])
        if node.name == "fip":
            network, record = _random_step(root, node, seed)
            add(RANDOM, points["fip"], network, record)
    return found


def _random_step(root: Node, node: Node, seed: int) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The start moved by as much as `node` was, in a direction in which no weight is preferred."""
    import torch

    from hf_fip.objectives import Displacement

    network, moved = root.load_model(), dict(node.load_model().named_parameters())
    displacement = Displacement()
    displacement.begin_segment(network)
    generator = torch.Generator().manual_seed(seed)
    noise = {name: torch.randn(p.shape, generator=generator) for name, p in network.named_parameters()}
    with torch.no_grad():
        length = _norm(moved[name] - p for name, p in network.named_parameters()) / _norm(noise.values())
        for name, p in network.named_parameters():
            p += length * noise[name]
    return network, displacement.report()["displacement"]


def _norm(tensors) -> torch.Tensor:
    import torch

    return torch.stack([tensor.norm() for tensor in tensors]).norm()


def _predictions(network: PreTrainedModel, pixels: torch.Tensor) -> torch.Tensor:
    import torch

    with torch.no_grad():
        return torch.cat([network.eval()(part).logits.argmax(-1) for part in pixels.split(500)])


def _percent(values: torch.Tensor) -> float:
    return 100 * values.float().mean().item()


def protocol(options: Options) -> dict[str, Any]:
    return {
        "model": "5-layer CNN, 1.48 M weights",
        "steps of each walk": 1000 if options.is_full else 20,
        "anchors": f"{5000 if options.is_full else 300} training images, 64 a step, no labels",
        "test images": 10000 if options.is_full else 500,
        "budget": "at most 0.5 % of the anchors' predictions changed, at each point",
        "tuned": "strength of the repulsion, angle (85°) and steps on another seed, 10",
    }


def pictures(rows: list[dict[str, Any]]) -> dict[str, go.Figure]:
    from drawing import lines

    methods = dict.fromkeys(row["method"] for row in rows if row["method"] != "start")
    return {
        metric.replace(" ", "-"): lines(
            rows, {name: (name, metric) for name in methods}, x="point", axes=("point of the path", title)
        )
        for metric, title in TITLES.items()
    }


if __name__ == "__main__":
    reproduce(
        "isofunctional_path",
        measure=measure,
        protocol=protocol,
        paper=PAPER,
        description=__doc__,
        pictures=pictures,
    )
