"""Operators: from a node of a model graph to the path of nodes they make. They compose with `@`, right to left."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path as FilePath
from typing import Any

from datasets import Dataset, concatenate_datasets
from transformers import set_seed
from transformers.utils import logging

from .baselines import METHODS, get_method
from .config import FIPConfig
from .errors import InputError
from .functional.budget import Budget
from .graph import ModelGraph, Node
from .models.embedded import build
from .models.heads import grow_head, replace_head
from .models.loading import load_model, load_processor
from .path import Origin, last_complete_checkpoint
from .task_data import TaskData, runner_up
from .tasks import Task
from .trainer import FIPTrainer


__all__ = ["METHODS", "Compose", "ContinualLearning", "Operator", "Path", "begin_graph"]

logger = logging.get_logger(__name__)

EMBEDDED = "embedded:"
CHECKPOINTS = "checkpoints"
SHORT_NAMES = {"epochs": "num_train_epochs", "batch_size": "per_device_train_batch_size"}


@dataclasses.dataclass(frozen=True)
class Path(Sequence):
    """
    The nodes an operator made, in order.

    Args:
        start (`Node`): The node it was applied to.
        nodes (`tuple` of `Node`): The recorded points.
    """

    start: Node
    nodes: tuple[Node, ...]

    @property
    def end(self) -> Node:
        """The last point."""
        return self.nodes[-1]

    def __len__(self) -> int:
        return len(self.nodes)

    def __getitem__(self, index):
        return self.nodes[index]


class Operator:
    """Turns a node into a path of nodes. `(second @ first)(node)` applies `first`, then `second` to its end."""

    def __call__(self, node: Node) -> Path:
        raise TypeError(f"{type(self).__name__} defines no step from a node; use one of its subclasses")

    def __matmul__(self, first: Operator) -> Compose:
        if not isinstance(first, Operator):
            return NotImplemented
        return Compose(self, first)


class Compose(Operator):
    """
    Operators applied one after the other, the last one first.

    Args:
        operators (`Operator`): As written in `third @ second @ first`.
    """

    def __init__(self, *operators: Operator):
        self.operators = tuple(
            part
            for operator in operators
            for part in (operator.operators if isinstance(operator, Compose) else [operator])
        )

    def __call__(self, node: Node) -> Path:
        nodes: list[Node] = []
        end = node
        for operator in reversed(self.operators):
            path = operator(end)
            nodes += path.nodes
            end = path.end
        return Path(node, tuple(nodes))


class ContinualLearning(Operator):
    """
    The paper's operator CL: learns a task while the outputs on samples of all earlier tasks hardly change.

    Args:
        dataset (`Task` or `str`):
            The new task, or its data set: a Hub id, a local folder or file, or `embedded:NAME`.
        method (`str`, *optional*, defaults to `"fip"`):
            How: the functionally invariant path, or a baseline of [`METHODS`] in the same trainer.
        label_space (`str`, *optional*, defaults to `"append"`):
            `"append"` adds output nodes for the new labels, old ones keep their place; `"shared"` keeps the head,
            whose labels have to be the new task's.
        anchors (`int`, *optional*, defaults to 2000):
            Number of training inputs of the earlier tasks, split evenly between them, on which the function is kept.
            Their labels are not used unless the method says so.
        anchor_shift (`int`, *optional*, defaults to 0):
            Images: keep the function on copies of each anchor too, shifted by up to so many pixels.
        functional_distance, beta, distance_budget, disagreement_budget, anchor_label_weight, anchor_batch_size,
        reference, path_points:
            As in [`FIPConfig`].
        branch (`str`, *optional*): Name of the path in the graph; defaults to the method's.
        training (`dict`, *optional*):
            Further [`FIPConfig`] fields; `epochs` and `batch_size` are short for the Trainer's long names.
        seed (`int`, *optional*, defaults to 0): Seed of anchors, new output nodes, order of the data.
        data_root (`str`, *optional*): Local folder with the data sets, instead of the Hub.
        max_length (`int`, *optional*): Tokens kept of a text.

    Raises:
        [`InputError`]: for arguments that cannot work; names that do not match; a node without tasks.

    Example:

    ```python
    path = ContinualLearning("stanfordnlp/imdb", distance_budget=0.02)(graph["base"])
    path.end.metrics
    ```
    """

    def __init__(
        self,
        dataset: Task | str,
        *,
        method: str = "fip",
        label_space: str = "append",
        anchors: int = 2000,
        functional_distance: str | None = None,
        beta: float | None = None,
        distance_budget: float | None = None,
        disagreement_budget: float | None = None,
        anchor_label_weight: float = 0.0,
        anchor_batch_size: int | None = None,
        anchor_shift: int = 0,
        reference: str = "origin",
        path_points: int = 5,
        branch: str | None = None,
        training: dict[str, Any] | None = None,
        seed: int = 0,
        data_root: str | None = None,
        max_length: int | None = None,
    ):
        self.task = dataset if isinstance(dataset, Task) else Task(name=_short_name(dataset), dataset=dataset)
        self.method = get_method(method)
        if label_space not in ("append", "shared"):
            raise InputError(f"label_space={label_space!r} is unknown; choose 'append' or 'shared'")
        if anchors < 2:
            raise InputError(f"anchors={anchors} are too few to keep a function on; give at least 2, better hundreds")
        Budget(distance_budget, disagreement_budget)
        self.data_root = data_root
        self.branch = branch or method
        preserving = {
            "functional_distance": functional_distance,
            "beta": beta,
            "distance_budget": distance_budget,
            "disagreement_budget": disagreement_budget,
            "anchor_label_weight": anchor_label_weight,
        }
        given = {name: value for name, value in preserving.items() if value} if method == "fip" else {}
        self.arguments = {
            **_arguments(training),
            **self.method.arguments,
            **given,
            "anchor_batch_size": anchor_batch_size,
            "reference": reference,
            "path_points": path_points,
        }
        self.parameters = {
            "task": self.task.to_dict(),
            "method": method,
            "label_space": label_space,
            "anchors": anchors,
            "anchor_shift": anchor_shift,
            "seed": seed,
            "max_length": max_length,
            **self.arguments,
        }

    def __call__(self, node: Node) -> Path:
        graph = _graph_of(node)
        if finished := _recorded_path(graph, node, self.branch, self.parameters):
            return Path(node, finished)
        old_tasks = node.tasks
        if not old_tasks:
            raise InputError(f"node {node.id!r} names no task, so there is nothing to take anchors from")
        if any(old.name == self.task.name for old in old_tasks):
            raise InputError(f"node {node.id!r} has learned a task {self.task.name!r} already; name the new one")
        seed = self.parameters["seed"]
        processor = node.load_processor()
        set_seed(seed)
        model = node.load_model(is_trainable=True)
        spaces = node.protocol["label_space"]
        data = TaskData(processor, self.data_root, seed, self.parameters["max_length"])
        anchors, held_out = data.anchors(
            old_tasks, spaces, self.parameters["anchors"], self._needs_labels, self.parameters["anchor_shift"]
        )
        space = self._extend_head(model, anchors, processor)
        spaces = {**spaces, self.task.name: space}
        train = data.features(self.task, space, "train")
        if self.method.all_data:
            earlier = [data.features(old, spaces[old.name], "train") for old in old_tasks]
            train = concatenate_datasets([train, *earlier]).shuffle(seed=seed)
        tasks = [*old_tasks, self.task]
        trainer = FIPTrainer(
            model=model,
            args=_config(graph, self.branch, self.arguments, seed, path=[node.id, self.parameters]),
            anchor_dataset=anchors,
            heldout_dataset=held_out,
            train_dataset=train,
            eval_dataset={task.name: data.features(task, spaces[task.name], "test") for task in tasks},
            processing_class=processor,
            terms=self.method.terms(),
            preserve=self.method.preserve,
            graph=graph,
            origin=Origin(
                parent=node,
                operator=type(self).__name__,
                parameters=self.parameters,
                protocol={
                    "tasks": [task.to_dict() for task in tasks],
                    "label_space": spaces,
                    "label_policy": self.parameters["label_space"],
                    "task_id_at_test": False,
                    "method": self.method.summary,
                    "anchors": {
                        "number": self.parameters["anchors"],
                        "inputs": len(anchors),
                        "labels_used": self._needs_labels,
                        "tasks": [task.name for task in old_tasks],
                        "held_out": len(held_out),
                    },
                },
            ),
        )
        _train(trainer)
        return Path(node, _recorded_path(trainer.graph, node, self.branch, self.parameters))

    @property
    def _needs_labels(self) -> bool:
        return self.method.uses_labels or self.arguments.get("anchor_label_weight", 0) > 0

    def _extend_head(self, model, anchors: Dataset, processor) -> list[int]:
        """Output nodes of the new task's labels, in their order."""
        names = self.task.label_names(self.data_root)
        if not names:
            raise InputError(f"task {self.task.name!r} has no labels; continual learning needs a labelled data set")
        known = [model.config.id2label[i] for i in range(model.config.num_labels)]
        if self.parameters["label_space"] == "shared":
            if sorted(names) != sorted(known):
                raise InputError(
                    f"label_space='shared', but task {self.task.name!r} has the labels {names} and the model {known}; "
                    "name them alike (`class_names` of the task), or use label_space='append'"
                )
            return [known.index(name) for name in names]
        new = [f"{self.task.name}: {name}" if name in known else name for name in names]
        grow_head(model, new, bias=min(0.0, runner_up(model, anchors, processor)))
        return list(range(len(known), len(known) + len(names)))


def begin_graph(
    graph: ModelGraph | str,
    *,
    model: str,
    task: Task,
    training: dict[str, Any] | None = None,
    seed: int = 0,
    data_root: str | None = None,
    max_length: int | None = None,
) -> Node:
    """
    Fine-tunes a model on a first task and records it as the root of a graph, the node `base`. Where the graph has that
    node already, it is returned.

    Args:
        graph (`ModelGraph` or `str`): The graph or its folder.
        model (`str`): Hub id, folder, or `embedded:NAME`; its head is replaced by one for the task's labels.
        task (`Task`): The first task.
        training (`dict`, *optional*): [`FIPConfig`] fields; `epochs` and `batch_size` for short.
        seed (`int`, *optional*, defaults to 0): Seed of the head and of the order of the data.
        data_root (`str`, *optional*): Local folder with the data sets, instead of the Hub.
        max_length (`int`, *optional*): Tokens kept of a text.

    Returns:
        [`Node`]: the root.

    Raises:
        [`InputError`]: if the graph has another root.
    """
    graph = graph if isinstance(graph, ModelGraph) else ModelGraph(graph)
    parameters = {
        "model": model,
        "task": task.to_dict(),
        "seed": seed,
        "max_length": max_length,
        **_arguments(training),
    }
    if graph.nodes:
        if graph.root.parameters != parameters:
            raise InputError(
                f"graph={str(graph.folder)!r} holds another graph: its root was made with {graph.root.parameters}; "
                "choose another folder"
            )
        return graph.root
    source = model
    if model.startswith(EMBEDDED):
        source = build(model.removeprefix(EMBEDDED), data_root=data_root, seed=seed)
    processor = load_processor(source)
    if processor is None:
        raise InputError(
            f"model={model!r}: no tokenizer or image processor was found there; without a network give a folder, or "
            "embedded:bert-mini, embedded:cnn, …"
        )
    names = task.label_names(data_root)
    kind = {"text": "sequence-classification", "image": "image-classification"}[task.modality(data_root)]
    set_seed(seed)
    network = load_model(source, task=kind)
    replace_head(network, names)
    data = TaskData(processor, data_root, seed, max_length)
    space = list(range(len(names)))
    trainer = FIPTrainer(
        model=network,
        args=_config(graph, "base", _arguments(training), seed, path=parameters),
        train_dataset=data.features(task, space, "train"),
        eval_dataset={task.name: data.features(task, space, "test")},
        processing_class=processor,
        graph=graph,
        origin=Origin(
            operator="FineTuning",
            parameters=parameters,
            protocol={"tasks": [task.to_dict()], "label_space": {task.name: space}, "model": model},
            root_only=True,
        ),
    )
    _train(trainer)
    return trainer.graph.root


def _config(graph: ModelGraph, branch: str, arguments: dict[str, Any], seed: int, *, path: Any) -> FIPConfig:
    """Arguments of a run whose checkpoints lie in a folder of its own: another path never continues from them."""
    defaults = {
        "save_strategy": "steps",
        "save_steps": 0.2,
        "save_total_limit": 2,
        "logging_steps": 0.05,
        "per_device_eval_batch_size": 64,
        "report_to": "none",
    }
    name = hashlib.blake2b(json.dumps(path, sort_keys=True).encode(), digest_size=4).hexdigest()
    folder = graph.folder.parent / CHECKPOINTS / f"{branch}-{name}"
    try:
        return FIPConfig(output_dir=str(folder), seed=seed, branch=branch, **{**defaults, **arguments})
    except TypeError as error:
        raise InputError(f"training: {error}; its keys are FIPConfig's fields, `epochs` and `batch_size`") from None


def _train(trainer: FIPTrainer) -> None:
    checkpoint = last_complete_checkpoint(trainer.args.output_dir)
    if checkpoint is not None:
        logger.info(f"continuing from {checkpoint}")
    trainer.train(resume_from_checkpoint=checkpoint)
    shutil.rmtree(trainer.args.output_dir, ignore_errors=True)


def _recorded_path(graph: ModelGraph, start: Node, branch: str, parameters: dict) -> tuple[Node, ...] | None:
    """The path in the graph that these parameters made from `start`, if it was travelled to its end."""

    def made(parent: Node) -> Iterator[Node]:
        for node in graph.children(parent):
            if node.name == branch and node.parameters == parameters:
                yield node
                yield from made(node)

    nodes = tuple(made(start))
    return nodes if nodes and nodes[-1].protocol.get("path", {}).get("finished") else None


def _graph_of(node: Node) -> ModelGraph:
    if node.folder is None:
        raise InputError(f"node {node.id!r} lies in no graph; take it from ModelGraph.load(folder)")
    return ModelGraph.load(node.folder.parent.parent)


def _arguments(training: dict[str, Any] | None) -> dict[str, Any]:
    return {SHORT_NAMES.get(name, name): value for name, value in (training or {}).items()}


def _short_name(dataset: str) -> str:
    return FilePath(dataset.removeprefix(EMBEDDED)).stem
