"""
How transformers loads our files: registered as a quantization method, which is the way it lets others convert weights.

The model that comes out is an ordinary one, dense and trainable, with no trace of a quantizer: saving it again writes
ordinary files. Only a model without some of its structures keeps saying so in its configuration.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..errors import InputError
from .encoding import PARTS, SEPARATOR, decode, shape_of
from .layout import METHOD, StorageLayout, StructureGroup
from .resizing import groups_in, keep_structures
from .structures import layout_with


@register_quantization_config(METHOD)
class StorageConfig(QuantizationConfigMixin):
    """
    The `quantization_config` of our files.

    Args:
        content (additional keyword arguments): as in `config.json`, see [`~hf_fip.storage.layout.StorageLayout`].

    Raises:
        [`~hf_fip.errors.InputError`]: another version of the format, or wrong types and numbers.
    """

    def __init__(self, **content: Any) -> None:
        self.quant_method = METHOD
        # transformers asks whether plain weights come out, and then takes the quantizer off the model.
        self.dequantize = True
        self.layout = StorageLayout.from_dict(content)

    def to_dict(self) -> dict[str, Any]:
        return self.layout.to_dict()


@register_quantizer(METHOD)
class StorageQuantizer(HfQuantizer):
    """Builds the modules in the sizes that the files have, and makes dense weights of their parts."""

    def __init__(self, quantization_config: StorageConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        if not self.pre_quantized:
            raise InputError(
                f"quantization_config: {METHOD!r} is a way to store a model, not to quantize one while it is loaded; "
                "leave it out and save with hf_fip.models.save_model."
            )
        self.damage: list[str] = []
        self.groups: tuple[StructureGroup, ...] = ()

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        self.groups = groups_in(model, self.quantization_config.layout.groups)
        keep_structures(model, self.groups)
        return model

    def get_weight_conversions(self) -> list[WeightConverter]:
        return [_PartsConverter([SEPARATOR + part for part in PARTS], "", [_Decode(self)])]

    def get_new_dtype(self, converter: Any, param: torch.Tensor, dtype: torch.dtype | None) -> torch.dtype | None:
        for operation in getattr(converter, "operations", ()):
            if isinstance(operation, _Decode):
                # Parts are read as they are; what they make is cast.
                operation.dtype = dtype
                return None
        return super().get_new_dtype(converter, param, dtype)

    def postprocess_model(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        if self.damage:
            raise InputError(self.damage[0])
        model._weight_conversions = [
            conversion for conversion in model._weight_conversions if not isinstance(conversion, _PartsConverter)
        ]
        self.remove_quantization_config(model)
        del model.is_quantized
        if self.groups:
            model.config.quantization_config = layout_with(model, self.groups).to_dict()
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


class _PartsConverter(WeightConverter):
    """Collects the parts of a tensor under its name."""

    __slots__ = ()

    def __deepcopy__(self, memo: dict) -> _PartsConverter:
        # transformers copies it for each part of each tensor; what is not collected for one tensor can be shared.
        twin = copy.copy(self)
        twin.collected_tensors = defaultdict(list)
        twin.layer_targets = defaultdict(set)
        twin.operations = [_Decode(self.operations[0].hf_quantizer)]
        return twin


class _Decode(ConversionOps):
    """The parts of one tensor, to the tensor."""

    def __init__(self, quantizer: StorageQuantizer) -> None:
        self.hf_quantizer = quantizer
        self.dtype: torch.dtype | None = None

    @torch.no_grad()
    def convert(
        self,
        input_dict: dict[str, Any],
        full_layer_name: str,
        model: PreTrainedModel,
        **kwargs: Any,
    ) -> dict[str, torch.Tensor]:
        parts = {name.removeprefix(SEPARATOR): tensors[0] for name, tensors in input_dict.items()}
        expected = model.get_parameter_or_buffer(full_layer_name)
        try:
            if shape_of(parts) != list(expected.shape):
                # Nothing is unpacked for a shape that does not fit; transformers says so or, if asked, starts afresh.
                return {full_layer_name: torch.empty(shape_of(parts), device="meta")}
            return {full_layer_name: decode(parts).to(self.dtype or expected.dtype)}
        except InputError as error:
            # An error raised here would end in a table of transformers' with a traceback in it.
            source = model.config.name_or_path
            self.hf_quantizer.damage.append(f"model={source!r}: weight {full_layer_name!r} is damaged ({error})")
            return {full_layer_name: torch.zeros(expected.shape, dtype=expected.dtype)}

    @property
    def reverse_op(self) -> ConversionOps:
        """Refused: what is loaded is an ordinary dense model, and `save_pretrained` writes it as one."""
        raise InputError("weights are packed by hf_fip.models.save_model, not by save_pretrained; use that")
