"""One data set as a stream of tasks: its classes, a few at a time."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..tasks import Task


def class_splits(
    task: Task, classes_per_task: int, data_root: str | Path | None = None, *, seed: int | None = None
) -> list[Task]:
    """
    Cuts a task by its classes into tasks of equally many.

    Args:
        task (`Task`): All of the classes. Its `max_train` and `max_test` are divided between the parts.
        classes_per_task (`int`): Number of classes of each part; it has to divide the number of all.
        data_root (`str` or `Path`, *optional*): Folder with local copies of Hub data sets.
        seed (`int`, *optional*): Shuffles the classes; by default they keep the order of the data set.

    Returns:
        `list[Task]`: named `NAME-01`, `NAME-02`, ….

    Raises:
        [`InputError`]: the data set has no labels, or its classes cannot be cut so.

    Example:

    ```python
    tasks = class_splits(Task(name="digits", dataset="embedded:digits"), 2)
    ContinualLearning(stream=tasks[1:])
    ```
    """
    classes = dataclasses.replace(task, class_names=None).label_names(data_root)
    if not classes:
        raise InputError(f"task {task.name!r} has no labels, so it cannot be split by classes")
    if type(classes_per_task) is not int or classes_per_task < 1 or len(classes) % classes_per_task:
        raise InputError(
            f"classes_per_task={classes_per_task!r}: give a whole number that divides the {len(classes)} classes of "
            f"task {task.name!r}"
        )
    order = range(len(classes)) if seed is None else np.random.default_rng(seed).permutation(len(classes)).tolist()
    number = len(classes) // classes_per_task
    digits = max(2, len(str(number)))
    tasks = []
    for index in range(number):
        chosen = order[index * classes_per_task : (index + 1) * classes_per_task]
        tasks.append(
            dataclasses.replace(
                task,
                name=f"{task.name}-{index + 1:0{digits}d}",
                classes=[classes[i] for i in chosen],
                class_names=None if task.class_names is None else [task.class_names[i] for i in chosen],
                max_train=_share(task.max_train, number),
                max_test=_share(task.max_test, number),
            )
        )
    return tasks


def _share(rows: int | None, parts: int) -> int | None:
    return None if rows is None else max(1, rows // parts)
