"""One bit per weight says whether it is zero; the others are stored one after another."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from ..errors import InputError


_SAME_WIDTH = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Entries or gaps unpacked at a time: their places stay in the processor's cache, and in memory that is used again.
CHUNK = 1 << 16
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
    if size % 8 and int(bitmask[-1]) >> size % 8:
        raise InputError(f"bitmask of {size} entries has bits set beyond the last one.")
    places = _places(bitmask.numpy()) if bitmask.device.type == "cpu" else _places_at_once(bitmask)
    return place(places, values, size).reshape(tuple(shape))


def take(flat: torch.Tensor, where: np.ndarray) -> torch.Tensor:
    """Entries `where` of a one-dimensional tensor on the CPU (several times faster than torch's own indexing)."""
    return torch.from_numpy(_bytes_of(flat)[where]).view(flat.dtype)


def place(places: Iterable[tuple[int, np.ndarray | torch.Tensor]], values: torch.Tensor, size: int) -> torch.Tensor:
    """
    Zeros of length `size` with the values at their places, on the values' device.

    Args:
        places (iterable of `tuple[int, np.ndarray | torch.Tensor]`):
            For some values after the others, an offset and their places behind it.
        values (`torch.Tensor`): one-dimensional.
        size (`int`): the length.

    Raises:
        [`~hf_fip.errors.InputError`]: more or fewer places than values.
    """
    on_cpu = values.device.type == "cpu"
    content = _bytes_of(values) if on_cpu else values
    # Of NumPy, zeros are fresh pages of the system, and indexing is several times faster.
    flat = np.zeros(size, dtype=content.dtype) if on_cpu else values.new_zeros(size)
    start = 0
    for offset, where in places:
        stop = start + len(where)
        if stop <= len(content):
            flat[offset:][where if on_cpu else torch.as_tensor(where, device=values.device)] = content[start:stop]
        start = stop
    if start != len(content):
        raise InputError(f"the positions are those of {start} values; {values.numel()} are stored.")
    return torch.from_numpy(flat).view(values.dtype) if on_cpu else flat


def _places(bitmask: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for first in range(0, len(bitmask), CHUNK // 8):
        bits = np.unpackbits(bitmask[first : first + CHUNK // 8], bitorder="little")
        yield 8 * first, np.flatnonzero(bits.view(np.bool_))


def _places_at_once(bitmask: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    bits = _BITS_OF_BYTE.to(bitmask.device).index_select(0, bitmask.int()).view(torch.bool).flatten()
    yield 0, bits.nonzero().flatten()


def _bytes_of(flat: torch.Tensor) -> np.ndarray:
    return flat.contiguous().view(_SAME_WIDTH[flat.element_size()]).numpy()
