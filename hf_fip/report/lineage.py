"""The lineage picture: which model was made from which."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from hf_fip.report.layout import (
    branches,
    distance_is_share,
    distance_kind,
    distance_kinds,
    distance_text,
    functional_distance,
    is_share,
    lanes,
    metric_names,
    number,
    plain,
    steps_from_root,
)
from hf_fip.report.style import BOTTOM_MARGIN, LABEL_LENGTH, MUTED, TOP_MARGIN, describe, shown, steps_axis, styled


if TYPE_CHECKING:
    from hf_fip.graph import Edge, ModelGraph, Node

NOT_MEASURED = "#808590"
SCALE = "Viridis"
COLOR_BAR_HEIGHT = 36
Colorings = dict[str, tuple[list["float | None"], str]]


def _colorings(graph: ModelGraph) -> Colorings:
    """Everything a node can be coloured by: label -> (value per node, format of the colour bar)."""
    nodes = list(graph.nodes.values())
    found = {
        name: ([number(node.metrics.get(name)) for node in nodes], ".0%" if is_share(name) else "")
        for name in metric_names(graph)
    }
    kinds = distance_kinds(graph)
    for kind in kinds:
        values = [functional_distance(node) if distance_kind(node) == kind else None for node in nodes]
        shares = all(distance_is_share(node) for node in nodes if distance_kind(node) == kind)
        label = f"{kind} distance to the root" if len(kinds) > 1 else "functional distance to the root"
        found[label] = (values, "~%" if shares else "")
    found["Euclidean distance to the root"] = ([number(node.euclidean_distance.get("root")) for node in nodes], "")
    found["sparsity"] = ([number(node.sparsity) for node in nodes], "~%")
    return {name: entry for name, entry in found.items() if len(set(entry[0]) - {None}) > 1}


def _node_colors(values: list[float | None]) -> tuple[list[str], float, float]:
    measured = [value for value in values if value is not None]
    low, high = min(measured), max(measured)
    sampled = iter(sample_colorscale(SCALE, [(value - low) / (high - low) for value in measured]))
    return [NOT_MEASURED if value is None else next(sampled) for value in values], low, high


def _edge_groups(lengths: list[float | None]) -> list[int]:
    """Five widths: the rank of each edge's length among equal steps from the shortest to the longest; 0 if unknown."""
    measured = [length for length in lengths if length is not None]
    if not measured or max(measured) == min(measured):
        return [0 for _ in lengths]
    low, span = min(measured), max(measured) - min(measured)
    return [0 if length is None else round(4 * (length - low) / span) for length in lengths]


def _edge_traces(graph: ModelGraph, place: dict[str, tuple[int, int]]) -> dict[str, list[go.Scatter]]:
    """The edges as lines, once for each way to choose their width; only the first is visible."""
    lengths: dict[str, list[float | None]] = {
        "Equal": [None for _ in graph.edges],
        "Functional length": [number(edge.functional) for edge in graph.edges],
        "Euclidean length": [number(edge.euclidean) for edge in graph.edges],
    }
    traces: dict[str, list[go.Scatter]] = {}
    for mode, values in lengths.items():
        if mode != "Equal" and not any(value is not None for value in values):
            continue
        groups = _edge_groups(values)
        for group in sorted(set(groups)):
            members = [edge for edge, of_edge in zip(graph.edges, groups, strict=True) if of_edge == group]
            ends = [(place[edge.source], place[edge.target]) for edge in members]
            line = go.Scatter(
                x=[x for source, target in ends for x in (source[0], target[0], None)],
                y=[y for source, target in ends for y in (source[1], target[1], None)],
                mode="lines",
                line={"color": MUTED, "width": 1.5 if mode == "Equal" else 1 + 1.5 * group},
                hoverinfo="skip",
                visible=mode == "Equal",
            )
            traces.setdefault(mode, []).append(line)
    return traces


def _edge_names(graph: ModelGraph, place: dict[str, tuple[int, int]]) -> go.Scatter:
    """Invisible points in the middle of the edges, for the pointer to find."""

    def describe_edge(edge: Edge) -> str:
        functional = distance_text(graph.nodes[edge.target], number(edge.functional))
        lengths = f"functional length: {functional}<br>Euclidean length: {plain(number(edge.euclidean))}"
        return f"<b>{shown(edge.operator)}</b><br>{lengths}"

    middles = [[(a + b) / 2 for a, b in zip(place[e.source], place[e.target], strict=True)] for e in graph.edges]
    return go.Scatter(
        x=[x for x, _ in middles],
        y=[y for _, y in middles],
        mode="markers",
        marker={"size": 14, "color": "rgba(0,0,0,0)"},
        hovertext=[describe_edge(edge) for edge in graph.edges],
        hoverinfo="text",
    )


def _color_options(colorings: Colorings, by_branch: list[str], trace: int, plot_height: int) -> list[dict[str, Any]]:
    """What to change for each colouring: the colours of `trace`, the colour bar of the trace after it, the height."""
    height = plot_height + TOP_MARGIN + BOTTOM_MARGIN
    bottom = {"height": height, "margin.b": BOTTOM_MARGIN}
    branch = [[{"marker.color": [by_branch]}, [trace]], [{"marker.showscale": False}, [trace + 1]]]
    options: list[dict[str, Any]] = [{"label": "Branch", "updates": branch, "layout": bottom}]
    bottom = {"height": height + COLOR_BAR_HEIGHT, "margin.b": BOTTOM_MARGIN + COLOR_BAR_HEIGHT}
    for name, (values, bar_format) in colorings.items():
        colors, low, high = _node_colors(values)
        scale = {"marker.showscale": True, "marker.cmin": low, "marker.cmax": high}
        scale["marker.colorbar.tickformat"] = bar_format
        updates = [[{"marker.color": [colors]}, [trace]], [scale, [trace + 1]]]
        options.append({"label": name, "updates": updates, "layout": bottom})
    return options


def lineage(graph: ModelGraph, colorings: Colorings | None = None) -> go.Figure:
    """
    The graph: optimizer steps to the right, a lane for each branch. `layout.meta["controls"]` holds what the page's
    menus change: the nodes' colour (branch or any metric) and the edges' width (functional or Euclidean length).

    Args:
        graph (`ModelGraph`): The graph.
        colorings (`dict`, *optional*): What the nodes can be coloured by in place of their metrics: label to (a value
            per node, format of the colour bar).
    """
    colorings = _colorings(graph) if colorings is None else colorings
    drawn, steps, lane = branches(graph), steps_from_root(graph), lanes(graph)
    nodes: list[Node] = list(graph.nodes.values())
    place = {node.id: (steps[node.id], lane[node.name]) for node in nodes}
    edges = _edge_traces(graph, place)
    edge_traces = [trace for traces in edges.values() for trace in traces]
    by_branch = [drawn[node.name].color for node in nodes]
    figure = go.Figure([*edge_traces, _edge_names(graph, place)])
    figure.add_scatter(
        x=[place[node.id][0] for node in nodes],
        y=[place[node.id][1] for node in nodes],
        mode="markers",
        marker={"size": 13, "color": by_branch, "opacity": 1, "line": {"width": 1, "color": MUTED}},
        customdata=[node.id for node in nodes],
        hovertext=[describe(node, steps[node.id]) for node in nodes],
        hoverinfo="text",
    )
    bar = {"orientation": "h", "yref": "container", "y": 0.02, "yanchor": "bottom", "thickness": 9, "len": 0.9}
    bar["outlinewidth"] = 0
    figure.add_scatter(
        x=[None],
        y=[None],
        mode="markers",
        marker={"color": [0], "colorscale": SCALE, "showscale": False, "cmin": 0, "cmax": 1, "colorbar": bar},
        hoverinfo="skip",
    )
    bottom_lane, last_step = max(lane.values(), default=0), max(steps.values(), default=0)
    plot_height = int(min(800, 40 + 48 * (bottom_lane + 1)))
    modes = [mode for mode, traces in edges.items() for _ in traces]
    widths = [
        {"label": mode, "updates": [[{"visible": [mode == other for other in modes]}, list(range(len(modes)))]]}
        for mode in edges
    ]
    controls = [
        {
            "label": "Colour of nodes",
            "options": _color_options(colorings, by_branch, len(edge_traces) + 1, plot_height),
        },
        {"label": "Width of edges", "options": widths},
    ]
    meta = {"controls": [control for control in controls if len(control["options"]) > 1]}
    styled(figure, plot_height, meta=meta)
    margin = 0.04 * (last_step or 1)
    figure.update_xaxes(**steps_axis(last_step), range=[-margin, last_step + margin])
    figure.update_yaxes(
        tickvals=list(lane.values()),
        ticktext=[shown(name, LABEL_LENGTH) for name in lane],
        range=[bottom_lane + 0.6, -0.6],
        showgrid=False,
        ticks="",
    )
    return figure
