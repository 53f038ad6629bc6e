"""How differently an ensemble's members represent the same inputs, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError


def linear_cka(first: Tensor, second: Tensor) -> float:
    """
    Linear centred kernel alignment of two representations of the same inputs: 1 where one is a rotation and scaling of
    the other, about 0 where they have nothing in common.

    `HSIC(K, L) / √(HSIC(K, K) HSIC(L, L))` with `K = X Xᵀ`, `L = Y Yᵀ` (Kornblith et al., "Similarity of neural
    network representations revisited", 2019), and the unbiased estimator of HSIC (Song et al., "Feature selection via
    dependence maximization", 2012, eq. 5), since the plain one tends to 1 where there are more features than inputs.

    Args:
        first (`torch.Tensor`): `[inputs, features]`, at least 4 inputs.
        second (`torch.Tensor`): `[inputs, other features]`.

    Returns:
        `float`: at most 1; NaN where a representation does not vary.

    Raises:
        [`InputError`]: fewer than 4 inputs, or not as many of both.
    """
    if len(first) != len(second) or len(first) < 4:
        raise InputError(f"representations of {len(first)} and {len(second)} inputs: give the same, 4 or more.")
    kernels = [_kernel(features) for features in (first, second)]
    own = [_hsic(kernel, kernel) for kernel in kernels]
    return float(_hsic(*kernels) / (own[0].clamp(min=0) * own[1].clamp(min=0)).sqrt())


def layer_activations(model: nn.Module, inputs: Mapping[str, Tensor], layers: Sequence[str] = ()) -> dict[str, Tensor]:
    """
    Outputs of a model's layers.

    Args:
        model (`nn.Module`): in evaluation mode.
        inputs (`Mapping[str, torch.Tensor]`): one batch of what it reads.
        layers (`Sequence[str]`, *optional*): names of modules; by default all convolutions and linear layers, in the
            order in which they are run.

    Returns:
        `dict[str, torch.Tensor]`: by layer, `[inputs, features]`.

    Raises:
        [`InputError`]: a name that is no module of the model.
    """
    return _layer_outputs(model, inputs, layers, lambda features: features)


def _layer_outputs(
    model: nn.Module, inputs: Mapping[str, Tensor], layers: Sequence[str], kept: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """By layer, what `kept` makes of its activations: those of all layers at once may be far too large."""
    modules = dict(model.named_modules())
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    layers = layers or [name for name, module in modules.items() if isinstance(module, kinds)]
    unknown = [name for name in layers if name not in modules]
    if unknown:
        raise InputError(f"layers: {unknown[0]!r} is no module of {type(model).__name__}.")
    found: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(module: nn.Module, given: tuple, output: Tensor | tuple) -> None:
            output = output[0] if isinstance(output, tuple) else output
            found[name] = kept(output.detach().flatten(1))

        return hook

    hooks = [modules[name].register_forward_hook(keep(name)) for name in layers]
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def layer_diversity(members: Sequence[nn.Module], inputs: Mapping[str, Tensor]) -> dict[str, float]:
    """
    The diversity score of each layer: `1 - 2 / (K (K - 1)) Σ_{k < l} CKA(X_k, X_l)`, one less the mean over all pairs
    of the K members of the [`linear_cka`] of their activations. The paper names a "representation diversity score" per
    layer without giving its formula in the text at hand; this definition is ours.

    Args:
        members (`Sequence[nn.Module]`): at least 2 models whose layers have the same names, in evaluation mode.
        inputs (`Mapping[str, torch.Tensor]`): one batch, of some hundred inputs.

    Returns:
        `dict[str, float]`: by layer, from 0 (the same representation) to about 1; without layers that do not depend on
        the inputs.

    Raises:
        [`InputError`]: fewer than 2 members, or no layer that all have.
    """
    if len(members) < 2:
        raise InputError(f"members: {len(members)} given; diversity is a matter of at least 2.")
    kernels = [_layer_outputs(member, inputs, (), _kernel) for member in members]
    shared = [name for name in kernels[0] if all(name in other for other in kernels)]
    if not shared:
        raise InputError("members: no layer has the same name in all of them; give members of one architecture.")
    scores = {name: _mean_unlikeness([kernel[name] for kernel in kernels]) for name in shared}
    return {name: score for name, score in scores.items() if not math.isnan(score)}


def representation_diversity(representations: Sequence[Tensor | Sequence[Sequence[float]]]) -> float:
    """
    The diversity score of one layer, as [`layer_diversity`] defines it, from its activations.

    Args:
        representations (`Sequence[torch.Tensor]`): one for each of at least 2 networks, `[inputs, features]`.

    Returns:
        `float`: from 0 to about 1; NaN where a representation does not vary.

    Raises:
        [`InputError`]: fewer than 2 networks, fewer than 4 inputs, or not as many for all.
    """
    tables = [torch.as_tensor(np.asarray(table)) for table in representations]
    if len(tables) < 2 or len({len(table) for table in tables}) > 1 or len(tables[0]) < 4:
        raise InputError(
            f"representations of {[len(table) for table in tables]} inputs: give those of at least 2 networks on the "
            "same inputs, 4 or more."
        )
    return _mean_unlikeness([_kernel(table) for table in tables])


def _mean_unlikeness(kernels: Sequence[Tensor]) -> float:
    own = [_hsic(kernel, kernel).clamp(min=0).sqrt() for kernel in kernels]
    alike = [_hsic(kernels[i], kernels[j]) / (own[i] * own[j]) for i, j in combinations(range(len(kernels)), 2)]
    return 1 - float(torch.stack(alike).mean())


def _kernel(features: Tensor) -> Tensor:
    """Gram matrix with an empty diagonal, scaled so that its square neither vanishes nor overflows."""
    features = features.double().flatten(1)
    features = features - features.mean(0)
    kernel = features @ features.T
    return kernel.fill_diagonal_(0) / kernel.abs().max().clamp(min=torch.finfo(kernel.dtype).tiny)


def _hsic(first: Tensor, second: Tensor) -> Tensor:
    n = len(first)
    sums = first.sum() * second.sum() / ((n - 1) * (n - 2)) - 2 * (first.sum(0) @ second.sum(0)) / (n - 2)
    return ((first * second).sum() + sums) / (n * (n - 3))
