"""The examples of a query: texts or images with their labels, a seeded sample of one split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset

from ..data.columns import class_names, input_column, label_column, modality_of, row_labels
from ..data.resolve import resolve_dataset
from ..errors import InputError


SPLITS = ("test", "validation", "train")
GIVEN = "given"


@dataclass(frozen=True)
class Examples:
    """
    What every model of a query sees.

    Args:
        name (`str`): the data set's SPEC, or `"given"` for texts or a data set given as they are.
        config (`str`, *optional*): its configuration.
        split (`str`, *optional*): its split; `None` for what was given as it is.
        modality (`str`): `"text"` or `"image"`.
        column (`str`): the column read.
        inputs (`Dataset`): the column `text` or `image`.
        index (`np.ndarray`): `[examples]`, the number of each example's row in the split: masks depend on it.
        labels (`list[str]`, *optional*): the name of each example's label; `None` for data without labels.
        classes (`list[str]`): the classes' names in the order of their numbers.
        numeric (`bool`): whether the labels are bare numbers, whose names say nothing.
        left_out (`int`): rows without text or label, which were left out.
    """

    name: str
    config: str | None
    split: str | None
    modality: str
    column: str
    inputs: Dataset
    index: np.ndarray
    labels: list[str] | None
    classes: list[str]
    numeric: bool
    left_out: int

    def __len__(self) -> int:
        return len(self.index)

    def take(self, rows: np.ndarray) -> Examples:
        """The examples of these numbers, in this order."""
        labels = None if self.labels is None else [self.labels[row] for row in rows]
        fields = {"inputs": self.inputs.select(rows), "index": self.index[rows], "labels": labels}
        return Examples(**{**vars(self), **fields})


def load_examples(
    dataset: str | Dataset | Sequence[str],
    *,
    config: str | None = None,
    split: str | None = None,
    text_column: str | None = None,
    label: str | None = None,
    max_samples: int | None = None,
    data_root: str | Path | None = None,
    seed: int = 0,
) -> Examples:
    """
    Reads a query's data.

    Args:
        dataset (`str`, `Dataset` or `Sequence[str]`): a SPEC that [`resolve_dataset`] takes, a data set, or texts.
        config (`str`, *optional*): the configuration, for a SPEC.
        split (`str`, *optional*): the split, for a SPEC; by default the first of `test`, `validation`, `train`.
        text_column (`str`, *optional*): the column of texts (or images); found by its name if not given.
        label (`str`, *optional*): the column of labels; found by its name if not given.
        max_samples (`int`, *optional*): a random sample of so many rows, in the split's order; all rows by default.
        data_root (`str` or `Path`, *optional*): folder with local copies of Hub data sets.
        seed (`int`, *optional*, defaults to 0): of the sample.

    Raises:
        [`InputError`]: no such data set, configuration, split or column, fewer than 2 rows with text, or
        `max_samples` below 2.
    """
    if max_samples is not None and max_samples < 2:
        raise InputError(f"max_samples={max_samples}: give at least 2 examples, or leave it out to take all.")
    name, rows, split = _rows(dataset, config, split, data_root)
    if not len(rows):
        raise InputError(f"dataset={name!r} is empty: give one with rows.")
    column = _input_column(rows, text_column)
    modality = modality_of(rows.features, column)
    found = _label_column(rows, label)
    labels = None if found is None else row_labels(rows, found)
    if labels is not None and all(value is None for value in labels):
        labels = None
    usable = _usable(rows, column, modality, labels)
    if len(usable) < 2:
        raise InputError(f"dataset={name!r} has {len(usable)} usable rows in column {column!r}: give at least 2.")
    left_out = len(rows) - len(usable)
    if max_samples is not None and max_samples < len(usable):
        usable = np.sort(np.random.default_rng(seed).choice(usable, max_samples, replace=False))
    inputs = rows.with_format(None).select_columns([column]).select(usable)
    return Examples(
        name=name,
        config=config,
        split=split,
        modality=modality,
        column=column,
        inputs=inputs if column == modality else inputs.rename_column(column, modality),
        index=usable,
        labels=None if labels is None else [labels[row] for row in usable],
        classes=[] if labels is None else class_names(rows, found),
        numeric=labels is not None and not isinstance(rows.features[found], ClassLabel) and _all_numbers(labels),
        left_out=left_out,
    )


def _rows(
    dataset: Any, config: str | None, split: str | None, data_root: str | Path | None
) -> tuple[str, Dataset, str | None]:
    if isinstance(dataset, str):
        for candidate in SPLITS if split is None else (split,):
            try:
                return (
                    dataset,
                    resolve_dataset(dataset, config=config, split=candidate, data_root=data_root),
                    candidate,
                )
            except InputError as error:
                if split is not None or candidate == SPLITS[-1] or "does not exist in dataset" not in str(error):
                    raise
    for argument, value in (("split", split), ("config", config)):
        if value is not None:
            raise InputError(f"{argument}={value!r} goes with the name of a data set: leave it out for given data.")
    if isinstance(dataset, Dataset):
        return GIVEN, dataset, None
    if not isinstance(dataset, Sequence) or not all(isinstance(text, str) for text in dataset):
        kind = type(dataset).__name__
        raise InputError(f"dataset is a {kind}: give a data set's name, a datasets.Dataset (one split) or texts.")
    return GIVEN, Dataset.from_dict({"text": list(dataset)}), None


def _input_column(rows: Dataset, given: str | None) -> str:
    try:
        return input_column(rows.features, given)
    except InputError as error:
        raise InputError(str(error).replace("input_column", "text_column")) from None


def _label_column(rows: Dataset, given: str | None) -> str | None:
    # Of several columns that could be the labels none is chosen: a language model needs none of them.
    try:
        return label_column(rows.features, given)
    except InputError:
        if given is not None:
            raise
        return None


def _usable(rows: Dataset, column: str, modality: str, labels: list[str | None] | None) -> np.ndarray:
    keep = np.ones(len(rows), dtype=bool)
    if modality == "text":
        texts = rows.with_format(None)[column][:]
        keep &= np.fromiter((bool(text and not text.isspace()) for text in texts), bool, len(rows))
    if labels is not None:
        keep &= np.fromiter((value is not None for value in labels), bool, len(rows))
    return np.flatnonzero(keep)


def _all_numbers(labels: list[str | None]) -> bool:
    return all(value is None or value.lstrip("-").isdigit() for value in labels)
