"""A grid of coloured cells: layers from top to bottom, nodes from left to right."""

from __future__ import annotations

from dataclasses import dataclass

import plotly.graph_objects as go

from hf_fip.report.scale import SparsityScale
from hf_fip.report.style import BOTTOM_MARGIN, shown, styled


SCALE = "Viridis"
COLOR_BAR_HEIGHT = 36
LABEL_LENGTH = 24
CHARACTER_WIDTH = 7
# Room for the columns beside their rows' names.
PHONE_WIDTH = 190
MOST_HEIGHT = 1300
# Beyond so many columns, the numbers in the cells are too small to read.
MOST_NUMBERED_COLUMNS = 12


@dataclass(frozen=True)
class Column:
    """
    One node's cells.

    Args:
        id (`str`): The node.
        label (`str`): What stands under its column.
        shares (`list[float | None]`): A share of what is gone for each row, `None` where the node has no such layer.
        texts (`list[str]`): What the cells say.
        details (`list[str]`): What the pointer shows.
    """

    id: str
    label: str
    shares: list[float | None]
    texts: list[str]
    details: list[str]


def grid_figure(rows: list[str], columns: list[Column]) -> go.Figure:
    """
    The columns side by side, coloured by their shares.

    Args:
        rows (`list[str]`): Names of the rows, from the top.
        columns (`list` of [`Column`]): The columns, from the left.
    """
    shares = [[column.shares[row] for column in columns] for row in range(len(rows))]
    scale = SparsityScale.of(share for line in shares for share in line if share is not None)
    places, texts = scale.ticks(gap=0.2)
    height = max(16, min(30, MOST_HEIGHT // max(1, len(rows))))
    longest = CHARACTER_WIDTH * min(LABEL_LENGTH, max(len(column.label) for column in columns))
    upright = len(columns) * longest > PHONE_WIDTH
    labels = longest if upright else 0
    bottom = max(BOTTOM_MARGIN, 14 + labels) + COLOR_BAR_HEIGHT
    bar = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "thickness": 9, "len": 0.9}
    bar |= {"outlinewidth": 0, "tickvals": places, "ticktext": texts, "tickangle": 0}
    figure = go.Figure(
        go.Heatmap(
            z=[[None if share is None else scale.place(share) for share in line] for line in shares],
            zmin=0,
            zmax=scale.place(scale.most) or 1,
            colorscale=SCALE,
            colorbar=bar,
            text=[[column.texts[row] for column in columns] for row in range(len(rows))],
            texttemplate="%{text}" if len(columns) <= MOST_NUMBERED_COLUMNS else None,
            customdata=[[column.id for column in columns] for _ in rows],
            hovertext=[[column.details[row] for column in columns] for row in range(len(rows))],
            hoverinfo="text",
            xgap=2,
            ygap=2,
        )
    )
    styled(figure, height * len(rows))
    figure.update_layout(margin_b=bottom, height=figure.layout.height - BOTTOM_MARGIN + bottom)
    every = -(-len(rows) * 16 // MOST_HEIGHT)
    figure.update_yaxes(
        tickvals=list(range(0, len(rows), every)),
        ticktext=[shown(name, LABEL_LENGTH) for name in rows[::every]],
        range=[len(rows) - 0.5, -0.5],
        showgrid=False,
        ticks="",
    )
    figure.update_xaxes(
        tickvals=list(range(len(columns))),
        ticktext=[shown(column.label, LABEL_LENGTH) for column in columns],
        tickangle=-90 if upright else 0,
        tickfont={"size": 13 if len(columns) <= 14 else 10},
        showgrid=False,
        ticks="",
        automargin=False,
    )
    return figure
