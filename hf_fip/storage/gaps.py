"""
The number of zeros before each weight that is not: smaller than a bitmask where fewer than about one in ten is left.

A gap takes one byte, or two where zeros are so many that one would often overflow. The largest number of the width
stands for as many zeros with no weight after them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from ..errors import InputError
from .bitmask import CHUNK, place, take


_WIDTHS = (torch.uint8, torch.int16)


def pack(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]:
    """
    Split a tensor into the gaps between its entries that are not zero, and their values.

    Args:
        tensor (`torch.Tensor`): any shape, any dtype of 1, 2, 4 or 8 bytes. Negative zero counts as zero.

    Returns:
        `tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]`: the gaps, as `uint8` or `int16`, whichever is smaller;
        the values, in row-major order; the shape.
    """
    flat = tensor.detach().cpu().reshape(-1)
    where = np.flatnonzero((flat != 0).numpy())
    zeros = np.diff(where, prepend=-1) - 1
    trailing = flat.numel() - 1 - (int(where[-1]) if len(where) else -1)
    packed = [_with_escapes(zeros, trailing, dtype) for dtype in _WIDTHS]
    smallest = min(packed, key=lambda gaps: gaps.nbytes)
    return torch.from_numpy(smallest), take(flat, where), tuple(tensor.shape)


def unpack(gaps: torch.Tensor, values: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """
    The tensor that [`pack`] took apart, on the device of its parts.

    Args:
        gaps (`torch.Tensor`): one-dimensional, `uint8` or `int16`.
        values (`torch.Tensor`): one-dimensional.
        shape (`Sequence[int]`): the shape.

    Returns:
        `torch.Tensor` of that shape and of the values' dtype.

    Raises:
        [`~hf_fip.errors.InputError`]: lengths that do not fit together.
    """
    if gaps.dtype not in _WIDTHS or gaps.dim() != 1:
        raise InputError(f"gaps have shape {list(gaps.shape)} and dtype {gaps.dtype}; one row of bytes expected.")
    escape = torch.iinfo(gaps.dtype).max
    size = math.prod(shape)
    covered = int(gaps.sum()) + int(torch.count_nonzero(gaps != escape))
    is_negative = gaps.dtype.is_signed and bool((gaps < 0).any())
    # What is left after the last gap is less than one escape: a shape of another size is noticed.
    if is_negative or not 0 <= size - covered < escape:
        raise InputError(f"gaps cover {covered} of {size} entries.")
    return place(_places(gaps.cpu().numpy(), escape), values, size).reshape(tuple(shape))


def _places(gaps: np.ndarray, escape: int) -> Iterator[tuple[int, np.ndarray]]:
    offset = 0
    for first in range(0, len(gaps), CHUNK):
        steps = gaps[first : first + CHUNK]
        zeros, is_weight = np.cumsum(steps, dtype=np.intp), steps != escape
        where = zeros if is_weight.all() else zeros[is_weight]
        after = offset + int(zeros[-1]) + len(where)
        where += np.arange(len(where))
        yield offset, where
        offset = after


def _with_escapes(zeros: np.ndarray, trailing: int, dtype: torch.dtype) -> np.ndarray:
    escape = torch.iinfo(dtype).max
    full = zeros // escape
    steps = np.full(len(zeros) + int(full.sum()) + trailing // escape, escape, dtype=_numpy(dtype))
    steps[np.cumsum(full + 1) - 1] = zeros - full * escape
    return steps


def _numpy(dtype: torch.dtype) -> np.dtype:
    return np.dtype(str(dtype).removeprefix("torch."))
