"""
What `lenet_sparsity` and `resnet20_sparsity` share: data with shifted copies, the paths of all methods, the numbers of
a graph of sparse networks, and their pictures.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drawing import COLOURS, HEIGHT, WIDTH, lines
from experiment import Measurement, Options


if TYPE_CHECKING:
    import plotly.graph_objects as go
    import torch
    from transformers import PreTrainedModel

    from hf_fip import ModelGraph, Node, Task

DENSE, RANDOM = "dense", "random masks"
# Whose layers are counted.
LAYERED = ("fip", "gmp")


def with_copies(task: Task, folder: Path, copies: int, shift: int, mirrored: bool, data_root: str | None) -> Task:
    """
    The task on a data set with copies of each training image, each shifted at random; test images stay as they are.

    Args:
        task ([`~hf_fip.Task`]): a task of images.
        folder (`Path`): where the data set goes, unless it is there already.
        copies (`int`): number of copies beside each image.
        shift (`int`): the largest shift, in pixels.
        mirrored (`bool`): whether the copies are mirrored.
        data_root (`str`, *optional*): local folder with the task's data set.
    """
    from hf_fip.models.pretraining import complete_folder

    if not folder.is_dir():
        rng = random.Random(0)

        def copied(batch: dict[str, list]) -> dict[str, list]:
            pairs = list(zip(batch["image"], batch["label"], strict=True))
            pairs += [(_moved(image, rng, shift, mirrored), label) for image, label in pairs for _ in range(copies)]
            return {"image": [image for image, _ in pairs], "label": [label for _, label in pairs]}

        rows = {split: task.load(split, data_root, 0) for split in ("train", "test")}
        fingerprint = f"{rows['train']._fingerprint}-{copies}-{shift}-{mirrored}"
        rows["train"] = rows["train"].map(copied, batched=True, new_fingerprint=fingerprint)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with complete_folder(folder) as unfinished:
            for split, split_rows in rows.items():
                split_rows.to_parquet(unfinished / f"{split}.parquet")
    return replace(task, dataset=str(folder.resolve()), max_train=None, max_test=None)


def _moved(image, rng: random.Random, shift: int, mirrored: bool):
    from PIL import Image, ImageOps

    canvas = Image.new(image.mode, image.size)
    canvas.paste(
        ImageOps.mirror(image) if mirrored else image, (rng.randint(-shift, shift), rng.randint(-shift, shift))
    )
    return canvas


def compress_all(
    root: Node, methods: dict[str, dict[str, Any]], levels: Sequence[float], steps: Sequence[int], **shared: Any
) -> None:
    """
    Travels one path for each method, all alike from the same dense network.

    Args:
        root ([`~hf_fip.Node`]): the dense network.
        methods (`dict[str, dict]`): by the branch's name, what a method gives [`~hf_fip.Compression`] beside `shared`.
        levels, steps: shares of zeros and optimizer steps of the path's segments.
        shared: further arguments of all.
    """
    from hf_fip import Compression

    for branch, own in methods.items():
        Compression(list(levels), steps=list(steps), branch=branch, **{**shared, **own})(root)


def measure_sparsity(graph: ModelGraph, seed: int, options: Options, include: Sequence[str] = ()) -> list[Measurement]:
    """
    Accuracy of every node on the test split, its share of the dense accuracy, and how many predictions differ from
    the dense network's; the same of random networks of each sparsity; and the zeros of each layer at the sparsest
    point.

    Args:
        graph (`ModelGraph`): its root is the dense network, all other nodes come from `Compression`.
        seed (`int`): of the random networks.
        options ([`Options`]): where the data are.
        include (sequence of `str`, *optional*): as the recipe's.
    """
    from hf_fip.baselines.compression import random_network
    from hf_fip.objectives.prunable import prunable_weights
    from hf_fip.tasks import features

    root = graph.root
    dense = root.load_model()
    task = root.tasks[0]
    test = features(task.load("test", options.data_root, root.parameters["seed"]), root.load_processor())[:]
    predicted = _predictions(dense, test["pixel_values"])
    right = 100 * float((predicted == test["labels"]).float().mean())
    found = [Measurement(DENSE, "accuracy", right, {})]

    def add(method: str, setting: dict[str, Any], network: PreTrainedModel) -> None:
        now = _predictions(network, test["pixel_values"])
        accuracy = 100 * float((now == test["labels"]).float().mean())
        found.append(Measurement(method, "accuracy", accuracy, setting))
        found.append(Measurement(method, "% of dense", 100 * accuracy / right, setting))
        changed = 100 * float((now != predicted).float().mean())
        found.append(Measurement(method, "changed predictions", changed, setting))

    targets: dict[float, None] = {}
    for node in graph:
        if node.id == root.id:
            continue
        record = node.protocol["compression"]
        network = node.load_model()
        targets[record["target"]] = None
        add(node.name, _setting(record["target"]), network)
        if node.id == graph.endpoints[node.name] and node.name in LAYERED:
            for name, weight in prunable_weights(network, include).items():
                zeros = 100 * float((weight == 0).float().mean())
                setting = {**_setting(record["target"]), "layer": name.removesuffix(".weight")}
                found.append(Measurement(node.name, "zeros in layer", zeros, setting))
    for target in targets:
        drawn = zlib.crc32(f"{seed} {target}".encode())
        add(RANDOM, _setting(target), random_network(dense, target, seed=drawn, include=include))
    return found


def _setting(target: float) -> dict[str, float]:
    return {"sparsity": round(100 * target, 2)}


def _predictions(network: PreTrainedModel, pixels: torch.Tensor) -> torch.Tensor:
    import torch

    with torch.no_grad():
        return torch.cat([network.eval()(part).logits.argmax(-1) for part in pixels.split(500)])


def sparsity_pictures(rows: list[dict[str, Any]], axis: str, level: str = "accuracy") -> dict[str, go.Figure]:
    """
    The pictures of a results file.

    Args:
        rows (`list[dict]`): as [`experiment.summarize`] gives them.
        axis (`str`): title of the axis of sparsity.
        level (`str`, *optional*, defaults to `"accuracy"`): the metric drawn beside the changed predictions.
    """
    curves = [row for row in rows if "layer" not in row["setting"]]
    names = [name for name in dict.fromkeys(row["method"] for row in curves) if name != RANDOM]
    titles = {"accuracy": "accuracy (%)", "% of dense": "accuracy (% of the dense network's)"}
    drawn = {}
    for metric, title in ((level, titles[level]), ("changed predictions", "changed predictions (%)")):
        named = {name: (name, metric) for name in names}
        drawn[_file_name(metric)] = lines(curves, named, x="sparsity", axes=(axis, title))
    with_random = {name: (name, "accuracy") for name in (*LAYERED, RANDOM)}
    drawn["random"] = lines(curves, with_random, x="sparsity", axes=(axis, titles["accuracy"]))
    levels = sorted({row["setting"]["sparsity"] for row in curves if "sparsity" in row["setting"]})
    for figure in drawn.values():
        # The last per cents would lie on top of one another.
        figure.update_xaxes(type="category", categoryorder="array", categoryarray=levels)
    for metric in (level, "changed predictions"):
        drawn[_file_name(metric)].update_yaxes(range=_window(curves, metric))
    return drawn | {"layers": _layers([row for row in rows if "layer" in row["setting"]])}


def _window(rows: list[dict[str, Any]], metric: str) -> list[float]:
    """The part of the axis to show: a method that fails would press all others into one line."""
    values = {row["method"]: [] for row in rows if row["method"] != RANDOM}
    for row in rows:
        if row["metric"] == metric and row["method"] in values:
            values[row["method"]].append(row["mean"])
    close = [value for name in LAYERED for value in values[name]]
    room = max(close) - min(close)
    shown = [v for own in values.values() for v in own if min(close) - 1.5 * room < v < max(close) + 1.5 * room]
    return [min(shown) - 0.2 * room, max(shown) + 0.2 * room]


def _file_name(metric: str) -> str:
    return metric.replace(" ", "-").replace("%", "share")


def _layers(rows: list[dict[str, Any]]) -> go.Figure:
    """A box for each layer and method: mean and standard deviation over the seeds."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for colour, method in zip(COLOURS, dict.fromkeys(row["method"] for row in rows), strict=False):
        shown = [row for row in rows if row["method"] == method]
        means, spreads = [row["mean"] for row in shown], [row["std"] or 0 for row in shown]
        low, high = ([m + side * s for m, s in zip(means, spreads, strict=True)] for side in (-1, 1))
        figure.add_box(
            x=[row["setting"]["layer"] for row in shown],
            q1=low,
            median=means,
            q3=high,
            lowerfence=low,
            upperfence=high,
            name=method,
            marker_color=colour,
        )
    title = f"zeros at {max(row['setting']['sparsity'] for row in rows):g} % (%), mean ± std"
    figure.update_layout(template="plotly_white", width=WIDTH, height=HEIGHT, boxmode="group", margin={"t": 24})
    figure.update_yaxes(title_text=title)
    return figure
