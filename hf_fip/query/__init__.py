"""Which model of a family suits this data?"""

from typing import TYPE_CHECKING

from ..lazy import attributes_of


if TYPE_CHECKING:
    from .queries import query
    from .result import QUERIES_FOLDER, QueryResult

# Names are imported when they are first used: the command line's parser needs the options alone.
_HOMES = {"QUERIES_FOLDER": "result", "QueryResult": "result", "query": "queries"}

__all__ = ["QUERIES_FOLDER", "QueryResult", "query"]


__getattr__ = attributes_of(__name__, _HOMES)
