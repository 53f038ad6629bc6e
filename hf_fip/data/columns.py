import math
from typing import Any

from datasets import ClassLabel, Dataset, Features, Image, Value

from ..errors import InputError


TEXT_COLUMNS = ("text", "sentence", "content", "review", "review_body", "review_text", "comment", "document")
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label", "sentiment", "target", "class")


def modality_of(features: Features, column: str) -> str | None:
    """`"text"`, `"image"` or `None`: what a column of this type holds."""
    feature = features[column]
    if isinstance(feature, Image):
        return "image"
    if isinstance(feature, Value) and feature.dtype in ("string", "large_string"):
        return "text"
    return None


def input_column(features: Features, given: str | None = None) -> str:
    """
    The column that a model reads.

    Args:
        features (`datasets.Features`): the data set's columns and their types.
        given (`str`, *optional*): its name; by default the one column with a usual name (`text`, `sentence`, `review`,
            `image`, `img`, …), or else the only column of images or of text.

    Raises:
        [`InputError`]: the column is missing, is neither text nor images, or several could be meant.
    """
    if given is not None:
        _check_exists(features, "input_column", given)
        if modality_of(features, given) is None:
            raise InputError(f"input_column={given!r} holds {features[given]}, neither text nor images.")
        return given
    readable = [column for column in features if modality_of(features, column)]
    usual = [column for column in readable if column in (*TEXT_COLUMNS, *IMAGE_COLUMNS)]
    unusual = [column for column in readable if column not in LABEL_COLUMNS]
    candidates = usual or unusual
    if len(candidates) == 1:
        return candidates[0]
    problem = f"could be any of {', '.join(candidates)}" if candidates else "was not found"
    raise InputError(f"The input column {problem}: give input_column, one of the columns {', '.join(features)}.")


def label_column(features: Features, given: str | None = None) -> str | None:
    """
    The column of class labels, or `None` where there is none.

    Args:
        features (`datasets.Features`): the data set's columns and their types.
        given (`str`, *optional*): its name; by default the one column with a usual name (`label`, `labels`,
            `fine_label`, …), or else the only `ClassLabel` column.

    Raises:
        [`InputError`]: the column given is missing, or several could be meant.
    """
    if given is not None:
        _check_exists(features, "label_column", given)
        return given
    usual = [column for column in features if column in LABEL_COLUMNS]
    candidates = usual or [column for column in features if isinstance(features[column], ClassLabel)]
    if len(candidates) > 1:
        found = ", ".join(candidates)
        raise InputError(
            f"The label column could be any of {found}: give label_column, one of the columns {', '.join(features)}."
        )
    return candidates[0] if candidates else None


def _check_exists(features: Features, argument: str, column: str) -> None:
    if column not in features:
        raise InputError(f"{argument}={column!r} does not exist: the columns are {', '.join(features)}.")


def row_labels(dataset: Dataset, column: str) -> list[str | None]:
    """The name of each row's label; `None` where it has none (an empty cell, or the -1 of unlabelled Hub splits)."""
    feature, values = dataset.features[column], dataset.with_format(None)[column][:]
    if isinstance(feature, ClassLabel):
        return [None if value is None or value < 0 else feature.names[value] for value in values]
    return [_name(value, column) for value in values]


def class_names(dataset: Dataset, column: str) -> list[str]:
    """The classes of a column: those of its `ClassLabel`, or else its distinct values in ascending order."""
    feature = dataset.features[column]
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    names = {name for name in row_labels(dataset, column) if name is not None}
    numeric = isinstance(feature, Value) and feature.dtype.startswith(("int", "uint", "float"))
    return sorted(names, key=int if numeric else None)


def _name(value: Any, column: str) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    # A column of integers with an empty cell arrives as floats.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, (int, str)):
        raise InputError(f"label_column={column!r} holds {value!r}: labels are integers or strings, one class each.")
    return str(value)
