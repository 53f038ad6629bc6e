"""Which model of a family suits this data?"""

from importlib import import_module
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .queries import query
    from .result import QUERIES_FOLDER, QueryResult

# Names are imported when they are first used: the command line's parser needs the options alone.
_HOMES = {"QUERIES_FOLDER": "result", "QueryResult": "result", "query": "queries"}

__all__ = ["QUERIES_FOLDER", "QueryResult", "query"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
