"""Tasks as a model reads them: training and test rows, anchors, and inputs held out to certify on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, default_data_collator

from .data.augment import MOST_ROWS, mixed_copies, shifted_copies
from .data.causal import NextTokenCollator, next_token_likelihoods, next_token_rows
from .data.masking import MaskingCollator, likelihoods, masked_once, perplexity
from .data.memory import remembered_rows
from .data.sampling import stratified_indices
from .errors import InputError
from .starting_network import TASK_COLUMN
from .tasks import LANGUAGE_MODELLING, Task, features


# Inputs of each old task, unseen in training, on which the budget is certified, unless more or fewer are asked for.
HELD_OUT = 1000
RUNNER_UP_ANCHORS = 256


class TaskData:
    """
    Tasks as data sets of model inputs.

    Args:
        processor (`Any`): The network's tokenizer or image processor.
        data_root (`str`, *optional*): Local folder with the data sets, instead of the Hub.
        seed (`int`): Of all that is drawn.
        max_length (`int`, *optional*): Tokens kept of a text.
        made (`dict`, *optional*):
            Data sets made already, which are taken from there and added to: those of the earlier tasks of a stream
            are the same for each further task.
    """

    def __init__(
        self,
        processor: Any,
        data_root: str | None,
        seed: int,
        max_length: int | None,
        made: dict[str, Dataset] | None = None,
    ):
        self.processor = processor
        self.data_root = data_root
        self.seed = seed
        self.max_length = max_length
        self._made = {} if made is None else made

    def features(self, task: Task, space: list[int], split: str) -> Dataset:
        """Model inputs and labels, the labels being the task's output nodes."""
        return self._once(("features", task, space, split), lambda: self._inputs(task, space, self._rows(task, split)))

    def _rows(self, task: Task, split: str) -> Dataset:
        return self._once(("rows", task, split), lambda: task.load(split, self.data_root, self.seed))

    def _once(self, what: tuple, make: Callable[[], Dataset]) -> Dataset:
        key = repr(what)
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _inputs(self, task: Task, space: list[int], rows: Dataset) -> Dataset:
        if task.kind in LANGUAGE_MODELLING:
            tokens = features(rows, self.processor, max_length=self.max_length)
            return next_token_rows(tokens) if task.kind == "text-generation" else tokens
        if "label" in rows.column_names and space != list(range(space[0], space[0] + len(space))):
            names = rows.features["label"].names
            order = [names[space.index(node)] for node in sorted(space)]
            rows = rows.align_labels_with_mapping({name: i for i, name in enumerate(order)}, "label")
        return features(rows, self.processor, label_offset=min(space), max_length=self.max_length)

    def evaluation(self, tasks: list[Task], spaces: dict) -> dict[str, Any]:
        """Arguments of a trainer: the test rows of the tasks, and how batches are made and measured."""
        rows = {task.name: self.features(task, spaces[task.name], "test") for task in tasks}
        kind = kind_of(tasks)
        if kind == "classification":
            return {"eval_dataset": rows}
        if kind == "text-generation":
            return {
                "eval_dataset": rows,
                "data_collator": NextTokenCollator(self.processor),
                "preprocess_logits_for_metrics": next_token_likelihoods,
                "compute_metrics": perplexity,
            }
        return {
            "eval_dataset": {name: masked_once(test, self.processor, seed=self.seed) for name, test in rows.items()},
            "data_collator": MaskingCollator(self.processor),
            "preprocess_logits_for_metrics": likelihoods,
            "compute_metrics": perplexity,
        }

    def anchors(
        self,
        tasks: list[Task],
        spaces: dict,
        number: int,
        labelled: bool,
        shift: int = 0,
        mix: int = 0,
        memory: str = "even",
        held_out: int = HELD_OUT,
    ) -> tuple[Dataset, Dataset]:
        """Training inputs of the tasks as anchors, and inputs of their test splits to certify on."""
        drawn, unseen = [], []
        training = [self._rows(task, "train") for task in tasks]
        labels = [_labels(task, rows, memory) for task, rows in zip(tasks, training, strict=True)]
        chosen = remembered_rows(memory, labels, number, self.seed)
        for index, (task, rows, kept) in enumerate(zip(tasks, training, chosen, strict=True)):
            if len(kept):
                copies = {"shift": shift, "mix": mix, "most": MOST_ROWS * len(kept) // sum(map(len, chosen))}
                drawn.append(self._anchors(task, spaces[task.name], index, rows.select(kept), labelled, **copies))
            unseen.append(self._held_out(task, spaces[task.name], index, held_out))
        return concatenate_datasets(drawn), concatenate_datasets(unseen)

    def _held_out(self, task: Task, space: list[int], index: int, number: int) -> Dataset:
        def draw() -> Dataset:
            rows = self._rows(task, "test")
            rows = rows.select(stratified_indices([0] * len(rows), number, self.seed))
            return self._anchors(task, space, index, rows, labelled=False)

        return self._once(("held out", task, space, index, number), draw)

    def _anchors(
        self,
        task: Task,
        space: list[int],
        index: int,
        rows: Dataset,
        labelled: bool,
        *,
        shift: int = 0,
        mix: int = 0,
        most: int = MOST_ROWS,
    ) -> Dataset:
        if not labelled and "label" in rows.column_names:
            rows = rows.remove_columns("label")
        if mix:
            rows = mixed_copies(rows, mix, seed=self.seed, most=most)
        if shift:
            rows = shifted_copies(rows, shift, seed=self.seed, most=most)
        inputs = self._inputs(task, space, rows)
        return inputs.add_column(TASK_COLUMN, [index] * len(inputs))


def _labels(task: Task, rows: Dataset, memory: str) -> Sequence[int]:
    """The rows' labels where the choice of anchors looks at them."""
    if memory != "class_balanced":
        return range(len(rows))
    if "label" not in rows.column_names:
        raise InputError(f"anchor_memory='class_balanced' needs labels, which task {task.name!r} has not; use 'even'")
    return rows["label"][:]


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
    old inputs as they are.
    """
    # Of all tasks: anchors lie in the tasks' order.
    rows = anchors.select(range(0, len(anchors), max(1, len(anchors) // RUNNER_UP_ANCHORS)))
    rows = rows.remove_columns([name for name in ("labels", TASK_COLUMN) if name in rows.column_names])
    collate = DataCollatorWithPadding(processor) if isinstance(processor, PreTrainedTokenizerBase) else None
    seconds = []
    for start in range(0, len(rows), 64):
        batch = (collate or default_data_collator)([rows[i] for i in range(start, min(start + 64, len(rows)))])
        with torch.no_grad():
            seconds.append(model.eval()(**batch).logits.topk(2).values[:, 1])
    return torch.cat(seconds).median().item()
