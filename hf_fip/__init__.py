"""Train families of Transformers models along functionally invariant paths."""

from typing import TYPE_CHECKING

from .lazy import attributes_of
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


__getattr__ = attributes_of(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# So that transformers loads sparse nodes and our own networks after a plain `import hf_fip`.
register_with_transformers()
