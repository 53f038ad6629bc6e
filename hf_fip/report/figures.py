"""The report's pictures: functions from a model graph to a Plotly figure that is legible on white and on black."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from hf_fip.report.budget import asked_distance
from hf_fip.report.layout import (
    Branch,
    branches,
    chains,
    distance_is_share,
    distance_kind,
    distance_kinds,
    functional_distance,
    headline_metrics,
    is_share,
    number,
    percent,
    plain,
    steps_from_root,
)
from hf_fip.report.lineage import lineage
from hf_fip.report.pca import WeightPCA, weight_pca
from hf_fip.report.style import LABEL_LENGTH, LEFT_MARGIN, MUTED, describe, shown, steps_axis, styled


if TYPE_CHECKING:
    from hf_fip.graph import ModelGraph, Node

PANEL_HEIGHT = 190
PANEL_GAP = 44
WEIGHT_SPACE_HEIGHT = 400
NOTE = {"x": 0, "xanchor": "left", "yanchor": "bottom", "showarrow": False, "font": {"size": 13}}
# Distances from a few thousandths (a kept budget) to above 1 (naive fine-tuning) need a logarithmic axis.
LOGARITHMIC_RATIO = 30


@dataclass(frozen=True)
class Panel:
    """One of the stacked panels of [`paths`]: a value of each node, where measured, and how its axis is drawn."""

    title: str
    value: Callable[[Node], float | None]
    axis: dict[str, Any]
    budgets: dict[str, float] = field(default_factory=dict)

    @property
    def logarithmic(self) -> bool:
        return self.axis.get("type") == "log"


def metric_panel(graph: ModelGraph, name: str) -> Panel:
    """The panel of one metric."""

    def value(node: Node) -> float | None:
        return number(node.metrics.get(name))

    axis: dict[str, Any] = {"nticks": 6}
    measured = [found for node in graph.nodes.values() if (found := value(node)) is not None]
    if is_share(name) and measured:
        span = max(measured) - min(measured)
        margin = max(0.08 * span, 0.01)
        axis |= {
            "tickformat": ".0%" if span > 0.05 else ".1%",
            "range": [min(measured) - margin, max(measured) + margin],
        }
    return Panel(" · ".join(name.rsplit("/", 1)), value, axis)


def _distance_panel(graph: ModelGraph, kind: str, named: bool) -> Panel:
    nodes = [node for node in graph.nodes.values() if distance_kind(node) == kind]
    drifts = [drift for node in nodes if (drift := functional_distance(node))]
    shares = all(distance_is_share(node) for node in nodes)
    budgets = {asked for node in nodes if (asked := asked_distance(node)) is not None}
    lines = {f"budget {percent(budget) if shares else plain(budget)}": budget for budget in sorted(budgets)}
    every = [*drifts, *budgets]
    logarithmic = max(every) > LOGARITHMIC_RATIO * min(every)
    axis = {"tickformat": "~%" if shares else "~g"}
    axis |= {"type": "log", "dtick": 1} if logarithmic else {"rangemode": "tozero", "nticks": 6}

    def value(node: Node) -> float | None:
        distance = 0.0 if node.id == graph.root.id else functional_distance(node)
        drawn = distance_kind(node) == kind or node.id == graph.root.id
        return None if not drawn or logarithmic and not distance else distance

    name = f"{kind} distance to the root" if named else "functional distance to the root"
    return Panel(name + logarithmic * " · log scale", value, axis, lines)


def panels(graph: ModelGraph) -> list[Panel]:
    """The panels of [`paths`]: one for each task, then one for each functional distance that was measured."""
    kinds = distance_kinds(graph)
    metrics = [metric_panel(graph, name) for name in headline_metrics(graph)]
    return metrics + [_distance_panel(graph, kind, named=len(kinds) > 1) for kind in kinds]


def branch_line(
    graph: ModelGraph, branch: Branch, value: Callable[[Node], Any], places: Mapping[str, float] | None = None
) -> dict[str, list]:
    """
    The points of one branch's line: every chain of nodes, with gaps between the chains.

    Args:
        graph (`ModelGraph`): The graph.
        branch ([`Branch`]): The branch.
        value (`Callable`): A node's value, `None` where it has none.
        places (mapping of `str` to `float`, *optional*):
            Where each node that is drawn lies; by default all nodes, at their steps from the root.
    """
    steps = steps_from_root(graph)
    places = steps if places is None else places
    points: dict[str, list] = {"x": [], "y": [], "hovertext": [], "customdata": []}
    for chain in chains(graph, branch):
        for node in (graph.nodes[node_id] for node_id in chain):
            if node.id in places and (measured := value(node)) is not None:
                entry = (places[node.id], measured, describe(node, steps[node.id]), node.id)
                for values, item in zip(points.values(), entry, strict=True):
                    values.append(item)
        for values in points.values():
            values.append(None)
    return points


def drawing_order(graph: ModelGraph) -> list[Branch]:
    """The branches, those first that are drawn under the others."""
    # A branch of one node comes last: the lines that begin there would hide it.
    return sorted(branches(graph).values(), key=lambda branch: len(branch.ids) == 1)


def branch_style(branch: Branch) -> dict[str, Any]:
    """What makes a trace the line of a branch."""
    return {
        "name": shown(branch.name, LABEL_LENGTH),
        "legendgroup": branch.name,
        "mode": "lines+markers",
        "line": {"color": branch.color, "width": 2, "dash": branch.dash},
        "legendrank": branch.rank,
        "marker": {"size": 7 if branch.ids[1:] else 9, "color": branch.color},
        "hoverinfo": "text",
    }


def paths(graph: ModelGraph) -> go.Figure | None:
    """
    Each task's accuracy and the functional distance to the root along every branch, against the budget; `None` if
    nothing was measured.
    """
    stacked, steps = panels(graph), steps_from_root(graph)
    if not stacked:
        return None
    plot_height = PANEL_HEIGHT * len(stacked)
    figure = make_subplots(
        rows=len(stacked), cols=1, shared_xaxes=True, vertical_spacing=PANEL_GAP / plot_height if stacked[1:] else 0
    )
    for row, panel in enumerate(stacked, 1):
        axis = "y" if row == 1 else f"y{row}"
        figure.layout[axis.replace("y", "yaxis")].update(panel.axis)
        for branch in drawing_order(graph):
            points = branch_line(graph, branch, panel.value)
            figure.add_scatter(**points, **branch_style(branch), showlegend=row == 1, row=row, col=1)
        title = {"text": f"<b>{shown(panel.title)}</b>", "y": 1, "yref": f"{axis} domain", "yshift": 4}
        figure.add_annotation(**title, **NOTE, xref="paper", xshift=-LEFT_MARGIN + 8)
        for label, budget in panel.budgets.items():
            figure.add_hline(y=budget, line={"color": MUTED, "width": 1.5, "dash": "dash"}, row=row, col=1)
            height = math.log10(budget) if panel.logarithmic else budget
            figure.add_annotation(**NOTE, text=label, y=height, yref=axis, xref="paper", xshift=4)
    styled(figure, plot_height, legend_above=28)
    title = steps_axis(max(steps.values()))
    figure.update_xaxes(dtick=title["dtick"])
    figure.update_xaxes(**title, row=len(stacked), col=1)
    return figure


def weight_components(graph: ModelGraph) -> WeightPCA:
    """The nodes of `graph` in the plane of largest variance of their weights, see [`weight_pca`]."""
    folders = {node.id: node.folder for node in graph.nodes.values() if node.folder is not None}
    return weight_pca(folders, graph.root.id)


def weight_space(graph: ModelGraph, components: WeightPCA | None = None) -> go.Figure | None:
    """The branches as lines in the first two principal components of the weights; `None` for less than two points."""
    components = components or weight_components(graph)
    if len(components.ids) < 2 or not components.explained.any():
        return None
    at = dict(zip(components.ids, components.coordinates, strict=True))
    figure = go.Figure()
    for branch in drawing_order(graph):
        points = branch_line(graph, branch, lambda node: at.get(node.id))
        if any(point is not None for point in points["y"]):
            figure.add_scatter(
                x=[None if point is None else float(point[0]) for point in points["y"]],
                y=[None if point is None else float(point[1]) for point in points["y"]],
                customdata=points["customdata"],
                hovertext=points["hovertext"],
                **branch_style(branch),
            )
    styled(figure, WEIGHT_SPACE_HEIGHT, legend_above=8)
    first, second = components.explained[:2]
    figure.update_xaxes(title_text=f"component 1 · {first:.1%} of variance")
    figure.update_yaxes(title_text=f"component 2 · {second:.1%} of variance")
    return figure


FIGURES: dict[str, Callable[[ModelGraph], go.Figure | None]] = {
    "lineage": lineage,
    "paths": paths,
    "weight_space": weight_space,
}
