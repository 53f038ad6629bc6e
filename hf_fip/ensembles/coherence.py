"""How far an attack on one network points the same way as an attack on another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, autograd, nn
from torch.nn.functional import cross_entropy

from ..errors import InputError
from ..forward import logits_of


def input_gradients(model: nn.Module, pixel_values: Tensor, labels: Tensor, *, batch_size: int = 256) -> Tensor:
    """
    Gradients of each input's cross-entropy with respect to that input, `∇_x CE(f(x), y)`.

    Args:
        model (`nn.Module`): an image classifier in evaluation mode.
        pixel_values (`torch.Tensor`): `[inputs, channels, height, width]`.
        labels (`torch.Tensor`): `[inputs]`, the right classes.
        batch_size (`int`, *optional*, defaults to 256): images at a time; no result depends on it.

    Returns:
        `torch.Tensor`: `[inputs, channels * height * width]`.
    """
    found = []
    for images, right in zip(pixel_values.split(batch_size), labels.split(batch_size), strict=True):
        read = images.detach().clone().requires_grad_()
        losses = cross_entropy(logits_of(model(pixel_values=read)), right, reduction="sum")
        found.append(autograd.grad(losses, read)[0].flatten(1))
    return torch.cat(found)


def input_coherence(gradients: Tensor, surrogate: Tensor) -> Tensor:
    """
    Cosine of a network's input gradient with the surrogate's, input by input: with `a = ∇_x CE(f(x), y)` and
    `b = ∇_x CE(s(x), y)`, `a · b / (|a| |b|)`. It is 1 where what raises the surrogate's loss raises the network's
    most, 0 where it does not touch it. The word and the cosine are Kariyappa and Qureshi's ("Improving adversarial
    robustness of ensembles with diversity training", 2019), who take it between members; the paper at hand reports it
    with a surrogate, without a formula in the text at hand, so this definition is ours.

    Args:
        gradients (`torch.Tensor`): `[inputs, features]`, as [`input_gradients`] gives them.
        surrogate (`torch.Tensor`): the surrogate's, of the same inputs.

    Returns:
        `torch.Tensor`: `[inputs]`, from -1 to 1; 0 where a gradient is zero.

    Raises:
        [`InputError`]: shapes that differ.
    """
    if gradients.ndim != 2 or gradients.shape != surrogate.shape:
        raise InputError(
            f"gradients {tuple(gradients.shape)}, surrogate {tuple(surrogate.shape)}: give both as (inputs, features)."
        )
    # A network that is sure of itself has gradients of 1e-12: their direction counts, however small they are.
    scaled = [values.double() for values in (gradients, surrogate)]
    scaled = [values / values.norm(dim=1, keepdim=True).clamp(min=1e-300) for values in scaled]
    return (scaled[0] * scaled[1]).sum(1)


def mean_coherence(gradients: Sequence[Sequence[float]], surrogate: Sequence[Sequence[float]]) -> float:
    """The mean of [`input_coherence`] over the inputs, from tables of numbers `[inputs, features]`."""
    first, second = (torch.as_tensor(np.asarray(table)) for table in (gradients, surrogate))
    return float(input_coherence(first, second).mean())
