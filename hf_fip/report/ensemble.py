"""The report's section on ensembles of nodes: better than their members, how sure, and how different inside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from hf_fip.ensembles.saved import EnsembleRecord, load_ensembles
from hf_fip.report.figures import NOTE
from hf_fip.report.layers import short_names
from hf_fip.report.layout import PALETTE, percent, plain
from hf_fip.report.sections import Cell, Section, Table
from hf_fip.report.style import LABEL_LENGTH, LEFT_MARGIN, shown, styled


if TYPE_CHECKING:
    from hf_fip.graph import ModelGraph

ROW_HEIGHT = 26
PANEL_GAP = 92
MOST_ENSEMBLES = len(PALETTE)
CLEAN = "no attack"


def _found(graph: ModelGraph) -> list[EnsembleRecord]:
    records = load_ensembles(graph.folder) if len(graph) else []
    return [record for record in records if set(record.members) <= graph.nodes.keys()][:MOST_ENSEMBLES]


def _accuracies(figure: go.Figure, record: EnsembleRecord, color: str, rank: int) -> None:
    """Members as small dots, or their mean under an attack, and the ensemble as a large mark."""
    spots = [(CLEAN, value, f"{member}: {percent(value)}") for member, value in _members(record)]
    spots += [(name, value, f"mean of the members: {percent(value)}") for name, value in record.member_attacks.items()]
    sums = [(CLEAN, record.accuracy), *record.attacks.items()]
    group = {"legendgroup": record.name, "line": {"color": color}, "mode": "markers", "hoverinfo": "text"}
    figure.add_scatter(
        x=[value for _, value, _ in spots],
        y=[shown(place) for place, _, _ in spots],
        hovertext=[shown(text) for _, _, text in spots],
        marker={"size": 7, "color": color, "opacity": 0.6},
        showlegend=False,
        **group,
    )
    figure.add_scatter(
        x=[value for _, value in sums],
        y=[shown(place) for place, _ in sums],
        hovertext=[f"<b>{shown(record.name)}</b>: {percent(value)}" for _, value in sums],
        marker={"size": 13, "color": color, "symbol": "diamond"},
        name=shown(record.name, LABEL_LENGTH),
        legendrank=rank,
        **group,
    )


def _members(record: EnsembleRecord) -> list[tuple[str, float]]:
    return list(zip(record.members, record.member_accuracies, strict=True))


def ensembles(graph: ModelGraph) -> go.Figure | None:
    """Accuracy of members and ensembles, and the layers' diversity; `None` without saved ensembles."""
    records = _found(graph)
    if not records:
        return None
    attacks = list(dict.fromkeys(name for record in records for name in record.attacks))
    layers = list(dict.fromkeys(name for record in records for name in record.diversity))
    short = short_names(layers)
    heights = [ROW_HEIGHT * (2 + len(attacks)), *([ROW_HEIGHT * len(layers)] if layers else [])]
    height = sum(heights) + PANEL_GAP * len(heights[1:])
    figure = make_subplots(
        rows=len(heights),
        cols=1,
        row_heights=heights,
        vertical_spacing=PANEL_GAP / height if layers else 0,
    )
    for rank, record in enumerate(records):
        _accuracies(figure, record, PALETTE[rank], rank)
        if record.diversity:
            figure.add_scatter(
                x=list(record.diversity.values()),
                y=[shown(short[name], LABEL_LENGTH + 2) for name in record.diversity],
                mode="lines+markers",
                line={"color": PALETTE[rank], "width": 2},
                marker={"size": 7, "color": PALETTE[rank]},
                legendgroup=record.name,
                showlegend=False,
                hovertemplate="%{y}: %{x:.3f}<extra></extra>",
                row=2,
                col=1,
            )
    styled(figure, height, legend_above=28)
    for row, title in enumerate(["accuracy", "diversity of each layer"], 1):
        if row <= len(heights):
            place = {"y": 1, "yref": f"y{row if row > 1 else ''} domain", "yshift": 4, "xref": "paper"}
            figure.add_annotation(**NOTE, **place, xshift=-LEFT_MARGIN + 8, text=f"<b>{title}</b>")
    figure.update_xaxes(tickformat="~%", nticks=5, tickangle=0, row=1, col=1)
    figure.update_yaxes(autorange="reversed", ticks="", row=1, col=1)
    if layers:
        figure.update_xaxes(rangemode="tozero", nticks=6, row=2, col=1)
        figure.update_yaxes(range=[len(layers) - 0.5, -0.5], ticks="", row=2, col=1)
    return figure


def ensemble(graph: ModelGraph) -> Section | None:
    """The picture of the ensembles, and a table of their measurements."""
    figure = ensembles(graph)
    if figure is None:
        return None
    rows = []
    for rank, record in enumerate(_found(graph)):
        members = record.member_accuracies
        diversity = sum(record.diversity.values()) / len(record.diversity) if record.diversity else None
        mean, span = sum(members) / len(members), f"{percent(min(members))} to {percent(max(members))}"
        rows.append(
            [
                Cell(record.name, color=PALETTE[rank], detail=", ".join(record.members)),
                Cell(f"{len(members):,}", len(members), numeric=True),
                Cell(record.dataset),
                Cell(f"{record.examples:,}", record.examples, numeric=True),
                Cell(percent(mean), mean, numeric=True, detail=span),
                Cell(percent(record.accuracy), record.accuracy, numeric=True),
                Cell(plain(record.mutual_information), record.mutual_information, numeric=True),
                Cell(plain(record.predictive_entropy), record.predictive_entropy, numeric=True),
                Cell(percent(record.calibration_error), record.calibration_error, numeric=True),
                Cell(plain(diversity), diversity, numeric=True),
            ]
        )
    columns = ["ensemble", "members", "data", "examples", "accuracy of members", "accuracy", "mutual information"]
    columns += ["predictive entropy", "calibration error", "diversity"]
    text = "Nodes that answer together, by the mean of their probabilities: diamonds. Their members are dots."
    notes = [
        "Mutual information: what the members disagree about, in nats; predictive entropy: all uncertainty. "
        "Diversity, by our definition: 1 − the mean linear CKA of the layers' activations over pairs of members; 0 "
        "where all are alike."
    ]
    if any(record.attacks for record in _found(graph)):
        notes.append("Accuracy under an attack that was made on another network says nothing of attacks made on it.")
    return Section("ensemble", "Ensembles", text, figure, Table(columns, rows, sortable=True), notes)


SECTIONS = [ensemble]
FIGURES = {"ensemble": ensembles}
