"""
One tensor as named parts: where its weights lie, and their values.

| parts | tensor |
|---|---|
| `shape`, `bitmask` or `gaps`, `values` | sparse |
| `shape`, `codes` or `nibbles`, `scale` | on a grid of one scale per output channel (first dimension) |
| `shape`, `bitmask` or `gaps`, `codes` or `nibbles`, `scale` | both |

In a file the part of tensor `name` is called `name:part`. A tensor for which nothing is smaller stays what it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch

from ..errors import InputError
from . import bitmask, gaps, grid


PARTS = ("bitmask", "codes", "gaps", "nibbles", "scale", "shape", "values")
POSITIONS = ("auto", "bitmask", "gaps")
SEPARATOR = ":"
_FORMATS = {"bitmask": bitmask, "gaps": gaps}
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SPARSE_ENOUGH_FOR_GAPS = 0.15
_HEADER_BYTES = 128  # what safetensors writes about one tensor, name included, about
_WORTHWHILE = 0.9


def encode(
    tensor: torch.Tensor, *, positions: str = "auto", scale: torch.Tensor | None = None
) -> dict[str, torch.Tensor] | None:
    """
    The smallest parts that [`decode`] makes the same tensor of.

    Args:
        tensor (`torch.Tensor`): a weight; only floating-point ones of at least two dimensions are encoded.
        positions (`str`, *optional*, defaults to `"auto"`):
            How the places of weights that are not zero are stored: `"bitmask"`, `"gaps"` or whichever is smaller.
        scale (`torch.Tensor` of shape `[rows]`, *optional*):
            One scale per row, if the weights are known to lie on a grid. By default float32 and float64 weights are
            looked at whether they do.

    Returns:
        `dict[str, torch.Tensor]`, parts by name; `None` where no parts save a tenth of the bytes.

    Raises:
        [`~hf_fip.errors.InputError`]: weights that do not lie on the grid of the `scale` given.
    """
    if positions not in POSITIONS:
        raise InputError(f"positions={positions!r}: use one of {', '.join(POSITIONS)}.")
    # Biases are few; a reader of the file's names is served better by seeing them plain.
    if tensor.dtype not in _FLOATS or tensor.dim() < 2 or tensor.device.type == "meta":
        return None
    tensor = tensor.detach().cpu()
    if scale is not None:
        parts = _on_grid(tensor, scale.detach().cpu(), positions)
    else:
        parts = _pack(tensor, float(tensor.element_size()), positions)
        found = grid.find_scale(tensor)
        if found is not None:
            parts = min(parts, _on_grid(tensor, found, positions), key=_cost)
    return parts if _cost(parts) < _WORTHWHILE * (tensor.nbytes + _HEADER_BYTES) else None


def _on_grid(tensor: torch.Tensor, scale: torch.Tensor, positions: str) -> dict[str, torch.Tensor]:
    codes = grid.to_codes(tensor, scale)
    halves = grid.fits_nibbles(codes)
    parts = _pack(codes, 0.5 if halves else 1.0, positions)
    values = parts.pop("values")
    content = {"nibbles": grid.pack_nibbles(values)} if halves else {"codes": values}
    return parts | content | {"scale": scale.contiguous()}


def _pack(content: torch.Tensor, width: float, positions: str) -> dict[str, torch.Tensor]:
    """Positions and values of what is not zero where that is smaller, else all values; `width` in bytes per value."""
    size, kept = content.numel(), int(torch.count_nonzero(content))
    parts: dict[str, torch.Tensor] = {"shape": torch.tensor(content.shape, dtype=torch.int64)}
    if positions == "gaps" or positions == "auto" and kept < _SPARSE_ENOUGH_FOR_GAPS * size:
        where, values, _ = gaps.pack(content)
        if positions == "gaps" or where.nbytes < size / 8:
            return parts | {"gaps": where, "values": values}
    if size / 8 + kept * width < size * width:
        where, values, _ = bitmask.pack(content)
        return parts | {"bitmask": where, "values": values}
    return parts | {"values": content.flatten()}


def _cost(parts: dict[str, torch.Tensor]) -> int:
    return sum(part.nbytes for part in parts.values()) + _HEADER_BYTES * len(parts)


def decode(parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """
    The tensor that [`encode`] took apart.

    Args:
        parts (`Mapping[str, torch.Tensor]`): parts by name, all on one device. They may come from anyone.

    Returns:
        `torch.Tensor`, on that device.

    Raises:
        [`~hf_fip.errors.InputError`]: parts that are missing, or do not fit together.
    """
    shape = shape_of(parts)
    size = math.prod(shape)
    positions = [name for name in ("bitmask", "gaps") if name in parts]
    content = [name for name in ("codes", "nibbles", "values") if name in parts]
    if len(positions) > 1 or len(content) != 1 or ("scale" in parts) != (content != ["values"]):
        raise InputError(f"parts {', '.join(sorted(parts))} do not make a tensor; some are missing or too many.")
    scale = parts.get("scale")
    if scale is not None and (not shape or scale.shape != (shape[0],) or scale.dtype not in _FLOATS):
        raise InputError(f"scale has shape {list(scale.shape)} and dtype {scale.dtype}; {shape[:1]} floats expected.")

    values = parts[content[0]]
    if content == ["nibbles"]:
        # Beside positions no code is zero: one at the end only fills the last byte.
        padded = bool(len(values)) and int(values[-1]) < 16
        values = grid.unpack_nibbles(values, 2 * len(values) - padded if positions else size)
    allowed = _FLOATS if scale is None else (torch.int8,)
    if values.dim() != 1 or values.dtype not in allowed:
        raise InputError(f"{content[0]} have shape {list(values.shape)} and dtype {values.dtype}; one row expected.")
    if positions:
        tensor = _FORMATS[positions[0]].unpack(parts[positions[0]], values, shape)
    elif values.numel() == size:
        tensor = values.reshape(shape)
    else:
        raise InputError(f"{content[0]} hold {values.numel()} entries; shape {shape} needs {size}.")
    return tensor if scale is None else grid.from_codes(tensor, scale)


def shape_of(parts: Mapping[str, torch.Tensor]) -> list[int]:
    """The shape that the parts of a tensor tell."""
    shape = parts.get("shape")
    if shape is None or shape.dtype != torch.int64 or shape.dim() != 1 or bool((shape < 0).any()):
        raise InputError("part 'shape' is missing or is no list of sizes.")
    return shape.tolist()


def split_name(name: str) -> tuple[str, str | None]:
    """The tensor that a name in a file belongs to, and which part it is; `None` for a tensor that is stored whole."""
    tensor, separator, part = name.rpartition(SEPARATOR)
    return (tensor, part) if separator and part in PARTS else (name, None)


def group_parts(names: Iterable[str]) -> dict[str, dict[str | None, str]]:
    """
    The names in a file by tensor.

    Args:
        names (`Iterable[str]`): names as stored.

    Returns:
        `dict[str, dict[str | None, str]]`: for each tensor the stored name of each of its parts, `{None: name}` for
        one that is stored whole.
    """
    tensors: dict[str, dict[str | None, str]] = {}
    for name in names:
        tensor, part = split_name(name)
        tensors.setdefault(tensor, {})[part] = name
    return tensors
