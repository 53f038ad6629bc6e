"""Train families of Transformers models along functionally invariant paths."""

from importlib import import_module
from typing import TYPE_CHECKING

from .storage.registration import register_with_transformers
from .version import __version__


if TYPE_CHECKING:
    from .config import FIPConfig
    from .data.splits import class_splits
    from .ensembles import Ensemble
    from .errors import InputError
    from .graph import ModelGraph, Node
    from .operators import Compression, ContinualLearning, Diversification, begin_graph
    from .tasks import Task
    from .terms import Term
    from .trainer import FIPTrainer

# Names are imported when they are first used: `import hf_fip` costs next to nothing.
_HOMES = {
    "Compression": "operators",
    "ContinualLearning": "operators",
    "Diversification": "operators",
    "Ensemble": "ensembles",
    "FIPConfig": "config",
    "FIPTrainer": "trainer",
    "InputError": "errors",
    "ModelGraph": "graph",
    "Node": "graph",
    "Task": "tasks",
    "Term": "terms",
    "begin_graph": "operators",
    "class_splits": "data.splits",
}

__all__ = [
    "Compression",
    "ContinualLearning",
    "Diversification",
    "Ensemble",
    "FIPConfig",
    "FIPTrainer",
    "InputError",
    "ModelGraph",
    "Node",
    "Task",
    "Term",
    "__version__",
    "begin_graph",
    "class_splits",
]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# So that transformers loads sparse nodes and our own networks after a plain `import hf_fip`.
register_with_transformers()
