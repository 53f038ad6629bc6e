"""
Models: loading and saving any of them (`loading`), their output heads (`heads`), the package's own networks (`cnn`,
`lenet`, `resnet`, `vgg`, and in `images` what they share), registered with the Auto classes on import, and the models
it makes itself (`embedded`, `pretraining`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import attributes_of
from .cnn import FiveLayerCNNConfig, FiveLayerCNNForImageClassification
from .lenet import LeNet300100Config, LeNet300100ForImageClassification
from .resnet import CifarResNetConfig, CifarResNetForImageClassification
from .vgg import CifarVGGConfig, CifarVGGForImageClassification


if TYPE_CHECKING:
    from .heads import grow_head, label_names_of, output_head, replace_head
    from .loading import load_model, load_processor, save_model, task_of

# Imported when they are first used: networks are registered wherever transformers is, which must not cost PEFT.
_HOMES = dict.fromkeys(("grow_head", "label_names_of", "output_head", "replace_head"), "heads")
_HOMES |= dict.fromkeys(("load_model", "load_processor", "save_model", "task_of"), "loading")

__all__ = [
    "CifarResNetConfig",
    "CifarResNetForImageClassification",
    "CifarVGGConfig",
    "CifarVGGForImageClassification",
    "FiveLayerCNNConfig",
    "FiveLayerCNNForImageClassification",
    "LeNet300100Config",
    "LeNet300100ForImageClassification",
    "grow_head",
    "label_names_of",
    "load_model",
    "load_processor",
    "output_head",
    "replace_head",
    "save_model",
    "task_of",
]


__getattr__ = attributes_of(__name__, _HOMES)
