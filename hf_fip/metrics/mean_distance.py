"""The functional distance of two tables of outputs, with what it is worth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..errors import InputError
from ..functional.distances import get_distance


def mean_distance(
    outputs: Sequence[Sequence[float]], reference: Sequence[Sequence[float]], distance: str = "l2"
) -> dict[str, float | str]:
    """
    Mean over the examples of the functional distance, in the distance's unit.

    Args:
        outputs (`Sequence[Sequence[float]]`): `[examples, nodes]`, raw outputs.
        reference (`Sequence[Sequence[float]]`): the outputs to compare with; it may have fewer nodes.
        distance (`str`, *optional*, defaults to `"l2"`): a name that [`~hf_fip.functional.get_distance`] takes.

    Returns:
        `dict`: `functional_distance`, `standard_error` (NaN for one example) and `unit`.

    Raises:
        [`InputError`]: an unknown distance, tables that do not fit, or reference outputs that do not vary.
    """
    kind = get_distance(distance)
    compared, kept = torch.as_tensor(np.asarray(outputs)), torch.as_tensor(np.asarray(reference))
    scale = float(kind.scale(kept))
    if not scale > 0:
        raise InputError(f"references do not vary, and distance={distance!r} is a share of their variance: give more.")
    values = kind.per_example(compared, kept).double() / scale
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else float("nan")
    return {"functional_distance": float(values.mean()), "standard_error": error, "unit": kind.unit}
