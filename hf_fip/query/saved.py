"""Queries that were saved beside a graph, read back for the report."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .result import QUERIES_FOLDER


@dataclass(frozen=True)
class SavedQuery:
    """
    What a saved query says. The file may come from anyone; nothing in it is trusted.

    Args:
        dataset (`str`): on what.
        split (`str`): which part of it; may be empty.
        metric (`str`): what was measured.
        unit (`str`): `"perplexity"`, `"perplexity per character"`, or the metric.
        values (`dict[str, float]`): node to value.
        errors (`dict[str, float]`): node to standard error, where known.
        best (`str`): the node ranked first.
        strategy (`str`): `"full"` or `"racing"`.
        samples (`int`): number of examples.
        work (`float`, *optional*): share of the full ranking's work.
    """

    dataset: str
    split: str
    metric: str
    unit: str
    values: dict[str, float]
    errors: dict[str, float]
    best: str
    strategy: str
    samples: int
    work: float | None

    @property
    def label(self) -> str:
        """What tells it from other queries: `imdb (test)`."""
        name = self.dataset.rstrip("/").rpartition("/")[2] or self.dataset
        return f"{name} ({self.split})" if self.split else name


def saved_queries(folder: str | Path | None) -> list[SavedQuery]:
    """
    The readable queries beside a graph.

    Args:
        folder (`str` or `Path`, *optional*): the graph's folder; `None` for a graph without one.

    Returns:
        `list[SavedQuery]`: in the order of their files' names; what is no query is left out.
    """
    if folder is None:
        return []
    found = [_read(path) for path in sorted(Path(folder, QUERIES_FOLDER).glob("[!.]*.json"))]
    return [query for query in found if query is not None]


def _read(path: Path) -> SavedQuery | None:
    try:
        data = json.loads(path.read_bytes())
        rows = [row for row in data["ranking"] if isinstance(row["node"], str) and _is_number(row["value"])]
        forward, full = data.get("forward_examples"), data.get("full_forward_examples")
        metric = str(data["metric"])
        return SavedQuery(
            dataset=str(data["dataset"]),
            split=str(data.get("split") or ""),
            metric=metric,
            unit=metric + (" per character" if data.get("per") == "character" else ""),
            values={row["node"]: float(row["value"]) for row in rows},
            errors={
                row["node"]: float(row["standard_error"]) for row in rows if _is_number(row.get("standard_error"))
            },
            best=rows[0]["node"],
            strategy=str(data.get("strategy") or "full"),
            samples=max(row["samples"] for row in rows if isinstance(row.get("samples"), int)),
            work=forward / full if _is_number(forward) and _is_number(full) and full > 0 else None,
        )
    except (OSError, ValueError, RecursionError, KeyError, TypeError, IndexError, AttributeError):
        return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
