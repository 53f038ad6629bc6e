"""Pictures of a script's rows: a line for each method, with the standard deviation over the seeds."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.io import write_images


COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#4d4d4d")
WIDTH, HEIGHT = 760, 420


def lines(
    rows: Iterable[dict[str, Any]],
    named: dict[str, tuple[str, str]],
    *,
    x: str,
    axes: tuple[str, str],
    log: bool = False,
) -> go.Figure:
    """
    A figure with a line for each method and metric.

    Args:
        rows (`Iterable[dict]`): as [`experiment.summarize`] gives them.
        named (`dict[str, tuple[str, str]]`): the lines by their names in the legend: method and metric of each.
        x (`str`): the setting along the horizontal axis; a row without it becomes a level dashed line.
        axes (`tuple[str, str]`): titles of the axes.
        log (`bool`, *optional*, defaults to `False`): whether the vertical axis is logarithmic.
    """
    rows = list(rows)
    places = [row["setting"][x] for row in rows if x in row["setting"]]
    figure = go.Figure()
    for colour, (name, (method, metric)) in zip(COLOURS * 2, named.items(), strict=False):
        found = [row for row in rows if (row["method"], row["metric"]) == (method, metric)]
        along = sorted((row for row in found if x in row["setting"]), key=lambda row: row["setting"][x])
        line = {"color": colour}
        if along:
            spread = {"type": "data", "array": [row["std"] or 0 for row in along], "thickness": 1}
            points = {"x": [row["setting"][x] for row in along], "y": [row["mean"] for row in along]}
            figure.add_scatter(**points, name=name, error_y=spread, mode="lines+markers", line=line)
        elif found:
            ends, level = [min(places), max(places)], found[0]["mean"]
            figure.add_scatter(x=ends, y=[level, level], name=name, mode="lines", line={**line, "dash": "dash"})
    figure.update_layout(template="plotly_white", width=WIDTH, height=HEIGHT, margin={"t": 24, "r": 24})
    figure.update_xaxes(title_text=axes[0])
    figure.update_yaxes(title_text=axes[1], type="log" if log else "linear")
    return figure


def save(figures: dict[str, go.Figure], folder: Path) -> None:
    """Writes all figures to `results.html`, and each to a PNG file where Chrome is installed."""
    parts = [
        figure.to_html(include_plotlyjs=not place, full_html=False) for place, figure in enumerate(figures.values())
    ]
    (folder / "results.html").write_text("\n".join(parts), encoding="utf-8")
    try:
        write_images(list(figures.values()), [folder / f"{name}.png" for name in figures], scale=2)
    except RuntimeError as error:
        if "chrome" not in str(error).lower():
            raise
        print(f"no PNG files: {error}", file=sys.stderr)
