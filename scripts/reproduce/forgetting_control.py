"""
Is a forgetting budget kept where it is said to be? MNIST then Fashion-MNIST (500 anchors) and Yelp then IMDB (2,000
anchors) under budgets of 1, 2 and 5 % changed predictions: of every recorded node whether it is certified, and how
many predictions truly change on test inputs that nobody has looked at before. A node that is certified and changes
more than its budget is a silent violation.

    python scripts/reproduce/forgetting_control.py --scale full --seeds 0 1 2 3 4 [--data_root DIR]

On one core `small` takes about 6 minutes a seed, `full` half an hour.
"""

from __future__ import annotations

from statistics import fmean
from typing import Any

from experiment import Measurement, Options, reproduce, run_recipe


BUDGETS = (0.01, 0.02, 0.05)
POINTS = {"full": 3, "small": 2}
EXPERIMENTS = {
    "mnist_fashion": {
        "old": "mnist",
        "new": "fashion",
        "overrides": ["anchors=500"],
        "full": ["training.max_steps=939"],
        "small": [
            *("training.max_steps=120", "tasks.mnist.max_train=6000", "tasks.fashion.max_train=6000"),
            *("base.epochs=3", "tasks.fashion.max_test=1000"),
        ],
    },
    "yelp_imdb": {
        "old": "yelp",
        "new": "imdb",
        "overrides": ["model=embedded:bert-mini", "anchors=2000"],
        "full": ["training.max_steps=250"],
        "small": ["training.max_steps=60", "max_length=64", "tasks.imdb.max_test=500", "anchors=1000"],
    },
}


def fresh_inputs(task: Any, seed: int, data_root: str | None) -> Any:
    """Test inputs of a task that no certificate has seen."""
    from hf_fip.data.sampling import stratified_indices
    from hf_fip.task_data import HELD_OUT

    rows = task.load("test", data_root, seed)
    seen = set(stratified_indices([0] * len(rows), HELD_OUT, seed))
    return rows.select([row for row in range(len(rows)) if row not in seen]).remove_columns("label")


def nodes_of(graph: Any, branch: str) -> list[Any]:
    return [node for node in graph if node.name == branch]


def control(experiment: str, seed: int, options: Options) -> list[Measurement]:
    """The nodes of one experiment, by their budgets."""
    from hf_fip import ModelGraph

    about = EXPERIMENTS[experiment]
    overrides = [*about["overrides"], *about[options.scale], f"seed={seed}", f"path_points={POINTS[options.scale]}"]
    overrides += [f"disagreement_budget={list(BUDGETS)}", "baselines=[naive]"]
    folder = options.output_dir / f"{options.scale}-{experiment}-seed-{seed}"
    result = run_recipe(experiment, overrides, folder, options.data_root)
    graph = ModelGraph.load(result["graph"])
    rows = fresh_inputs(graph.root.tasks[0], seed, options.data_root)
    found = []

    def add(budget: str, metric: str, value: float) -> None:
        found.append(Measurement(experiment, metric, value, {"budget": budget}))

    for budget in (*BUDGETS, None):
        name = "none (naive)" if budget is None else f"{budget:.0%}"
        nodes = nodes_of(graph, "naive" if budget is None else f"fip-{budget:g}")
        true = [changed_share(graph, node, rows) for node in nodes]
        if budget is not None:
            certificates = [certificate_of(node) for node in nodes]
            kept = [certificate["certified"] for certificate in certificates]
            violated = [share > budget for share in true]
            add(name, "nodes", len(nodes))
            add(name, "certified", sum(kept))
            add(name, "certified, yet above", sum(map(bool.__and__, kept, violated)))
            add(name, "above, and said so", sum(not k and v for k, v in zip(kept, violated, strict=True)))
            add(name, "held out: changed, %", 100 * fmean(certificate["value"] for certificate in certificates))
            add(name, "held out: at most, %", 100 * fmean(certificate["high"] for certificate in certificates))
            needed = [certificate["inputs_needed"] for certificate in certificates if certificate["inputs_needed"]]
            if needed:
                add(name, "inputs needed", fmean(needed))
        add(name, "fresh: changed, %", 100 * fmean(true))
        for task in (about["old"], about["new"]):
            add(name, f"{task}/accuracy", 100 * nodes[-1].metrics[f"{task}/accuracy"])
    return found


def certificate_of(node: Any) -> dict[str, Any]:
    entries = node.protocol["budget"]["held_out"]
    return next(entry for entry in entries if entry["kind"] == "disagreement")


def changed_share(graph: Any, node: Any, rows: Any) -> float:
    distance = graph.distance(
        node.id,
        graph.root.id,
        rows,
        functional_distance="changed_predictions",
        max_length=node.parameters["max_length"],
    )
    return distance.functional


def measure(seed: int, options: Options) -> list[Measurement]:
    return [found for experiment in EXPERIMENTS for found in control(experiment, seed, options)]


def protocol(options: Options) -> dict:
    steps = {"full": "939 and 250", "small": "120 and 60"}[options.scale]
    reviews = 2000 if options.is_full else 1000
    return {
        "models": "5-layer CNN, 1.48 M weights; embedded:bert-mini, 1.35 M weights",
        "scenario": "class-incremental: appended labels, no task id at test time",
        "anchors": f"500 MNIST images and their shifted copies; {reviews:,} Yelp reviews; no labels",
        "steps": steps,
        "nodes": f"{POINTS[options.scale]} recorded points of each path; the base is what they are compared with",
        "certificate": "exact two-sided 95 % interval of changed predictions on 1,000 held-out test inputs",
        "fresh": "the test inputs that are left: 4,000 images, 1,000 reviews in the local samples",
        "above": "more changed on the fresh inputs than the budget, however little",
    }


if __name__ == "__main__":
    reproduce("forgetting_control", measure=measure, protocol=protocol, paper=[], description=__doc__)
