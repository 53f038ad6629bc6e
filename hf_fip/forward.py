"""What a model's outputs are, how its task loss is taken from them, and in which mode networks are compared."""

from __future__ import annotations

from enum import Enum
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .functional.anchors import IGNORED_LABEL


class OutputKind(Enum):
    """What the rows of a model's logits stand for."""

    EXAMPLE = "one row per example"
    TOKEN = "one row per token"
    NEXT_TOKEN = "one row per token, which scores the next one"
    OTHER = "something else: the model computes its loss itself"

    @property
    def per_token(self) -> bool:
        return self in (OutputKind.TOKEN, OutputKind.NEXT_TOKEN)


def base_model(model: nn.Module) -> nn.Module:
    """The Transformers model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def output_kind(model: nn.Module) -> OutputKind:
    """The kind of outputs of an unwrapped model, by the name of its class."""
    return _kind_of(type(base_model(model)).__name__)


@lru_cache
def _kind_of(name: str) -> OutputKind:
    if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() or name.endswith("ForCausalLM"):
        return OutputKind.NEXT_TOKEN
    if name.endswith(("ForMaskedLM", "ForTokenClassification")):
        return OutputKind.TOKEN
    if name.endswith(("ForSequenceClassification", "ForImageClassification")):
        return OutputKind.EXAMPLE
    return OutputKind.OTHER


def count_labels(labels: Tensor, kind: OutputKind) -> Tensor:
    """Number of labels that enter the loss."""
    if labels.is_floating_point():
        return torch.tensor(labels.numel(), device=labels.device)
    scored = labels[..., 1:] if kind is OutputKind.NEXT_TOKEN else labels
    return scored.ne(IGNORED_LABEL).sum()


def label_losses(
    logits: Tensor, labels: Tensor, kind: OutputKind, config: PretrainedConfig, *, smoothing: float = 0.0
) -> Tensor:
    """
    The loss of each label, flat, in float32; the mean over [`count_labels`] is the loss the model itself would return.

    Args:
        logits (`torch.Tensor`): `[batch, classes]`, `[batch, tokens, classes]`, or regression outputs `[batch,
        targets]`.
        labels (`torch.Tensor`): Class indices, or float targets (regression, multi-label classification).
        kind (`OutputKind`): What the rows of `logits` are.
        config (`PretrainedConfig`): For `problem_type`.
        smoothing (`float`, *optional*, defaults to 0.0): Label smoothing of the cross-entropy.
    """
    logits, labels = logits.float(), labels.to(logits.device)
    if kind is OutputKind.NEXT_TOKEN:
        logits, labels = logits[..., :-1, :], labels[..., 1:]
    if getattr(config, "problem_type", None) == "regression" or logits.shape[-1] == 1:
        return mse_loss(logits.reshape(-1), labels.float().reshape(-1), reduction="none")
    if labels.is_floating_point():
        return binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").reshape(-1)
    return cross_entropy(
        logits.reshape(-1, logits.shape[-1]),
        labels.reshape(-1),
        ignore_index=IGNORED_LABEL,
        reduction="none",
        label_smoothing=smoothing,
    )


DROPOUT_ATTRIBUTES = (
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "hidden_dropout",
    "attn_dropout",
    "resid_dropout",
)


def function_mode_(model: nn.Module) -> None:
    """
    Puts an unwrapped model in the mode in which its function is defined: no dropout, batch norms on their running
    statistics. Gradients flow as usual. Layers that recompute their activations keep `training`, on which that
    depends, with their own dropout probabilities set to zero.
    """
    model.eval()
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True
            for name in DROPOUT_ATTRIBUTES:
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)


def logits_of(outputs) -> Tensor:
    """The logits among a model's outputs."""
    logits = outputs["logits"] if isinstance(outputs, dict) and "logits" in outputs else outputs[0]
    return logits[0] if isinstance(logits, tuple) else logits
