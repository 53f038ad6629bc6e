"""What all pictures of the report have in common: their look, and what the pointer shows over a node."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from hf_fip.report.layout import distance_text, functional_distance, metric_text, number, plain


if TYPE_CHECKING:
    from hf_fip.graph import Node

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
GRID = "rgba(128, 134, 144, 0.22)"
MUTED = "rgba(128, 134, 144, 0.75)"
LABEL_LENGTH = 18
LEFT_MARGIN = 56
TOP_MARGIN = 12
BOTTOM_MARGIN = 48
LEGEND_ROW = 19
PICTURE_WIDTH = 960


def shown(text: Any, length: int | None = None) -> str:
    """`text` for a Plotly string, in which some HTML tags have a meaning; cut to `length` characters."""
    text = str(text)
    if length and len(text) > length:
        text = text[: length - 1] + "…"
    return html.escape(text)


def styled(figure: go.Figure, plot_height: int, legend_above: int | None = None, **layout: Any) -> go.Figure:
    """
    `figure` in the report's quiet style. Its colours suit a white page and a black one; the page sets the text's.

    Args:
        figure (`go.Figure`): The figure; changed in place.
        plot_height (`int`): Height of the plotting area in pixels.
        legend_above (`int`, *optional*): Space between the plotting area and a legend above it; `None`: no legend.
        layout: Further fields of the layout.
    """
    names = [trace.name or "" for trace in figure.data if trace.showlegend is not False]
    legend_rows = math.ceil(sum(48 + 7 * len(name) for name in names) / PICTURE_WIDTH)
    top = TOP_MARGIN if legend_above is None else legend_above + 9 + LEGEND_ROW * legend_rows
    figure.update_layout(
        template="none",
        height=top + plot_height + BOTTOM_MARGIN,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": FONT, "size": 13, "color": "#2b2f36"},
        margin={"l": LEFT_MARGIN, "r": 16, "t": top, "b": BOTTOM_MARGIN},
        hovermode="closest",
        hoverlabel={"font": {"family": FONT, "size": 13}, "align": "left"},
        showlegend=legend_above is not None,
        legend={"orientation": "h", "x": 0, "xanchor": "left", "yanchor": "bottom"},
        legend_y=1 + (legend_above or 0) / plot_height,
        **layout,
    )
    axis = {"gridcolor": GRID, "zeroline": False, "automargin": True, "title_standoff": 10, "title_font_size": 13}
    figure.update_xaxes(**axis, linecolor=GRID)
    figure.update_yaxes(**axis)
    return figure


def steps_axis(last_step: int) -> dict[str, Any]:
    """The title and ticks of an axis of optimizer steps, which are whole numbers."""
    return {"title_text": "optimizer steps from the root", "dtick": 1 if 0 < last_step < 10 else None}


def legend(figure: go.Figure) -> list[tuple[str, str]]:
    """The entries of the figure's legend: name of the group of lines, colour."""
    if not figure.layout.showlegend:
        return []
    entries = [trace for trace in figure.data if trace.showlegend is not False]
    return [(trace.legendgroup, trace.line.color) for trace in sorted(entries, key=lambda trace: trace.legendrank)]


def without_legend(figure: go.Figure) -> go.Figure:
    """A copy of the figure as a page shows it that has a legend of its own."""
    copy = go.Figure(figure)
    if figure.layout.showlegend:
        above = round((figure.layout.legend.y - 1) * plot_height(figure)) + TOP_MARGIN
        copy.update_layout(
            showlegend=False, margin_t=above, height=figure.layout.height - figure.layout.margin.t + above
        )
    return copy


def plot_height(figure: go.Figure) -> int:
    """Height of the plotting area of a [`styled`] figure, in pixels."""
    return figure.layout.height - figure.layout.margin.t - figure.layout.margin.b


def describe(node: Node, steps: int) -> str:
    """What the pointer shows over a node: its name, place, metrics and distances."""
    root = node.euclidean_distance.get("root")
    lines = [
        f"<b>{shown(node.name)}</b> · {steps:,} steps from the root",
        shown(node.id),
        *(f"{shown(name)}: {metric_text(name, value)}" for name, value in list(node.metrics.items())[:12]),
        f"functional distance to the root: {distance_text(node, functional_distance(node))}",
        f"Euclidean distance to the root: {plain(number(root))}",
    ]
    if node.sparsity:
        lines.append(f"sparsity: {metric_text('sparsity', node.sparsity)}")
    return "<br>".join(lines)
