"""The report's section on what keeping costs: the ends of the branches, earlier tasks against the last one."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from hf_fip.errors import InputError
from hf_fip.report.budget import verdict
from hf_fip.report.layout import (
    Branch,
    branches,
    headline_metrics,
    is_share,
    metric_text,
    number,
    steps_from_root,
)
from hf_fip.report.sections import Cell, Section, Table
from hf_fip.report.style import LABEL_LENGTH, describe, shown, styled


if TYPE_CHECKING:
    from hf_fip.graph import ModelGraph, Node

PLOT_HEIGHT = 360
# A branch of a sweep is called after the value it was made with, as in `fip-0.02`.
_VALUE = re.compile(r"(.+)-(\d+(?:\.\d+)?(?:e[-+]?\d+)?)")


@dataclass(frozen=True)
class End:
    """
    The last node of a branch.

    Args:
        branch ([`Branch`]): The branch.
        node (`Node`): The node.
        family (`str`): Name of the sweep the branch belongs to, or its own.
        value (`float`, *optional*): The value of the sweep.
        old (`float`): Mean of the metric over the earlier tasks.
        new (`float`): The metric on the last task.
    """

    branch: Branch
    node: Node
    family: str
    value: float | None
    old: float
    new: float


def _kind(graph: ModelGraph) -> str:
    return next((name.rpartition("/")[2] for name in headline_metrics(graph)), "accuracy")


def ends_of_branches(graph: ModelGraph) -> list[End]:
    """The ends of the branches that have learned the same tasks, the ones that most branches end with."""
    drawn = branches(graph)
    candidates = {name: graph.nodes[node_id] for name, node_id in graph.endpoints.items()}
    learned = {name: tuple(_learned(node)) for name, node in candidates.items()}
    counts = Counter(tasks for tasks in learned.values() if len(tasks) > 1)
    if not counts:
        return []
    tasks = max(counts, key=lambda names: (counts[names], len(names)))
    kind, found = _kind(graph), []
    for name, node in candidates.items():
        values = [number(node.metrics.get(f"{task}/{kind}")) for task in tasks]
        if learned[name] != tasks or None in values:
            continue
        parts = _VALUE.fullmatch(name)
        family, value = (parts[1], float(parts[2])) if parts else (name, None)
        found.append(End(drawn[name], node, family, value, fmean(values[:-1]), values[-1]))
    return found


def _learned(node: Node) -> list[str]:
    """Names of the tasks; none for a node from anybody that describes them in another way."""
    try:
        return [task.name for task in node.tasks]
    except (InputError, TypeError):
        return []


def pareto(graph: ModelGraph) -> go.Figure | None:
    """
    Earlier tasks against the last one: a curve through each sweep's branches, a mark for every other branch; `None`
    where no two branches end on the same tasks.
    """
    ends = ends_of_branches(graph) if len(graph) else []
    if len(ends) < 2:
        return None
    steps, kind = steps_from_root(graph), _kind(graph)
    families: dict[tuple, list[End]] = {}
    for end in ends:
        # A branch without a value is no part of the sweep of its name.
        families.setdefault((end.family, end.value is None), []).append(end)
    figure = go.Figure()
    for (name, _), members in families.items():
        members = sorted(members, key=lambda end: end.value or 0.0)
        first = members[0].branch
        figure.add_scatter(
            x=[end.new for end in members],
            y=[end.old for end in members],
            text=["" if end.value is None or len(members) == 1 else f"{end.value:g}" for end in members],
            textposition="middle right",
            hovertext=[describe(end.node, steps[end.node.id]) for end in members],
            customdata=[end.node.id for end in members],
            hoverinfo="text",
            name=shown(f"{name}, sweep" if len(members) > 1 else first.name, LABEL_LENGTH),
            legendgroup=first.name,
            legendrank=first.rank,
            mode="lines+markers+text",
            line={"color": first.color, "width": 2, "dash": first.dash},
            marker={"size": 9 if len(members) > 1 else 11, "color": first.color},
            cliponaxis=False,
        )
    axis: dict[str, Any] = {"tickformat": "~%"} if is_share(kind) else {"autorange": "reversed"}
    styled(figure, PLOT_HEIGHT, legend_above=8)
    figure.update_xaxes(title_text=f"{kind} on {_tasks(ends)[-1]}", **axis)
    figure.update_yaxes(title_text=f"{kind} on {_earlier(ends)}", **axis)
    return figure


def _tasks(ends: list[End]) -> list[str]:
    return [shown(task.name, LABEL_LENGTH) for task in ends[0].node.tasks]


def _earlier(ends: list[End]) -> str:
    earlier = _tasks(ends)[:-1]
    return earlier[0] if len(earlier) == 1 else f"the {len(earlier)} earlier tasks"


def price(graph: ModelGraph) -> Section | None:
    """What every branch keeps and what it learns, as a picture and a table."""
    figure = pareto(graph)
    if figure is None:
        return None
    ends, kind = ends_of_branches(graph), _kind(graph)
    rows = []
    for end in ends:
        found = verdict(end.node)
        cells = [
            Cell(metric_text(kind, value), value, numeric=True)
            for value in (end.old, end.new, fmean([end.old, end.new]))
        ]
        budget = Cell(found.label, status=found.status, detail=found.detail)
        rows.append([Cell(end.branch.name, color=end.branch.color), *cells, budget])
    columns = ["branch", f"{kind} on the earlier tasks", f"{kind} on the last task", "mean of both", "budget"]
    better = "Up: more is kept; to the right: more is learned."
    text = f"What each branch keeps of the earlier tasks, and what it learns of the last one. {better}"
    notes = ["A line joins the branches of one sweep, which differ in the value beside each point."]
    notes = notes if any(end.value is not None for end in ends) else []
    return Section("pareto", "Kept and learned", text, figure, Table(columns, rows, sortable=True), notes)


SECTIONS = [price]
FIGURES = {"pareto": pareto}
