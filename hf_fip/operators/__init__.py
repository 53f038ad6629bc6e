"""Operators: from a node of a model graph to the path of nodes they make. They compose with `@`, right to left."""

from ..baselines import METHODS
from ..baselines.compression import COMPRESSION_METHODS
from .base import Compose, Operator, Path
from .compression import Compression
from .continual_learning import ContinualLearning
from .diversification import Diversification
from .origin import begin_graph


__all__ = [
    "COMPRESSION_METHODS",
    "METHODS",
    "Compose",
    "Compression",
    "ContinualLearning",
    "Diversification",
    "Operator",
    "Path",
    "begin_graph",
]
