"""Rivals that keep outputs: learning without forgetting, on the inputs of the new task."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..functional.distances import get_distance
from ..terms import PathStart, Step, Term


class LearningWithoutForgetting(Term):
    """
    Distillation of the first network's outputs at the old output nodes, on the *new* task's inputs (Li and Hoiem,
    "Learning without forgetting", 2016, eq. 2-3). The first outputs are cached, once for each training example.

    The loss is the Kullback-Leibler divergence at `temperature` times its square, whose gradient is that of the
    paper's cross-entropy of softened probabilities up to the factor `temperature²`.

    Args:
        weight (`float`, *optional*, defaults to 0.25): λ of the paper, 1 there, over the squared temperature.
        temperature (`float`, *optional*, defaults to 2.0): T of the paper.
    """

    name = "lwf"
    uses_anchors = False
    uses_task_reference = True

    def __init__(self, weight: float = 0.25, *, temperature: float = 2.0):
        self.weight = weight
        self.temperature = temperature
        self._distance = get_distance("kl", temperature=temperature)
        self._nodes: list[int] = []

    def begin_path(self, start: PathStart) -> None:
        self._nodes = start.old_nodes

    def loss(self, step: Step) -> Tensor | None:
        if step.task is None:
            return None
        outputs, reference = (rows[:, self._nodes] for rows in (step.task.outputs, step.task.reference))
        return step.task.mean(self._distance.per_example(outputs, reference))

    def report(self) -> dict[str, Any]:
        return {self.name: {"weight": self.weight, "temperature": self.temperature, "nodes": self._nodes}}
