import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset

from .data.columns import class_names, input_column, label_column, modality_of, row_labels
from .data.features import digest, features
from .data.resolve import resolve_dataset
from .data.sampling import stratified_indices
from .errors import InputError


__all__ = ["Task", "digest", "features", "resolve_dataset"]


# Of the texts themselves, whatever labels they have.
LANGUAGE_MODELLING = ("fill-mask", "text-generation")
KINDS = ("classification", *LANGUAGE_MODELLING)


@dataclass(frozen=True)
class Task:
    """
    What a model is to learn: a data set, its columns and the classes and rows to take of it.

    Args:
        name (`str`): short name, as in the metric `yelp/accuracy`.
        dataset (`str`): Hub id, local folder or file, or `embedded:NAME`; see [`resolve_dataset`].
        config (`str`, *optional*): the data set's configuration.
        train_split (`str`, *optional*, defaults to `"train"`): split to learn from.
        test_split (`str`, *optional*, defaults to `"test"`): split to measure on.
        input_column (`str`, *optional*): column of texts or images; found by its name if not given.
        label_column (`str`, *optional*): column of class labels; found by its name if not given.
        classes (`list`, *optional*):
            Classes to keep, by index (`int`) or name (`str`). They are numbered anew, in this order, from 0.
        class_names (`list`, *optional*):
            Names for the classes kept, in their order: for data sets that call the same labels differently.
        max_train (`int`, *optional*): largest number of training rows, each class with its share.
        max_test (`int`, *optional*): largest number of test rows.
        kind (`str`, *optional*, defaults to `"classification"`):
            `"classification"`; `"fill-mask"` or `"text-generation"`: masked or causal language modelling of the texts,
            whatever labels they have. Longer texts are cut at `max_length` tokens, shorter ones are not packed.

    Raises:
        [`InputError`]: a value is of the wrong kind.
    """

    name: str
    dataset: str
    config: str | None = None
    train_split: str = "train"
    test_split: str = "test"
    input_column: str | None = None
    label_column: str | None = None
    classes: list[int | str] | None = None
    class_names: list[str] | None = None
    max_train: int | None = None
    max_test: int | None = None
    kind: str = "classification"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, optional = getattr(self, field.name), field.default is None
            if field.name in ("classes", "class_names") or (value is None and optional):
                continue
            integer = field.name.startswith("max_")
            if integer and (type(value) is not int or value < 1):
                raise InputError(f"{field.name}={value!r} of a task: give a number of rows, at least 1.")
            if not integer and (not isinstance(value, str) or not value):
                raise InputError(f"{field.name}={value!r} of a task: give a string.")
        if self.kind not in KINDS:
            raise InputError(f"kind={self.kind!r} of a task: give one of {', '.join(KINDS)}.")
        if "/" in self.name:
            raise InputError(f"name={self.name!r} of a task: leave out '/', which separates it from a metric's name.")
        if self.classes is not None:
            if not isinstance(self.classes, (list, tuple)) or any(type(c) not in (int, str) for c in self.classes):
                raise InputError(f"classes={self.classes!r} of a task: give a list of class indices or names.")
            object.__setattr__(self, "classes", list(self.classes))
        if self.class_names is not None:
            names = self.class_names
            if not isinstance(names, (list, tuple)) or any(type(n) is not str or not n for n in names):
                raise InputError(f"class_names={names!r} of a task: give a list of names.")
            if len(set(names)) < len(names):
                raise InputError(f"class_names={names!r} of a task: give each class a name of its own.")
            object.__setattr__(self, "class_names", list(names))

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Task":
        """The task that [`~Task.to_dict`] described. Raises [`InputError`] for unknown or missing keys."""
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = [str(key) for key in data if key not in known]
        if unknown:
            raise InputError(f"A task has no key {', '.join(unknown)}: the keys are {', '.join(known)}.")
        missing = [key for key in ("name", "dataset") if key not in data]
        if missing:
            raise InputError(f"A task needs {' and '.join(missing)}: its keys are {', '.join(known)}.")
        return cls(**data)

    def modality(self, data_root: str | Path | None = None) -> str:
        """`"text"` or `"image"`: what the input column holds."""
        column_types = self._rows("train", data_root).features
        return modality_of(column_types, input_column(column_types, self.input_column))

    def label_names(self, data_root: str | Path | None = None) -> list[str]:
        """The names of the classes in the order of their numbers; empty for a data set without labels."""
        rows = self._rows("train", data_root)
        column = label_column(rows.features, self.label_column)
        return [] if column is None else self._renamed(self._kept(class_names(rows, column)))

    def load(self, split: str = "train", data_root: str | Path | None = None, seed: int = 0) -> Dataset:
        """
        The rows of one split; the same arguments always give the same rows in the same order.

        Args:
            split (`str`, *optional*, defaults to `"train"`): `"train"` or `"test"`, for the task's own splits.
            data_root (`str` or `Path`, *optional*): folder with local copies of Hub data sets.
            seed (`int`, *optional*, defaults to 0): of the sample that `max_train` or `max_test` takes.

        Returns:
            `datasets.Dataset`: the column `text` or `image` and, unless no row has a label, `label`
            (`ClassLabel`; plain labels are numbered in ascending order of the training split's).

        Raises:
            [`InputError`]: a column, class or split does not exist, or labels or texts are missing in some rows.
        """
        rows = self._rows(split, data_root)
        source = input_column(rows.features, self.input_column)
        modality = modality_of(rows.features, source)
        self._check_filled(rows, source, modality)
        column = label_column(rows.features, self.label_column)
        labels = None if column is None else row_labels(rows, column)
        if labels is not None and all(label is None for label in labels):
            labels = None
        if self.kind in LANGUAGE_MODELLING:
            labels = None
        loaded = rows.select_columns([source]).rename_columns({source: modality} if source != modality else {})
        if labels is None:
            if self.classes is not None:
                raise InputError(f"classes={self.classes!r} of task {self.name!r}: its data set has no labels.")
            numbers = np.zeros(len(rows), dtype=np.int64)
            if self.kind in LANGUAGE_MODELLING:
                # Corpora come in lines, and some of them are empty.
                numbers[[not text.strip() for text in loaded[modality]]] = -1
        else:
            numbers, names = self._numbered(labels, rows, column, split, data_root)
            loaded = loaded.add_column("label", numbers, feature=ClassLabel(names=names))
        kept = np.flatnonzero(numbers >= 0)
        size = self.max_train if split == "train" else self.max_test
        if size is not None:
            kept = kept[stratified_indices(numbers[kept], size, seed)]
        return loaded if len(kept) == len(loaded) else loaded.select(kept)

    def _rows(self, split: str, data_root: str | Path | None) -> Dataset:
        if split not in ("train", "test"):
            raise InputError(f"split={split!r} of task {self.name!r}: give 'train' or 'test'.")
        source = self.train_split if split == "train" else self.test_split
        return resolve_dataset(self.dataset, config=self.config, split=source, data_root=data_root)

    def _kept(self, names: list[str]) -> list[str]:
        if self.classes is None:
            return names
        kept = []
        for wanted in self.classes:
            known = wanted in names if isinstance(wanted, str) else 0 <= wanted < len(names)
            if not known:
                listed = ", ".join(f"{index} {name}" for index, name in enumerate(names))
                raise InputError(f"classes of task {self.name!r} holds {wanted!r}: the classes are {listed}.")
            kept.append(wanted if isinstance(wanted, str) else names[wanted])
        if not kept or len(set(kept)) < len(kept):
            raise InputError(f"classes={self.classes!r} of task {self.name!r}: name at least one class, each once.")
        return kept

    def _numbered(
        self, labels: list[str | None], rows: Dataset, column: str, split: str, data_root: str | Path | None
    ) -> tuple[np.ndarray, list[str]]:
        """The new number of each row's class, -1 where the class is left out, and the names of the classes."""
        empty = labels.count(None)
        if empty:
            raise InputError(f"label_column={column!r} of task {self.name!r} is empty in {empty} rows: remove them.")
        # The training split decides the numbers: a test split may lack a class.
        own = split == "train" or isinstance(rows.features[column], ClassLabel)
        all_names = class_names(rows if own else self._rows("train", data_root), column)
        unknown = sorted(set(labels) - set(all_names))
        if unknown:
            raise InputError(
                f"label_column={column!r} of task {self.name!r} holds {', '.join(unknown)} in the {split} split, but "
                f"the training split has only {', '.join(all_names)}."
            )
        names = self._kept(all_names)
        number = {name: index for index, name in enumerate(names)}
        return np.array([number.get(label, -1) for label in labels], dtype=np.int64), self._renamed(names)

    def _renamed(self, names: list[str]) -> list[str]:
        if self.class_names is None:
            return names
        if len(self.class_names) != len(names):
            raise InputError(
                f"class_names of task {self.name!r} has {len(self.class_names)} names for {len(names)} classes: "
                f"{', '.join(names)}."
            )
        return self.class_names

    def _check_filled(self, rows: Dataset, column: str, modality: str) -> None:
        values = rows.data.column(column)
        if modality == "text" and values.null_count:
            raise InputError(
                f"input_column={column!r} of task {self.name!r} is empty in {values.null_count} rows: remove them."
            )
