"""Which outputs of a classifier stand for the labels of a data set."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from ..data.resolve import FILE_TYPES
from ..errors import InputError
from ..graph import Node
from .data import SPLITS, Examples


class CannotScore(Exception):
    """A node cannot score the data; the message is the reason that the result lists."""


def outputs_of_labels(node: Node, id2label: dict[int, str], examples: Examples) -> tuple[list[list[int]], str]:
    """
    The outputs that stand for each class of the data. The first rule that applies decides:

    1. *task*: the node has learned this data set (`protocol["tasks"]`): the outputs that its `label_space` gives the
       task. Outputs of the node's other tasks count as wrong answers: no task is named at test.
    2. *name*: outputs of the same name, in any case, with or without the name of a task before it (`imdb: positive`).
       Where several outputs bear a label's name, one of each task, their probabilities are added: the data say only
       that the label is meant, not which task's.
    3. *position*: one side's names say nothing (`LABEL_0`, or numbers) and there are as many outputs as classes.

    Args:
        node (`Node`): the classifier's node.
        id2label (`dict[int, str]`): the names of its outputs.
        examples (`Examples`): the data, with labels.

    Returns:
        `tuple[list[list[int]], str]`: for each class the numbers of its outputs, and the rule's name.

    Raises:
        `CannotScore`: no output stands for a label that occurs in the data.
    """
    occurring = set(examples.labels or [])
    names = [name for _, name in sorted(id2label.items())]
    by_task = _by_task(node, examples, len(names))
    if by_task is not None and all(by_task[place] for place in _places(examples, occurring)):
        return by_task, "task"
    bare: dict[str, list[int]] = {}
    for output, name in enumerate(names):
        for key in {_plain(name), _plain(name.rpartition(": ")[2])}:
            bare.setdefault(key, []).append(output)
    by_name = [bare.get(_plain(name), []) for name in examples.classes]
    if all(by_name[place] for place in _places(examples, occurring)):
        return by_name, "name"
    if len(names) == len(examples.classes) and (_say_nothing(names) or _say_nothing(examples.classes)):
        return [[output] for output in range(len(names))], "position"
    missing = next(name for name in examples.classes if name in occurring and not bare.get(_plain(name)))
    listed = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    raise CannotScore(f"no output for the label {missing!r} (its outputs: {listed})")


def _places(examples: Examples, occurring: set[str]) -> list[int]:
    return [place for place, name in enumerate(examples.classes) if name in occurring]


def _by_task(node: Node, examples: Examples, outputs: int) -> list[list[int]] | None:
    """The outputs of the tasks that were learned from this data set; several tasks may share its classes."""
    spaces = node.protocol.get("label_space")
    try:
        tasks = [task for task in node.tasks if _same_dataset(task.dataset, task.config, examples)]
    except InputError:
        return None
    if not tasks or not isinstance(spaces, dict):
        return None
    found: list[list[int]] = [[] for _ in examples.classes]
    for task in tasks:
        space = spaces.get(task.name)
        kept = examples.classes if task.classes is None else task.classes
        if not isinstance(space, list) or len(space) != len(kept):
            return None
        for kept_class, output in zip(kept, space, strict=True):
            place = kept_class if isinstance(kept_class, int) else _place(examples.classes, kept_class)
            if place is None or not 0 <= place < len(found):
                return None
            if type(output) is not int or not 0 <= output < outputs:
                return None
            found[place].append(output)
    return found


def _place(classes: list[str], name: str) -> int | None:
    return classes.index(name) if name in classes else None


def _same_dataset(spec: str, config: str | None, examples: Examples) -> bool:
    """Whether two SPECs mean the same data set: a Hub id and its local copy share their last component."""
    same_config = config == examples.config or None in (config, examples.config)
    return same_config and _short(spec) == _short(examples.name)


def _short(spec: str) -> str:
    path = PurePosixPath(spec.rpartition(":")[2])
    if path.suffix in FILE_TYPES:
        # `imdb/test.parquet` is a split of `imdb`; other files are data sets of their own.
        is_split = path.stem.partition("-")[0] in (*SPLITS, "unsupervised")
        path = path.parent if is_split else path.with_suffix("")
    return path.name.lower().replace("-", "_")


def _plain(name: str) -> str:
    return name.strip().lower()


def _say_nothing(names: list[str]) -> bool:
    return all(re.fullmatch(r"(LABEL_)?\d+", name) for name in names)
