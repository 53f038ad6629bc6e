from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import InputError


def output_head(model: PreTrainedModel | PeftModel) -> str:
    """
    Name of the linear layer that gives a classifier's outputs: the last one with as many output nodes as labels.

    Args:
        model (`PreTrainedModel` or `PeftModel`): a classifier. Of a `PeftModel` the trained copy in `modules_to_save`
            is named.

    Returns:
        `str`: the layer's name, for example `"classifier"`, `"classifier.out_proj"` (RoBERTa) or `"classifier.1"`
        (ResNet); its parameters are `NAME.weight` and, where it has one, `NAME.bias`.

    Raises:
        [`~hf_fip.errors.InputError`]: no such layer, or an adapter that does not train it.
    """
    labels = model.config.num_labels
    heads = [name for name, module in model.named_modules() if _is_head(module, labels)]
    if not heads:
        raise InputError(
            f"model={type(model).__name__} has no linear layer with {labels} outputs, one for each of its labels; "
            "give a model with a classification head."
        )
    if isinstance(model, PeftModel):
        heads = [name for name in heads if f".modules_to_save.{model.active_adapter}." in f"{name}."]
        if not heads:
            raise InputError(
                f"model={type(model).__name__}: its adapter {model.active_adapter!r} does not train the output head; "
                "name the head's module in `modules_to_save` of the adapter's configuration."
            )
    return heads[-1]


def label_names_of(model: PreTrainedModel | PeftModel) -> list[str]:
    """
    Args:
        model (`PreTrainedModel` or `PeftModel`): a classifier.

    Returns:
        `list[str]`: the names of its output nodes, in order.
    """
    return [name for _, name in sorted(model.config.id2label.items())]


def grow_head(
    model: PreTrainedModel | PeftModel,
    label_names: Sequence[str],
    *,
    bias: float | Tensor | None = None,
    generator: torch.Generator | None = None,
) -> PreTrainedModel | PeftModel:
    """
    Append output nodes to a classifier, in place. The old nodes keep their weights, biases, names and order.

    The parameters of the head are new objects afterwards: an optimizer made before does not know them.

    Args:
        model (`PreTrainedModel` or `PeftModel`): the classifier.
        label_names (`Sequence[str]`): names of the new nodes.
        bias (`float` or `torch.Tensor` of shape `(new nodes,)`, *optional*, defaults to 0):
            Bias of the new nodes. A low one keeps them from winning before they are trained.
        generator (`torch.Generator`, *optional*):
            Source (on the CPU) of the new rows, which are normal with standard deviation `config.initializer_range`
            (0.02 where the configuration has none). The default generator without it.

    Returns:
        The same `model`, whose configuration holds the longer `id2label` and `label2id`.

    Raises:
        [`~hf_fip.errors.InputError`]: names that occur twice or are in use, a model without a head to grow, a
        regression head, or a `bias` for a head that has none.
    """
    head = output_head(model)
    old_names = label_names_of(model)
    if len(old_names) == 1 or model.config.problem_type == "regression":
        raise InputError(
            f"model={type(model).__name__} has a regression head ({len(old_names)} output), to which no labels can be "
            "appended; use replace_head."
        )
    names = _checked([*old_names, *label_names])
    added = len(names) - len(old_names)
    rows = _new_rows(model, head, added, generator)
    offsets = torch.zeros(added) if bias is None else torch.as_tensor(bias, dtype=torch.float32).expand(added)
    for layer in _copies(model, head):
        if layer.bias is None and bias is not None:
            raise InputError(f"bias={bias}: the head {head!r} has no bias; leave it out.")
        _set_parameter(layer, "weight", torch.cat([layer.weight.detach(), rows.to(layer.weight)]))
        if layer.bias is not None:
            _set_parameter(layer, "bias", torch.cat([layer.bias.detach(), offsets.to(layer.bias)]))
    return _relabel(model, names)


def replace_head(
    model: PreTrainedModel | PeftModel, label_names: Sequence[str], *, generator: torch.Generator | None = None
) -> PreTrainedModel | PeftModel:
    """
    Give a classifier a fresh last layer with one output node for each name, in place.

    Args:
        model (`PreTrainedModel` or `PeftModel`): the classifier.
        label_names (`Sequence[str]`): names of all nodes.
        generator (`torch.Generator`, *optional*):
            Source (on the CPU) of the weights; see [`~hf_fip.models.heads.grow_head`]. Biases start at 0.

    Returns:
        The same `model`, with `id2label` and `label2id` of the new nodes.

    Raises:
        [`~hf_fip.errors.InputError`]: no names, names that occur twice, or a model without a head.
    """
    head = output_head(model)
    names = _checked(label_names)
    rows = _new_rows(model, head, len(names), generator)
    for layer in _copies(model, head):
        _set_parameter(layer, "weight", rows.to(layer.weight))
        if layer.bias is not None:
            _set_parameter(layer, "bias", layer.bias.new_zeros(len(names)))
    return _relabel(model, names)


def _is_head(module: nn.Module, labels: int) -> bool:
    return isinstance(module, nn.Linear) and module.out_features == labels and module.weight.is_floating_point()


def _checked(names: Sequence[str]) -> list[str]:
    names = [str(name) for name in names]
    if not names:
        raise InputError("label_names is empty: give the name of at least one output node.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f"label_names: {', '.join(map(repr, twice))} would name more than one output node of {names}; give each "
            "its own name, for example with the task's name before it."
        )
    return names


def _new_rows(model: nn.Module, head: str, count: int, generator: torch.Generator | None) -> Tensor:
    """Rows drawn on the CPU in float32, so that they do not depend on the model's device and type."""
    std = getattr(model.config, "initializer_range", 0.02)
    return torch.empty(count, model.get_submodule(head).in_features).normal_(0.0, std, generator=generator)


def _copies(model: nn.Module, head: str) -> Iterator[nn.Linear]:
    """
    The head, and the copies of it that PEFT keeps in the same wrapper: they must stay of one shape, or switching
    the adapter off would change the number of outputs.
    """
    wrapper, found, rest = head.partition(".modules_to_save.")
    if not found:
        yield model.get_submodule(head)
        return
    _, dot, inside = rest.partition(".")
    wrapped = model.get_submodule(wrapper)
    for module in (wrapped.original_module, *wrapped.modules_to_save.values()):
        yield module.get_submodule(inside) if dot else module


def _set_parameter(layer: nn.Linear, name: str, value: Tensor):
    """The layer object stays, with its hooks; only its parameter is exchanged."""
    requires_grad = getattr(layer, name).requires_grad
    setattr(layer, name, nn.Parameter(value.clone(), requires_grad=requires_grad))
    layer.out_features = len(value)


def _relabel(model: PreTrainedModel | PeftModel, names: list[str]) -> PreTrainedModel | PeftModel:
    config = model.config
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    if len(names) == 1:
        config.problem_type = None
    elif config.problem_type != "multi_label_classification":
        config.problem_type = "single_label_classification"
    for module in model.modules():
        # Most classifiers copy the number of labels when they are built and reshape their logits by the copy.
        if "num_labels" in vars(module):
            module.num_labels = len(names)
    return model
