"""
A BERT learns Yelp reviews, then IMDB reviews (paper: BERT on Yelp and IMDB), then Amazon reviews, every method of the
package on the same base, anchors, batches and steps: with appended labels and no task id at test time; with shared
labels, those that matter there; and with the task known, as an adapter for each task (LoRA) needs it.

    python scripts/reproduce/yelp_imdb.py --scale full --seeds 0 1 2 [--data_root DIR]

Both scales use the embedded BERT-mini. The Amazon reviews are `fancyzhx/amazon_polarity`; a `data_root` without it has
the sentences of `sentiment_sentences` (UCI) in their place. On one idle core `small` takes about half an hour a seed,
`full` three hours.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiment import GRID, LABEL_WEIGHT, RIVALS, Branches, Measurement, Options, reproduce, run_recipe


STEPS = {"full": 250, "small": 100}
ANCHORS = {"full": 2000, "small": 500}
TOKENS = {"full": 192, "small": 64}
TRAINING = {"full": 25000, "small": 2000}
TEST = {"full": 5000, "small": 500}
# For each policy of labels, the rivals over two tasks and those over all three.
COMPARED = {
    "append": (RIVALS, ("naive", "joint", "er", "fdr", "derpp")),
    "shared": (("naive", "joint", "lwf", "er", "derpp"), ("naive", "joint", "er", "fdr", "derpp")),
    "per_task": (("naive", "lora"), ("naive", "joint", "osf", "er", "fdr", "derpp", "lora")),
}
# In a stream, what is kept of a task are its outputs of when it had just been learned.
STREAM = {"stream": ["imdb", "amazon"], "reference": "learned"}


def compared(label_space: str) -> Branches:
    """The branches of one policy of labels, beside the recipe's own path, which learns IMDB."""
    found = Branches({})
    two, three = COMPARED[label_space]
    for methods, setting, step in ((two, {}, {"task": "imdb"}), ((*three, "fip"), {"then": "amazon"}, STREAM)):
        for method in methods:
            found.add(method, setting, **step)
        found.add("fip+labels", setting, method="fip", anchor_label_weight=LABEL_WEIGHT, **step)
    return found


def third_task(data_root: str | None) -> dict[str, Any]:
    """Amazon reviews of the Hub, or what a local folder has in their place."""
    task = {"dataset": "fancyzhx/amazon_polarity", "input_column": "content"}
    if data_root is not None and not (Path(data_root) / "amazon_polarity").is_dir():
        task = {"dataset": "sentiment_sentences", "config": "amazon"}
    return {**task, "class_names": ["negative", "positive"]}


def measure(seed: int, options: Options) -> list[Measurement]:
    scale, measured = options.scale, []
    for label_space in COMPARED:
        branches = compared(label_space)
        overrides = ["model=embedded:bert-mini", f"seed={seed}", f"label_space={label_space}", "baselines=[]"]
        overrides += [f"anchors={ANCHORS[scale]}", f"max_length={TOKENS[scale]}", "path_points=1"]
        overrides += [f"tasks.amazon={json.dumps(third_task(options.data_root))}"]
        overrides += ["path=[{operator: ContinualLearning, task: imdb}]"]
        for task in ("yelp", "imdb", "amazon"):
            overrides += [f"tasks.{task}.max_train={TRAINING[scale]}", f"tasks.{task}.max_test={TEST[scale]}"]
        overrides += [f"training.max_steps={STEPS[scale]}", branches.override]
        folder = options.output_dir / f"{scale}-{label_space}-seed-{seed}"
        result = run_recipe("yelp_imdb", overrides, folder, options.data_root)
        measured += branches.measurements(result, {"labels": label_space})
        measured += forgotten(result["graph"], branches, {"labels": label_space})
    return measured


def forgotten(folder: str, branches: Branches, setting: dict[str, Any]) -> list[Measurement]:
    """Of each branch, how far accuracies fell from their best, and what the next task gained before it was learned."""
    from hf_fip import ModelGraph
    from hf_fip.metrics.stream import stream_summary

    graph = ModelGraph.load(folder)
    found = []
    for branch, (method, own) in branches.shown.items():
        summary = stream_summary(graph, branch)
        for name in ("forgetting", "forward_transfer"):
            if name in summary:
                found.append(Measurement(method, name.replace("_", " "), 100 * summary[name], {**setting, **own}))
    return found


def protocol(options: Options) -> dict:
    scale, third = options.scale, third_task(options.data_root)
    source = " ".join(third[key] for key in ("dataset", "config") if key in third)
    return {
        "model": f"embedded:bert-mini, 1.35 M weights, {TOKENS[scale]} tokens",
        "scenario": "append: class-incremental, two outputs a task; shared: domain-incremental, two outputs; no task "
        "id at test; per_task: task-incremental, the task is given",
        "tasks": f"Yelp, then IMDB; then amazon ({source}), outputs kept being those of when a task was learned",
        "training reviews": f"all, at most {TRAINING[scale]} of each task; at most {TEST[scale]} to test on",
        "anchors": f"{ANCHORS[scale]} training reviews of all earlier tasks together, the same for all methods; "
        "labels used by er, gem, agem, derpp, fip+labels",
        "steps": f"{STEPS[scale]} a task, of 32 reviews and 32 anchors, for every method, joint included",
        "tuning": GRID,
    }


if __name__ == "__main__":
    reproduce("yelp_imdb", measure=measure, protocol=protocol, paper=[], description=__doc__)
