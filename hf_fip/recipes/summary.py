"""What a run found, as text."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any


MISSING = "-"
# A row of more tasks is wider than a screen.
MOST_TASKS = 8


def summary(result: dict[str, Any]) -> str:
    """
    The end of a run for people: one row per branch, old and new tasks side by side, and where everything lies.

    Args:
        result (`dict`): What [`run`] returns.
    """
    ends = _in_order(result["endpoints"])
    metrics = {branch: result["metrics"][node] for branch, node in ends.items()}
    measured = next((name for name in METRICS if _tasks_with(name, result, metrics)), "accuracy")
    unit, shown = METRICS[measured]
    tasks = _tasks_with(measured, result, metrics)
    distances = {branch: result["functional_distance"][node] for branch, node in ends.items()}
    kind = _kind(next((distance for distance in reversed(distances.values()) if distance.get("name")), {}))
    columns = tasks if len(tasks) <= MOST_TASKS else []
    rows = [["branch", *columns, "mean", "distance"]]
    for branch, distance in distances.items():
        values = [metrics[branch].get(f"{task}/{measured}") for task in tasks]
        # Numbers in two units side by side would be compared.
        length = distance["root"] if _kind(distance) == kind else None
        rows.append([branch, *map(shown, values if columns else []), shown(_mean(values)), _number(length)])
    lines = [
        "",
        *aligned(rows),
        "",
        f"{measured}{unit}{'' if columns else f', {len(tasks)} tasks'}; distance: functional distance to base on the "
        f"anchors{f' ({kind})' if kind else ''}",
        *_by_scenario(result["scenario"], ends),
        "",
        f"graph   {result['graph']}",
    ]
    if result["report"]:
        lines.append(f"report  {result['report']}")
    return "\n".join([*lines, f"look    hf-fip show {result['graph']}"])


def _by_scenario(scenarios: dict[str, str], branches: Iterable[str]) -> list[str]:
    """A line for each scenario of continual learning, with its branches: only these compare."""
    named: dict[str, list[str]] = {}
    for branch in branches:
        if branch in scenarios:
            named.setdefault(scenarios[branch], []).append(branch)
    return [f"{scenario}: {', '.join(found)}" for scenario, found in named.items()]


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


def _tasks_with(metric: str, result: dict[str, Any], metrics: dict[str, dict[str, float]]) -> list[str]:
    return [t for t in result["recipe"]["tasks"] if any(f"{t}/{metric}" in values for values in metrics.values())]


def _in_order(endpoints: dict[str, str]) -> dict[str, str]:
    """The base first, the path last, so that the eye ends on what is compared."""
    last = {"base": 0, "fip": 2}
    # A sweep's branches are `fip-VALUE`.
    ordered = sorted(endpoints, key=lambda branch: last.get(branch.partition("-")[0], 1))
    return {branch: endpoints[branch] for branch in ordered}


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


def _short(value: float | None) -> str:
    return MISSING if value is None or not math.isfinite(value) else f"{value:.2f}"


# What a summary shows of each task, the first that was measured: its unit, and how it is written.
METRICS = {"accuracy": (" in %", _percent), "perplexity": ("", _short)}
