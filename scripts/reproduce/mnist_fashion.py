"""
MNIST, then Fashion-MNIST, on the paper's 5-layer CNN (paper: section on two tasks, Fig. 2): a 20-way head, no task id
at test time, every method of the package on the same base, 50 anchors, batches and steps. The best of them on 500
anchors, and on 50 anchors and their copies shifted by up to 3 pixels as well.

    python scripts/reproduce/mnist_fashion.py --scale full --seeds 0 1 2 [--data_root DIR]

On one core `small` takes 15 minutes a seed, `full` an hour.
"""

from __future__ import annotations

from experiment import (
    GRID,
    LABEL_WEIGHT,
    RIVALS,
    WITHOUT_ANCHORS,
    Branches,
    Measurement,
    Options,
    reproduce,
    run_recipe,
)


# Steps of 64 images after the base, for every method.
STEPS = {"full": 939, "small": 300}
SMALL = ["tasks.mnist.max_train=6000", "tasks.fashion.max_train=6000"]
SMALL += ["tasks.mnist.max_test=2000", "tasks.fashion.max_test=2000"]
ON_ANCHORS = tuple(method for method in RIVALS if method not in WITHOUT_ANCHORS)
ON_MANY = ("er", "gem", "der", "derpp")
ON_COPIES = ("er", "derpp")
# The recipe's own path.
OWN = {"anchors": 50, "shift": 3}
COMPARED = (
    ({"anchors": 50}, ON_ANCHORS),
    ({"anchors": 500}, ON_MANY),
    (OWN, ON_COPIES),
    ({"anchors": 50, "mix": 50}, ON_COPIES),
)

PAPER = [
    {"method": "fip", "metric": "mnist/accuracy", "value": 96.0},
    {"method": "fip", "metric": "fashion/accuracy", "value": 89.0},
    {"method": "fip", "metric": "mean accuracy", "value": 91.0, "std": 1.1},
    {"method": "ewc", "metric": "mean accuracy", "value": 87.0, "std": 1.6},
]


def compared() -> Branches:
    """Every method; those that use anchors, with each number of them, their shifted copies and mixtures."""
    found = Branches({"task": "fashion"}, path=OWN)
    for method in WITHOUT_ANCHORS:
        found.add(method)
    for setting, rivals in COMPARED:
        copies = {f"anchor_{name}": setting.get(name, 0) for name in ("shift", "mix")}
        step = {"anchors": setting["anchors"], **copies}
        for method in (*rivals, *(("fip",) if setting != OWN else ())):
            found.add(method, setting, **step)
        found.add("fip+labels", setting, method="fip", anchor_label_weight=LABEL_WEIGHT, **step)
    return found


def measure(seed: int, options: Options) -> list[Measurement]:
    branches = compared()
    overrides = [f"seed={seed}", *([] if options.is_full else SMALL), "path_points=1", "baselines=[]"]
    overrides += [f"training.max_steps={STEPS[options.scale]}", branches.override]
    folder = options.output_dir / f"{options.scale}-seed-{seed}"
    return branches.measurements(run_recipe("mnist_fashion", overrides, folder, options.data_root))


def protocol(options: Options) -> dict:
    return {
        "model": "5-layer CNN, 1.48 M weights",
        "scenario": "class-incremental: 20 output nodes, no task id at test time",
        "anchors": "MNIST training images, the same for all methods; labels used by er, gem, agem, derpp, fip+labels; "
        "shift, mix: copies of them, shifted by up to so many pixels, and so many mixtures of each with others",
        "training images": f"{20000 if options.is_full else 6000} of each task",
        "test images": f"{'all that are' if options.is_full else 2000} of each task",
        "steps": f"{STEPS[options.scale]} of 64 images and 50 anchors for every method, joint included",
        "tuning": GRID,
    }


if __name__ == "__main__":
    reproduce("mnist_fashion", measure=measure, protocol=protocol, paper=PAPER, description=__doc__)
