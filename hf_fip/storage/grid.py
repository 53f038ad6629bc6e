"""Weights that lie on a per-channel integer grid, as integers and one scale per output channel."""

from __future__ import annotations

import torch

from ..errors import InputError


LEVELS = 127
_NIBBLE_LEVELS = 7
_SAMPLE = 32  # weights of a row, from the largest to the smallest, that its scale is guessed from
_ROWS_AT_A_TIME = 256
_TOLERANCE = 1e-3  # levels by which a quotient may miss a whole number: above rounding, below 1 / 127
_NEIGHBOURS = 2  # floating-point numbers either side of a quotient, one of which is the scale


def find_scale(weight: torch.Tensor) -> torch.Tensor | None:
    """
    The scale of each output channel with which `weight == codes * scale` holds exactly, for integers of at most 127.

    Of several the largest scale is taken. One row whose weights are no whole multiples of one number ends the search,
    so that looking at weights on no grid costs next to nothing.

    Args:
        weight (`torch.Tensor` of shape `[rows, ...]`): float32 or float64; narrower floats do not tell a grid.

    Returns:
        `torch.Tensor` of shape `[rows]` and the weight's dtype, or `None` if there is none.
    """
    if weight.dim() < 2 or weight.dtype not in (torch.float32, torch.float64) or not weight.numel():
        return None
    rows = weight.detach().cpu().flatten(1)
    scales = []
    # One row first: it tells nearly always.
    for chunk in (rows[:1], *rows[1:].split(_ROWS_AT_A_TIME)):
        scale = _scale_of_rows(chunk)
        if scale is None:
            return None
        scales.append(scale)
    return torch.cat(scales)


def to_codes(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """
    Integers with `codes * scale` equal to the weights, one scale per row.

    Args:
        weight (`torch.Tensor` of shape `[rows, ...]`): floating point.
        scale (`torch.Tensor` of shape `[rows]`): of the same dtype, positive.

    Returns:
        `torch.Tensor` of the weight's shape, `int8`.

    Raises:
        [`~hf_fip.errors.InputError`]: weights that are not exactly such products.
    """
    if scale.shape != weight.shape[:1] or scale.dtype != weight.dtype or not bool((scale > 0).all()):
        raise InputError(
            f"scale has shape {list(scale.shape)} and dtype {scale.dtype}; one positive {weight.dtype} number "
            f"for each of the {weight.shape[0]} rows expected."
        )
    # In at least float32: a quotient of bfloat16 is rounded to another integer.
    wide = torch.promote_types(weight.dtype, torch.float32)
    codes = (
        (weight.to(wide) / _broadcast(scale, weight).to(wide)).round_().nan_to_num_().clamp_(-128, 127).to(torch.int8)
    )
    if not torch.equal(from_codes(codes, scale), weight):
        raise InputError("weight: not all of it lies on the grid that scale gives; project it first.")
    return codes


def from_codes(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """
    The weights `codes * scale`.

    Args:
        codes (`torch.Tensor` of shape `[rows, ...]`): `int8`.
        scale (`torch.Tensor` of shape `[rows]`): one scale per row; its dtype is the result's.

    Returns:
        `torch.Tensor` of the codes' shape.
    """
    return codes.to(scale.dtype).mul_(_broadcast(scale, codes))


def fits_nibbles(codes: torch.Tensor) -> bool:
    """Whether all codes are integers from -7 to 7 (such as those of an int4 grid)."""
    return not codes.numel() or int(codes.abs().max()) <= _NIBBLE_LEVELS and int(codes.min()) >= -_NIBBLE_LEVELS


def pack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """
    Two codes to a byte, the first in the lower half.

    Args:
        codes (`torch.Tensor` of shape `[entries]`): `int8`, from -8 to 7.

    Returns:
        `torch.Tensor` of shape `[ceil(entries / 2)]`, `uint8`.
    """
    halves = torch.nn.functional.pad(codes, (0, codes.numel() % 2)).view(torch.uint8) & 15
    return halves[::2] | (halves[1::2] << 4)


def unpack_nibbles(packed: torch.Tensor, size: int) -> torch.Tensor:
    """
    The codes that [`pack_nibbles`] packed.

    Args:
        packed (`torch.Tensor` of shape `[ceil(size / 2)]`): `uint8`.
        size (`int`): number of codes.

    Returns:
        `torch.Tensor` of shape `[size]`, `int8`.

    Raises:
        [`~hf_fip.errors.InputError`]: another number of bytes.
    """
    if packed.dtype != torch.uint8 or packed.shape != (-(-size // 2),):
        raise InputError(f"nibbles hold {packed.numel()} entries of {packed.dtype}; {-(-size // 2)} bytes expected.")
    signed = packed.view(torch.int8)
    # Shifting left and back again copies the sign of a half into the upper one.
    return torch.stack(((signed << 4) >> 4, signed >> 4), 1).flatten()[:size]


def _scale_of_rows(rows: torch.Tensor) -> torch.Tensor | None:
    descending = rows.abs().sort(dim=1, descending=True).values
    top = descending[:, :1]
    if not bool(top.isfinite().all()):
        return None
    kept = (descending != 0).sum(1, keepdim=True).clamp_min(1)
    sample = descending.gather(1, (torch.linspace(0, 1, _SAMPLE) * (kept - 1)).round().long())
    levels = torch.arange(1, LEVELS + 1, dtype=rows.dtype)
    # [rows, levels, sample]: each weight in units of a scale that makes the row's largest weight `level` steps.
    steps = (sample / top.clamp_min(torch.finfo(rows.dtype).tiny))[:, None] * levels[None, :, None]
    whole = ((steps - steps.round()).abs() < _TOLERANCE).all(2)
    if not bool(whole.any(1).all()):
        return None
    scale = torch.where(top[:, 0] > 0, top[:, 0] / levels[whole.int().argmax(1)], 1.0)
    # The largest weight is a rounded product, so its quotient may miss the scale by the last bit.
    candidates = [scale]
    for direction in (0.0, torch.inf):
        neighbour = scale
        for _ in range(_NEIGHBOURS):
            neighbour = torch.nextafter(neighbour, torch.full_like(scale, direction))
            candidates.append(neighbour)
    found = torch.zeros_like(scale)
    for candidate in candidates:
        exact = ((rows / candidate[:, None]).round() * candidate[:, None] == rows).all(1)
        found = torch.where((found == 0) & exact, candidate, found)
    return found if bool((found > 0).all()) else None


def _broadcast(scale: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return scale.view(-1, *(1,) * (like.dim() - 1))
