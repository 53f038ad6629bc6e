"""Takes rows and columns out of a model's modules."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..errors import InputError
from .layout import StorageLayout, StructureGroup


if TYPE_CHECKING:
    # Importing transformers' models here would register the format, which needs this module whole.
    from transformers import PreTrainedModel


_NAMES_OF_HEAD_COUNT = ("num_attention_heads", "num_heads", "n_heads")


def groups_in(model: PreTrainedModel, groups: Iterable[StructureGroup]) -> tuple[StructureGroup, ...]:
    """
    Groups by the names that their modules have in a model: its own with or without the prefix of its base model, so
    that a body can be loaded from the files of a classifier. Modules that the model has not got are left out.

    Args:
        model (`PreTrainedModel`): the model.
        groups (iterable of [`StructureGroup`]): as a configuration names them.

    Returns:
        `tuple[StructureGroup, ...]`
    """
    known = {name for name, _ in model.named_modules()}
    prefix = f"{model.base_model_prefix}."
    found = []
    for group in groups:
        units = []
        for modules in (group.rows, group.columns):
            names = {name: (name, name.removeprefix(prefix), prefix + name) for name in modules}
            here = {name: next((other for other in others if other in known), None) for name, others in names.items()}
            units.append({here[name]: unit for name, unit in modules.items() if here[name] is not None})
        if any(units):
            found.append(replace(group, rows=units[0], columns=units[1]))
    return tuple(found)


@torch.no_grad()
def keep_structures(model: PreTrainedModel, groups: Iterable[StructureGroup]) -> None:
    """
    Make a model's modules smaller, in place: only the rows and columns of the structures that are left stay. Works on
    weights, and on the meta device before there are any.

    Args:
        model (`PreTrainedModel`): a model in which none of the groups has lost structures yet.
        groups (iterable of [`StructureGroup`]): which structures are left, by the names of modules in this model.

    Raises:
        [`~hf_fip.errors.InputError`]: a module of another kind or size.
    """
    groups = tuple(groups)
    for name, kept in StorageLayout(groups).kept_along().items():
        for dimension, (indices, size) in kept.items():
            _narrow(model.get_submodule(name), name, dimension, indices, size)
    for group in groups:
        if group.kind == "heads" and group.rows:
            _set_head_count(model, group)


def _narrow(module: nn.Module, name: str, dimension: int, indices: torch.Tensor, size: int) -> None:
    out, into = {
        nn.Linear: ("out_features", "in_features"),
        nn.Conv2d: ("out_channels", "in_channels"),
        nn.BatchNorm2d: ("num_features", None),
    }.get(type(module), (None, None))
    attribute = (out, into)[dimension]
    if attribute is None or getattr(module, attribute) != size or getattr(module, "groups", 1) != 1:
        raise InputError(f"quantization_config: module {name!r} of the model has not {size} rows or columns.")
    for owner in (module._parameters, module._buffers):
        for key, value in owner.items():
            if value is not None and value.dim() > dimension and value.shape[dimension] == size:
                smaller = value.index_select(dimension, indices.to(value.device))
                owner[key] = nn.Parameter(smaller, value.requires_grad) if owner is module._parameters else smaller
    setattr(module, attribute, len(indices))


def _set_head_count(model: PreTrainedModel, group: StructureGroup) -> None:
    """What attention says of itself; the configuration keeps the number of heads that all layers had."""
    query, size = next(iter(group.rows.items()))
    attention = model.get_submodule(query.rpartition(".")[0])
    for name in _NAMES_OF_HEAD_COUNT:
        if hasattr(attention, name):
            setattr(attention, name, len(group.kept))
    if hasattr(attention, "all_head_size"):
        attention.all_head_size = len(group.kept) * size
