"""The report's sections on queries: which nodes suit which data."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from hf_fip.query.saved import SavedQuery, saved_queries
from hf_fip.report.layout import branches, chains, is_share, metric_text, percent, plain, steps_from_root
from hf_fip.report.lineage import lineage
from hf_fip.report.sections import Cell, Section, Table
from hf_fip.report.style import LABEL_LENGTH, describe, shown, styled


if TYPE_CHECKING:
    from hf_fip.graph import ModelGraph

PLOT_HEIGHT = 380
MOST_PAIRS = 12
# Perplexities from near the best to those of broken models need a scale that is bounded.
WIDE_RATIO = 20


def _found(graph: ModelGraph) -> list[SavedQuery]:
    queries = saved_queries(graph.folder) if len(graph) else []
    return [query for query in queries if len(query.values.keys() & graph.nodes.keys()) > 1]


def _is_perplexity(query: SavedQuery) -> bool:
    return query.metric == "perplexity" and min(query.values.values()) > 0


def _coloring(graph: ModelGraph, query: SavedQuery) -> tuple[str, tuple[list[float | None], str]] | None:
    values = [query.values.get(node) for node in graph.nodes]
    known = [value for value in values if value is not None]
    name = f"{query.label}: {query.unit}"
    if _is_perplexity(query) and max(known) > WIDE_RATIO * min(known):
        return f"{name}, inverse", ([None if value is None else 1 / value for value in values], "")
    return (name, (values, ".0%" if is_share(query.metric) else "")) if len(set(known)) > 1 else None


def colored_graph(graph: ModelGraph) -> go.Figure | None:
    """The lineage picture coloured by the first saved query, with a menu of the others; `None` without queries."""
    colorings = dict(filter(None, (_coloring(graph, query) for query in _found(graph))))
    if not colorings:
        return None
    figure = lineage(graph, colorings)
    controls = [dict(control) for control in figure.layout.meta["controls"]]
    by_branch, *by_query = controls[0]["options"]
    controls[0]["options"] = [*by_query, by_branch]
    for update, traces in by_query[0]["updates"]:
        figure.plotly_restyle(update, traces)
    figure.plotly_relayout(by_query[0]["layout"])
    figure.update_layout(meta={"controls": controls})
    return figure


def queries(graph: ModelGraph) -> Section | None:
    """The graph coloured by what saved queries found, and a table of the queries with their best nodes."""
    found = _found(graph)
    figure = colored_graph(graph) if found else None
    if figure is None:
        return None
    drawn = branches(graph)
    columns = ["data", "metric", "best node", "branch", "value", "standard error", "examples", "nodes", "work"]
    rows, ids = [], []
    for query in found:
        best = query.best if query.best in graph.nodes else None
        value, error = query.values[query.best], query.errors.get(query.best)
        rows.append(
            [
                Cell(query.label),
                Cell(query.unit),
                Cell(query.best),
                Cell("–") if best is None else Cell(graph.nodes[best].name, color=drawn[graph.nodes[best].name].color),
                Cell(metric_text(query.metric, value), value, numeric=True),
                Cell(plain(error), error, numeric=True),
                Cell(f"{query.samples:,}", query.samples, numeric=True),
                Cell(f"{len(query.values):,}", len(query.values), numeric=True),
                Cell("–" if query.work is None else percent(query.work), query.work, numeric=True),
            ]
        )
        ids.append(best or query.best)
    text = "Which node suits which data. The graph is coloured by the query chosen in the menu."
    notes = [
        "Perplexity, by our definitions: exp of the mean negative log-likelihood of the masked tokens (masked "
        "language models, equal masks for all), of all tokens (causal ones), of the labels (classifiers).",
        "Work: forward passes, as a share of those of the full ranking.",
    ]
    return Section("queries", "Queries", text, figure, Table(columns, rows, ids, sortable=True), notes)


def _pairs(graph: ModelGraph) -> list[tuple[SavedQuery, SavedQuery]]:
    found = [query for query in _found(graph) if _is_perplexity(query)]
    pairs = [pair for pair in combinations(found, 2) if len(_shared(graph, pair)) > 1]
    # Two data sets say more than two splits of one.
    return sorted(pairs, key=lambda pair: pair[0].dataset == pair[1].dataset)[:MOST_PAIRS]


def _shared(graph: ModelGraph, pair: tuple[SavedQuery, SavedQuery]) -> set[str]:
    return pair[0].values.keys() & pair[1].values.keys() & graph.nodes.keys()


def _points(graph: ModelGraph, ids: list[list[str]], pair: tuple[SavedQuery, SavedQuery]) -> dict[str, list]:
    steps, shared = steps_from_root(graph), _shared(graph, pair)
    points: dict[str, list] = {"x": [], "y": [], "hovertext": [], "customdata": []}
    for chain in ids:
        for node in (graph.nodes[name] for name in chain if name in shared):
            values = [query.values[node.id] for query in pair]
            told = "".join(
                f"<br>{shown(query.label)}: {shown(query.unit)} {plain(value)}"
                for query, value in zip(pair, values, strict=True)
            )
            entry = (1 / values[0], 1 / values[1], describe(node, steps[node.id]) + told, node.id)
            for column, item in zip(points.values(), entry, strict=True):
                column.append(item)
        for column in points.values():
            column.append(None)
    return points


def scatter(graph: ModelGraph) -> go.Figure | None:
    """Inverse perplexities of the nodes by two queries, with a menu of pairs; `None` for fewer than two queries."""
    pairs = _pairs(graph)
    if not pairs:
        return None
    drawn = sorted(branches(graph).values(), key=lambda branch: len(branch.ids) == 1)
    lines = [chains(graph, branch) for branch in drawn]
    figure = go.Figure()
    for branch, ids in zip(drawn, lines, strict=True):
        figure.add_scatter(
            **_points(graph, ids, pairs[0]),
            name=shown(branch.name, LABEL_LENGTH),
            legendgroup=branch.name,
            legendrank=branch.rank,
            mode="lines+markers",
            line={"color": branch.color, "width": 1.5, "dash": branch.dash},
            marker={"size": 7 if branch.ids[1:] else 10, "color": branch.color},
            hoverinfo="text",
        )
    options = []
    for pair in pairs:
        points = [_points(graph, ids, pair) for ids in lines]
        update: dict[str, Any] = {key: [found[key] for found in points] for key in points[0]}
        x, y = (f"1 / {shown(query.unit)} on {shown(query.label)}" for query in pair)
        layout = {"xaxis.title.text": x, "yaxis.title.text": y}
        label = f"{pair[0].label} and {pair[1].label}"
        options.append({"label": label, "updates": [[update, list(range(len(drawn)))]], "layout": layout})
    meta = {"controls": [{"label": "Queries", "options": options}] if len(options) > 1 else []}
    styled(figure, PLOT_HEIGHT, legend_above=8, meta=meta)
    figure.plotly_relayout(options[0]["layout"])
    return figure


def comparison(graph: ModelGraph) -> Section | None:
    """The scatter of inverse perplexities of two queries."""
    figure = scatter(graph)
    if figure is None:
        return None
    text = "Each node by its inverse perplexities on two data sets: to the right it suits the one, upwards the other."
    return Section("query-comparison", "Two queries", text, figure)


SECTIONS = [queries, comparison]
FIGURES = {"queries": colored_graph, "query_comparison": scatter}
