"""Data sets as a running trainer keeps its function on them: anchors, inputs to certify on, inputs to control by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import datasets
import torch
from torch.utils.data import Subset

from .data.sampling import stratified_indices
from .errors import InputError
from .forward import OutputKind, base_model
from .functional.anchors import Anchors
from .functional.budget import Drift
from .starting_network import EXAMPLE_COLUMN, anchor_tasks


if TYPE_CHECKING:
    from .config import FIPConfig
    from .trainer import FIPTrainer

# So sure the calibrating inputs have to be for as many others, on which the certificate rests, to agree most times.
CALIBRATION_CONFIDENCE = 0.998


def collect(trainer: FIPTrainer, dataset: Any, name: str) -> Anchors | None:
    """
    The data set's model inputs, collated as the trainer does.

    Args:
        trainer (`FIPTrainer`): Whose model, processor and collator are used.
        dataset (map-style dataset, *optional*): `None` gives `None`.
        name (`str`): What errors call it.

    Raises:
        [`InputError`]: it has no length, no rows, or not the model's input.
    """
    if dataset is None:
        return None
    kind, tokenizer = trainer.kind, trainer.processing_class
    if not hasattr(dataset, "__len__"):
        raise InputError(
            f"{name}: a {type(dataset).__name__} has no length; anchors are a finite set, so pass a map-style "
            "data set (of a stream: `Dataset.from_list(list(stream.take(2000)))`)"
        )
    if len(dataset) == 0:
        raise InputError(f"{name} is empty; pass the inputs on which the function has to be kept")
    tasks = anchor_tasks(dataset)
    if isinstance(dataset, datasets.Dataset):
        _check_columns(trainer, dataset, name)
        dataset, collate = trainer._remove_unused_columns(dataset, description=name), trainer.data_collator
    else:
        collate = trainer._get_collator_with_removed_columns(trainer.data_collator, description=name)
    return Anchors(
        dataset,
        collate,
        per_token=kind.per_token,
        padding={"input_ids": getattr(tokenizer, "pad_token_id", None) or 0},
        shift_labels=kind is OutputKind.NEXT_TOKEN,
        mask_token_id=getattr(tokenizer, "mask_token_id", None) if kind is OutputKind.TOKEN else None,
        max_positions=trainer.args.anchor_positions,
        seed=trainer.data_seed,
        name=name,
        tasks=tasks,
    )


def split_held_out(dataset: Any, args: FIPConfig, *, seed: int) -> tuple[Any, Any]:
    """
    The inputs to certify on, and those to control by: `calibration_share` of them.

    Raises:
        [`InputError`]: so few inputs could not speak for the budget, whatever is seen on them.
    """
    share = args.calibration_share
    if not share or dataset is None:
        return dataset, None
    number = round(share * len(dataset))
    few = torch.zeros(number, dtype=torch.bool)
    unchanged = Drift(few.float(), few).certificates(args.budget, CALIBRATION_CONFIDENCE)
    needed = [c.inputs_needed for c in unchanged if c.asked is not None and not c.certified]
    if needed or number == len(dataset):
        raise InputError(
            f"calibration_share={share:g} of {len(dataset)} held-out inputs are {number}: of them the budget needs "
            f"{max(needed, default=1)}, if nothing has changed on any, and there must be others to certify on; give "
            "more held-out inputs, another share or a larger budget"
        )
    chosen = stratified_indices(anchor_tasks(dataset), number, seed).tolist()
    others = sorted({*range(len(dataset))} - {*chosen})
    if isinstance(dataset, datasets.Dataset):
        return dataset.select(others), dataset.select(chosen)
    return Subset(dataset, others), Subset(dataset, chosen)


def check_inputs(trainer: FIPTrainer, anchors: Anchors) -> None:
    """Anchors must carry the same inputs as the task batch, or the joint forward cannot be made."""
    if not trainer.has_task or trainer.kind is OutputKind.OTHER or not hasattr(trainer.train_dataset, "__len__"):
        return
    task = Anchors(
        _First(trainer.train_dataset),
        trainer._get_collator_with_removed_columns(trainer.data_collator, description="training"),
        name="train_dataset",
    )
    differing = (task.input_names ^ anchors.input_names) - {"attention_mask", EXAMPLE_COLUMN}
    if differing:
        raise InputError(
            f"anchor_dataset and train_dataset differ in the model inputs {sorted(differing)}; prepare both with "
            "the same processing_class and columns"
        )


def _check_columns(trainer: FIPTrainer, dataset: datasets.Dataset, name: str) -> None:
    wanted = getattr(base_model(trainer.unwrapped), "main_input_name", None)
    if wanted is not None and wanted not in dataset.column_names and trainer.args.remove_unused_columns:
        raise InputError(
            f"{name} has no column {wanted!r}, the input of the model, only {dataset.column_names}; prepare "
            "it like train_dataset"
        )


class _First:
    """The first example of a data set."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return min(1, len(self.dataset))

    def __getitem__(self, index: int):
        return self.dataset[index]
