"""What a path cost, as its nodes record it."""

from __future__ import annotations

import sys

import torch


GIB = 1024**3


def peak_memory_gib(device: torch.device) -> float | None:
    """
    The most memory this process has held: of the GPU where it computes on one, otherwise of the machine; in GiB.

    Args:
        device (`torch.device`): Where the process computes.

    Returns:
        `float`: GiB since the process began, so that of several paths of one process the first is the one to compare;
        `None` where the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB
