"""
ResNet-20 on CIFAR-10, from dense to 95 % zeros (paper: Fig. 3): the functionally invariant path without labels,
against gradual magnitude pruning and lottery tickets, both with labels, and random networks of the same sparsity.

    python scripts/reproduce/resnet20_sparsity.py --scale full --seeds 0 1 2 [--data_root DIR]

All methods of a seed start from one dense network and travel one path through all sparsities with the same number of
steps. `small` takes 2,000 images, each with a mirrored and shifted copy, and 630 steps a method: figures to be read
relative to the dense network's. `full` takes all 50,000 images with their copies and 50,000 steps, for which it wants
a GPU.
"""

from __future__ import annotations

from experiment import Measurement, Options, reproduce
from vision_sparsity import compress_all, measure_sparsity, sparsity_pictures, with_copies


IMAGES = {"small": (2000, 400), "full": (50000, 10000)}
LEVELS = (0.2, 0.4, 0.6, 0.8, 0.9, 0.93, 0.95)
STEPS = {"small": (90,) * 7, "full": (5000, 5000, 5000, 8000, 8000, 8000, 11000)}
BASE = {"learning_rate": 3e-3, "weight_decay": 0.05, "warmup_steps": 0.05, "lr_scheduler_type": "linear"}
BASE_SIZE = {"small": {"max_steps": 1800, "batch_size": 32}, "full": {"epochs": 60, "batch_size": 128}}
TRAINING = {"learning_rate": 3e-3, "save_strategy": "no", "disable_tqdm": True}
METHODS = {
    "fip": {},
    "gmp": {"method": "gmp"},
    "lottery_ticket": {"method": "lottery_ticket"},
}


def measure(seed: int, options: Options) -> list[Measurement]:
    from hf_fip import ModelGraph, Task, begin_graph

    train, test = IMAGES[options.scale]
    size = BASE_SIZE[options.scale]
    task = Task(name="cifar10", dataset="uoft-cs/cifar10", max_train=train, max_test=test)
    task = with_copies(task, options.output_dir / f"{options.scale}-data", 1, 3, True, options.data_root)
    graph = options.output_dir / f"{options.scale}-seed-{seed}" / "graph"
    root = begin_graph(graph, model="embedded:resnet20", task=task, training={**BASE, **size}, seed=seed)
    compress_all(
        root,
        METHODS,
        LEVELS,
        STEPS[options.scale],
        anchors=2 * train,
        anchor_batch_size=size["batch_size"],
        training={**TRAINING, "batch_size": size["batch_size"]},
        seed=seed,
    )
    return measure_sparsity(ModelGraph.load(graph), seed, options)


def protocol(options: Options) -> dict:
    train, test = IMAGES[options.scale]
    batch = BASE_SIZE[options.scale]["batch_size"]
    return {
        "model": "ResNet-20, option A; sparsity is of its 267,696 filter weights, norms and classifier stay dense",
        "images": f"{train:,} to train on and as many mirrored copies, shifted by up to 3 pixels; {test:,} to test on",
        "dense network": ", ".join(f"{name} {value}" for name, value in (BASE | BASE_SIZE[options.scale]).items()),
        "steps": f"{sum(STEPS[options.scale]):,} a method: one path through all sparsities",
        "batch": f"{batch} images: fip anchors, gmp and lottery_ticket labelled ones",
        "batch norms": "in all methods' steps on the statistics of the batch; networks are compared on running ones",
        "settings": "learning rate and batch norms' mode chosen on 400 of the training images with seed 10",
        "labels": "fip none, all others those of the training images",
    }


def pictures(rows: list[dict]) -> dict:
    return sparsity_pictures(rows, "zeros among the filters' weights (%)", "% of dense")


PAPER = [
    {"method": "fip", "sparsity": 93, "accuracy": "82 to 84.7", "data": "all of CIFAR-10"},
    {"method": "random networks", "accuracy": "18 to 30"},
]

if __name__ == "__main__":
    reproduce(
        "resnet20_sparsity", measure=measure, protocol=protocol, paper=PAPER, description=__doc__, pictures=pictures
    )
