"""The report's section on spectra of the metric tensor: how many directions of weight space change the outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from hf_fip.report.figures import NOTE
from hf_fip.report.layout import percent, plain
from hf_fip.report.sections import Cell, Section, Table
from hf_fip.report.style import LEFT_MARGIN, MUTED, shown, styled


if TYPE_CHECKING:
    from hf_fip.geometry import Spectrum
    from hf_fip.graph import ModelGraph

PANEL_HEIGHT = 230
PANEL_GAP = 92
# As many as the picture has colours.
MOST_SPECTRA = 6
SMALL_CHANGE = 0.01


def _found(graph: ModelGraph) -> list[tuple[str, Spectrum]]:
    """The saved spectra with their nodes, in the order of the graph."""
    if graph.folder is None or not (graph.folder / "spectra").is_dir():
        return []
    # Importing geometry takes seconds; the report on a graph without spectra does without.
    from hf_fip.geometry.saved import load_spectra

    saved = load_spectra(graph.folder)
    return [(node, spectrum) for node in graph.nodes for spectrum in saved.get(node, [])]


def spectra(graph: ModelGraph) -> go.Figure | None:
    """Eigenvalues in their order, and how many there are of each size; `None` without saved spectra."""
    found = _found(graph)[:MOST_SPECTRA]
    if not found:
        return None
    from hf_fip.geometry.pictures import spectrum_figure

    several = len({spectrum.metric for _, spectrum in found}) > 1
    figure = spectrum_figure({shown(f"{node} {s.metric}" if several else node): s for node, s in found})
    height = 2 * PANEL_HEIGHT + PANEL_GAP
    styled(figure, height, legend_above=28)
    share = PANEL_HEIGHT / height
    # Side by side, they would be too narrow on a phone.
    figure.update_layout(xaxis_domain=[0, 1], xaxis2_domain=[0, 1])
    figure.update_layout(yaxis_domain=[1 - share, 1], yaxis2_domain=[0, share])
    for axis, title in (("y", "eigenvalues, the largest first"), ("y2", "how many eigenvalues of each size")):
        place = {"y": 1, "yref": f"{axis} domain", "yshift": 4, "xref": "paper", "xshift": -LEFT_MARGIN + 8}
        figure.add_annotation(**NOTE, **place, text=f"<b>{title}</b>")
    for bound in {spectrum.rank_bound for _, spectrum in found if 0 < spectrum.rank_bound < spectrum.dimension}:
        figure.add_vline(x=bound, line={"color": MUTED, "width": 1.5, "dash": "dash"}, row=1, col=1)
    # Plotly writes powers larger than other numbers.
    figure.update_xaxes(tickfont_size=11)
    figure.update_yaxes(tickfont_size=11, title_text=None)
    return figure


def spectrum(graph: ModelGraph) -> Section | None:
    """The picture of the spectra, and a table of what follows from them."""
    figure = spectra(graph)
    if figure is None:
        return None
    from hf_fip.geometry.pictures import COLORS

    found = _found(graph)
    rows = []
    for place, (node, about) in enumerate(found):
        flat = about.flat_share(1.0, SMALL_CHANGE * about.eigenvalues[0] ** 0.5)
        rows.append(
            [
                Cell(node, color=COLORS[place] if place < MOST_SPECTRA else None),
                Cell(about.metric or "–"),
                Cell(f"{about.num_rows:,}", about.num_rows, numeric=True),
                Cell(f"{about.dimension:,}", about.dimension, numeric=True),
                Cell("–" if about.rank is None else f"{about.rank:,}", about.rank, numeric=True),
                Cell(f"{about.rank_bound:,}", about.rank_bound, numeric=True),
                Cell(plain(about.participation_ratio), about.participation_ratio, numeric=True),
                Cell(plain(about.entropy_rank), about.entropy_rank, numeric=True),
                Cell(plain(about.orders_of_magnitude), about.orders_of_magnitude, numeric=True),
                Cell(percent(flat) if flat <= 0.999 else f"{100 * flat:.4g}%", flat, numeric=True),
            ]
        )
    columns = ["node", "metric", "anchors", "weights", "rank", "rank at most", "participation ratio"]
    columns += ["entropy rank", "orders of magnitude", "flat directions"]
    text = (
        "How much room a network has: the eigenvalues of its metric tensor, each the squared change of the outputs on "
        "the anchors per squared length of a step."
    )
    notes = [
        "Participation ratio and entropy rank: two counts of the directions that share the change. Flat directions: "
        f"those along which a step changes the outputs by less than {percent(SMALL_CHANGE)} of what it does along the "
        "first."
    ]
    if figure.layout.shapes:
        notes.append("Dashed: the rank cannot be higher. Along all further directions no output changes.")
    if not all(about.is_exact for _, about in found):
        notes.append("Dotted, and wherever no rank is given: estimated, by Lanczos quadrature.")
    table = Table(columns, rows, [node for node, _ in found], sortable=True)
    return Section("spectrum", "Spectrum", text, figure, table, notes)


SECTIONS = [spectrum]
FIGURES = {"spectrum": spectra}
