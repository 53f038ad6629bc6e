"""
Models: loading and saving any of them (`loading`), their output heads (`heads`), the package's own networks (`cnn`),
registered with the Auto classes on import, and the models it makes itself (`embedded`, `pretraining`).
"""

from .cnn import FiveLayerCNNConfig, FiveLayerCNNForImageClassification
from .heads import grow_head, label_names_of, output_head, replace_head
from .lenet import LeNet300100Config, LeNet300100ForImageClassification
from .loading import load_model, load_processor, save_model, task_of


__all__ = [
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
