"""Secondary objectives L(x, w)."""

from .displacement import Displacement
from .keep_zeros import KeepZeros
from .projections import Projection, get_projection, known_projections, register_projection
from .pull import Pull
from .repulsion import Repulsion
from .task import TaskLoss


__all__ = [
    "Displacement",
    "KeepZeros",
    "Projection",
    "Pull",
    "Repulsion",
    "TaskLoss",
    "get_projection",
    "known_projections",
    "register_projection",
]
