"""Names of weights in the files of a model, which for some models are not the names in the model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    PrefixChange,
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    apply_converters,
    apply_renamings,
)


if TYPE_CHECKING:
    # Importing transformers' models here would register the format, which needs this module whole.
    from transformers import PreTrainedModel


def stored_names(model: PreTrainedModel, names: Iterable[str]) -> dict[str, str | None]:
    """
    The name that each weight gets in the files that `save_pretrained` writes.

    Args:
        model (`PreTrainedModel`): the model.
        names (`Iterable[str]`): names of weights in the model.

    Returns:
        `dict[str, str | None]`: `None` for a weight that is not stored as one tensor of the same shape, as the
        experts that are merged when they are loaded.
    """
    transforms = [transform.reverse_transform() for transform in _conversions(model)[::-1]]
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    return {
        name: None if apply_converters(name, converters)[1] is not None else apply_renamings(name, renamings)
        for name in names
    }


def _conversions(model: PreTrainedModel) -> list[WeightTransform]:
    """Those transformers reverses when it saves: the ones used to load the model, else its architecture's."""
    used = getattr(model, "_weight_conversions", None)
    if used is not None:
        return used
    known = get_model_conversion_mapping(model, add_legacy=False)
    return [conversion for conversion in known if not isinstance(conversion, PrefixChange)]
