"""
The sections of the report. A section is data (words, a figure, a table); the page's template alone writes HTML, so all
text, which may come from strangers' nodes, is escaped in one place.

A section of your own is one function: `SECTIONS.append(my_section)`. Modules of capabilities have such lists of their
own, see [`~hf_fip.report.page.all_sections`].
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_fip.report import figures
from hf_fip.report.budget import KINDS, budget_records, verdict
from hf_fip.report.layout import (
    branches,
    distance_is_share,
    distance_kind,
    distance_kinds,
    distance_text,
    functional_distance,
    headline_metrics,
    is_share,
    metric_names,
    metric_text,
    number,
    percent,
    plain,
    steps_from_root,
)


if TYPE_CHECKING:
    import plotly.graph_objects as go

    from hf_fip.graph import ModelGraph, Node


DISTANCE_COLUMN = "functional distance"


@dataclass(frozen=True)
class Cell:
    """
    One cell of a table.

    Args:
        text (`str`): What it shows.
        sort (`float` or `str`, *optional*): What the column is sorted by; defaults to the text. `None` sorts last.
        numeric (`bool`, *optional*, defaults to `False`): Right-aligned.
        color (`str`, *optional*): A dot of this colour before the text (a branch's colour).
        detail (`str`, *optional*): A smaller second line.
        status (`str`, *optional*): `"certified"`, `"kept"`, `"exceeded"` or `"none"`: shown as a badge.
        copy (`str`, *optional*): Text of a copy button; the cell shows it as code.
    """

    text: str
    sort: float | str | None = None
    numeric: bool = False
    color: str | None = None
    detail: str = ""
    status: str | None = None
    copy: str | None = None


@dataclass(frozen=True)
class Table:
    """Column titles and rows of cells; `row_ids` are the nodes that the rows stand for."""

    columns: list[str]
    rows: list[list[Cell]]
    row_ids: list[str] = field(default_factory=list)
    sortable: bool = False
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """
    A section of the page.

    Args:
        id (`str`): Its anchor in the page.
        title (`str`): Its heading.
        text (`str`, *optional*): A sentence or two under the heading.
        figure (`go.Figure`, *optional*): A picture; `layout.meta["controls"]` may hold menus, see [`figures.lineage`].
        table (`Table`, *optional*): A table.
        notes (`list[str]`, *optional*): What a reader has to know about the picture or table, in small print.
    """

    id: str
    title: str
    text: str = ""
    figure: go.Figure | None = None
    table: Table | None = None
    notes: list[str] = field(default_factory=list)


def _numeric(text: str, value: float | None) -> Cell:
    return Cell(text, sort=value, numeric=True)


def _unit(node: Node) -> str:
    name, unit = distance_kind(node), node.functional_distance.get("unit")
    meaning = "share of the variance of the outputs" if distance_is_share(node) else str(unit or "")
    return f"{name}, {meaning}" if name and meaning else name or meaning


def summary(graph: ModelGraph) -> Section | None:
    """The last node of each branch: accuracies, their mean, functional distance, and what became of the budget."""
    if not len(graph):
        return Section("summary", "Summary", "The graph holds no node yet.")
    names = headline_metrics(graph)
    drawn = branches(graph)
    mean_of = [name for name in names if is_share(name)]
    with_mean = len(mean_of) > 1
    with_budget = any(budget_records(node) for node in graph.nodes.values())
    columns = ["branch", *(name.removesuffix("/accuracy") if is_share(name) else name for name in names)]
    columns += ["mean"] * with_mean + [DISTANCE_COLUMN] + ["forgetting budget"] * with_budget
    rows, ids = [], []
    for branch, node_id in graph.endpoints.items():
        node = graph.nodes[node_id]
        row = [Cell(branch, color=drawn[branch].color)]
        row += [_numeric(metric_text(name, node.metrics.get(name)), number(node.metrics.get(name))) for name in names]
        if with_mean:
            values = [number(node.metrics.get(name)) for name in mean_of]
            mean = None if None in values else sum(values) / len(values)
            row.append(_numeric(percent(mean), mean))
        distance = functional_distance(node)
        unit = "" if distance is None or len(distance_kinds(graph)) < 2 else _unit(node)
        row.append(Cell(distance_text(node, distance), sort=distance, numeric=True, detail=unit))
        if with_budget:
            found = verdict(node)
            row.append(Cell(found.label, status=found.status, detail=found.detail))
        rows.append(row)
        ids.append(node_id)
    kind = "Accuracy of" if any(name.endswith("/accuracy") for name in names) else "Metrics of"
    text = f"{kind} the last node of each branch, and its distance to the root."
    methods = {branch: graph.nodes[node_id].protocol.get("method") for branch, node_id in graph.endpoints.items()}
    notes = [f"{branch}: {method}" for branch, method in methods.items() if isinstance(method, str)]
    return Section("summary", "Summary", text, table=Table(columns, rows, ids), notes=notes)


def lineage(graph: ModelGraph) -> Section | None:
    """The lineage picture."""
    if not len(graph):
        return None
    text = "Each point is a complete model; each line is the operator that made a model from another."
    return Section("lineage", "Lineage", text, figure=figures.lineage(graph))


def paths(graph: ModelGraph) -> Section | None:
    """Accuracy and distance along the paths."""
    figure = figures.paths(graph) if len(graph) else None
    if figure is None:
        return None
    units = [f"Functional distance: {_unit(node)}." for node in graph.nodes.values() if functional_distance(node)]
    notes = list(dict.fromkeys(units))
    text = "What each branch has learned, and how far it has moved from the root's function on the anchors."
    return Section("paths", "Along the paths", text, figure=figure, notes=notes)


def weight_space(graph: ModelGraph) -> Section | None:
    """The weight-space picture, with the nodes it leaves out."""
    if len(graph) < 2:
        return None
    components = figures.weight_components(graph)
    grown = "Rows of a grown head count from zero: an output node that the root does not have is a difference too."
    notes = [grown] if components.grown else []
    reasons: dict[str, list[str]] = {}
    for node_id, reason in components.left_out.items():
        reasons.setdefault(reason, []).append(node_id)
    notes += [f"Left out, {reason}: {', '.join(ids)}." for reason, ids in reasons.items()]
    text = "The two principal components of the models' weights, in units of the weights; the root is the origin."
    figure = figures.weight_space(graph, components)
    if figure is None:
        text = "Less than two models with comparable, different weights: there is no picture."
    return Section("weight-space", "Weight space", text, figure=figure, notes=notes)


def budget(graph: ModelGraph) -> Section | None:
    """Every recorded point's drift on the anchors and on held-out inputs, if any node has a budget report."""
    drawn, steps = branches(graph), steps_from_root(graph)
    rows, ids = [], []
    for node in graph.nodes.values():
        for record in budget_records(node):
            low, high = record.interval or (None, None)
            interval = f"{record.text(low)} – {record.text(high)}" if record.interval else "–"
            answer = {True: "yes", False: "no", None: "–"}[record.certified if record.asked is not None else None]
            needed = record.inputs_needed if answer == "no" else None
            rows.append(
                [
                    Cell(node.name, color=drawn[node.name].color),
                    _numeric(f"{steps[node.id]:,}", steps[node.id]),
                    Cell(KINDS[record.kind]),
                    _numeric(record.text(record.asked), record.asked),
                    _numeric(record.text(record.anchors), record.anchors),
                    _numeric(record.text(record.held_out), record.held_out),
                    _numeric(interval, high),
                    _numeric("–" if record.inputs is None else f"{record.inputs:,}", record.inputs),
                    Cell(answer),
                    _numeric("–" if needed is None else f"{needed:,}", needed),
                ]
            )
            ids.append(node.id)
    if not rows:
        return None
    columns = ["branch", "steps", "what", "budget", "on the anchors", "held out", "95% interval", "inputs"]
    columns += ["certified", "inputs needed"]
    text = (
        "How far the function has moved, on the anchors and on held-out inputs of the earlier tasks. Certified: the "
        "whole interval lies within the budget."
    )
    notes = ["Inputs needed: how many held-out inputs would certify the budget if they behaved as those seen."]
    notes = notes if any(row[-1].sort is not None for row in rows) else []
    return Section("budget", "Forgetting", text, table=Table(columns, rows, ids, sortable=True), notes=notes)


def graph_folder(graph: ModelGraph) -> str:
    """The graph's folder as a reader would type it: relative to the working folder where it lies below it."""
    folder = Path(graph.folder).resolve()
    return folder.relative_to(Path.cwd()).as_posix() if folder.is_relative_to(Path.cwd()) else folder.as_posix()


def nodes(graph: ModelGraph) -> Section | None:
    """The sortable table of all nodes, with the line that loads each."""
    if not len(graph):
        return None
    drawn, steps, names = branches(graph), steps_from_root(graph), metric_names(graph)
    folder = graph_folder(graph)
    columns = ["node", "branch", "steps", *names, DISTANCE_COLUMN, "Euclidean distance"]
    columns += ["sparsity", "load"]
    rows = []
    for node in graph.nodes.values():
        distance, euclidean = functional_distance(node), number(node.euclidean_distance.get("root"))
        line = f"hf_fip.ModelGraph.load({_quoted(folder)})[{_quoted(node.id)}].load_model()"
        rows.append(
            [
                Cell(node.id),
                Cell(node.name, color=drawn[node.name].color),
                _numeric(f"{steps[node.id]:,}", steps[node.id]),
                *(_numeric(metric_text(name, value := node.metrics.get(name)), number(value)) for name in names),
                _numeric(distance_text(node, distance), distance),
                _numeric(plain(euclidean), euclidean),
                _numeric(percent(node.sparsity), node.sparsity),
                Cell("", copy=line),
            ]
        )
    auto = _auto_class(graph.root)
    example = f"{auto}.from_pretrained({_quoted(f'{folder}/nodes/{graph.root.id}')})"
    notes = [f"Every node is a complete model that Transformers loads too: {example}."] if auto else []
    table = Table(columns, rows, list(graph.nodes), sortable=True)
    return Section(
        "nodes", "Nodes", "A click on a column's title sorts. Distances are to the root.", table=table, notes=notes
    )


def _auto_class(node: Node) -> str | None:
    """The class by which Transformers alone loads the node; `None` for adapters and for hf_fip's own architectures."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    try:
        config = json.loads((node.folder / "config.json").read_bytes())
    except (OSError, ValueError, TypeError):
        return None
    known = isinstance(config, dict) and str(config.get("model_type")) in CONFIG_MAPPING_NAMES
    return AUTO_CLASSES.get(node.task) if known else None


def _quoted(text: Any) -> str:
    return '"' + str(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


AUTO_CLASSES = {
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "fill-mask": "AutoModelForMaskedLM",
    "text-generation": "AutoModelForCausalLM",
    "image-classification": "AutoModelForImageClassification",
}

SECTIONS: list[Callable[[ModelGraph], Section | None]] = [summary, lineage, paths, weight_space, budget, nodes]
