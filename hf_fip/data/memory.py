"""Which training inputs of the earlier tasks are kept as anchors."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from ..errors import InputError
from .sampling import stratified_indices


MEMORIES = ("even", "class_balanced", "reservoir")


def remembered_rows(memory: str, labels: Sequence[Sequence[int]], number: int, seed: int = 0) -> list[np.ndarray]:
    """
    Chooses a memory of a fixed total size. It is nested: what is kept of a task once further tasks have come is part
    of what was kept of it before, so that it can be had in passing, without the earlier tasks' data.

    - `"even"`: every task has the same number of rows as far as it has them, drawn without a look at the labels.
    - `"class_balanced"`: every task has the same number, and within a task every class, as far as they have rows.
    - `"reservoir"`: a uniform sample of the rows of all tasks, as reservoir sampling of their stream gives it (Vitter,
      "Random sampling with a reservoir", 1985): tasks have rows in proportion to their data.

    Args:
        memory (`str`): One of the above.
        labels (sequence of sequences of `int`):
            Of each task, oldest first, the label of each training row; only `"class_balanced"` looks at them.
        number (`int`): Rows of all tasks together; all there are if there are no more.
        seed (`int`, *optional*, defaults to 0): Of the draw.

    Returns:
        `list[numpy.ndarray]`: for each task the numbers of its rows, ascending.

    Raises:
        [`~hf_fip.errors.InputError`]: an unknown memory.
    """
    if memory not in MEMORIES:
        raise InputError(f"anchor_memory={memory!r} is unknown; choose one of: {', '.join(MEMORIES)}")
    if memory == "reservoir":
        return _smallest_keys([len(rows) for rows in labels], number, seed)
    shares = _equal_shares([len(rows) for rows in labels], number)
    if memory == "class_balanced":
        return [_balanced(rows, share, seed) for rows, share in zip(labels, shares, strict=True)]
    return [stratified_indices([0] * len(rows), share, seed) for rows, share in zip(labels, shares, strict=True)]


def _equal_shares(sizes: Sequence[int], number: int) -> list[int]:
    """As equal as the sizes allow: what small tasks cannot fill goes to the others, odd rows to the oldest of them."""
    level = bisect_right(range(number + 1), number, key=lambda level: sum(min(size, level) for size in sizes)) - 1
    left = number - sum(min(size, level) for size in sizes)
    shares = []
    for size in sizes:
        odd = size > level and left > 0
        left -= odd
        shares.append(min(size, level) + odd)
    return shares


def _balanced(labels: Sequence[int], size: int, seed: int) -> np.ndarray:
    """Classes in turn give a row each, the next of their own random order, until there are enough."""
    labels = np.asarray(labels)
    rng = np.random.default_rng(seed)
    turns = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        turns[rng.permutation(rows)] = np.arange(len(rows))
    return np.sort(np.lexsort((labels, turns))[:size])


def _smallest_keys(sizes: Sequence[int], number: int, seed: int) -> list[np.ndarray]:
    """Every row has a random key for good; the rows with the smallest keys are a uniform sample of all."""
    keys = [np.random.default_rng((seed, task)).random(size) for task, size in enumerate(sizes)]
    kept = np.sort(np.concatenate(keys))[:number]
    return [np.flatnonzero(own <= kept[-1]) for own in keys]
