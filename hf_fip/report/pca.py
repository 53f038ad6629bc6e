"""Principal components of a family of models in weight space, computed from files, a block of weights at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from transformers.utils import logging

from ..graph.weights import open_weights


logger = logging.get_logger(__name__)

RANK_TOLERANCE = 1e-12
BLOCK_BYTES = 256 * 2**20
# As in hf_fip.graph.distances: running statistics of batch normalisation describe the data; nobody optimises them.
STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class WeightPCA:
    """
    Nodes as points in the plane (or space) of largest variance of their weights.

    Args:
        ids (`list[str]`): The nodes, in the order of the rows below.
        coordinates (`np.ndarray` of shape `[nodes, components]`):
            Position of each node, with the reference node at the origin; in units of the weights.
        explained (`np.ndarray` of shape `[components]`): Share of the total variance along each component, 0 to 1.
        left_out (`dict[str, str]`): Nodes that cannot be compared with the reference, with the reason.
        grown (`bool`): Whether some node has tensors, or rows of a tensor, that others lack; they count from zero.
    """

    ids: list[str]
    coordinates: np.ndarray
    explained: np.ndarray
    left_out: dict[str, str]
    grown: bool = False


@dataclass(frozen=True)
class StoredTensor:
    """Folder of the model that one tensor belongs to, and its shape."""

    folder: Path
    shape: tuple[int, ...]


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """
    The floating-point tensors of a saved model or adapter, read from the headers only.

    Args:
        folder (`Path`): A folder that [`~hf_fip.graph.weights.open_weights`] reads.

    Returns:
        `dict[str, StoredTensor]`

    Raises:
        [`~hf_fip.errors.InputError`]: No safetensors weights, or a damaged file.
    """
    with ExitStack() as stack:
        return {
            name: StoredTensor(folder, tuple(weight.shape))
            for name, weight in open_weights(folder, stack).items()
            if weight.is_floating_point and not name.endswith(STATISTICS)
        }


def _mismatch(tensors: dict[str, StoredTensor], known: dict[str, StoredTensor]) -> str | None:
    if not tensors:
        return "no readable safetensors file"
    common = tensors.keys() & known.keys()
    if not common:
        return "no tensor has the name of one of the root's"
    for name in sorted(common):
        shape, expected = tensors[name].shape, known[name].shape
        if len(shape) != len(expected) or shape[1:] != expected[1:]:
            return f"{name} has shape {list(shape)}, not {list(expected)}"
    return None


def _blocks(shapes: dict[str, tuple[int, ...]], columns: int) -> Iterator[list[tuple[str, int, int, int]]]:
    """Groups of row ranges (name, first row, last row + 1, weights per row), each of at most `columns` weights."""
    block: list[tuple[str, int, int, int]] = []
    room = columns
    for name, shape in shapes.items():
        rows, width = (shape[0], int(np.prod(shape[1:]))) if shape else (1, 1)
        start = 0
        while start < rows and width:
            fitting = room // width
            if not fitting and block:
                yield block
                block, room = [], columns
                continue
            stop = min(rows, start + max(1, fitting))
            block.append((name, start, stop, width))
            room -= (stop - start) * width
            start = stop
    if block:
        yield block


def _fill(row: torch.Tensor, tensors: dict[str, StoredTensor], block: list[tuple[str, int, int, int]]) -> None:
    # The files are opened for one block and closed again: a mapping kept open would count its pages as ours.
    with ExitStack() as stack:
        weights = open_weights(next(iter(tensors.values())).folder, stack)
        offset = 0
        for name, start, stop, width in block:
            begin, offset = offset, offset + (stop - start) * width
            stored = min(stop, weights[name].rows) if name in tensors else 0
            if stored > start:
                values = weights[name].read(start, stored).reshape(-1)
                row[begin : begin + values.numel()].copy_(values)


def gram_of_differences(models: list[dict[str, StoredTensor]], block_bytes: int | None = None) -> np.ndarray:
    """
    Inner products of the models' differences to the first one.

    A tensor that a model lacks, and rows beyond its own (where another model's head has grown), count as zeros: so
    `G[i, i] + G[j, j] - 2 G[i, j]` is the square of [`~hf_fip.graph.distances.euclidean_distance`].

    Args:
        models (`list[dict[str, StoredTensor]]`): Models with tensors of the same names, see [`stored_tensors`].
        block_bytes (`int`, *optional*):
            Memory for the weights held at a time. Defaults to the size of one model in float32, at most 256 MiB.

    Returns:
        `np.ndarray` of shape `[models, models]`: `G[i, j] = <w_i - w_0, w_j - w_0>`, summed in float64.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for model in models:
        for name, entry in model.items():
            shapes[name] = max(entry.shape, shapes.get(name, entry.shape))
    size = sum(int(np.prod(shape)) for shape in shapes.values())
    limit = block_bytes or min(4 * size, BLOCK_BYTES)
    gram = torch.zeros(len(models), len(models), dtype=torch.float64)
    for block in _blocks(shapes, max(1, limit // (8 * len(models)))):
        width = sum((stop - start) * columns for _, start, stop, columns in block)
        weights = torch.zeros(len(models), width, dtype=torch.float64)
        for row, model in zip(weights, models, strict=True):
            _fill(row, model, block)
        weights -= weights[0].clone()
        gram += weights @ weights.T
    return gram.numpy()


def weight_pca(
    folders: Mapping[str, Path], reference: str, components: int = 2, block_bytes: int | None = None
) -> WeightPCA:
    """
    Principal component analysis of saved models, out of core: the eigenvectors of the centred Gram matrix of their
    differences to a reference, which is summed over blocks of weights, so that less than two models are in memory.

    Args:
        folders (`Mapping[str, Path]`): Folder of each node with its safetensors file(s): whole models or adapters.
        reference (`str`):
            The node that becomes the origin. Nodes that share no tensor with it (an adapter and a whole model), or
            whose tensors differ in more than the number of rows, are left out and listed in the result.
        components (`int`, *optional*, defaults to 2): How many components; those beyond the rank are zero.
        block_bytes (`int`, *optional*): See [`gram_of_differences`].

    Returns:
        [`WeightPCA`]
    """
    models: dict[str, dict[str, StoredTensor]] = {}
    left_out: dict[str, str] = {}
    for node, folder in folders.items():
        try:
            models[node] = stored_tensors(Path(folder))
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            logger.warning(f"Left out of the weight-space picture: {folder} cannot be read ({error}).")
            models[node] = {}
    known: dict[str, StoredTensor] = dict(models[reference])
    origin_first = []
    for node in [reference, *(node for node in folders if node != reference)]:
        reason = _mismatch(models[node], known)
        if reason:
            left_out[node] = reason
        else:
            origin_first.append(node)
            known = models[node] | known
    if reference in left_out:
        return WeightPCA([], np.zeros((0, components)), np.zeros(components), left_out)
    gram = gram_of_differences([models[node] for node in origin_first], block_bytes)
    finite = np.isfinite(gram.diagonal())
    for node, is_finite in zip(origin_first, finite, strict=True):
        if not is_finite:
            left_out[node] = "its weights are not all finite"
    if reference in left_out:
        return WeightPCA([], np.zeros((0, components)), np.zeros(components), left_out)

    origin_first = [node for node in origin_first if node not in left_out]
    gram = gram[np.ix_(finite, finite)]
    centred = gram - gram.mean(0) - gram.mean(1)[:, None] + gram.mean()
    values, vectors = np.linalg.eigh(centred)
    values, vectors = values[::-1], vectors[:, ::-1]
    values = np.where(values > RANK_TOLERANCE * values[0], values, 0.0)
    kept = min(components, len(values))
    coordinates = np.zeros((len(origin_first), components))
    coordinates[:, :kept] = vectors[:, :kept] * np.sqrt(values[:kept])
    coordinates -= coordinates[0]
    # An eigenvector's sign is arbitrary; a fixed one keeps the picture the same from run to run.
    farthest = coordinates[np.abs(coordinates).argmax(0), np.arange(components)]
    coordinates *= np.where(farthest < 0, -1.0, 1.0)
    explained = np.zeros(components)
    if values.sum() > 0:
        explained[:kept] = values[:kept] / values.sum()
    ids = [node for node in folders if node not in left_out]
    shapes = [{name: entry.shape for name, entry in models[node].items()} for node in ids]
    grown = any(other != shapes[0] for other in shapes)
    return WeightPCA(ids, coordinates[[origin_first.index(node) for node in ids]], explained, left_out, grown)
