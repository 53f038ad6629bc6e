"""The sparsity of a model in memory or in files."""

from __future__ import annotations

import os

from torch import nn

from ..graph.distances import sparsity


def share_of_zeros(model: nn.Module | str | os.PathLike[str]) -> float:
    """
    Share of exact zeros among a model's floating-point weights with at least two dimensions, tied ones once.

    Args:
        model (`nn.Module`, `str` or `Path`): a model, or a folder with safetensors files, of which no model is built.

    Returns:
        `float`: from 0 to 1; 0.0 if there are no such weights.

    Raises:
        [`~hf_fip.errors.InputError`]: a folder without readable weights.
    """
    if not isinstance(model, nn.Module):
        return sparsity(model)
    weights = [weight for weight in model.parameters() if weight.ndim > 1 and weight.is_floating_point()]
    size = sum(weight.numel() for weight in weights)
    return sum(int((weight == 0).sum()) for weight in weights) / size if size else 0.0
