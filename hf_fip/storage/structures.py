"""Finds the heads, neurons and filters of a network, and removes those whose weights are zero."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..errors import InputError
from .conversions import stored_names
from .layout import METHOD, StorageLayout, StructureGroup
from .resizing import keep_structures


if TYPE_CHECKING:
    # Importing transformers' models here would register the format, which needs this module whole.
    from transformers import PreTrainedModel


# Modules, relative to one that holds them all, that compute the heads (query, key, value), and that read them.
_HEADS = (
    (("self.query", "self.key", "self.value"), "output.dense"),
    (("q_proj", "k_proj", "v_proj"), "o_proj"),
    (("q_proj", "k_proj", "v_proj"), "out_proj"),
    (("q_lin", "k_lin", "v_lin"), "out_lin"),
)
_NEURONS = (
    (("intermediate.dense",), "output.dense"),
    (("fc1",), "fc2"),
    (("lin1",), "lin2"),
)
_ACTIVATIONS = ("hidden_act", "activation_function", "activation")


def structure_groups(model: PreTrainedModel) -> list[StructureGroup]:
    """
    The attention heads, feed-forward neurons and filters of a model.

    Known are BERT and its relatives (RoBERTa, ELECTRA, DistilBERT), vision transformers with the same layers (ViT,
    DeiT) and networks that say where theirs are, as this package's own do
    ([`~hf_fip.models.images.ImageNetwork.chains`]). Heads that share a key or value are left alone.

    Args:
        model (`PreTrainedModel`): the model.

    Returns:
        `list[StructureGroup]`, empty for a model of another kind.
    """
    groups = _chain_groups(model)
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        for sources, target in _HEADS:
            found = _linears(module, (*sources, target))
            size = found and _head_size(module, sources[0])
            if size and len({source.out_features for source in found[:-1]} | {found[-1].in_features}) == 1:
                rows = {prefix + source: size for source in sources}
                groups.append(StructureGroup("heads", found[0].out_features // size, rows, {prefix + target: size}))
        for sources, target in _NEURONS:
            found = _linears(module, (*sources, target))
            if found and found[0].out_features == found[-1].in_features:
                rows = {prefix + source: 1 for source in sources}
                groups.append(StructureGroup("neurons", found[0].out_features, rows, {prefix + target: 1}))
    return groups


def silent_structures(model: PreTrainedModel, group: StructureGroup) -> torch.Tensor:
    """
    Which structures of a group have no influence on the output, for any input.

    So it is when all weights that read it are zero, or when what it computes is zero: all weights and biases of a
    neuron or filter, or of a head's value, with an activation that is zero at zero.

    Args:
        model (`PreTrainedModel`): the model.
        group ([`StructureGroup`]): one of [`structure_groups`].

    Returns:
        `torch.Tensor` of shape `[count]`, `bool`.
    """
    unread = torch.ones(group.count, dtype=torch.bool)
    for name, unit in group.columns.items():
        is_zero = (model.get_submodule(name).weight.detach().cpu() == 0).transpose(0, 1).flatten(1).all(1)
        unread &= is_zero.view(group.count, unit).all(1)
    # Of a head the value alone tells: a query or key of zero still lets it average.
    name, unit = list(group.rows.items())[-1]
    module = model.get_submodule(name)
    weight = module.weight.detach().cpu()
    rows = weight.reshape(len(weight), -1).abs().amax(1)
    if module.bias is not None:
        rows = rows + module.bias.detach().cpu().abs()
    if group.kind == "heads" or _is_zero_at_zero(model):
        unread |= (rows.view(group.count, unit) == 0).all(1)
    return unread


def shrink(model: PreTrainedModel, *, state_dict: dict[str, torch.Tensor] | None = None) -> PreTrainedModel:
    """
    Remove the heads, neurons and filters that have no influence, because their weights are zero, from a copy.

    The copy has the same outputs and less to compute. Its configuration says which structures are left, so that after
    `save_pretrained` (and `import hf_fip`) `from_pretrained` builds it with modules of the same sizes. Of each layer
    one structure stays in any case.

    Args:
        model (`PreTrainedModel`): the model; it stays as it is.
        state_dict (`dict[str, torch.Tensor]`, *optional*): weights that the copy takes instead of the model's.

    Returns:
        `PreTrainedModel` of the same class.

    Raises:
        [`~hf_fip.errors.InputError`]: a model whose structures are not known, or one that is quantized otherwise.
    """
    groups = structure_groups(model)
    if not groups:
        raise InputError(
            f"model: the structures of {type(model).__name__} are not known; shrink knows BERT, RoBERTa, ELECTRA, "
            "DistilBERT, ViT, DeiT and this package's own networks."
        )
    before = layout_of(model)
    smaller = copy.deepcopy(model)
    if state_dict is not None:
        smaller.load_state_dict(state_dict)
    removable = [replace(group, kept=_kept(silent_structures(smaller, group))) for group in groups]
    keep_structures(smaller, removable)
    after = _compose(before, removable)
    if after:
        smaller.config.quantization_config = layout_with(model, after).to_dict()
    return smaller


def layout_with(model: PreTrainedModel, groups: tuple[StructureGroup, ...]) -> StorageLayout:
    """
    The layout of a model that has lost structures.

    Args:
        model (`PreTrainedModel`): the model, for the names that its modules have in files.
        groups (tuple of [`StructureGroup`]): the structures that are left.

    Returns:
        [`StorageLayout`]
    """
    modules = sorted(set().union(*(group.modules for group in groups)))
    stored = stored_names(model, [f"{name}.weight" for name in modules])
    names = {name: (stored[f"{name}.weight"] or name).removesuffix(".weight") for name in modules}
    return StorageLayout(groups, {name: other for name, other in names.items() if name != other})


def layout_of(model: PreTrainedModel) -> StorageLayout:
    """
    Which structures of a model were removed already.

    Args:
        model (`PreTrainedModel`): the model.

    Returns:
        [`StorageLayout`]

    Raises:
        [`~hf_fip.errors.InputError`]: a model that is quantized by another method.
    """
    content = getattr(model.config, "quantization_config", None)
    if content is None:
        return StorageLayout()
    content = content if isinstance(content, dict) else content.to_dict()
    method = content.get("quant_method")
    if method != METHOD:
        raise InputError(f"model: it is quantized by {method!r}; only a model of plain weights can be made smaller.")
    return StorageLayout.from_dict(content)


def _kept(silent: torch.Tensor) -> tuple[int, ...]:
    return tuple((~silent).nonzero().flatten().tolist()) or (0,)


def _compose(before: StorageLayout, now: list[StructureGroup]) -> tuple[StructureGroup, ...]:
    """Groups counted from the first model on, those without a loss left out."""
    earlier = {group.modules: group for group in before.groups}
    composed = []
    for group in now:
        first = earlier.get(group.modules)
        if first is not None:
            group = replace(first, kept=tuple(first.kept[index] for index in group.kept))
        if len(group.kept) < group.count:
            composed.append(group)
    return tuple(composed)


def _has_chains(model: PreTrainedModel) -> bool:
    return callable(getattr(model, "chains", None))


def _chain_groups(model: PreTrainedModel) -> list[StructureGroup]:
    groups = []
    for chain in model.chains() if _has_chains(model) else []:
        modules = [(name, model.get_submodule(name)) for name in chain]
        places = [i for i, (_, module) in enumerate(modules) if isinstance(module, (nn.Conv2d, nn.Linear))]
        for place, next_place in itertools.pairwise(places):
            layer, (reader_name, reader) = modules[place][1], modules[next_place]
            count = layer.weight.shape[0]
            kind = "filters" if isinstance(layer, nn.Conv2d) else "neurons"
            rows = dict.fromkeys(chain[place:next_place], 1)
            groups.append(StructureGroup(kind, count, rows, {reader_name: reader.weight.shape[1] // count}))
    return groups


def _linears(module: nn.Module, names: tuple[str, ...]) -> list[nn.Linear] | None:
    found = []
    for name in names:
        try:
            found.append(module.get_submodule(name))
        except AttributeError:
            return None
    return found if all(isinstance(layer, nn.Linear) for layer in found) else None


def _head_size(module: nn.Module, query: str) -> int | None:
    attention = module.get_submodule(query.rpartition(".")[0])
    sizes = (getattr(attention, name, None) for name in ("attention_head_size", "head_dim"))
    return next((size for size in sizes if isinstance(size, int)), None)


def _is_zero_at_zero(model: PreTrainedModel) -> bool:
    if _has_chains(model):
        return True
    from transformers.activations import ACT2FN

    names = (getattr(model.config, attribute, None) for attribute in _ACTIVATIONS)
    name = next((name for name in names if name is not None), None)
    return isinstance(name, str) and name in ACT2FN and not bool(ACT2FN[name](torch.zeros(1)).any())
