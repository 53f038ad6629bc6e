"""A rival that cannot forget because it never shares weights: a fresh adapter for each task on the frozen base."""

from __future__ import annotations

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..errors import InputError
from ..models.heads import output_head
from ..models.loading import task_of
from ..tasks import LANGUAGE_MODELLING


LAYERS = (nn.Linear, nn.Conv2d, Conv1D)


def fresh_adapter(model: PreTrainedModel | PeftModel, *, rank: int = 8, alpha: int = 16) -> PeftModel:
    """
    Low-rank adapters (Hu et al., "LoRA", 2022) on every linear and convolutional layer of a network, whose weights are
    frozen. A copy of a classifier's output head is trained with them; a language model's head is left alone. An
    adapter `default` that the model has is taken off first: each task gets its own, on the same base.

    The base alone, as before, is `model.disable_adapter()`. Which adapter an input needs has to be known: results are
    comparable only to those of other methods with the task given.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            A classifier, its head already grown, or a language model. It has to be saved under `model.name_or_path`,
            where a recorded adapter looks for its base.
        rank (`int`, *optional*, defaults to 8): r of the paper.
        alpha (`int`, *optional*, defaults to 16): α of the paper; updates are scaled by α / r.

    Returns:
        `PeftModel`: with the adapter `default`, at first the same function.

    Raises:
        [`InputError`]: a rank below 1, or a model without linear or convolutional layers before its head.
    """
    if rank < 1:
        raise InputError(f"rank={rank!r} has to be at least 1")
    if isinstance(model, PeftModel):
        for module in model.modules():
            if isinstance(module, ModulesToSaveWrapper):
                # `unload` would leave the head that was trained with the adapter.
                module.modules_to_save["default"].load_state_dict(module.original_module.state_dict())
        model = model.unload()
    layers, head = inner_layers(model)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=list(layers),
        modules_to_save=None if head is None else [head],
        task_type=TaskType.CAUSAL_LM if task_of(model) == "text-generation" else None,
        # GPT-2 keeps its linear layers' weights transposed.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in layers.values()),
    )
    return get_peft_model(model, config)


def inner_layers(model: PreTrainedModel) -> tuple[dict[str, nn.Module], str | None]:
    """
    The linear and convolutional layers of a network but for the last one.

    Args:
        model (`PreTrainedModel`): A classifier, or a language model.

    Returns:
        `tuple[dict[str, nn.Module], str | None]`: the layers by name, and the name of a classifier's output head.

    Raises:
        [`InputError`]: there are none.
    """
    head = None if task_of(model) in LANGUAGE_MODELLING else output_head(model)
    last = model.get_output_embeddings() if head is None else model.get_submodule(head)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, LAYERS) and m is not last}
    if not layers:
        before = "its output embeddings" if head is None else f"its head {head!r}"
        raise InputError(f"model={type(model).__name__} has no linear or convolutional layer before {before}")
    return layers, head
