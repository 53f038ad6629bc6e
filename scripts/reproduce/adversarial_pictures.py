"""The pictures of `adversarial_ensemble`."""

from __future__ import annotations

from typing import Any

from drawing import COLOURS, HEIGHT, WIDTH


def pictures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy against the strength of the attack, and diversity by layer."""
    import plotly.graph_objects as go

    figures = {}
    for name in dict.fromkeys(row["setting"]["data"] for row in rows):
        of_data = [row for row in rows if row["setting"]["data"] == name]
        methods = dict(zip(dict.fromkeys(row["method"] for row in of_data), COLOURS, strict=False))
        for surrogate in ("single network", "independent network"):
            figure = go.Figure()
            for method, colour in methods.items():
                here = [row for row in of_data if row["method"] == method]
                clean = [row for row in here if row["metric"] == "clean"]
                points = clean + [row for row in here if row["metric"] == f"PGD from {surrogate}"]
                figure.add_scatter(
                    x=[row["setting"].get("epsilon", 0) for row in points],
                    y=[row["mean"] for row in points],
                    error_y={"type": "data", "array": [row["std"] or 0 for row in points], "thickness": 1},
                    name=method,
                    mode="lines+markers",
                    line={"color": colour},
                )
            figure.update_xaxes(title_text=f"largest change of a pixel, PGD from the {surrogate}")
            figure.update_yaxes(title_text=f"accuracy on {name} in %")
            figures[f"{name}-{surrogate.split()[0]}"] = figure
        figure = go.Figure()
        for method, colour in methods.items():
            layers = [r for r in of_data if r["method"] == method and r["metric"].startswith("diversity of ")]
            if layers:
                figure.add_bar(
                    x=[row["metric"].removeprefix("diversity of members.") for row in layers],
                    y=[row["mean"] for row in layers],
                    error_y={"type": "data", "array": [row["std"] or 0 for row in layers], "thickness": 1},
                    name=method,
                    marker={"color": colour},
                )
        figure.update_yaxes(title_text="diversity score (1 - CKA)")
        figures[f"{name}-diversity"] = figure
    for figure in figures.values():
        figure.update_layout(template="plotly_white", width=WIDTH, height=HEIGHT, margin={"t": 24, "r": 24})
    return figures
