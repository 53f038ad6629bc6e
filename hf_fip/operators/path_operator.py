"""What operators that travel one path from a node share: what is read of the node, and what is said of the path."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, set_seed

from ..data.causal import causal_arguments
from ..errors import InputError
from ..graph import ModelGraph, Node
from ..path import Origin
from ..task_data import TaskData, kind_of
from ..tasks import Task
from ..trainer import FIPTrainer
from .base import Operator, Path
from .travel import graph_of, path_config, recorded_path, travel


def check_held_out(number: int) -> None:
    """Refuses what is no number of inputs."""
    if not isinstance(number, int) or number < 2:
        raise InputError(f"held_out={number!r}: give a whole number of test inputs to certify on, at least 2")


@dataclass(frozen=True)
class Start:
    """
    A node as its path's trainer reads it.

    Args:
        node (`Node`): The node.
        graph (`ModelGraph`): The graph it lies in.
        tasks (`list[Task]`): Those of the nodes to be made.
        kind (`str`): What all of the tasks are.
        processor (`Any`): The node's tokenizer or image processor.
        model (`PreTrainedModel`): The node's network.
        data (`TaskData`): The tasks as data sets.
        anchors (`Dataset`): Training inputs of the node's own tasks, on which the function is kept.
        held_out (`Dataset`): Inputs of their test splits, to certify on.
    """

    node: Node
    graph: ModelGraph
    tasks: list[Task]
    kind: str
    processor: Any
    model: PreTrainedModel
    data: TaskData
    anchors: Dataset
    held_out: Dataset

    @property
    def spaces(self) -> dict[str, list[int]]:
        """The output nodes of each of the node's own tasks."""
        return self.node.protocol["label_space"]


class PathOperator(Operator, ABC):
    """
    An operator that travels one path in a [`FIPTrainer`], on anchors of all tasks of its node. What shapes the path is
    said by [`~PathOperator._trainer`] of a subclass.

    Attributes:
        branch (`str`): Name of the path in the graph.
        arguments (`dict`): [`FIPConfig`] fields.
        parameters (`dict`): What the nodes record, as JSON; by it a finished path is found again.
        data_root (`str`, *optional*): Local folder with the data sets.
        made (`dict`, *optional*): Data sets that paths of one stream share; see [`~hf_fip.task_data.TaskData`].
    """

    branch: str
    arguments: dict[str, Any]
    parameters: dict[str, Any]
    data_root: str | None
    made: dict[str, Dataset] | None = None

    def __call__(self, node: Node) -> Path:
        graph = graph_of(node)
        if finished := recorded_path(graph, node, self.branch, self.parameters):
            return Path(node, finished)
        if not node.tasks:
            raise InputError(f"node {node.id!r} names no task, so there is nothing to take anchors from")
        trainer = self._trainer(self._start(node, graph))
        travel(trainer)
        return Path(node, recorded_path(trainer.graph, node, self.branch, self.parameters))

    @abstractmethod
    def _trainer(self, start: Start) -> FIPTrainer:
        """The trainer of the path, most of whose arguments [`~PathOperator._shared`] gives."""

    def _tasks(self, node: Node) -> list[Task]:
        """Tasks of the nodes to be made."""
        return node.tasks

    @property
    def _needs_labels(self) -> bool:
        """Whether the anchors' labels are used."""
        return False

    def _start(self, node: Node, graph: ModelGraph) -> Start:
        tasks = self._tasks(node)
        kind = kind_of(tasks)
        chosen = self.parameters
        processor = node.load_processor()
        set_seed(chosen["seed"])
        model = node.load_model(is_trainable=True)
        data = TaskData(processor, self.data_root, chosen["seed"], chosen["max_length"], self.made)
        anchors, held_out = data.anchors(
            node.tasks,
            node.protocol["label_space"],
            chosen["anchors"],
            self._needs_labels,
            chosen["anchor_shift"],
            chosen["anchor_mix"],
            chosen.get("anchor_memory", "even"),
            chosen["held_out"],
        )
        return Start(node, graph, tasks, kind, processor, model, data, anchors, held_out)

    def _shared(
        self, start: Start, protocol: dict[str, Any], spaces: dict | None = None, points: tuple[int, ...] = ()
    ) -> dict[str, Any]:
        """
        Arguments of the trainer that are alike for all operators.

        Args:
            start (`Start`): Where the path starts.
            protocol (`dict`): What else its nodes say about how they were made.
            spaces (`dict`, *optional*): The output nodes of each task; by default as they were.
            points (`tuple[int, ...]`, *optional*): Optimizer steps after which a point is due.
        """
        spaces = start.spaces if spaces is None else spaces
        inherited = {"label_policy": None, "task_id_at_test": False, "scenario": None}
        inherited = {key: start.node.protocol.get(key, default) for key, default in inherited.items()}
        protocol = {**inherited, **protocol}
        knows_task = start.kind == "classification" and protocol["task_id_at_test"]
        memory = self.parameters.get("anchor_memory", "even")
        arguments = self.arguments
        if start.kind == "text-generation":
            arguments = causal_arguments(arguments)
        return {
            "model": start.model,
            "args": path_config(
                start.graph,
                self.branch,
                arguments,
                self.parameters["seed"],
                path=[start.node.id, self.parameters],
            ),
            "anchor_dataset": start.anchors,
            "heldout_dataset": start.held_out,
            **start.data.evaluation(start.tasks, spaces),
            "processing_class": start.processor,
            "graph": start.graph,
            "task_nodes": [spaces[task.name] for task in start.tasks] if knows_task else None,
            "origin": Origin(
                parent=start.node,
                operator=type(self).__name__,
                parameters=self.parameters,
                points=points,
                protocol={
                    "tasks": [task.to_dict() for task in start.tasks],
                    "label_space": spaces,
                    **protocol,
                    "anchors": {
                        "number": self.parameters["anchors"],
                        "inputs": len(start.anchors),
                        **({"positions": arguments["anchor_positions"]} if "anchor_positions" in arguments else {}),
                        "labels_used": self._needs_labels,
                        "memory": memory,
                        "labels_used_to_choose": memory == "class_balanced",
                        "tasks": [task.name for task in start.node.tasks],
                        "held_out": len(start.held_out),
                    },
                },
            ),
        }
