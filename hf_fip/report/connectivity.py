"""Which weights a small fully connected network has left: the inputs it still reads, and the lines between layers."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from hf_fip.graph.weights import Weight, open_weights
from hf_fip.report.grid import SCALE
from hf_fip.report.layers import UNREADABLE, architecture, compressed_nodes, fewer, layers_of, sparsity
from hf_fip.report.scale import sparsity_text
from hf_fip.report.sections import Section
from hf_fip.report.style import MUTED, styled


if TYPE_CHECKING:
    from hf_fip.graph import ModelGraph, Node

# More lines than this are a grey area.
MOST_WEIGHTS = 5000
MOST_NODES = 8
HEIGHT = 400
MAP_SHARE = 0.38
SIGNS = {"positive weights": (1, "#0072B2"), "negative weights": (-1, "#D55E00")}
# So many lines of a layer are drawn strongly.
STRONG_LINES = 300
FAINTEST, STRONGEST = 0.06, 0.9


@dataclass(frozen=True)
class Network:
    """
    The weights left in a chain of fully connected layers.

    Args:
        widths (`tuple[int, ...]`): Number of units of each layer, the inputs first.
        ends (tuple of `np.ndarray` of shape `[2, weights]`): For each two successive layers the units that are joined:
            those that read, and those that are read.
        signs (tuple of `np.ndarray` of shape `[weights]`): Of these weights.
        pixels (`tuple[int, int, int]`, *optional*): Channels, height and width where the inputs are an image.
    """

    widths: tuple[int, ...]
    ends: tuple[np.ndarray, ...]
    signs: tuple[np.ndarray, ...]
    pixels: tuple[int, int, int] | None

    def connected(self, layer: int) -> np.ndarray:
        """The units of a layer that are joined to all layers beside it."""
        sides = []
        if layer > 0:
            sides.append(np.unique(self.ends[layer - 1][0]))
        if layer < len(self.ends):
            sides.append(np.unique(self.ends[layer][1]))
        return np.intersect1d(*sides) if len(sides) == 2 else sides[0]

    def strength(self, layer: int) -> float:
        """
        How strongly the lines behind a layer are drawn: the weaker, the more there are, and the weaker, the fewer of
        its weights are gone. An output head that was left dense would cover all that was chosen before it.
        """
        lines = self.ends[layer].shape[1]
        gone = 1 - lines / (self.widths[layer] * self.widths[layer + 1])
        return round(max(FAINTEST, gone * min(STRONGEST, STRONG_LINES / max(1, lines))), 3)

    def per_pixel(self) -> np.ndarray | None:
        """Number of weights that read each pixel, of all channels together: `[height, width]`."""
        if self.pixels is None:
            return None
        return np.bincount(self.ends[0][1], minlength=self.widths[0]).reshape(self.pixels).sum(0)


def network_of(node: Node) -> Network | None:
    """The network of a node if it is a chain of fully connected layers with few enough weights left, else `None`."""
    known = architecture(node.folder, node.task)
    if known is None:
        return None
    try:
        with ExitStack() as stack:
            stored = open_weights(node.folder, stack)
            weights = [stored[source] for source in known.matrices.values()]
            if not _is_chain(weights):
                return None
            ends, signs, left = [], [], MOST_WEIGHTS
            for weight in weights:
                values = weight.read()
                where = values.nonzero(as_tuple=True)
                left -= len(where[0])
                if left < 0:
                    return None
                ends.append(np.stack([index.numpy() for index in where]))
                signs.append(values[where].sign().float().numpy())
    except UNREADABLE:
        return None
    widths = (weights[0].shape[1], *(weight.shape[0] for weight in weights))
    is_image = known.pixels is not None and int(np.prod(known.pixels)) == widths[0]
    return Network(widths, tuple(ends), tuple(signs), known.pixels if is_image else None)


def _is_chain(weights: list[Weight]) -> bool:
    flat = len(weights) > 1 and all(len(weight.shape) == 2 for weight in weights)
    return flat and all(first.shape[0] == second.shape[1] for first, second in pairwise(weights))


def _height(units: np.ndarray, width: int) -> np.ndarray:
    """Heights of units from 1 (the first) to 0 (the last): inputs of an image lie beside their rows of pixels."""
    return np.round(1 - (units + 0.5) / width, 4)


def _lines(network: Network, layer: int, sign: int) -> dict[str, Any]:
    """The lines behind a layer, and how strongly they are drawn."""
    x: list[float | None] = []
    y: list[float | None] = []
    readers, read = network.ends[layer][:, network.signs[layer] == sign]
    heights = zip(
        _height(read, network.widths[layer]).tolist(),
        _height(readers, network.widths[layer + 1]).tolist(),
        strict=True,
    )
    for start, stop in heights:
        x += [layer, layer + 1, None]
        y += [start, stop, None]
    return {"x": x, "y": y, "opacity": network.strength(layer)}


def _all_lines(network: Network) -> list[dict[str, Any]]:
    """The lines of each sign behind each layer, in the order of their traces."""
    layers = range(len(network.ends))
    return [_lines(network, layer, sign) for sign, _ in SIGNS.values() for layer in layers]


def _units(network: Network) -> dict[str, list[Any]]:
    x: list[float] = []
    y: list[float] = []
    for layer, width in enumerate(network.widths):
        units = network.connected(layer)
        x += [layer] * len(units)
        y += _height(units, width).tolist()
    return {"x": x, "y": y}


def _captions(network: Network) -> list[str]:
    names = ["inputs", *(f"hidden {i + 1}" for i in range(len(network.widths) - 2)), "outputs"]
    counts = [f"{len(network.connected(layer)):,}<br>of {width:,}" for layer, width in enumerate(network.widths)]
    return [f"{name}<br>{count}" for name, count in zip(names, counts, strict=True)]


def _networks(graph: ModelGraph) -> dict[str, Network]:
    """The networks that can be drawn, the sparsest first: node to network."""
    found = {node.id: network for node in compressed_nodes(graph) if (network := network_of(node)) is not None}
    nodes = fewer(graph, [graph.nodes[name] for name in found], MOST_NODES)
    nodes.sort(key=lambda node: -sparsity(layers_of(graph, node)))
    # One figure shows one architecture.
    return {n.id: found[n.id] for n in nodes if found[n.id].widths == found[nodes[0].id].widths}


def connections(graph: ModelGraph) -> go.Figure | None:
    """The weights left as lines, and how many read each pixel, with a menu of nodes; `None` without such nodes."""
    networks = _networks(graph)
    if not networks:
        return None
    first = next(iter(networks.values()))
    has_map = first.pixels is not None
    figure = go.Figure()
    count = len(SIGNS) * len(first.ends)
    for number, lines in enumerate(_all_lines(first)):
        rank, layer = divmod(number, len(first.ends))
        name = list(SIGNS)[rank]
        figure.add_scatter(
            **lines,
            name=name,
            legendgroup=name,
            legendrank=rank,
            showlegend=layer == 0,
            mode="lines",
            line={"color": SIGNS[name][1], "width": 0.6},
            hoverinfo="skip",
        )
    dots = {"size": 3.5, "color": MUTED}
    figure.add_scatter(**_units(first), mode="markers", marker=dots, showlegend=False, hoverinfo="skip")
    if has_map:
        bar = {"orientation": "h", "x": 0, "xanchor": "left", "len": MAP_SHARE, "y": 1.02, "yanchor": "bottom"}
        bar |= {"thickness": 9, "outlinewidth": 0, "nticks": 5}
        figure.add_heatmap(
            z=_map(first),
            zmin=0,
            colorscale=SCALE,
            colorbar=bar,
            showlegend=False,
            xaxis="x2",
            yaxis="y2",
            hovertemplate="row %{y}, column %{x}: %{z} weights<extra></extra>",
        )
    options = []
    for name, network in networks.items():
        lines = _all_lines(network)
        updates = [
            [{key: [line[key] for line in lines] for key in lines[0]}, list(range(count))],
            [{axis: [values] for axis, values in _units(network).items()}, [count]],
        ]
        if has_map:
            updates.append([{"z": [_map(network)]}, [count + 1]])
        node = graph.nodes[name]
        label = f"{node.name} {sparsity_text(sparsity(layers_of(graph, node)))}"
        layout = {f"annotations[{i}].text": text for i, text in enumerate(_captions(network))}
        options.append({"label": label, "updates": updates, "layout": layout})
    meta = {"controls": [{"label": "Node", "options": options}] if options[1:] else []}
    styled(figure, HEIGHT, legend_above=60, meta=meta)
    last = len(first.widths) - 1
    hidden = {"visible": False, "fixedrange": True}
    figure.update_layout(
        xaxis={**hidden, "domain": [MAP_SHARE + 0.08 if has_map else 0, 1], "range": [-0.2, last + 0.2]},
        yaxis={**hidden, "range": [-0.02, 1.02]},
        margin_l=16,
    )
    for layer, text in enumerate(_captions(first)):
        figure.add_annotation(
            x=layer,
            y=1,
            yref="y domain",
            yanchor="bottom",
            text=text,
            showarrow=False,
            font={"size": 11},
            yshift=4,
        )
    if has_map:
        _, rows, columns = first.pixels
        figure.update_layout(
            xaxis2={**hidden, "domain": [0, MAP_SHARE], "range": [-0.5, columns - 0.5], "constrain": "domain"},
            yaxis2={
                **hidden,
                "range": [rows - 0.5, -0.5],
                "anchor": "x2",
                "scaleanchor": "x2",
                "constrain": "domain",
                "constraintoward": "top",
            },
        )
    return figure


def _map(network: Network) -> list[list[int | None]]:
    counts = network.per_pixel()
    return [[int(count) or None for count in row] for row in counts] if counts is not None else []


def connectivity(graph: ModelGraph) -> Section | None:
    """The picture of what is left of small fully connected networks."""
    figure = connections(graph)
    if figure is None:
        return None
    with_map = any(isinstance(trace, go.Heatmap) for trace in figure.data)
    text = (
        "Every weight that is left, as a line between two units, fainter in layers that have many, or all of them. "
        "Counted are the units joined to both sides."
    )
    if with_map:
        text += " On the left, how many weights read each pixel; empty pixels are not read."
    return Section("connectivity", "Connectivity", text, figure)


SECTIONS = [connectivity]
FIGURES = {"connectivity": connections}
