"""Saves a model in files that are as small as it is sparse."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from ..errors import InputError
from .conversions import stored_names
from .encoding import SEPARATOR, encode
from .structures import layout_of, shrink


if TYPE_CHECKING:
    # Importing transformers' models here would register the format, which needs this module whole.
    from transformers import PreTrainedModel


SPARSE_FORMATS = ("auto", "bitmask", "dense", "structured")
# Files that any program reads are worth more than a few bytes.
_WORTHWHILE = 0.9


def save_compressed(
    model: PreTrainedModel,
    folder: str | os.PathLike,
    *,
    sparse_format: str = "auto",
    state_dict: dict[str, torch.Tensor] | None = None,
    scales: Mapping[str, torch.Tensor] | None = None,
    **kwargs,
) -> None:
    """
    Save a model with `save_pretrained`, its sparse and quantized weights in fewer bytes.

    `from_pretrained` gives the same weights back once `hf_fip` is imported: bit by bit, but for the sign of zeros.
    Where not a tenth of the bytes would be saved the files are ordinary ones, which need no `hf_fip`.

    Args:
        model (`PreTrainedModel`): the model.
        folder (`str` or `os.PathLike`): where to; made if missing.
        sparse_format (`str`, *optional*, defaults to `"auto"`):
            `"auto"`: each weight as a bitmask, as gaps or on an integer grid, whichever is smallest. `"bitmask"`: no
            gaps. `"structured"`: as `"auto"`, after heads, neurons and filters that are zero are removed (see
            [`~hf_fip.storage.structures.shrink`]). `"dense"`: ordinary files.
        state_dict (`dict[str, torch.Tensor]`, *optional*, defaults to `model.state_dict()`):
            The weights to write, named as in `model`, where they had to be gathered first.
        scales (`Mapping[str, torch.Tensor]`, *optional*):
            By weight, one scale per row, of weights known to lie on a grid. By default it is found where it can be.
        kwargs (additional keyword arguments, *optional*): passed on to `save_pretrained`, as `max_shard_size`.

    Raises:
        [`~hf_fip.errors.InputError`]: an unknown format, weights off the grid of their scale, `"structured"` for a
        model whose structures are not known.
    """
    if sparse_format not in SPARSE_FORMATS:
        raise InputError(f"sparse_format={sparse_format!r}: use one of {', '.join(SPARSE_FORMATS)}.")
    if sparse_format == "structured":
        model, state_dict, sparse_format = shrink(model, state_dict=state_dict), None, "auto"
    if sparse_format == "dense" or getattr(model, "hf_quantizer", None) is not None:
        model.save_pretrained(folder, state_dict=state_dict, **kwargs)
        return
    dense = dict(model.state_dict() if state_dict is None else state_dict)
    for name in model._keys_to_ignore_on_save or ():
        dense.pop(name, None)
    dense = remove_tied_weights_from_state_dict(dense, model)
    compressed = _encode_all(model, dense, sparse_format, scales or {})
    if _size(compressed) > _WORTHWHILE * _size(dense):
        model.save_pretrained(folder, state_dict=dense, **kwargs)
        return
    del dense
    before = getattr(model.config, "quantization_config", None)
    model.config.quantization_config = layout_of(model).to_dict()
    try:
        model.save_pretrained(folder, state_dict=compressed, **kwargs)
    finally:
        if before is None:
            del model.config.quantization_config
        else:
            model.config.quantization_config = before


def _encode_all(
    model: PreTrainedModel,
    dense: dict[str, torch.Tensor],
    positions: str,
    scales: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    compressed: dict[str, torch.Tensor] = {}
    whole = {name for name, stored in stored_names(model, dense).items() if stored is None}
    for name, tensor in dense.items():
        parts = None
        if isinstance(tensor, torch.Tensor) and name not in whole:
            parts = encode(tensor, positions=positions, scale=scales.get(name))
        if parts is None:
            compressed[name] = tensor
        else:
            compressed |= {name + SEPARATOR + part: content for part, content in parts.items()}
    return compressed


def _size(tensors: dict[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values() if isinstance(tensor, torch.Tensor))
