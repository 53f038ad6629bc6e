"""
Metrics in the form of `evaluate`: `evaluate.load(hf_fip.metrics.path("forgetting"))`, or the classes as they are.

Modules that `evaluate` loads by a path hold no mathematics: it copies their one file elsewhere.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError


if TYPE_CHECKING:
    from .calibration.calibration import Calibration
    from .coherence.coherence import Coherence
    from .diversity.diversity import Diversity
    from .forgetting.forgetting import Forgetting
    from .functional_distance.functional_distance import FunctionalDistance
    from .perplexity.perplexity import Perplexity
    from .sparsity.sparsity import Sparsity

_HOMES = {
    "Calibration": "calibration",
    "Coherence": "coherence",
    "Diversity": "diversity",
    "Forgetting": "forgetting",
    "FunctionalDistance": "functional_distance",
    "Perplexity": "perplexity",
    "Sparsity": "sparsity",
}
NAMES = tuple(_HOMES.values())

__all__ = [
    "NAMES",
    "Calibration",
    "Coherence",
    "Diversity",
    "Forgetting",
    "FunctionalDistance",
    "Perplexity",
    "Sparsity",
    "path",
]


def path(name: str) -> str:
    """
    The folder of a metric, for `evaluate.load`.

    Args:
        name (`str`): one of `NAMES`, as `"forgetting"`.

    Raises:
        [`InputError`]: no such metric.
    """
    if name not in NAMES:
        raise InputError(f"name={name!r} is no metric of hf_fip: use one of {', '.join(NAMES)}.")
    return str(Path(__file__).parent / name)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES[name]
    return getattr(import_module(f".{home}.{home}", __name__), name)
