"""One bit per weight says whether it is zero; the others are stored one after another."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from ..errors import InputError


_SAME_WIDTH = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = 1 << 20
# Row i holds the bits of byte i, lowest first.
_BITS_OF_BYTE = ((torch.arange(256)[:, None] >> torch.arange(8)) & 1).to(torch.uint8)


def pack(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]:
    """
    Split a tensor into the positions and the values of its entries that are not zero.

    Negative zero, which a mask multiplied onto a negative weight leaves, counts as zero and comes back as positive
    zero; the two are equal. Everything else, NaN included, comes back bit by bit.

    Args:
        tensor (`torch.Tensor`): any shape, any dtype of 1, 2, 4 or 8 bytes.

    Returns:
        `tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]`: the bitmask as `uint8` of `ceil(entries / 8)` bytes, the
        lowest bit first and unused bits zero; the values that are not zero, in row-major order; the shape.
    """
    flat = tensor.detach().cpu().reshape(-1)
    mask = (flat != 0).numpy()
    bitmask = torch.from_numpy(np.packbits(mask, bitorder="little"))
    return bitmask, take(flat, np.flatnonzero(mask)), tuple(tensor.shape)


def unpack(bitmask: torch.Tensor, values: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """
    The tensor that [`pack`] took apart, on the device of its parts.

    Args:
        bitmask (`torch.Tensor` of shape `[ceil(entries / 8)]`): as `uint8`.
        values (`torch.Tensor` of shape `[ones in the bitmask]`): the values.
        shape (`Sequence[int]`): the shape.

    Returns:
        `torch.Tensor` of that shape and of the values' dtype.

    Raises:
        [`~hf_fip.errors.InputError`]: lengths that do not fit together, or a bit set beyond the last entry.
    """
    size = math.prod(shape)
    if bitmask.dtype != torch.uint8 or bitmask.shape != (-(-size // 8),):
        raise InputError(f"bitmask has {bitmask.numel()} entries of {bitmask.dtype}; {-(-size // 8)} bytes expected.")
    bits = _bits_of(bitmask)
    on_cpu = bitmask.device.type == "cpu"
    ones = int(np.count_nonzero(bits.numpy()) if on_cpu else torch.count_nonzero(bits))
    if bool(bits[size:].any()) or values.shape != (ones,):
        raise InputError(f"bitmask of {size} entries marks {ones} values; {values.numel()} are stored.")
    if not on_cpu:
        return place(bits.nonzero().flatten(), values, size).reshape(tuple(shape))
    # NumPy's zeros are fresh pages of the system, and indices of one chunk at a time stay in the cache.
    flat, content, start = np.zeros(size, dtype=_bytes_of(values).dtype), _bytes_of(values), 0
    for first in range(0, size, _CHUNK):
        where = np.flatnonzero(bits[first : first + _CHUNK].numpy())
        flat[first : first + _CHUNK][where] = content[start : start + len(where)]
        start += len(where)
    return torch.from_numpy(flat).view(values.dtype).reshape(tuple(shape))


def take(flat: torch.Tensor, where: np.ndarray) -> torch.Tensor:
    """Entries `where` of a one-dimensional tensor on the CPU (several times faster than torch's own indexing)."""
    return torch.from_numpy(_bytes_of(flat)[where]).view(flat.dtype)


def place(where: np.ndarray | torch.Tensor, values: torch.Tensor, size: int) -> torch.Tensor:
    """Zeros of length `size` with `values` at the places `where`, an array on the CPU and a tensor elsewhere."""
    if isinstance(where, torch.Tensor):
        return values.new_zeros(size).index_copy_(0, where, values)
    flat = np.zeros(size, dtype=_bytes_of(values).dtype)
    flat[where] = _bytes_of(values)
    return torch.from_numpy(flat).view(values.dtype)


def _bits_of(bitmask: torch.Tensor) -> torch.Tensor:
    if bitmask.device.type == "cpu":
        return torch.from_numpy(np.unpackbits(bitmask.numpy(), bitorder="little")).view(torch.bool)
    return _BITS_OF_BYTE.to(bitmask.device).index_select(0, bitmask.int()).view(torch.bool).flatten()


def _bytes_of(flat: torch.Tensor) -> np.ndarray:
    return flat.contiguous().view(_SAME_WIDTH[flat.element_size()]).numpy()
