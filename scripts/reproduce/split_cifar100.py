"""
CIFAR-100 in 20 tasks of 5 classes (paper: section on long sequences of tasks), with the task of an image known
(task-incremental) and unknown (class-incremental): the functionally invariant path with and without the anchors'
labels against replay, distillation, gradient and weight constraints on the same 1,000 anchors (10 a class, once all
classes are known), batches and steps, and against one network that is trained on all tasks at once.

    python scripts/reproduce/split_cifar100.py --scale full --seeds 0 1 2 [--data_root DIR]

`small` takes a residual network of 8 layers with group norms at half the resolution and a few steps for each task, 25
minutes a seed on one core: figures to be read relative to naive and joint training. `full` takes ResNet-18 and all
50,000 images, for which it wants a GPU.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiment import GRID, Measurement, Options, reproduce


if TYPE_CHECKING:
    from hf_fip import Node, Task


@dataclass(frozen=True)
class Size:
    """
    How much of the experiment is done.

    Args:
        images (`int`): images to train on, of all classes together.
        tests (`int`): images to test on.
        resolution (`int`): height and width of the images as the network reads them, in pixels.
        network (`str`): which of [`network`]'s.
        base_steps (`int`): optimizer steps for the first task.
        steps (`int`): optimizer steps for each further task.
        batch (`int`): images of the task in each step, and anchors beside them.
    """

    images: int
    tests: int
    resolution: int
    network: str
    base_steps: int
    steps: int
    batch: int


SIZES = {
    "small": Size(10000, 2000, 16, "ResNet-8 with group norms, 81 thousand weights", 200, 80, 32),
    "full": Size(50000, 10000, 64, "ResNet-18, 11.2 million weights", 2000, 1000, 64),
}
CLASSES_PER_TASK = 5
ANCHORS = 1000
METHODS: dict[str, dict[str, Any]] = {
    "naive": {},
    "lwf": {},
    "ewc": {},
    "er": {},
    "gem": {},
    "fdr": {},
    "der": {},
    "derpp": {},
    "fip": {"beta": 0.1},
    "fip+labels": {"method": "fip", "beta": 0.3, "anchor_label_weight": 1.0},
}
# With the task unknown labels have to tell the tasks apart, so they weigh as much as ER's.
LABELS_DECIDE = {"beta": 3.0, "anchor_label_weight": 3.0}
# Those that keep something there.
CLASS_INCREMENTAL: dict[str, dict[str, Any]] = {
    "naive": {},
    "er": {},
    "derpp": LABELS_DECIDE,
    "fip": {},
    "fip+labels": {"method": "fip", **LABELS_DECIDE},
}
SCENARIOS = {"task-incremental": ("per_task", METHODS), "class-incremental": ("append", CLASS_INCREMENTAL)}
TRAINING = {"learning_rate": 3e-3, "save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no"}
PAPER = [
    {"method": "fip", "scenario": "task-incremental", "metric": "average accuracy", "value": 82.54, "std": 0.17},
    {"method": "naive", "scenario": "task-incremental", "metric": "average accuracy", "value": 26.86},
    {"method": "ewc", "scenario": "task-incremental", "metric": "average accuracy", "value": 44.9},
]


def measure(seed: int, options: Options, size: Size | None = None) -> list[Measurement]:
    """
    All methods in both scenarios.

    Args:
        seed (`int`): of the networks, the anchors and the order of the data.
        options (`Options`): where data and results lie.
        size (`Size`, *optional*): by default that of the scale.
    """
    from hf_fip import ContinualLearning, ModelGraph, Task, begin_graph, class_splits
    from hf_fip.metrics.stream import stream_summary

    size = size or SIZES[options.scale]
    folder = options.output_dir / f"{options.scale}-seed-{seed}"
    whole = Task(
        name="cifar100",
        dataset="uoft-cs/cifar100",
        label_column="fine_label",
        max_train=size.images,
        max_test=size.tests,
    )
    tasks = class_splits(whole, CLASSES_PER_TASK, options.data_root)
    model = network(folder / "model", size, seed)
    training = {**TRAINING, "batch_size": size.batch}
    shared = {"seed": seed, "data_root": options.data_root}
    root = begin_graph(
        folder / "graph",
        model=str(model),
        task=tasks[0],
        training={**training, "max_steps": size.base_steps},
        **shared,
    )
    found = []
    for scenario, (label_space, methods) in SCENARIOS.items():
        for name, own in methods.items():
            path = ContinualLearning(
                stream=tasks[1:],
                label_space=label_space,
                reference="learned",
                anchors=ANCHORS,
                anchor_memory="class_balanced",
                anchor_batch_size=size.batch,
                path_points=1,
                branch=f"{name.replace('+', '-')}-{scenario}",
                training={**training, "max_steps": size.steps},
                **{"method": name, **own},
                **shared,
            )(root)
            summary = stream_summary(ModelGraph.load(folder / "graph"), path.end.name)
            found += _measurements(name, scenario, summary)
        end = joint(folder / f"joint-{scenario}", model, tasks, scenario, size, training, shared)
        accuracy = statistics.fmean(end.metrics[f"{task.name}/accuracy"] for task in tasks)
        found += _measurements("joint", scenario, {"average_accuracy": accuracy})
    return found + gaps_closed(found)


def network(folder: Path, size: Size, seed: int) -> Path:
    """A fresh network with its image processor, in a folder; the one that is there already is left as it is."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    from hf_fip.models.embedded import image_processor
    from hf_fip.models.resnet import CifarResNetConfig, CifarResNetForImageClassification

    if not (folder / "preprocessor_config.json").is_file():
        torch.manual_seed(seed)
        if size.network.startswith("ResNet-18"):
            layers = {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]}
            model = ResNetForImageClassification(ResNetConfig(**layers, num_labels=CLASSES_PER_TASK))
        else:
            config = CifarResNetConfig(
                depth=8, width=16, norm="group", image_size=size.resolution, num_labels=CLASSES_PER_TASK
            )
            model = CifarResNetForImageClassification(config)
        model.save_pretrained(folder)
        image_processor(size.resolution, [0.507, 0.487, 0.441], [0.267, 0.256, 0.276]).save_pretrained(folder)
    return folder


def joint(
    folder: Path, model: Path, tasks: list[Task], scenario: str, size: Size, training: dict, shared: dict
) -> Node:
    """One network trained on all tasks at once, for as many steps as the others take together: the upper bound."""
    from datasets import concatenate_datasets
    from transformers import set_seed

    from hf_fip import FIPConfig, FIPTrainer, ModelGraph
    from hf_fip.models.heads import replace_head
    from hf_fip.models.loading import load_model, load_processor
    from hf_fip.operators.travel import training_arguments
    from hf_fip.path import Origin
    from hf_fip.task_data import TaskData

    graph = ModelGraph(folder / "graph")
    if len(graph):
        return graph.root
    set_seed(shared["seed"])
    names = [name for task in tasks for name in task.label_names(shared["data_root"])]
    first = range(0, len(names), CLASSES_PER_TASK)
    spaces = {task.name: list(range(at, at + CLASSES_PER_TASK)) for task, at in zip(tasks, first, strict=True)}
    processor = load_processor(model)
    data = TaskData(processor, shared["data_root"], shared["seed"], None)
    knows_task = scenario == "task-incremental"
    steps = size.base_steps + size.steps * (len(tasks) - 1)
    arguments = training_arguments({**training, "max_steps": steps, "report_to": "none"})
    FIPTrainer(
        model=replace_head(load_model(str(model), task="image-classification"), names),
        args=FIPConfig(str(folder), seed=shared["seed"], **arguments),
        train_dataset=concatenate_datasets([data.features(task, spaces[task.name], "train") for task in tasks]),
        **data.evaluation(tasks, spaces),
        processing_class=processor,
        graph=graph,
        task_nodes=list(spaces.values()) if knows_task else None,
        origin=Origin(
            operator="FineTuning",
            protocol={
                "tasks": [task.to_dict() for task in tasks],
                "label_space": spaces,
                "scenario": scenario,
                "task_id_at_test": knows_task,
            },
            root_only=True,
        ),
    ).train()
    return ModelGraph.load(graph.folder).root


def _measurements(method: str, scenario: str, summary: dict[str, float]) -> list[Measurement]:
    setting = {"scenario": scenario}
    shares = ("average_accuracy", "forgetting", "backward_transfer")
    found = [
        Measurement(method, key.replace("_", " "), 100 * summary[key], setting) for key in shares if key in summary
    ]
    others = [key for key in ("functional_distance", "seconds") if key in summary]
    return found + [Measurement(method, key.replace("_", " "), summary[key], setting) for key in others]


def gaps_closed(found: list[Measurement]) -> list[Measurement]:
    """Of the gap between naive and joint training, the share in per cent that each method closes."""
    means = {(m.setting["scenario"], m.method): m.value for m in found if m.metric == "average accuracy"}
    closed = []
    for (scenario, method), value in means.items():
        low, high = means[scenario, "naive"], means[scenario, "joint"]
        if method not in ("naive", "joint") and high > low:
            share = 100 * (value - low) / (high - low)
            closed.append(Measurement(method, "gap closed", share, {"scenario": scenario}))
    return closed


def pictures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Average accuracies of all methods, a bar for each scenario."""
    import plotly.graph_objects as go
    from drawing import COLOURS, HEIGHT, WIDTH

    figure = go.Figure()
    for colour, scenario in zip(COLOURS, SCENARIOS, strict=False):
        bars = [r for r in rows if r["metric"] == "average accuracy" and r["setting"] == {"scenario": scenario}]
        bars.sort(key=lambda row: row["mean"])
        figure.add_bar(
            x=[row["method"] for row in bars],
            y=[row["mean"] for row in bars],
            error_y={"type": "data", "array": [row["std"] or 0 for row in bars], "thickness": 1},
            name=scenario,
            marker_color=colour,
        )
    figure.update_layout(template="plotly_white", width=WIDTH, height=HEIGHT, margin={"t": 24, "r": 24})
    figure.update_yaxes(title_text="average accuracy after 20 tasks, %")
    return {"average_accuracy": figure}


def protocol(options: Options) -> dict[str, Any]:
    size = SIZES[options.scale]
    return {
        "model": f"{size.network} at {size.resolution} x {size.resolution} pixels"
        + ("; with anchors its batch norms keep the statistics of the first task" if options.is_full else ""),
        "tasks": f"20 of {CLASSES_PER_TASK} classes in the order of the data set; the first is learned alike for all",
        "images": f"{size.images:,} to train on, {size.tests:,} to test on",
        "steps": f"{size.base_steps} for the first task, {size.steps} for each further one, of {size.batch} images "
        f"and as many anchors; Adam at {TRAINING['learning_rate']:g}, falling to 0 in each task",
        "anchors": f"{ANCHORS:,}, class-balanced (labels used to choose them); their labels are trained on by er, "
        "gem, derpp and fip+labels alone; outputs kept: those of when each task was learned",
        "weights": "task-incremental: fip beta 0.1, of 0.1, 0.3 and 1, with labels beta 0.3 and labels 1, of 0.3, 1, "
        "on seed 7 (test images); class-incremental: fip at its defaults, with labels, and derpp, beta 3, labels "
        f"3; beta of 1 and 3, on seed 7, for fip; other rivals not tuned here: {GRID}",
        "joint": f"all tasks at once for {size.base_steps + 19 * size.steps:,} steps",
    }


if __name__ == "__main__":
    reproduce(
        "split_cifar100",
        measure=measure,
        protocol=protocol,
        paper=PAPER,
        description=__doc__,
        pictures=pictures,
    )
