"""Tasks as a model reads them: training and test rows, anchors, and inputs held out to certify on."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, default_data_collator

from .data.augment import shifted_copies
from .data.masking import MaskingCollator, likelihoods, masked_once, perplexity
from .data.sampling import stratified_indices
from .errors import InputError
from .starting_network import TASK_COLUMN
from .tasks import Task, features


# Inputs of each old task, unseen in training, on which the budget is certified.
HELD_OUT = 1000
RUNNER_UP_ANCHORS = 256


class TaskData:
    """Tasks as data sets of model inputs."""

    def __init__(self, processor, data_root: str | None, seed: int, max_length: int | None):
        self.processor = processor
        self.data_root = data_root
        self.seed = seed
        self.max_length = max_length

    def features(self, task: Task, space: list[int], split: str, rows: Dataset | None = None) -> Dataset:
        """Model inputs and labels, the labels being the task's output nodes."""
        rows = task.load(split, self.data_root, self.seed) if rows is None else rows
        if task.kind == "fill-mask":
            return features(rows, self.processor, max_length=self.max_length)
        if "label" in rows.column_names and space != list(range(space[0], space[0] + len(space))):
            names = rows.features["label"].names
            order = [names[space.index(node)] for node in sorted(space)]
            rows = rows.align_labels_with_mapping({name: i for i, name in enumerate(order)}, "label")
        return features(rows, self.processor, label_offset=min(space), max_length=self.max_length)

    def evaluation(self, tasks: list[Task], spaces: dict) -> dict[str, Any]:
        """Arguments of a trainer: the test rows of the tasks, and how batches are made and measured."""
        rows = {task.name: self.features(task, spaces[task.name], "test") for task in tasks}
        if kind_of(tasks) == "classification":
            return {"eval_dataset": rows}
        return {
            "eval_dataset": {name: masked_once(test, self.processor, seed=self.seed) for name, test in rows.items()},
            "data_collator": MaskingCollator(self.processor),
            "preprocess_logits_for_metrics": likelihoods,
            "compute_metrics": perplexity,
        }

    def anchors(
        self, tasks: list[Task], spaces: dict, number: int, labelled: bool, shift: int
    ) -> tuple[Dataset, Dataset]:
        """Training inputs of the tasks as anchors, and inputs of their test splits to certify on."""
        drawn, unseen = [], []
        for index, task in enumerate(tasks):
            share = number // len(tasks) + (index < number % len(tasks))
            rows = self._sample(task, spaces[task.name], "train", share, labelled, shift)
            drawn.append(rows.add_column(TASK_COLUMN, [index] * len(rows)))
            unseen.append(self._sample(task, spaces[task.name], "test", HELD_OUT, False))
        return concatenate_datasets(drawn), concatenate_datasets(unseen)

    def _sample(self, task: Task, space: list[int], split: str, size: int, labelled: bool, shift: int = 0) -> Dataset:
        rows = task.load(split, self.data_root, self.seed)
        # Drawn without a look at the labels: unlabelled data have none.
        rows = rows.select(stratified_indices([0] * len(rows), size, self.seed))
        if not labelled and "label" in rows.column_names:
            rows = rows.remove_columns("label")
        if shift:
            rows = shifted_copies(rows, shift, seed=self.seed)
        return self.features(task, space, split, rows)


def kind_of(tasks: list[Task]) -> str:
    """
    What all of the tasks are.

    Raises:
        [`InputError`]: they are of different kinds, which no one head serves.
    """
    kinds = {task.kind: task.name for task in tasks}
    if len(kinds) > 1:
        named = ", ".join(f"{name!r} is {kind}" for kind, name in kinds.items())
        raise InputError(f"tasks: {named}; the tasks of one model are of one kind")
    return next(iter(kinds))


def runner_up(model, anchors: Dataset, processor) -> float:
    """
    Median over anchors of the second largest output. New output nodes that start no higher leave the predictions on
    old inputs as they are, so that the reference outputs are those of the network that is to be kept.
    """
    rows = anchors.select(range(min(len(anchors), RUNNER_UP_ANCHORS)))
    rows = rows.remove_columns([name for name in ("labels", TASK_COLUMN) if name in rows.column_names])
    collate = DataCollatorWithPadding(processor) if isinstance(processor, PreTrainedTokenizerBase) else None
    seconds = []
    for start in range(0, len(rows), 64):
        batch = (collate or default_data_collator)([rows[i] for i in range(start, min(start + 64, len(rows)))])
        with torch.no_grad():
            seconds.append(model.eval()(**batch).logits.topk(2).values[:, 1])
    return torch.cat(seconds).median().item()
