"""Rivals that project the new task's gradient where it would raise the loss on earlier tasks: A-GEM and GEM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn

from ..errors import InputError
from ..functional.penalty import anchor_label_losses
from ..terms import OutputBatch, PathStart, Step, Term


class AveragedGEM(Term):
    """
    Averaged gradient episodic memory: where the gradient g would raise the mean loss on the anchors of all earlier
    tasks, whose gradient is g_ref, it is projected, g − (g·g_ref / g_ref·g_ref) g_ref (Chaudhry et al., "Efficient
    lifelong learning with A-GEM", 2019, eq. 11).

    g_ref is the gradient on the step's own batch of anchors and their labels, by a second backward pass through the
    joint forward; on several processes it is averaged over them.
    """

    name = "agem"
    per_task = False

    def __init__(self):
        self._trained: list[nn.Parameter] = []
        self._tasks: list[int] = []
        self._gradients: dict[int, Tensor] = {}
        self._projected: Tensor | int = 0
        self._steps = 0

    def begin_path(self, start: PathStart) -> None:
        if not start.anchor_tasks:
            raise InputError(f"method {self.name!r} needs anchor_dataset: its gradients are those that are kept")
        self._tasks = sorted(set(start.anchor_tasks)) if self.per_task else [0]
        self._trained = [p for p in start.model.parameters() if p.requires_grad]

    def loss(self, step: Step) -> Tensor | None:
        """Takes the gradients on the anchors; adds none to the loss."""
        anchors = step.anchors
        if anchors is None or not anchors.examples:
            return None
        _refuse_float16(anchors.outputs)
        losses = anchor_label_losses(anchors)
        for task, rows in self._rows(anchors).items():
            gradients = torch.autograd.grad(
                anchors.mean(losses[rows]), self._trained, retain_graph=True, allow_unused=True
            )
            flat = _flat(gradients, self._trained)
            self._gradients[task] = self._gradients[task] + flat if task in self._gradients else flat
        return None

    def _rows(self, anchors: OutputBatch) -> dict[int, list[int]]:
        """Which of the batch's anchors each of the compared gradients is taken on."""
        return {0: list(range(anchors.examples))}

    def constrain_gradient_(self, parameters: list[nn.Parameter]) -> None:
        gradient = _flat([p.grad for p in self._trained], self._trained)
        memory = torch.stack([self._gradients.get(task, torch.zeros_like(gradient)) for task in self._tasks])
        self._gradients = {}
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            torch.distributed.all_reduce(memory)
            memory /= torch.distributed.get_world_size()
        correction = self.correction(gradient, memory)
        self._steps += 1
        self._projected = self._projected + correction.any().int()
        _add_flat_(self._trained, correction)

    def correction(self, gradient: Tensor, memory: Tensor) -> Tensor:
        """
        What is added to the gradient.

        Args:
            gradient (`torch.Tensor`): g, `[weights]`.
            memory (`torch.Tensor`): The gradients to agree with, `[tasks, weights]`.
        """
        reference = memory[0]
        disagreement = (gradient @ reference).clamp(max=0.0)
        # Where the anchors' loss has no gradient left there is nothing to agree with.
        size = (reference @ reference).clamp(min=torch.finfo(reference.dtype).tiny)
        return -disagreement / size * reference

    def logs(self) -> dict[str, float | Tensor]:
        share = self._projected / max(1, self._steps)
        self._projected, self._steps = 0, 0
        return {"projected_steps": share}


class GEM(AveragedGEM):
    """
    Gradient episodic memory: the gradient closest to g that raises the loss on none of the earlier tasks, each of
    which has a constraint of its own (Lopez-Paz and Ranzato, "Gradient episodic memory for continual learning", 2017,
    eq. 8-11). As in A-GEM a task's gradient is taken on its anchors in the step's batch, not on all of them; tasks
    that have none there do not constrain the step.

    The dual problem has one unknown per task; its matrix is fetched from the device in every step.

    Args:
        margin (`float`, *optional*, defaults to 3.0):
            γ of the paper: least multiple of every task's gradient that is added wherever g disagrees with one. With 0
            the projection is exact and, for a single earlier task, A-GEM's.
    """

    name = "gem"
    per_task = True

    def __init__(self, margin: float = 3.0):
        super().__init__()
        self.margin = margin
        self._counts: dict[int, Tensor | float] = {}

    def _rows(self, anchors: OutputBatch) -> dict[int, list[int]]:
        rows: dict[int, list[int]] = {}
        for row, task in enumerate(anchors.tasks):
            rows.setdefault(task, []).append(row)
        for task, members in rows.items():
            self._counts[task] = self._counts.get(task, 0.0) + len(members) * anchors.share
        return rows

    def correction(self, gradient: Tensor, memory: Tensor) -> Tensor:
        memory = memory / self._shares(memory)[:, None]
        gram = (memory @ torch.cat([memory, gradient[None]]).T).double().cpu().numpy()
        factors = gem_multipliers(gram[:, :-1], gram[:, -1], self.margin)
        return torch.as_tensor(factors, dtype=memory.dtype, device=memory.device) @ memory

    def _shares(self, memory: Tensor) -> Tensor:
        """Each task's share of the step's anchors, over all processes: gradients become those of means over a task."""
        shares = memory.new_tensor([float(self._counts.get(task, 0.0)) for task in self._tasks])
        self._counts = {}
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            torch.distributed.all_reduce(shares)
            shares /= torch.distributed.get_world_size()
        return shares.where(shares > 0, 1.0)

    def report(self) -> dict[str, Any]:
        return {"gem": {"margin": self.margin, "tasks": len(self._tasks)}}


def gem_multipliers(gram: np.ndarray, products: np.ndarray, margin: float = 0.0) -> np.ndarray:
    """
    Multipliers v of the earlier tasks' gradients G (rows) for which g + Gᵀ v is the gradient closest to g that agrees
    with all of them: min over v >= margin of ½ vᵀ G Gᵀ v + (G g)ᵀ v (GEM, eq. 11), by non-negative least squares.

    Args:
        gram (`numpy.ndarray`): G Gᵀ, `[tasks, tasks]`.
        products (`numpy.ndarray`): G g, `[tasks]`.
        margin (`float`, *optional*, defaults to 0.0): γ; zero gives the exact projection.

    Returns:
        `numpy.ndarray`: v, `[tasks]`; zero where g agrees with every task.
    """
    used = np.flatnonzero(np.diag(gram) > 0)
    multipliers = np.zeros(len(products))
    if not len(used) or (products[used] >= 0).all():
        return multipliers
    gram, products = gram[np.ix_(used, used)], products[used]
    # In units of each task's own gradient: tasks with small gradients are solved as exactly as those with large ones.
    scale = 1 / np.sqrt(np.diag(gram))
    scaled = gram * scale[:, None] * scale + 1e-10 * np.eye(len(used))
    root = np.linalg.cholesky(scaled)
    linear = scale * (products + gram @ np.full(len(used), margin))
    solution, _ = nnls(root.T, -np.linalg.solve(root, linear))
    multipliers[used] = scale * solution + margin
    return multipliers


def _flat(gradients: Sequence[Tensor | None], parameters: list[nn.Parameter]) -> Tensor:
    """All gradients as one vector, at least float32."""
    rows = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]
    return torch.cat([row.detach().reshape(-1).to(torch.promote_types(row.dtype, torch.float32)) for row in rows])


def _add_flat_(parameters: list[nn.Parameter], flat: Tensor) -> None:
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    parts = flat.split([p.numel() for p in parameters])
    gradients = [p.grad for p in parameters]
    torch._foreach_add_(gradients, [part.view_as(g).to(g.dtype) for part, g in zip(parts, gradients, strict=True)])


def _refuse_float16(outputs: Tensor) -> None:
    kind = outputs.device.type
    if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) is torch.float16:
        raise InputError(
            "fp16=True: the anchors' own gradients are taken without loss scaling and would underflow; use bf16=True"
        )
