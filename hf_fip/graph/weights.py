"""The weights in a node's files, read some rows at a time from memory-mapped safetensors: no model is built."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..errors import InputError
from ..storage.encoding import decode, group_parts, shape_of
from ..storage.layout import METHOD, StorageLayout


_CHUNK = 1 << 20  # elements in memory at a time
_MODEL_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_ADAPTER_FILE = "adapter_model.safetensors"


class Weight:
    """
    One tensor of a node, read some rows at a time.

    Args:
        shape (`list[int]`): its shape.
        dtype (`str`): its dtype, by its name in safetensors.
        read (`Callable[[int, int], torch.Tensor]`): gives rows from the first number up to the second.
    """

    def __init__(self, shape: list[int], dtype: str, read: Callable[[int, int], torch.Tensor]) -> None:
        self.shape = shape
        self.dtype = dtype
        self.rows = shape[0] if shape else 1
        self._read = read

    def spans(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        step = max(1, _CHUNK // max(1, math.prod(self.shape[1:])))
        for begin in range(start, stop, step):
            yield begin, min(begin + step, stop)

    @property
    def is_floating_point(self) -> bool:
        return self.dtype.startswith(("F", "BF"))

    def read(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows `start` to `stop`, all by default, in the dtype they are stored in."""
        return self._read(start, self.rows if stop is None else stop)


def open_weights(folder: Path, stack: ExitStack) -> dict[str, Weight]:
    """
    All tensors of a model's or adapter's files, single or sharded, by name, as if they were stored dense.

    Sparse and quantized tensors are unpacked when they are read, one at a time. Where heads, neurons or filters were
    removed a tensor has the size it had before, with zeros in their place.

    Args:
        folder (`Path`): folder of the model.
        stack (`contextlib.ExitStack`): keeps the files open.

    Returns:
        `dict[str, Weight]`

    Raises:
        `InputError`: no safetensors weights, or a damaged file. What is damaged inside a packed tensor shows when it
            is read.
    """
    where: dict[str, Any] = {}
    for path in weight_files(folder):
        try:
            file = stack.enter_context(safe_open(path, framework="pt"))
            where |= dict.fromkeys(file.keys(), file)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: not a readable safetensors file ({error}).") from None
    last = _LastUnpacked()
    weights = {}
    for name, parts in group_parts(where).items():
        if None in parts:
            weights[name] = _stored(where[name], name)
        else:
            weights[name] = _packed(folder, name, {part: (where[key], key) for part, key in parts.items()}, last)
    return _full_size(folder, weights)


def _stored(file: Any, name: str) -> Weight:
    view = file.get_slice(name)
    shape = view.get_shape()
    return Weight(
        shape, view.get_dtype(), (lambda start, stop: view[start:stop]) if shape else lambda *_: file.get_tensor(name)
    )


class _LastUnpacked:
    """The tensor unpacked last, and no more: rows are mostly read tensor by tensor."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.tensor = torch.empty(0)

    def get(self, name: str, unpack: Callable[[], torch.Tensor]) -> torch.Tensor:
        if name != self.name:
            self.name, self.tensor = None, torch.empty(0)
            self.tensor = unpack()
            self.name = name
        return self.tensor


def _packed(folder: Path, name: str, parts: dict[str | None, tuple[Any, str]], last: _LastUnpacked) -> Weight:
    def unpack() -> torch.Tensor:
        try:
            return decode({part: file.get_tensor(key) for part, (file, key) in parts.items()})
        except InputError as error:
            raise InputError(f"{folder}: tensor {name!r} is damaged ({error})") from None

    try:
        shape = shape_of({part: file.get_tensor(key) for part, (file, key) in parts.items() if part == "shape"})
        file, key = parts["scale"] if "scale" in parts else parts["values"]
    except (InputError, KeyError):
        raise InputError(f"{folder}: tensor {name!r} is damaged (parts of it are missing).") from None
    return Weight(shape, file.get_slice(key).get_dtype(), lambda start, stop: last.get(name, unpack)[start:stop])


def _full_size(folder: Path, weights: dict[str, Weight]) -> dict[str, Weight]:
    layout = _layout(folder)
    stored_as = {layout.stored_as.get(module, module): kept for module, kept in layout.kept_along().items()}
    for name, weight in weights.items():
        for dimension, (indices, size) in stored_as.get(name.rpartition(".")[0], {}).items():
            if len(weights[name].shape) > dimension and weight.shape[dimension] == len(indices):
                weights[name] = _spread(weights[name], dimension, indices, size)
    return weights


def _spread(weight: Weight, dimension: int, indices: torch.Tensor, size: int) -> Weight:
    """A weight with zeros where rows (dimension 0) or columns (1) were removed; `indices` are those that were not."""
    shape = list(weight.shape)
    shape[dimension] = size

    def read(start: int, stop: int) -> torch.Tensor:
        first, last = (start, stop) if dimension else torch.searchsorted(indices, torch.tensor([start, stop])).tolist()
        stored = weight.read(first, last)
        places = indices if dimension else indices[first:last] - start
        return stored.new_zeros(stop - start, *shape[1:]).index_copy_(dimension, places, stored)

    return Weight(shape, weight.dtype, read)


def _layout(folder: Path) -> StorageLayout:
    try:
        config = json.loads((folder / "config.json").read_bytes()).get("quantization_config")
    except (OSError, ValueError, AttributeError, RecursionError):
        # An adapter has none, and whether a configuration is readable is not asked here.
        config = None
    is_ours = isinstance(config, dict) and config.get("quant_method") == METHOD
    return StorageLayout.from_dict(config) if is_ours else StorageLayout()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model or adapter; `InputError` if there are none."""
    if (folder / _MODEL_FILE).is_file():
        return [folder / _MODEL_FILE]
    if (folder / _INDEX_FILE).is_file():
        return _shards(folder / _INDEX_FILE)
    if (folder / _ADAPTER_FILE).is_file():
        return [folder / _ADAPTER_FILE]
    raise InputError(f"folder {str(folder)!r} has no safetensors weights; save the model with save_pretrained first.")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        # The index may come from anyone and must not lead out of the folder.
        safe = all(Path(name).name == name and name.endswith(".safetensors") for name in names)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        names, safe = [], False
    if not names or not safe:
        raise InputError(f"{index}: field 'weight_map' does not name safetensors files of this folder.")
    return [index.parent / name for name in names]
