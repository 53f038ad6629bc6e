"""
Is a forgetting budget kept where it is said to be? MNIST then Fashion-MNIST, Yelp then IMDB, and a stream of CIFAR-100
tasks under budgets of 1, 2 and 5 % changed predictions: of every recorded node whether it is certified, and how many
predictions truly change on test inputs that nobody has looked at before. A node that is certified and changes more
than its budget is a silent violation. In the first two experiments half of the held-out inputs control the path
(`calibration_share`), and the other half certify.

    python scripts/reproduce/forgetting_control.py --scale full --seeds 0 1 2 3 4 [--data_root DIR]

On one idle core `small` takes about 16 minutes a seed, `full` an hour.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from experiment import Measurement, Options, reproduce, run_recipe
from split_cifar100 import CLASSES_PER_TASK, SIZES, TRAINING, network


if TYPE_CHECKING:
    from hf_fip import ModelGraph, Node

BUDGETS = (0.01, 0.02, 0.05)
POINTS = {"full": 5, "small": 2}
EXPERIMENTS = {
    "mnist_fashion": {
        "held_out": 4000,
        "overrides": ["anchors=500", "anchor_batch_size=64", "anchor_shift=2"],
        "full": ["training.max_steps=939"],
        "small": [
            # MNIST is learned well: a network in doubt about its inputs changes its mind at the least movement.
            *("training.max_steps=120", "tasks.fashion.max_train=6000", "tasks.fashion.max_test=1000"),
        ],
    },
    "yelp_imdb": {
        "held_out": 1500,
        "overrides": ["model=embedded:bert-mini", "anchors=4000"],
        "full": ["training.max_steps=250"],
        "small": ["training.max_steps=60", "max_length=64", "tasks.imdb.max_test=500"],
    },
}
NAIVE = {"budget": "none: naive"}
STREAM_TASKS, STREAM_ANCHORS, STREAM_HELD_OUT = 5, 500, 50


def control(experiment: str, seed: int, options: Options) -> list[Measurement]:
    """The nodes of two tasks, by their budgets."""
    from hf_fip import ModelGraph

    about = EXPERIMENTS[experiment]
    overrides = [*about["overrides"], *about[options.scale], f"held_out={about['held_out']}", f"seed={seed}"]
    overrides += [f"path_points={POINTS[options.scale]}", f"disagreement_budget={list(BUDGETS)}"]
    overrides += ["calibration_share=0.5", "baselines=[naive]"]
    folder = options.output_dir / f"{options.scale}-{experiment}-seed-{seed}"
    graph = ModelGraph.load(run_recipe(experiment, overrides, folder, options.data_root)["graph"])
    rows = graph.root.tasks[0].load("test", options.data_root, seed)
    rows = rows.select(unseen(len(rows), about["held_out"], seed)).remove_columns("label")
    found = []
    for budget in BUDGETS:
        nodes = [node for node in graph if node.name == f"fip-{budget:g}"]
        true = [changed_share(graph, node, rows) for node in nodes]
        setting = {"budget": f"{budget:.0%}"}
        found += [*judged(experiment, setting, budget, nodes, true), *accuracies(experiment, setting, nodes[-1])]
    changed = 100 * changed_share(graph, graph["naive"], rows)
    found.append(Measurement(experiment, "fresh: changed, %", changed, NAIVE))
    return found + accuracies(experiment, NAIVE, graph["naive"])


def unseen(rows: int, held_out: int, seed: int) -> list[int]:
    """Test inputs, by their numbers, that no certificate has seen."""
    from hf_fip.data.sampling import stratified_indices

    seen = set(stratified_indices([0] * rows, held_out, seed))
    return [row for row in range(rows) if row not in seen]


def changed_share(graph: ModelGraph, node: Node, rows: Any) -> float:
    length = {"max_length": node.parameters["max_length"]}
    return graph.distance(node.id, graph.root.id, rows, functional_distance="changed_predictions", **length).functional


def judged(
    experiment: str, setting: dict[str, str], budget: float, nodes: Sequence[Node], true: Sequence[float]
) -> list[Measurement]:
    """What the nodes claim, against the shares that truly change."""
    entries = [entry for node in nodes for entry in node.protocol["budget"]["held_out"]]
    claims = [entry for entry in entries if entry["kind"] == "disagreement"]
    certified = [claim["certified"] for claim in claims]
    above = [share > budget for share in true]
    needed = [claim["inputs_needed"] for claim in claims if claim["inputs_needed"]]
    values = {
        "nodes": len(nodes),
        "certified": sum(certified),
        "certified, yet above": sum(c and a for c, a in zip(certified, above, strict=True)),
        "above, and said so": sum(a and not c for c, a in zip(certified, above, strict=True)),
        "held out: changed, %": 100 * fmean(claim["value"] for claim in claims),
        "held out: at most, %": 100 * fmean(claim["high"] for claim in claims),
        "fresh: changed, %": 100 * fmean(true),
        **({"inputs needed": fmean(needed)} if needed else {}),
    }
    return [Measurement(experiment, name, value, setting) for name, value in values.items()]


def accuracies(experiment: str, setting: dict[str, str], node: Node) -> list[Measurement]:
    values = {name: 100 * value for name, value in node.metrics.items() if name.endswith("/accuracy")}
    return [Measurement(experiment, name, value, setting) for name, value in values.items()]


def control_stream(seed: int, options: Options) -> list[Measurement]:
    """The nodes of a stream whose tasks are known at test, each task's reference being what first learned it."""
    from hf_fip import ContinualLearning, ModelGraph, Task, begin_graph, class_splits
    from hf_fip.metrics.stream import stream_summary

    size = SIZES["small"]
    dataset = {"dataset": "uoft-cs/cifar100", "label_column": "fine_label"}
    whole = Task("cifar100", **dataset, max_train=size.images, max_test=size.tests)
    tasks = class_splits(whole, CLASSES_PER_TASK, options.data_root)[:STREAM_TASKS]
    folder = options.output_dir / f"{options.scale}-cifar100-seed-{seed}"
    training = {**TRAINING, "batch_size": size.batch}
    shared = {"seed": seed, "data_root": options.data_root}
    model = str(network(folder / "model", size, seed))
    first = {**training, "max_steps": size.base_steps}
    root = begin_graph(folder / "graph", model=model, task=tasks[0], training=first, **shared)
    known = {"label_space": "per_task", "anchors": STREAM_ANCHORS, "held_out": STREAM_HELD_OUT, "path_points": 1}
    found = []
    for budget in (*BUDGETS, None):
        setting = {"budget": f"{budget:.0%}"} if budget else NAIVE
        own = {"disagreement_budget": budget, "reference": "learned"} if budget else {"method": "naive"}
        branch = f"budget-{budget:g}" if budget else "naive"
        steps = {**training, "max_steps": size.steps}
        ContinualLearning(stream=tasks[1:], branch=branch, training=steps, **known, **own, **shared)(root)
        graph = ModelGraph.load(folder / "graph")
        nodes = [node for node in graph if node.name == branch]
        true = [changed_since_learned(graph, node, options.data_root, seed) for node in nodes]
        if budget:
            found += judged("cifar100 stream", setting, budget, nodes, true)
        else:
            found.append(Measurement("cifar100 stream", "fresh: changed, %", 100 * fmean(true), setting))
        average = 100 * stream_summary(graph, branch)["average_accuracy"]
        found.append(Measurement("cifar100 stream", "average accuracy", average, setting))
    return found


def changed_since_learned(graph: ModelGraph, node: Node, data_root: str | None, seed: int) -> float:
    """Among the outputs of each earlier task, predictions on its fresh inputs that are not what they first were."""
    import torch

    from hf_fip.metrics.stream import learned_at
    from hf_fip.task_data import TaskData

    data = TaskData(node.load_processor(), data_root, seed, None)
    now = node.load_model().eval()
    changed = []
    for task, before in zip(node.tasks[:-1], learned_at(graph.lineage(node)), strict=False):
        space = node.protocol["label_space"][task.name]
        rows = data.features(task, space, "test")
        pixels = rows.select(unseen(len(rows), STREAM_HELD_OUT, seed))[:]["pixel_values"]
        with torch.no_grad():
            one, other = (model(pixels).logits[:, space].argmax(-1) for model in (now, before.load_model().eval()))
        changed.append((one != other).float())
    return torch.cat(changed).mean().item()


def measure(seed: int, options: Options) -> list[Measurement]:
    found = [found for experiment in EXPERIMENTS for found in control(experiment, seed, options)]
    return found + control_stream(seed, options)


def protocol(options: Options) -> dict:
    steps = {"full": "939 and 250", "small": "120 and 60"}[options.scale]
    return {
        "models": "5-layer CNN, 1.48 M weights; embedded:bert-mini, 1.35 M weights; ResNet-8, 81 thousand weights",
        "scenario": "two tasks: class-incremental, appended labels, no task id at test time; stream: the first "
        f"{STREAM_TASKS} of 20 tasks of 5 classes, task-incremental",
        "anchors": f"500 MNIST images and 9 shifted copies of each; 4,000 Yelp reviews; {STREAM_ANCHORS} "
        "CIFAR-100 images of all earlier tasks; no labels",
        "learned": "MNIST by 20,000 images in 4 epochs, Yelp by 25,000 reviews in 2 (4,000 in the local sample)",
        "steps": f"{steps}; {SIZES['small'].steps} for each task of the stream",
        "nodes": f"{POINTS[options.scale]} points of each path, one for each task of the stream; predictions are "
        "compared with those of the base, of the stream with those of the node that had just learned the task",
        "certificate": "exact two-sided 95 % interval of changed predictions on held-out test inputs: 2,000 images, "
        f"750 reviews, as many others controlling the path; {STREAM_HELD_OUT} for each earlier task of the stream",
        "fresh": "the test inputs that are left: 1,000 images, 500 reviews, 50 for each task in the local samples",
        "above": "more changed on the fresh inputs than the budget, however little",
    }


if __name__ == "__main__":
    reproduce("forgetting_control", measure=measure, protocol=protocol, paper=[], description=__doc__)
