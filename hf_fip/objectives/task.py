"""Learning a task as the secondary objective."""

from __future__ import annotations

from torch import Tensor

from ..terms import Step, Term


class TaskLoss(Term):
    """
    L(x, w) = the model's own loss on the task batch (or the user's `compute_loss_func`): the continual-learning
    operator.

    Args:
        weight (`float`, *optional*, defaults to 1.0): Factor in the minimised loss.
    """

    name = "loss_task"
    is_objective = True

    def __init__(self, weight: float = 1.0):
        self.weight = weight

    def loss(self, step: Step) -> Tensor | None:
        return step.task_loss
