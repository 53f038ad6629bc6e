"""Rivals that hold the weights near those of the earlier tasks: L2, elastic weight consolidation, its online form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..functional.penalty import mean_by_example
from ..functional.task_nodes import within
from ..models.heads import output_head
from ..terms import OutputBatch, PathStart, Term


class QuadraticPenalty(Term, ABC):
    """
    ½ Σᵢ Fᵢ (wᵢ − w*ᵢ)² with the weights w* that the path starts from. Its gradient is added to those of the losses;
    the penalty itself is computed for the logs alone.

    Args:
        weight (`float`): Factor of the penalty.
    """

    uses_anchors = False

    def __init__(self, weight: float):
        self.weight = weight
        self._parameters: list[nn.Parameter] = []
        self._centres: list[Tensor] = []
        self._importance: list[Tensor] = []

    @abstractmethod
    def importance(self, start: PathStart, parameters: dict[str, nn.Parameter]) -> list[Tensor]:
        """F: one tensor for each parameter, of its shape."""

    def begin_path(self, start: PathStart) -> None:
        trained = {name: p for name, p in start.model.named_parameters() if p.requires_grad}
        self._importance = self.importance(start, trained)
        self._parameters = list(trained.values())
        self._centres = [p.detach().clone() for p in self._parameters]

    def add_gradient_(self, parameters: list[nn.Parameter]) -> None:
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self._parameters]
        torch._foreach_addcmul_(gradients, self._moved(), self._importance, value=self.weight)

    def report(self) -> dict[str, Any]:
        return {self.name: {"weight": self.weight}}

    @torch.no_grad()
    def logs(self) -> dict[str, float | Tensor]:
        moved = self._moved()
        squares = torch._foreach_mul(moved, moved)
        torch._foreach_mul_(squares, self._importance)
        return {self.name: torch.stack([square.sum() for square in squares]).sum() / 2}

    def _moved(self) -> tuple[Tensor, ...]:
        return torch._foreach_sub([p.detach() for p in self._parameters], self._centres)


class L2(QuadraticPenalty):
    """
    All weights alike are held where they were (the L2 of Kirkpatrick et al., 2017), except the rows of the output head
    that the new task brings.

    Args:
        weight (`float`, *optional*, defaults to 3.0): Factor of the penalty.
    """

    name = "l2"

    def __init__(self, weight: float = 3.0):
        super().__init__(weight)

    def importance(self, start: PathStart, parameters: dict[str, nn.Parameter]) -> list[Tensor]:
        model, head = start.model, ()
        if getattr(model.config, "num_labels", 0) > len(start.old_nodes):
            head = (f"{output_head(model)}.weight", f"{output_head(model)}.bias")
        return [_ones_on(start.old_nodes, p) if name in head else _ones(p) for name, p in parameters.items()]


def _ones(parameter: nn.Parameter) -> Tensor:
    """Ones of the parameter's shape in the memory of a single value."""
    return parameter.new_ones(()).expand_as(parameter)


def _ones_on(rows: list[int], parameter: nn.Parameter) -> Tensor:
    importance = torch.zeros_like(parameter.detach())
    importance[rows] = 1.0
    return importance


class ElasticWeightConsolidation(QuadraticPenalty):
    """
    Each weight is held by its Fisher information on the earlier tasks (Kirkpatrick et al., "Overcoming catastrophic
    forgetting in neural networks", 2017, eq. 3).

    The diagonal of the Fisher information is estimated on the anchors at the weights the path starts from, over the
    network's own labels (drawn by importance, unbiased), so that none are needed. It is taken anew on the anchors of
    all earlier tasks, whose Fisher informations add up: the weights at the start, which are the best known for all of
    them, serve as the one centre.

    Args:
        weight (`float`, *optional*, defaults to 10.0): λ of the paper.
        passes (`int`, *optional*, defaults to 1000):
            About how many labels are drawn, each with a backward pass: several per anchor where anchors are few, one
            where they are many.
    """

    name = "ewc"

    def __init__(self, weight: float = 10.0, *, passes: int = 1000):
        super().__init__(weight)
        self.passes = passes

    def importance(self, start: PathStart, parameters: dict[str, nn.Parameter]) -> list[Tensor]:
        if not start.anchor_tasks:
            raise InputError(f"{self.name} needs anchor_dataset: the Fisher information is taken on its inputs")
        draws = max(1, self.passes // len(start.anchor_tasks))
        totals: list[Tensor] = [torch.zeros_like(p.detach()) for p in parameters.values()]
        newest = max(start.anchor_tasks)
        for task in sorted(set(start.anchor_tasks)):
            indices = [i for i, number in enumerate(start.anchor_tasks) if number == task]
            fisher = fisher_diagonal(start, indices, list(parameters.values()), draws=draws)
            torch._foreach_add_(totals, fisher, alpha=self.task_weight(fisher, newest - task))
        return totals

    def task_weight(self, fisher: list[Tensor], age: int) -> float:
        """Factor of a task's Fisher information; `age` is 0 for the last task learned."""
        return 1.0

    def report(self) -> dict[str, Any]:
        fisher = {"labels": "the network's own", "on": "anchors", "passes": self.passes}
        return {self.name: {"weight": self.weight, "fisher": fisher}}


class OnlineEWC(ElasticWeightConsolidation):
    """
    Elastic weight consolidation that forgets gracefully: a task's Fisher information, scaled to mean 1 so that no task
    counts more for the size of its gradients, fades by γ with each task learned since (Schwarz et al., "Progress &
    Compress", 2018, section 4.1). The running sum of the paper is taken anew on the anchors, as above.

    Args:
        weight (`float`, *optional*, defaults to 0.3): λ of the paper, in units of the Fisher information's mean.
        decay (`float`, *optional*, defaults to 0.9): γ.
        passes (`int`, *optional*, defaults to 1000): As above.
    """

    name = "online_ewc"

    def __init__(self, weight: float = 0.3, *, decay: float = 0.9, passes: int = 1000):
        super().__init__(weight, passes=passes)
        self.decay = decay

    def task_weight(self, fisher: list[Tensor], age: int) -> float:
        size = sum(values.numel() for values in fisher)
        mean = torch.stack([values.float().sum() for values in fisher]).sum().item() / size
        return self.decay**age / mean if mean > 0 else 0.0

    def report(self) -> dict[str, Any]:
        scaling = {"decay": self.decay, "scale": "mean 1 per task"}
        return {self.name: {**super().report()[self.name], **scaling}}


def fisher_diagonal(
    start: PathStart, anchors: list[int], parameters: list[nn.Parameter], *, draws: int = 1
) -> list[Tensor]:
    """
    Diagonal of the Fisher information, E_x E_{y ~ p(y | x)} (∂ log p(y | x) / ∂w)², one example at a time.

    Args:
        start (`PathStart`): The network and its anchors.
        anchors (list of `int`): Which of them; x is drawn from these.
        parameters (list of `Parameter`): w.
        draws (`int`, *optional*, defaults to 1):
            Labels drawn for each example; of one with several scored positions, log p is their mean.

    Returns:
        `list[torch.Tensor]`: of the parameters' shapes.
    """
    fisher = [torch.zeros_like(p.detach()) for p in parameters]
    generator = torch.Generator().manual_seed(0)
    for index in anchors:
        for log_likelihood in _drawn_log_likelihoods(start.anchor_outputs([index]), draws, generator):
            gradients = torch.autograd.grad(log_likelihood, parameters, retain_graph=True, allow_unused=True)
            for total, gradient in zip(fisher, gradients, strict=True):
                if gradient is not None:
                    total.addcmul_(gradient, gradient, value=1 / (draws * len(anchors)))
    return fisher


def _drawn_log_likelihoods(batch: OutputBatch, draws: int, generator: torch.Generator) -> Iterator[Tensor]:
    """
    Scalars whose squared gradients have the Fisher information as their mean. A confident network would hardly ever
    draw the labels that carry it, so labels are drawn in proportion to p times the squared gradient of log p by the
    outputs, and weighted accordingly; random signs keep several positions of one example apart.
    """
    if batch.outputs.ndim < 2 or batch.outputs.shape[-1] < 2:
        raise InputError("the Fisher information is taken of class probabilities, but the model has a single output")
    log_p = within(batch.outputs.float(), batch.nodes).log_softmax(dim=-1)
    p = log_p.detach().double().cpu().exp()
    squares = 1 - 2 * p + p.square().sum(dim=-1, keepdim=True)
    proposal = (p * squares).clamp(min=torch.finfo(torch.float64).tiny)
    for _ in range(draws):
        labels = torch.multinomial(proposal, 1, generator=generator)
        factors = (proposal.sum(dim=-1, keepdim=True) / squares.gather(-1, labels).clamp(min=1e-12)).sqrt()
        factors *= 2 * torch.randint(2, factors.shape, generator=generator) - 1
        rows = (log_p.gather(-1, labels.to(log_p.device)) * factors.to(log_p))[:, 0]
        yield rows.sum() if batch.example_index is None else mean_by_example(rows, batch).sum()
