"""Pictures of spectra. Needs the extra `report` (plotly)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..errors import InputError
from .spectrum import Spectrum


COLORS = ("#3b7dd8", "#d9822b", "#2f9e6e", "#b0489e", "#8a6fd1", "#c8443c")
BINS_PER_DECADE = 2
# Less than this is no eigenvalue expected, but would stretch a logarithmic axis.
LEAST_COUNT = 0.1


def spectrum_figure(spectra: Mapping[str, Spectrum]) -> go.Figure:
    """
    Spectra drawn together: on the left each eigenvalue against its place in the order, on the right how many there are
    in each half of a power of ten; all axes logarithmic. Eigenvalues that are zero up to rounding are not drawn.

    Args:
        spectra (`dict[str, Spectrum]`): a name for each.

    Returns:
        `plotly.graph_objects.Figure`: with no style of its own but the lines' colours.

    Raises:
        [`InputError`]: if there are none.
    """
    if not spectra:
        raise InputError("spectra: there are none to draw; pass at least one")
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.16)
    for number, (name, spectrum) in enumerate(spectra.items()):
        color = COLORS[number % len(COLORS)]
        places, values = _ranked(spectrum)
        line = {"color": color, "width": 2}
        known = min(len(spectrum.eigenvalues), len(places))
        common = {"name": name, "legendgroup": name, "mode": "lines", "legendrank": number}
        figure.add_scatter(
            x=places[:known], y=values[:known], line=line, **common, hovertemplate="%{x:.0f}: %{y:.3g}", row=1, col=1
        )
        if len(places) > known:
            figure.add_scatter(
                x=places[known - 1 :],
                y=values[known - 1 :],
                line={**line, "dash": "dot"},
                **{**common, "showlegend": False},
                hovertemplate="about %{x:.0f}: %{y:.3g} (estimated)",
                row=1,
                col=1,
            )
        centers, counts = _density(spectrum)
        figure.add_scatter(
            x=centers,
            y=counts,
            line={**line, "shape": "hvh"},
            marker={"size": 4, "color": color},
            # A line alone would not show a few eigenvalues far from the others.
            **{**common, "showlegend": False, "mode": "lines+markers"},
            hovertemplate="%{y:.3g} near %{x:.1g}",
            row=1,
            col=2,
        )
    decades = {"type": "log", "exponentformat": "power", "dtick": 1}
    figure.update_xaxes(**decades, title_text="place in the order", row=1, col=1)
    figure.update_yaxes(**decades, title_text="eigenvalue", row=1, col=1)
    figure.update_xaxes(**decades, title_text="eigenvalue", row=1, col=2)
    figure.update_yaxes(**decades, title_text="how many", row=1, col=2)
    figure.update_layout(legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"})
    return figure


def _ranked(spectrum: Spectrum) -> tuple[list[float], list[float]]:
    """Places, from 1, and eigenvalues above rounding; a node of a density stands in the middle of those it is for."""
    values, counts = spectrum.measure
    places = np.cumsum(counts) - counts / 2 + 0.5
    drawn = (values > 0) & (places >= 1)
    return places[drawn].tolist(), values[drawn].tolist()


def _density(spectrum: Spectrum) -> tuple[list[float], list[float | None]]:
    """Centres of half powers of ten, and the number of eigenvalues in each; `None` where there are none."""
    values, counts = spectrum.measure
    counts, exponents = counts[values > 0], np.log10(values[values > 0]) * BINS_PER_DECADE
    low, high = math.floor(exponents.min()), math.floor(exponents.max()) + 1
    found, _ = np.histogram(exponents, bins=np.arange(low, high + 1), weights=counts)
    centers = 10 ** ((np.arange(low, high) + 0.5) / BINS_PER_DECADE)
    return centers.tolist(), [float(count) if count >= LEAST_COUNT else None for count in found]
