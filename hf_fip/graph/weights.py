"""The weights in a node's files, read from memory-mapped safetensors some rows at a time: no model is built."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..errors import InputError


_CHUNK = 1 << 20  # elements in memory at a time
_MODEL_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_ADAPTER_FILE = "adapter_model.safetensors"


class Weight:
    """One tensor in a memory-mapped file, read some rows at a time."""

    def __init__(self, file: Any, name: str) -> None:
        view = file.get_slice(name)
        self.shape: list[int] = view.get_shape()
        self.dtype: str = view.get_dtype()
        self.rows = self.shape[0] if self.shape else 1
        self._read = (lambda start, stop: view[start:stop]) if self.shape else (lambda *_: file.get_tensor(name))

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
    All tensors of a model's or adapter's files, single or sharded, by name.

    Args:
        folder (`Path`): folder of the model.
        stack (`contextlib.ExitStack`): keeps the files open.

    Returns:
        `dict[str, Weight]`

    Raises:
        `InputError`: no safetensors weights, or a damaged file.
    """
    weights: dict[str, Weight] = {}
    for path in _weight_files(folder):
        try:
            file = stack.enter_context(safe_open(path, framework="pt"))
            weights |= {name: Weight(file, name) for name in file.keys()}
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: not a readable safetensors file ({error}).") from None
    return weights


def _weight_files(folder: Path) -> list[Path]:
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
