"""Task-incremental learning: where an input's task is known, the other tasks' output nodes are out of question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import nll_loss
from transformers import EvalPrediction

from ..errors import InputError
from .anchors import IGNORED_LABEL


def node_table(task_nodes: Sequence[Sequence[int]], outputs: int) -> Tensor:
    """
    Which output nodes are each task's.

    Args:
        task_nodes (sequence of sequences of `int`): The output nodes of each task, oldest task first.
        outputs (`int`): Number of output nodes.

    Returns:
        `torch.Tensor`: `[tasks, outputs]`, `bool`.

    Raises:
        [`~hf_fip.errors.InputError`]: a node that is two tasks', or none of the model's.
    """
    flat = [node for nodes in task_nodes for node in nodes]
    if len(set(flat)) < len(flat) or not all(0 <= node < outputs for node in flat):
        raise InputError(
            f"task_nodes={[list(nodes) for nodes in task_nodes]!r}: where the task is known, each of the {outputs} "
            "output nodes belongs to one task at most; give every task nodes of its own"
        )
    table = torch.zeros(len(task_nodes), outputs, dtype=torch.bool)
    for task, nodes in enumerate(task_nodes):
        table[task, list(nodes)] = True
    return table


def within(outputs: Tensor, nodes: Tensor | None) -> Tensor:
    """
    Class scores with −∞ at the nodes that are out of question: their probability is 0, and no prediction is theirs.

    Args:
        outputs (`torch.Tensor`): `[rows, outputs]`.
        nodes (`torch.Tensor`, *optional*): `[rows, outputs]`, `bool`; all nodes without it.
    """
    return outputs if nodes is None else outputs.masked_fill(~nodes.to(outputs.device), -torch.inf)


def nodes_of_labels(table: Tensor, labels: Tensor) -> Tensor:
    """
    For each label the nodes of its task, `[rows, outputs]`; all nodes where there is no label.

    Args:
        table (`torch.Tensor`): As [`node_table`] gives it.
        labels (`torch.Tensor`): Output nodes, `[rows]`.
    """
    table = table.to(labels.device)
    known = labels != IGNORED_LABEL
    mine = table[:, labels.where(known, 0)].T.to(torch.uint8).argmax(dim=1)
    return table[mine] | ~known[:, None]


def task_loss_within(table: Tensor, *, smoothing: float = 0.0) -> Callable[..., Tensor]:
    """
    The cross-entropy over the nodes of each label's task, as a `compute_loss_func` of the Trainer.

    Args:
        table (`torch.Tensor`): As [`node_table`] gives it.
        smoothing (`float`, *optional*, defaults to 0.0): Label smoothing, over the task's nodes.
    """

    def compute_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        nodes = nodes_of_labels(table, labels)
        log_p = within(logits.float(), nodes).log_softmax(dim=-1)
        total = nll_loss(log_p, labels, ignore_index=IGNORED_LABEL, reduction="sum")
        if smoothing:
            uniform = -log_p.where(nodes, 0.0).sum(dim=-1) / nodes.sum(dim=-1)
            total = (1 - smoothing) * total + smoothing * uniform[labels != IGNORED_LABEL].sum()
        return total / ((labels != IGNORED_LABEL).sum() if num_items_in_batch is None else num_items_in_batch)

    return compute_loss


def accuracy(prediction: EvalPrediction, table: Tensor | None = None) -> dict[str, float]:
    """
    Share of correct predictions: what classification is evaluated by unless `compute_metrics` is given.

    Args:
        prediction (`EvalPrediction`): Class scores and labels.
        table (`torch.Tensor`, *optional*): As [`node_table`] gives it, where the task of each input is known.
    """
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    labels = np.asarray(prediction.label_ids)
    if table is not None:
        logits = np.where(nodes_of_labels(table, torch.as_tensor(labels)).numpy(), logits, -np.inf)
    return {"accuracy": float((logits.argmax(-1) == labels).mean())}
