"""Secondary objectives L(x, w)."""

from .task import TaskLoss


__all__ = ["TaskLoss"]
