"""Secondary objectives L(x, w)."""

from .keep_zeros import KeepZeros
from .projections import Projection, get_projection, known_projections, register_projection
from .pull import Pull
from .task import TaskLoss


__all__ = [
    "KeepZeros",
    "Projection",
    "Pull",
    "TaskLoss",
    "get_projection",
    "known_projections",
    "register_projection",
]
