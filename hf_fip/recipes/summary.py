"""What a run found, as text."""

from __future__ import annotations

import math
from typing import Any


MISSING = "-"


def summary(result: dict[str, Any]) -> str:
    """
    The end of a run for people: one row per branch, old and new tasks side by side, and where everything lies.

    Args:
        result (`dict`): What [`run`] returns.
    """
    ends = _in_order(result["endpoints"])
    metrics = {branch: result["metrics"][node] for branch, node in ends.items()}
    learned = [f"{task}/accuracy" for task in result["recipe"]["tasks"]]
    accuracies = [name for name in learned if any(name in values for values in metrics.values())]
    distances = {branch: result["functional_distance"][node] for branch, node in ends.items()}
    kind = _kind(next((distance for distance in reversed(distances.values()) if distance.get("name")), {}))
    rows = [["branch", *(name.removesuffix("/accuracy") for name in accuracies), "mean", "distance"]]
    for branch, distance in distances.items():
        values = [metrics[branch].get(name) for name in accuracies]
        # Numbers in two units side by side would be compared.
        length = distance["root"] if _kind(distance) == kind else None
        rows.append([branch, *map(_percent, values), _percent(_mean(values)), _number(length)])
    lines = [
        "",
        *aligned(rows),
        "",
        f"accuracy in %; distance: functional distance to base on the anchors{f' ({kind})' if kind else ''}",
        "",
        f"graph   {result['graph']}",
    ]
    if result["report"]:
        lines.append(f"report  {result['report']}")
    return "\n".join([*lines, f"look    hf-fip show {result['graph']}"])


def aligned(rows: list[list[str]]) -> list[str]:
    """Rows as lines of equal columns: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _in_order(endpoints: dict[str, str]) -> dict[str, str]:
    """The base first, the path last, so that the eye ends on what is compared."""
    last = {"base": 0, "fip": 2}
    return {branch: endpoints[branch] for branch in sorted(endpoints, key=lambda branch: last.get(branch, 1))}


def _kind(distance: dict[str, Any]) -> str:
    """What a functional distance is and in which unit, as in `l2, share of output variance`."""
    return ", ".join(distance[key] for key in ("name", "unit") if distance.get(key))


def _mean(values: list[float | None]) -> float | None:
    # A mean without the task a model never learned would flatter it.
    return None if not values or any(value is None for value in values) else sum(values) / len(values)


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f}"


def _number(value: float | None) -> str:
    return MISSING if value is None or not math.isfinite(value) else f"{value:.4f}"
