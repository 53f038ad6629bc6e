"""
A BERT learns Yelp reviews, then IMDB reviews (paper: BERT on Yelp and IMDB), with appended labels and no task id at
test time, every method of the package on the same base, anchors, batches and steps, beside them an adapter for each
task (LoRA), which has to be told the task; and with shared labels the methods that matter there.

    python scripts/reproduce/yelp_imdb.py --scale full --seeds 0 1 2 [--data_root DIR]

Both scales use the embedded BERT-mini. On one core `small` takes 12 minutes a seed, `full` an hour.
"""

from __future__ import annotations

from experiment import GRID, LABEL_WEIGHT, RIVALS, Branches, Measurement, Options, reproduce, run_recipe


STEPS = {"full": 250, "small": 100}
ANCHORS = {"full": 2000, "small": 500}
TOKENS = {"full": 192, "small": 64}
SMALL = [
    "tasks.yelp.max_train=2000",
    "tasks.imdb.max_train=2000",
    "tasks.yelp.max_test=500",
    "tasks.imdb.max_test=500",
]
COMPARED = {"append": RIVALS, "shared": ("naive", "joint", "lwf", "er", "derpp")}


def compared(label_space: str) -> Branches:
    """Every method of one policy for the labels."""
    found = Branches({"task": "imdb"})
    for method in COMPARED[label_space]:
        found.add(method)
    if label_space == "append":
        found.add("lora", {"task id": "known"})
    found.add("fip+labels", method="fip", anchor_label_weight=LABEL_WEIGHT)
    return found


def measure(seed: int, options: Options) -> list[Measurement]:
    measured = []
    for label_space in COMPARED:
        branches = compared(label_space)
        overrides = ["model=embedded:bert-mini", f"seed={seed}", f"label_space={label_space}", "baselines=[]"]
        overrides += [f"anchors={ANCHORS[options.scale]}", f"max_length={TOKENS[options.scale]}", "path_points=1"]
        overrides += [f"training.max_steps={STEPS[options.scale]}", branches.override]
        overrides += [] if options.is_full else SMALL
        folder = options.output_dir / f"{options.scale}-{label_space}-seed-{seed}"
        result = run_recipe("yelp_imdb", overrides, folder, options.data_root)
        measured += branches.measurements(result, {"labels": label_space})
    return measured


def protocol(options: Options) -> dict:
    return {
        "model": f"embedded:bert-mini, 1.35 M weights, {TOKENS[options.scale]} tokens",
        "scenario": "append: class-incremental, 4 output nodes; shared: domain-incremental, 2; no task id at test, "
        "but for lora (task-incremental)",
        "training reviews": f"{'all, at most 25000' if options.is_full else 2000} of each task",
        "anchors": f"{ANCHORS[options.scale]} Yelp training reviews, the same for all methods; labels used by er, "
        "gem, agem, derpp, fip+labels",
        "steps": f"{STEPS[options.scale]} of 32 reviews and 32 anchors for every method, joint included",
        "tuning": GRID,
    }


if __name__ == "__main__":
    reproduce("yelp_imdb", measure=measure, protocol=protocol, paper=[], description=__doc__)
