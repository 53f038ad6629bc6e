"""
MNIST, then Fashion-MNIST, on the paper's 5-layer CNN (paper: section on two tasks, Fig. 2): a 20-way head, no task id
at test time, 50 anchors without labels, against naive fine-tuning, replay and the distance of the paper's public code
on the same anchors, batches and steps.

    python scripts/reproduce/mnist_fashion.py --scale full --seeds 0 1 2 [--data_root DIR]
"""

from __future__ import annotations

from experiment import Measurement, Options, endpoint_measurements, reproduce, run_recipe


SMALL = ["tasks.mnist.max_train=1000", "tasks.fashion.max_train=1000", "tasks.mnist.max_test=500"]
SMALL += ["tasks.fashion.max_test=500", "base.epochs=2", "training.epochs=1", "path_points=2"]


PAPER = [
    {"method": "fip", "metric": "mnist/accuracy", "value": 96.0},
    {"method": "fip", "metric": "fashion/accuracy", "value": 89.0},
    {"method": "fip", "metric": "mean accuracy", "value": 91.0, "std": 1.1},
    {"method": "ewc", "metric": "mean accuracy", "value": 87.0, "std": 1.6},
]


def measure(seed: int, options: Options) -> list[Measurement]:
    overrides = [f"seed={seed}", *([] if options.is_full else SMALL)]
    folder = options.output_dir / f"{options.scale}-seed-{seed}"
    return endpoint_measurements(run_recipe("mnist_fashion", overrides, folder, options.data_root), {})


def protocol(options: Options) -> dict:
    return {
        "model": "5-layer CNN, 1.48 M weights",
        "head": "20 nodes, no task id at test time",
        "anchors": "50 MNIST images, labels used by er alone; their shifted copies count as anchors for all methods",
        "training images": 20000 if options.is_full else 1000,
    }


if __name__ == "__main__":
    reproduce("mnist_fashion", measure=measure, protocol=protocol, paper=PAPER, description=__doc__)
