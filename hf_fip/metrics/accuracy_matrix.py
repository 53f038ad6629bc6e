"""What continual learning did, read from a matrix of accuracies: a row after each task learned, a column a task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import InputError


Matrix = Sequence[Sequence[float]] | np.ndarray


def continual_learning_metrics(accuracies: Matrix, baseline: Sequence[float] | None = None) -> dict[str, float]:
    """
    Summary of an accuracy matrix `R`, where `R[i][j]` is the accuracy on task `j` after tasks `0` to `i` were learned,
    for `T` tasks.

    - `average_accuracy`: mean of the last row.
    - `backward_transfer`: mean over the earlier tasks of `R[T-1][j] - R[j][j]`; negative where tasks are forgotten.
    - `forward_transfer`: mean over the later tasks of `R[j-1][j] - baseline[j]`, how much the tasks before it help a
      task that has not been learned.
    - `forgetting`: mean over the earlier tasks of the best accuracy before the last task less the last accuracy.

    The first three are Lopez-Paz and Ranzato's ("Gradient episodic memory for continual learning", 2017, section 2),
    the fourth is Chaudhry et al.'s ("Riemannian walk for incremental learning", 2018, section 3).

    Args:
        accuracies (`Sequence[Sequence[float]]`): `[T, T]`. Entries above the diagonal are used for `forward_transfer`
            alone and may be NaN.
        baseline (`Sequence[float]`, *optional*): `[T]`, the accuracies of a model that learned nothing.

    Returns:
        `dict[str, float]`: without `backward_transfer` and `forgetting` for one task, and without `forward_transfer`
        where an accuracy it needs is missing.

    Raises:
        [`InputError`]: not a square matrix, a missing accuracy on a learned task, or a baseline of another length.
    """
    try:
        matrix = np.asarray(accuracies, dtype=np.float64)
    except (ValueError, TypeError):
        matrix = np.empty(0)
    tasks = len(matrix)
    if not tasks or matrix.shape != (tasks, tasks):
        raise InputError(
            f"accuracies has shape {matrix.shape}: give a square matrix, one row per task learned and one column each."
        )
    if np.isnan(matrix[np.tril_indices(tasks)]).any():
        raise InputError("accuracies: an accuracy on a task that had been learned is missing; give it.")
    last = matrix[-1]
    found = {"average_accuracy": float(last.mean())}
    if tasks > 1:
        found["backward_transfer"] = float((last - np.diag(matrix))[:-1].mean())
        best = [matrix[task:-1, task].max() for task in range(tasks - 1)]
        found["forgetting"] = float((np.array(best) - last[:-1]).mean())
    if baseline is not None:
        start = np.asarray(baseline, dtype=np.float64)
        if start.shape != (tasks,):
            raise InputError(f"baseline has shape {start.shape}: give one accuracy for each of the {tasks} tasks.")
        if tasks > 1:
            transfer = float((np.diag(matrix, k=1) - start[1:]).mean())
            found |= {} if np.isnan(transfer) else {"forward_transfer": transfer}
    return found
