"""
The one protocol of everything that shapes a training step.

A task loss, a functional distance, a replay baseline, a pull towards a sparse projection: each is a [`Term`]. The
trainer runs the terms and knows nothing of forgetting or sparsity; the terms know nothing of trainers, devices or
files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass
class OutputBatch:
    """
    The model's outputs on one part of the joint forward: the task batch, or the anchor batch.

    Args:
        outputs (`torch.Tensor`):
            Class logits `[batch, classes]`, regression outputs `[batch]`, or, for language models, the logits of the
            scored positions only, `[positions, vocabulary]`.
        labels (`torch.Tensor`, *optional*):
            Labels of the same rows (`-100` where there is none).
        reference (`torch.Tensor`, *optional*):
            Cached outputs of the reference network on the same rows (of the task batch: only for terms that ask for
            them by `uses_task_reference`).
        example_index (`torch.Tensor`, *optional*):
            For the rows of scored positions: which example of the batch each row belongs to.
        examples (`int`):
            Number of examples in this micro-batch.
        share (`float`):
            What one example (task: one label) of this micro-batch weighs in the mean over the whole optimizer step, on
            all processes: see [`~OutputBatch.mean`].
        tasks (list of `int`, *optional*):
            Which earlier task each example is of, 0 for the first that was learned (anchors only).
        nodes (`torch.Tensor`, *optional*):
            `[rows, outputs]`, `bool`: the output nodes of each row's task, where the task of an input is known
            (anchors only).
        reference_nodes (`torch.Tensor`, *optional*):
            `[rows, outputs]`, `bool`: the output nodes among which the reference network chose, where it lacked some
            (anchors only).
    """

    outputs: Tensor
    labels: Tensor | None = None
    reference: Tensor | None = None
    example_index: Tensor | None = None
    examples: int = 0
    share: float | Tensor = 1.0
    tasks: list[int] | None = None
    nodes: Tensor | None = None
    reference_nodes: Tensor | None = None

    def mean(self, values: Tensor) -> Tensor:
        """
        The mean of `values` over the whole optimizer step, as this micro-batch's part of it: the parts of all
        micro-batches and processes add up to the mean, however unequal they are.
        """
        return values.sum() * self.share


@dataclass
class Step:
    """
    What one micro-batch offers to the terms.

    Args:
        number (`int`): Optimizer steps done before this one.
        task (`OutputBatch`, *optional*): Outputs on the task batch; `None` where the path has no secondary task.
        anchors (`OutputBatch`, *optional*): Outputs on the anchor batch; `None` where there are no anchors.
        task_loss (`torch.Tensor`, *optional*):
            The loss the model (or the user's `compute_loss_func`) computed for the task batch, scaled like the result
            of [`OutputBatch.mean`].
    """

    number: int
    task: OutputBatch | None = None
    anchors: OutputBatch | None = None
    task_loss: Tensor | None = None


class PathStart(Protocol):
    """
    What a term may look at before the first step: the network that the path starts from.

    Attributes:
        model (`nn.Module`): The network, without wrappers.
        anchor_tasks (list of `int`): Of each anchor, which earlier task it is of; empty where there are no anchors.
        old_nodes (list of `int`):
            Output nodes that no label of the new task names; all of them where it names all of them (a shared head).
    """

    model: nn.Module
    anchor_tasks: list[int]
    old_nodes: list[int]

    def anchor_outputs(self, indices: Sequence[int]) -> OutputBatch:
        """Differentiable outputs on these anchors, in the mode in which functions are compared."""
        ...


class Term:
    """
    One influence on the step. Override what the method needs; every hook's default does nothing.

    Attributes:
        name (`str`): Name in the logs.
        weight (`float`): Factor of [`~Term.loss`] in the total loss; the logs show the value without it.
        is_objective (`bool`): Whether the term belongs to the secondary objective L(x, w) of eq. 4.
        uses_anchors (`bool`): Whether it looks at the outputs on the anchors; if no term does, they are not computed.
        uses_task_reference (`bool`):
            Whether it looks at the starting network's outputs on the task batch, which are cached before the path
            begins, once for each training example.
    """

    name: str = "term"
    weight: float = 1.0
    is_objective: bool = False
    uses_anchors: bool = True
    uses_task_reference: bool = False

    def loss(self, step: Step) -> Tensor | None:
        """A differentiable scalar from the outputs of the joint forward, or `None`."""

    def add_gradient_(self, parameters: list[nn.Parameter]) -> None:
        """Adds an analytic weight-space gradient to `p.grad`, once an optimizer step, after the backward pass."""

    def constrain_gradient_(self, parameters: list[nn.Parameter]) -> None:
        """Changes the summed gradient in place, once an optimizer step, after every `add_gradient_`."""

    def move_weights_(self, parameters: list[nn.Parameter], step: int) -> None:
        """Changes the weights in place after an optimizer step, of which `step` are done: decay, decoupled pulls."""

    def constrain_weights_(self, parameters: list[nn.Parameter]) -> None:
        """
        Puts the weights back where they have to stay (zeros, say), in place: after every `move_weights_`, and after
        each step that restores the budget. Called on every process; its result must depend on the weights alone.
        """

    def begin_path(self, start: PathStart) -> None:
        """
        Called once on every process, with the weights the path starts from (in a resumed run too), before the first
        [`~Term.begin_segment`].
        """

    def begin_segment(self, model: nn.Module) -> None:
        """
        Called at the start of the path, with the weights it starts from (in a resumed run too, after
        [`~Term.load_state_dict`]), and after each recorded point.
        """

    def end_segment(self, model: nn.Module) -> None:
        """
        Called where a path point is due, before the budget is restored: the model may still be changed here.
        [`~Term.begin_segment`] is the first to see the recorded weights.
        """

    def report(self) -> dict[str, Any]:
        """JSON entries for the protocol of the node that is being recorded."""
        return {}

    def logs(self) -> dict[str, float | Tensor]:
        """Further values by name (scalars), taken each time the trainer logs."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: JSON values and tensors, by name."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what [`~Term.state_dict`] returned."""


def total_loss(terms: Iterable[Term], step: Step) -> tuple[Tensor | None, dict[str, Tensor]]:
    """
    The weighted sum of the terms' losses and each term's own value, by name and without its weight.

    Args:
        terms (iterable of `Term`): The terms of the run.
        step (`Step`): The micro-batch.

    Returns:
        `tuple[torch.Tensor | None, dict[str, torch.Tensor]]`: the total (`None` if no term has a loss) and the
        detached values; nothing is moved off the device.
    """
    total: Tensor | None = None
    values: dict[str, Tensor] = {}
    for term in terms:
        value = term.loss(step)
        if value is None:
            continue
        weighted = value if term.weight == 1.0 else value * term.weight
        total = weighted if total is None else total + weighted
        values[term.name] = value.detach()
    return total, values


def overrides(term: Term, *hooks: str) -> bool:
    """Whether a term does anything in one of the hooks."""
    return any(getattr(type(term), hook) is not getattr(Term, hook) for hook in hooks)


@torch.no_grad()
def apply_weight_terms(terms: Iterable[Term], parameters: list[nn.Parameter], step: int | None = None) -> None:
    """
    Runs the hooks that change weights: every `move_weights_`, then every `constrain_weights_`.

    Args:
        terms (iterable of `Term`): The terms of the run.
        parameters (list of `Parameter`): Those that are trained.
        step (`int`, *optional*): Optimizer steps done; `None` for a step off the path, which is only constrained.
    """
    terms = list(terms)
    for term in terms if step is not None else ():
        term.move_weights_(parameters, step)
    for term in terms:
        term.constrain_weights_(parameters)


@torch.no_grad()
def apply_gradient_terms(terms: Iterable[Term], parameters: list[nn.Parameter], *, scale: float = 1.0) -> None:
    """
    Runs the weight-space hooks: every `add_gradient_`, then every `constrain_gradient_`.

    Args:
        terms (iterable of `Term`): The terms of the run.
        parameters (list of `Parameter`): Those that are trained.
        scale (`float`, *optional*, defaults to 1.0):
            What the gradients are multiplied by at this moment (fp16 loss scaling); the terms see them without it.
    """
    terms = list(terms)
    gradients = [p.grad for p in parameters if p.grad is not None] if scale != 1.0 else []
    if gradients:
        torch._foreach_div_(gradients, scale)
    for term in terms:
        term.add_gradient_(parameters)
    for term in terms:
        term.constrain_gradient_(parameters)
    if gradients:
        torch._foreach_mul_(gradients, scale)
