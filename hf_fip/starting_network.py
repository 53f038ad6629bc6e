"""The network a path starts from, as terms may look at it before the first step, and its outputs on the new task."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from .errors import InputError
from .forward import OutputKind, base_model, function_mode_, logits_of
from .terms import OutputBatch


if TYPE_CHECKING:
    from .trainer import FIPTrainer

# Columns of data sets: the place of a training example, and the number of the earlier task an anchor is of.
EXAMPLE_COLUMN = "fip_example"
TASK_COLUMN = "fip_task"


def number_examples_(trainer: FIPTrainer) -> None:
    """
    Gives the training data each example's place as a further column, by which cached outputs are found.

    Raises:
        [`InputError`]: the data are no `datasets.Dataset`.
    """
    dataset = trainer.train_dataset
    if not isinstance(dataset, datasets.Dataset):
        raise InputError(
            f"train_dataset is a {type(dataset).__name__}; distillation on the new task caches the first outputs on "
            "each of its examples: pass a datasets.Dataset"
        )
    trainer.train_dataset = dataset.add_column(EXAMPLE_COLUMN, np.arange(len(dataset)))
    trainer._set_signature_columns_if_needed()
    trainer._signature_columns.append(EXAMPLE_COLUMN)


def anchor_tasks(dataset: Any) -> list[int]:
    """Of each anchor, the number of the earlier task it is of: its column `fip_task`, or one task for all."""
    if TASK_COLUMN in (getattr(dataset, "column_names", None) or ()):
        return [int(task) for task in dataset.with_format(None)[TASK_COLUMN]]
    return [0] * len(dataset)


class StartingNetwork:
    """
    The network a path starts from; see [`~hf_fip.terms.PathStart`].

    Args:
        trainer (`FIPTrainer`): The trainer, whose model holds the starting weights now.
    """

    def __init__(self, trainer: FIPTrainer):
        self.trainer = trainer
        self.model: nn.Module = trainer.unwrapped
        self.anchor_tasks = [] if trainer.preservation.anchors is None else trainer.preservation.anchors.tasks
        wanted = any(term.uses_task_reference for term in trainer.terms)
        self._task_outputs = self._outputs_on_task() if wanted else None

    @cached_property
    def old_nodes(self) -> list[int]:
        """Output nodes that no label of the new task names; all of them where it names all of them."""
        trainer = self.trainer
        nodes = getattr(base_model(self.model).config, "num_labels", 0)
        if trainer.kind is not OutputKind.EXAMPLE or not isinstance(trainer.train_dataset, datasets.Dataset):
            return list(range(nodes))
        column = next((name for name in ("labels", "label") if name in trainer.train_dataset.column_names), None)
        named = set() if column is None else set(np.unique(trainer.train_dataset.with_format("numpy")[column][:]))
        return [node for node in range(nodes) if node not in named] or list(range(nodes))

    def anchor_outputs(self, indices: Sequence[int]) -> OutputBatch:
        """Differentiable outputs on these anchors, in the mode in which functions are compared."""
        was_training = self.model.training
        function_mode_(self.model)
        preservation = self.trainer.preservation
        logits = logits_of(self.model(**self.trainer.to_device(preservation.anchors.inputs(indices))))
        self.model.train(was_training)
        return preservation.batch(logits, list(indices), share=1.0)

    def task_reference(self, examples: Tensor | None) -> Tensor | None:
        """Outputs, `[batch, nodes]`, on the training examples at these places."""
        return None if self._task_outputs is None or examples is None else self._task_outputs[examples]

    @torch.no_grad()
    def _outputs_on_task(self) -> Tensor:
        trainer, dataset = self.trainer, self.trainer.train_dataset
        if trainer.kind is not OutputKind.EXAMPLE:
            raise InputError(
                f"distillation on the new task needs one output row per example, but a {type(self.model).__name__} "
                f"has {trainer.kind.value}; keep its function on anchors instead"
            )
        processes, rank = trainer.accelerator.num_processes, trainer.accelerator.process_index
        mine = range(rank * len(dataset) // processes, (rank + 1) * len(dataset) // processes)
        rows = trainer._remove_unused_columns(dataset, description="training")
        loader = DataLoader(Subset(rows, mine), trainer.args.eval_batch_size, collate_fn=trainer.data_collator)
        was_training = self.model.training
        function_mode_(self.model)
        parts = []
        for batch in loader:
            inputs = {key: value for key, value in batch.items() if key not in ("labels", EXAMPLE_COLUMN)}
            with trainer.accelerator.autocast():
                parts.append(logits_of(self.model(**trainer.to_device(inputs))).float().cpu())
        self.model.train(was_training)
        # On the device: looked up there in every step, without waiting for it.
        return torch.cat(trainer.preservation._gather(parts)).to(trainer.args.device)
