"""Distances between nodes in weight space, from their files: no model is built, no file is loaded whole."""

from __future__ import annotations

import math
from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from .weights import Weight, open_weights


# Running statistics of batch normalisation describe the data; nobody optimises them.
_STATISTICS = ("running_mean", "running_var")


def euclidean_distance(folder_a: str | PathLike[str], folder_b: str | PathLike[str]) -> float:
    """
    Euclidean distance ‖w_a − w_b‖₂ of two models in weight space, tensor by tensor from their memory-mapped files.

    All floating-point tensors of single and sharded files count, an adapter's if the folder holds an adapter; integer
    buffers and the running statistics of batch normalisation do not. Differences are taken in float32 (float64 where
    the weights are) and summed in float64. Sparse and quantized files count as the dense weights that they stand for,
    removed heads, neurons and filters as zeros. Where one model has more rows of a tensor, because its head or
    vocabulary has grown, the rows both have are compared and the others count from zero: ‖new rows‖² is added. A
    tensor that only one model has, such as another head, counts from zero too. The distance stays symmetric and
    finite, and equal bodies with heads of different size are apart by the norm of what was added.

    Args:
        folder_a (`str` or `Path`): folder of a model with safetensors files.
        folder_b (`str` or `Path`): folder of another.

    Returns:
        `float`: 0.0 for equal weights, NaN if weights are NaN.

    Raises:
        `InputError`: no safetensors weights, a damaged file, no tensor in common (such as a model and an adapter), or
            shapes that differ in more than the number of rows.
    """
    with ExitStack() as stack:
        weights_a, weights_b = _open(folder_a, stack), _open(folder_b, stack)
        common = weights_a.keys() & weights_b.keys()
        if not common and (weights_a or weights_b):
            raise InputError(f"weights in {folder_a} and {folder_b} have no tensor in common; compare like models.")
        total = 0.0
        for name in sorted(weights_a.keys() | weights_b.keys()):
            a, b = weights_a.get(name), weights_b.get(name)
            if name in common and (len(a.shape) != len(b.shape) or a.shape[1:] != b.shape[1:]):
                raise InputError(
                    f"tensor {name!r} has shape {a.shape} in {folder_a} and {b.shape} in {folder_b}; "
                    "only the number of rows may differ."
                )
            shared = min(a.rows, b.rows) if name in common else 0
            longer = max((weight for weight in (a, b) if weight), key=lambda weight: weight.rows)
            for start, stop in longer.spans(0, shared):
                total += _square(_rows(a, start, stop) - _rows(b, start, stop))
            for start, stop in longer.spans(shared, longer.rows):
                total += _square(_rows(longer, start, stop))
    return math.sqrt(total)


def sparsity(folder: str | PathLike[str]) -> float:
    """
    Share of exact zeros among the weights that can be pruned: floating-point tensors of at least two dimensions.

    Args:
        folder (`str` or `Path`): folder of a model with safetensors files. Of an adapter, its own tensors count.

    Returns:
        `float`: from 0 to 1; 0.0 if there are no such weights.

    Raises:
        `InputError`: no safetensors weights, or a damaged file.
    """
    zeros = size = 0
    with ExitStack() as stack:
        for weight in _open(folder, stack).values():
            if len(weight.shape) < 2:
                continue
            for start, stop in weight.spans(0, weight.rows):
                values = _rows(weight, start, stop)
                size += values.numel()
                zeros += values.numel() - int(torch.count_nonzero(values))
    return zeros / size if size else 0.0


def measure(
    folder: str | PathLike[str],
    parent: str | PathLike[str] | None = None,
    root: str | PathLike[str] | None = None,
) -> dict[str, Any]:
    """
    What a node's description says of its weights. A function that writes a node's files may return it to
    [`ModelGraph.add`]. It reads the model once, and once more with each of the two others.

    Args:
        folder (`str` or `Path`): folder of the model.
        parent (`str` or `Path`, *optional*): folder of its parent.
        root (`str` or `Path`, *optional*): folder of the graph's root.

    Returns:
        `dict`: `euclidean_distance` with `parent` and `root` (`None` where not given or not comparable), `sparsity`.

    Raises:
        `InputError`: no safetensors weights in `folder`, or a damaged file.
    """
    distances: dict[str, float | None] = {"parent": None, "root": None}
    share = sparsity(folder)
    for key, other in (("parent", parent), ("root", root)):
        if key == "root" and other == parent:
            distances[key] = distances["parent"]
        elif other is not None:
            try:
                distances[key] = euclidean_distance(folder, other)
            except InputError:
                distances[key] = None
    return {"euclidean_distance": distances, "sparsity": share}


def _open(folder: str | PathLike[str], stack: ExitStack) -> dict[str, Weight]:
    return {
        name: weight
        for name, weight in open_weights(Path(folder), stack).items()
        if weight.is_floating_point and not name.endswith(_STATISTICS)
    }


def _rows(weight: Weight, start: int, stop: int) -> torch.Tensor:
    values = weight.read(start, stop)
    return values if values.dtype == torch.float64 else values.float()


def _square(values: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2
