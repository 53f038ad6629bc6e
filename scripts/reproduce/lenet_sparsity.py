"""
LeNet-300-100 on MNIST, from dense to 99.4 % zeros (paper: Fig. 3): the functionally invariant path without labels and
with them, against gradual magnitude pruning with labels, the same with distillation, pruning at once, lottery tickets,
movement pruning, and random networks of the same sparsity.

    python scripts/reproduce/lenet_sparsity.py --scale full --seeds 0 1 2 [--data_root DIR]

The dense network learns from the training images and two shifted copies of each. From there all methods of a seed
travel one path through all sparsities, with the same number of steps on the training images themselves. `small` takes
20,000 images and 5,000 steps a method, `full` all images and 24,000.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from experiment import Measurement, Options, reproduce
from vision_sparsity import compress_all, measure_sparsity, sparsity_pictures, with_copies


if TYPE_CHECKING:
    from pathlib import Path

    from hf_fip import ModelGraph

IMAGES = {"small": (20000, 5000), "full": (60000, 10000)}
LEVELS = (0.2, 0.5, 0.8, 0.9, 0.95, 0.98, 0.991, 0.994)
STEPS = {
    "small": (50, 50, 100, 150, 300, 850, 1600, 1900),
    "full": (800, 800, 1600, 1600, 2400, 4000, 6400, 6400),
}
BASE = {"epochs": 8, "learning_rate": 1e-3, "batch_size": 128}
TRAINING = {"learning_rate": 2e-3, "batch_size": 128, "save_strategy": "no", "disable_tqdm": True}
FIP = {"score": "fisher", "distance_temperature": 2.0}
METHODS = {
    "fip": FIP,
    "fip_labels": {"labels": True, **FIP},
    **{name: {"method": name} for name in ("gmp", "distill_gmp", "one_shot", "lottery_ticket", "movement")},
}


def measure(seed: int, options: Options) -> list[Measurement]:
    graph = dense_network(options.output_dir / f"{options.scale}-seed-{seed}", seed, options)
    compress_all(
        graph.root,
        METHODS,
        LEVELS,
        STEPS[options.scale],
        # The classifier's weights are pruned too: with them they are the 266,200 of the literature.
        include=["classifier"],
        anchors=IMAGES[options.scale][0],
        anchor_batch_size=128,
        distance_temperature=1.0,
        training=TRAINING,
        seed=seed,
        data_root=options.data_root,
    )
    graph.refresh()
    return measure_sparsity(graph, seed, options, include=["classifier"])


def dense_network(folder: Path, seed: int, options: Options) -> ModelGraph:
    """A graph whose root learned from shifted copies, and is to be kept on the images as they are."""
    from hf_fip import ModelGraph, Task, begin_graph
    from hf_fip.models import save_model

    train, test = IMAGES[options.scale]
    task = Task(name="mnist", dataset="ylecun/mnist", max_train=train, max_test=test)
    shifted = with_copies(task, options.output_dir / f"{options.scale}-data", 2, 2, False, options.data_root)
    learned = begin_graph(folder / "dense", model="embedded:lenet", task=shifted, training=BASE, seed=seed)
    graph = ModelGraph(folder / "graph")
    if not graph.nodes:

        def write(target: Path) -> None:
            save_model(learned.load_model(), target)
            learned.load_processor().save_pretrained(target)

        protocol = {**learned.protocol, "tasks": [task.to_dict()]}
        graph.add(replace(learned, folder=None, protocol=protocol), write)
    return graph


def protocol(options: Options) -> dict:
    train, test = IMAGES[options.scale]
    return {
        "model": "LeNet-300-100; sparsity is of all 266,200 weights, biases stay",
        "dense network": f"{BASE['epochs']} epochs of the training images and two copies of each, shifted by up to 2 "
        "pixels; one for all methods of a seed",
        "images": f"{train:,} to train on, {test:,} to test on",
        "steps": f"{sum(STEPS[options.scale]):,} a method: one path through all sparsities",
        "batch": "128 images: fip anchors, gmp, one_shot, movement and lottery_ticket labelled ones; fip_labels and "
        "distill_gmp 128 of both",
        "settings": "score, temperature and shifts chosen on 5,000 of the training images with seeds 10 and 11",
        "score": "fip and fip_labels prune by the Fisher score (gmp got no better by it), movement by its own, the "
        "others by magnitude",
        "labels": "fip none, all others those of the training images",
    }


def pictures(rows: list[dict]) -> dict:
    return sparsity_pictures(rows, "zeros among all weights (%)")


PAPER = [
    {"method": "fip", "sparsity": 99.1, "accuracy": "96.3 to 96.8"},
    {"method": "fip", "sparsity": 99.4, "accuracy": 96.0, "std": 0.6},
    {"method": "lottery ticket", "sparsity": 99.4, "accuracy": 91.0, "std": 3.0},
    {"method": "random networks", "accuracy": "6 to 10"},
]

if __name__ == "__main__":
    reproduce(
        "lenet_sparsity", measure=measure, protocol=protocol, paper=PAPER, description=__doc__, pictures=pictures
    )
