"""The report's sections on compressed nodes: how sparse, how accurate, how small, and where the zeros are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from hf_fip.report.figures import (
    NOTE,
    PANEL_GAP,
    PANEL_HEIGHT,
    branch_line,
    branch_style,
    drawing_order,
    metric_panel,
)
from hf_fip.report.grid import Column, grid_figure
from hf_fip.report.layers import (
    FEW_ZEROS,
    compressed_nodes,
    dense_ancestor,
    fewer,
    layers_of,
    ranks_of,
    short_names,
    sparsity,
    storage_words,
    structures_of,
    target_of,
    target_words,
    weight_bytes,
)
from hf_fip.report.layout import PALETTE, branches, headline_metrics, metric_text, number, percent
from hf_fip.report.scale import SparsityScale, sparsity_text
from hf_fip.report.sections import Cell, Section, Table
from hf_fip.report.style import LABEL_LENGTH, LEFT_MARGIN, MUTED, shown, styled


if TYPE_CHECKING:
    from hf_fip.graph import ModelGraph, Node

MOST_COLUMNS = 40
MOST_TABLE_COLUMNS = 12
RATIO_TICKS = [1, 2, 5, 10, 20, 50, 100, 200]
FEWEST_RUNS = 2
BOX_HEIGHT = 17


def _node_sparsity(graph: ModelGraph, node: Node) -> float:
    return sparsity(layers_of(graph, node))


def _sparse_nodes(graph: ModelGraph) -> list[Node]:
    """The compressed nodes without those that are only quantized or of low rank."""
    return [node for node in compressed_nodes(graph) if _node_sparsity(graph, node) >= FEW_ZEROS]


def _label(graph: ModelGraph, node: Node) -> str:
    return f"{node.name[:14]} {sparsity_text(_node_sparsity(graph, node))}"


def _left_out(nodes: list[Node], drawn: list[Node]) -> list[str]:
    return [f"Of {len(nodes)} compressed nodes {len(drawn)} are shown."] if len(drawn) < len(nodes) else []


def accuracy(graph: ModelGraph) -> go.Figure | None:
    """Each task's accuracy against sparsity, and by a menu against the size of the files; `None` without either."""
    nodes = compressed_nodes(graph)
    origins = {n.id: origin for n in nodes if (origin := dense_ancestor(graph, n)) is not None}
    dense = {origin.id: origin for origin in origins.values()}
    names = [name for name in headline_metrics(graph) if any(name in node.metrics for node in nodes)]
    if not nodes or not names:
        return None
    scale = SparsityScale.of(_node_sparsity(graph, node) for node in nodes)
    places = {name: scale.place(0) for name in dense}
    places |= {node.id: scale.place(_node_sparsity(graph, node)) for node in nodes}
    whole = {node.id: weight_bytes(origins[node.id]) for node in nodes if node.id in origins}
    ratios = dict.fromkeys(dense, 1.0)
    ratios |= {node.id: whole[node.id] / max(1, weight_bytes(node)) for node in nodes if node.id in whole}

    height = PANEL_HEIGHT * len(names)
    gap = PANEL_GAP / height if names[1:] else 0
    figure = make_subplots(rows=len(names), cols=1, shared_xaxes=True, vertical_spacing=gap)
    by_ratio: list[list[Any]] = []
    compressed = {node.name for node in nodes}
    for row, name in enumerate(names, 1):
        panel, axis = metric_panel(graph, name), "y" if row == 1 else f"y{row}"
        figure.layout[axis.replace("y", "yaxis")].update(panel.axis)
        for branch in drawing_order(graph):
            if branch.name in compressed:
                line = branch_line(graph, branch, panel.value, places)
                figure.add_scatter(**line, **branch_style(branch), showlegend=row == 1, row=row, col=1)
                by_ratio.append([ratios.get(node) for node in line["customdata"]])
        title = {"text": f"<b>{shown(panel.title)}</b>", "y": 1, "yref": f"{axis} domain", "yshift": 4}
        figure.add_annotation(**title, **NOTE, xref="paper", xshift=-LEFT_MARGIN + 8)
        levels = {level for node in dense.values() if (level := number(node.metrics.get(name))) is not None}
        for level in levels:
            figure.add_hline(y=level, line={"color": MUTED, "width": 1.5, "dash": "dash"}, row=row, col=1)
        if levels:
            figure.add_annotation(
                **NOTE | {"x": 1, "xanchor": "right"}, text="dense", y=max(levels), yref=axis, xref="paper"
            )
    styled(figure, height, legend_above=28)
    by_sparsity = [list(trace.x) for trace in figure.data]
    ticks, texts = scale.ticks()
    ratio_texts = [f"{ratio}×" for ratio in RATIO_TICKS]
    options = [
        _option("Sparsity", by_sparsity, len(names), "share of zeros", "linear", ticks, texts),
        _option("File size", by_ratio, len(names), "times smaller file", "log", RATIO_TICKS, ratio_texts),
    ]
    figure.plotly_relayout(options[0]["layout"])
    figure.update_layout(meta={"controls": [{"label": "Across", "options": options}]})
    return figure


def _option(
    label: str, x: list[list[Any]], rows: int, title: str, kind: str, ticks: list[float], texts: list[str]
) -> dict[str, Any]:
    """What the menu changes: where the points lie, and the axes they lie on."""
    layout: dict[str, Any] = {}
    for row in range(rows):
        axis = f"xaxis{row + 1 if row else ''}"
        layout |= {f"{axis}.type": kind, f"{axis}.tickvals": ticks, f"{axis}.ticktext": texts}
        layout |= {f"{axis}.autorange": True, f"{axis}.title.text": title if row == rows - 1 else ""}
    return {"label": label, "updates": [[{"x": x}, list(range(len(x)))]], "layout": layout}


def overview(graph: ModelGraph) -> Section | None:
    """Accuracy against sparsity, and a table of the compressed nodes with their files."""
    nodes = compressed_nodes(graph)
    if not nodes:
        return None
    from hf_fip.hub.plan import readable_size

    drawn, names = branches(graph), headline_metrics(graph)
    rows = []
    for node in nodes:
        layers, origin, size = layers_of(graph, node), dense_ancestor(graph, node), weight_bytes(node)
        kept, every = sum(layer.kept for layer in layers), sum(layer.size for layer in layers)
        whole = weight_bytes(origin) if origin is not None else 0
        rows.append(
            [
                Cell(node.name, color=drawn[node.name].color),
                Cell(target_words(node)),
                Cell(sparsity_text(1 - kept / every), 1 - kept / every, numeric=True),
                Cell(f"{kept:,}", kept, numeric=True, detail=f"of {every:,}"),
                Cell(percent(node.sparsity), node.sparsity, numeric=True),
                Cell(readable_size(size), size, numeric=True, detail=f"{size / whole:.1%} of dense" if whole else ""),
                Cell(storage_words(node)),
                *(
                    Cell(metric_text(name, value := node.metrics.get(name)), number(value), numeric=True)
                    for name in names
                ),
            ]
        )
    columns = [
        "branch",
        "compressed to",
        "sparsity",
        "weights left",
        "zeros in the whole model",
        "file of weights",
        "stored as",
    ]
    table = Table([*columns, *names], rows, [node.id for node in nodes], sortable=True)
    notes = [
        "Sparsity: zeros among the weights that compression may change (by default not biases, norms, embeddings and "
        "output heads). Whole model: all weights of at least two dimensions."
    ]
    kind = names[0].rpartition("/")[2] if names else "accuracy"
    text = f"What compression costs: {kind} against the share of zeros, from the dense node on."
    return Section("sparsity", "Sparsity", text, accuracy(graph), table, notes)


def layer_grid(graph: ModelGraph) -> go.Figure | None:
    """The sparsity of each layer of each compressed node; `None` where no layer has zeros."""
    nodes = fewer(graph, _sparse_nodes(graph), MOST_COLUMNS)
    if not nodes:
        return None
    layers = {node.id: {layer.name: layer for layer in layers_of(graph, node)} for node in nodes}
    names = list(dict.fromkeys(name for found in layers.values() for name in found))
    columns = []
    for node in nodes:
        found = [layers[node.id].get(name) for name in names]
        details = [
            ""
            if layer is None
            else f"<b>{shown(node.name)}</b> · {shown(layer.name)}<br>"
            f"{layer.kept:,} of {layer.size:,} weights left ({percent(layer.kept / max(1, layer.size))})"
            for layer in found
        ]
        columns.append(
            Column(
                id=node.id,
                label=_label(graph, node),
                shares=[None if layer is None else layer.sparsity for layer in found],
                texts=["" if layer is None else sparsity_text(layer.sparsity) for layer in found],
                details=details,
            )
        )
    return grid_figure(list(short_names(names).values()), columns)


def per_layer(graph: ModelGraph) -> Section | None:
    """The sparsity of each layer, and how many weights are left in it."""
    figure = layer_grid(graph)
    if figure is None:
        return None
    sparse = _sparse_nodes(graph)
    nodes = fewer(graph, sparse, MOST_TABLE_COLUMNS)
    layers = {node.id: {layer.name: layer for layer in layers_of(graph, node)} for node in nodes}
    sizes = {name: layer.size for found in layers.values() for name, layer in found.items()}
    rows = []
    for name, size in sizes.items():
        row = [Cell(name), Cell(f"{size:,}", size, numeric=True)]
        for node in nodes:
            layer = layers[node.id].get(name)
            kept = None if layer is None else layer.kept
            share = "" if kept is None else percent(kept / max(1, layer.size))
            row.append(Cell("–" if kept is None else f"{kept:,}", kept, numeric=True, detail=share))
        rows.append(row)
    columns = ["layer", "weights", *(_label(graph, node) for node in nodes)]
    text = "Where the zeros are: each layer's share, from input to output. The table counts the weights that are left."
    drawn = fewer(graph, sparse, MOST_COLUMNS)
    table = Table(columns, rows, sortable=True)
    return Section("sparsity-layers", "Sparsity per layer", text, figure, table, _left_out(sparse, drawn))


def _runs(graph: ModelGraph) -> dict[float, dict[str, list[Node]]]:
    """Nodes made for the same sparsity by the same method on several branches: target to method to nodes."""
    found: dict[float, dict[str, list[Node]]] = {}
    for node in _sparse_nodes(graph):
        projection = node.parameters.get("projection")
        kind = projection.get("name") if isinstance(projection, dict) else None
        if (target := target_of(node)) is not None:
            method = str(node.parameters.get("method") or "")
            name = method if kind in (None, "unstructured") else f"{method} {kind}"
            found.setdefault(target, {}).setdefault(name, []).append(node)
    several = {
        target: {name: nodes for name, nodes in methods.items() if len({n.name for n in nodes}) >= FEWEST_RUNS}
        for target, methods in found.items()
    }
    return {target: several[target] for target in sorted(several) if several[target]}


def over_runs(graph: ModelGraph) -> go.Figure | None:
    """Boxes of each layer's sparsity over runs of one target, with a menu of targets; `None` without such runs."""
    runs = _runs(graph)
    if not runs:
        return None
    methods = list(dict.fromkeys(name for found in runs.values() for name in found))
    every = [node for found in runs.values() for nodes in found.values() for node in nodes]
    names = list(dict.fromkeys(layer.name for node in every for layer in layers_of(graph, node)))
    short = short_names(names)
    options = []
    for target, found in runs.items():
        update: dict[str, list[list[Any]]] = {"x": [], "y": [], "hovertext": [], "customdata": []}
        nodes = [[(n, layer) for n in found.get(name, []) for layer in layers_of(graph, n)] for name in methods]
        scale = SparsityScale.of(layer.sparsity for pairs in nodes for _, layer in pairs)
        for pairs in nodes:
            update["x"].append([scale.place(layer.sparsity) for _, layer in pairs])
            update["y"].append([shown(short[layer.name], LABEL_LENGTH + 6) for _, layer in pairs])
            update["hovertext"].append([f"{shown(n.name)}: {sparsity_text(layer.sparsity)}" for n, layer in pairs])
            update["customdata"].append([n.id for n, _ in pairs])
        ticks, texts = scale.ticks()
        low, high = min(map(min, filter(None, update["x"]))), scale.place(scale.most)
        margin = 0.1 * (high - low) or 0.1
        layout = {"xaxis.tickvals": ticks, "xaxis.ticktext": texts, "xaxis.range": [low - margin, high + margin]}
        label = sparsity_text(target)
        options.append({"label": label, "updates": [[update, list(range(len(methods)))]], "layout": layout})
    figure = go.Figure()
    for rank, name in enumerate(methods):
        color = PALETTE[rank % len(PALETTE)]
        figure.add_box(
            **{key: values[rank] for key, values in options[-1]["updates"][0][0].items()},
            name=shown(name, LABEL_LENGTH),
            legendgroup=name,
            legendrank=rank,
            orientation="h",
            line={"color": color, "width": 1.5},
            marker={"color": color, "size": 4},
            boxpoints="all",
            pointpos=0,
            jitter=0,
            hoverinfo="text",
            hoveron="points",
        )
    # The sparsest first, as its layers differ most.
    options.reverse()
    meta = {"controls": [{"label": "Sparsity", "options": options}] if options[1:] else []}
    height = len(names) * (16 + BOX_HEIGHT * len(methods))
    styled(figure, height, legend_above=8, boxmode="group", meta=meta)
    figure.plotly_relayout(options[0]["layout"])
    figure.update_xaxes(title_text="share of zeros")
    figure.update_yaxes(autorange="reversed", ticks="")
    return figure


def runs(graph: ModelGraph) -> Section | None:
    """The boxes over runs."""
    figure = over_runs(graph)
    if figure is None:
        return None
    counts = {len(nodes) for found in _runs(graph).values() for nodes in found.values()}
    number_of = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    text = f"Whether runs for one sparsity agree on it: the layers of {number_of} runs of each method."
    return Section("sparsity-runs", "Sparsity over runs", text, figure)


def structure_grid(graph: ModelGraph) -> go.Figure | None:
    """Heads, neurons and filters left in each layer of nodes that have lost some; `None` without such nodes."""
    found = {node.id: structures_of(node) for node in compressed_nodes(graph)}
    nodes = fewer(graph, [graph.nodes[name] for name, groups in found.items() if groups], MOST_COLUMNS)
    if not nodes:
        return None
    by_place = {node.id: {(list(g.rows)[-1], g.kind): g for g in found[node.id] if g.rows} for node in nodes}
    places = list(dict.fromkeys(place for groups in by_place.values() for place in groups))
    short = short_names(list(dict.fromkeys(module for module, _ in places)))
    columns = []
    for node in nodes:
        groups = [by_place[node.id].get(place) for place in places]
        texts = ["" if g is None else f"{len(g.kept):,} of {g.count:,}" for g in groups]
        details = [
            f"<b>{shown(node.name)}</b> · {shown(module)}<br>{text} {kind} left"
            for (module, kind), text in zip(places, texts, strict=True)
        ]
        shares = [None if g is None else 1 - len(g.kept) / g.count for g in groups]
        columns.append(Column(node.id, _label(graph, node), shares, texts, details))
    return grid_figure([f"{short[module]} {kind}" for module, kind in places], columns)


def structures(graph: ModelGraph) -> Section | None:
    """What is left of the structures."""
    figure = structure_grid(graph)
    if figure is None:
        return None
    text = (
        "Attention heads, feed-forward neurons and filters that are left; the others are gone from the files too. "
        "The colour is the share that is gone."
    )
    return Section("structures", "Structures", text, figure)


def rank_grid(graph: ModelGraph) -> go.Figure | None:
    """The rank of each layer of nodes of low rank; `None` without such nodes."""
    found = {node.id: ranks_of(node) for node in compressed_nodes(graph)}
    nodes = fewer(graph, [graph.nodes[name] for name, ranks in found.items() if ranks], MOST_COLUMNS)
    if not nodes:
        return None
    full = {
        layer.name: min(layer.shape[0], layer.size // layer.shape[0]) for n in nodes for layer in layers_of(graph, n)
    }
    names = [name for name in full if any(name in found[node.id] for node in nodes)]
    short = short_names(names)
    columns = []
    for node in nodes:
        ranks = [found[node.id].get(name, full[name]) for name in names]
        texts = [f"{rank:,} of {full[name]:,}" for name, rank in zip(names, ranks, strict=True)]
        details = [
            f"<b>{shown(node.name)}</b> · {shown(name)}<br>rank {text}"
            for name, text in zip(names, texts, strict=True)
        ]
        shares = [1 - rank / full[name] for name, rank in zip(names, ranks, strict=True)]
        columns.append(Column(node.id, f"{node.name[:14]} {1 - (target_of(node) or 0):.0%}", shares, texts, details))
    return grid_figure([short[name] for name in names], columns)


def ranks(graph: ModelGraph) -> Section | None:
    """The ranks that are left."""
    figure = rank_grid(graph)
    if figure is None:
        return None
    text = (
        "Ranks of the layers, and what they could be. The colour is the share that is gone. Such weights have no "
        "zeros and are stored as they are."
    )
    return Section("ranks", "Ranks", text, figure)


SECTIONS = [overview, per_layer, runs, structures, ranks]
FIGURES = {
    "sparsity": accuracy,
    "sparsity_layers": layer_grid,
    "sparsity_runs": over_runs,
    "structures": structure_grid,
    "ranks": rank_grid,
}
