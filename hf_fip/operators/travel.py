"""What all operators share: the arguments of a path, travelling it, and finding it again in the graph."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from typing import Any

from torch.optim.lr_scheduler import LambdaLR
from transformers.utils import logging

from ..config import FIPConfig
from ..errors import InputError
from ..graph import ModelGraph, Node
from ..objectives.schedules import learning_rate_factor
from ..path import last_complete_checkpoint
from ..trainer import FIPTrainer


logger = logging.get_logger(__name__)

CHECKPOINTS = "checkpoints"
SHORT_NAMES = {"epochs": "num_train_epochs", "batch_size": "per_device_train_batch_size"}
# Share of each segment in which the learning rate is constant.
STABLE = 0.5


class SegmentedTrainer(FIPTrainer):
    """Its learning rate falls towards each point of the path, unless the user chose another schedule."""

    falls_along_segments = True

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if self.falls_along_segments and self.lr_scheduler is None:
            points = self._origin.points
            self.lr_scheduler = LambdaLR(
                self.optimizer if optimizer is None else optimizer,
                lambda step: learning_rate_factor(step, points, stable=STABLE),
            )
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)


def evenly_spaced(steps: int, points: int) -> list[int]:
    """
    Optimizer steps done at each of the points, the last one at the end.

    Raises:
        [`InputError`]: there are more points than steps.
    """
    if steps < points:
        raise InputError(f"steps={steps!r} are fewer than the {points} points of the path")
    return [round(steps * (i + 1) / points) for i in range(points)]


def path_config(graph: ModelGraph, branch: str, arguments: dict[str, Any], seed: int, *, path: Any) -> FIPConfig:
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


def travel(trainer: FIPTrainer) -> None:
    checkpoint = last_complete_checkpoint(trainer.args.output_dir)
    if checkpoint is not None:
        logger.info(f"continuing from {checkpoint}")
    trainer.train(resume_from_checkpoint=checkpoint)
    shutil.rmtree(trainer.args.output_dir, ignore_errors=True)


def recorded_path(graph: ModelGraph, start: Node, branch: str, parameters: dict) -> tuple[Node, ...] | None:
    """The path in the graph that these parameters made from `start`, if it was travelled to its end."""

    def made(parent: Node) -> Iterator[Node]:
        for node in graph.children(parent):
            if node.name == branch and node.parameters == parameters:
                yield node
                yield from made(node)

    nodes = tuple(made(start))
    return nodes if nodes and nodes[-1].protocol.get("path", {}).get("finished") else None


def graph_of(node: Node) -> ModelGraph:
    if node.folder is None:
        raise InputError(f"node {node.id!r} lies in no graph; take it from ModelGraph.load(folder)")
    return ModelGraph.load(node.folder.parent.parent)


def training_arguments(training: dict[str, Any] | None) -> dict[str, Any]:
    return {SHORT_NAMES.get(name, name): value for name, value in (training or {}).items()}
