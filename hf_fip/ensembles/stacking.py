"""Several networks of one architecture run as one."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from ..forward import logits_of


def can_stack(models: Sequence[nn.Module]) -> bool:
    """
    Whether the models' weights can be stacked: the same class, and names, shapes, types and devices of all weights.

    Args:
        models (`Sequence[nn.Module]`): in evaluation mode or not.
    """
    return len({(type(model), _layout(model)) for model in models}) == 1


def stacked_logits(models: Sequence[nn.Module], inputs: Mapping[str, Any]) -> Tensor:
    """
    Logits of all models on the same inputs, by one forward over stacked weights (`torch.func`). The weights are copied
    for it in each call, so it pays where weights and batches are small.

    Args:
        models (`Sequence[nn.Module]`): in evaluation mode, [`can_stack`].
        inputs (`Mapping[str, Any]`): what each of them reads.

    Returns:
        `torch.Tensor`: `[models, examples, classes]`.
    """
    parameters, buffers = stack_module_state(list(models))

    def logits(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return logits_of(functional_call(models[0], (parameters, buffers), (), dict(inputs)))

    with warnings.catch_warnings():
        # Attention on the CPU has no batching rule and is run model by model, which is as fast as without stacking.
        warnings.filterwarnings("ignore", message=".*batching rule", category=UserWarning)
        return vmap(logits)(parameters, buffers)


def _layout(model: nn.Module) -> tuple:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return tuple((name, tuple(value.shape), value.dtype, value.device) for name, value in tensors)
