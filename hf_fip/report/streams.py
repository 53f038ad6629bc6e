"""The report's sections on streams of tasks: the accuracy on every task after each, and at every recorded point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from hf_fip.errors import InputError
from hf_fip.metrics.stream import accuracy_matrix, functional_distance_by_task, learned_at, stream_summary
from hf_fip.report.layout import branches, distance_text, number, percent, plain, steps_from_root
from hf_fip.report.sections import Cell, Section, Table
from hf_fip.report.style import LABEL_LENGTH, describe, shown, styled


if TYPE_CHECKING:
    from hf_fip.graph import ModelGraph, Node

# Of fewer tasks the other sections show as much.
FEWEST_TASKS = 3
CELL_HEIGHT = 30
MOST_HEIGHT = 640
MOST_NUMBERED = 12
SCALE = "Viridis"
SHARES = {
    "average_accuracy": "average accuracy",
    "backward_transfer": "backward transfer",
    "forgetting": "forgetting",
    "forward_transfer": "forward transfer",
}
COSTS = {"seconds": "seconds", "peak_memory_gib": "peak memory, GiB"}


@dataclass(frozen=True)
class Stream:
    """
    A branch that learned several tasks.

    Args:
        branch (`str`): Its name.
        tasks (`list[str]`): The tasks in their order.
        matrix (`list[list[float | None]]`): A row after each task, a column for each task.
        nodes (`list[Node]`): Of each row the node.
        points (`list[Node]`): All nodes from the root to the branch's end.
    """

    branch: str
    tasks: list[str]
    matrix: list[list[float | None]]
    nodes: list[Node]
    points: list[Node]


def found_streams(graph: ModelGraph) -> list[Stream]:
    """The branches that learned three tasks or more, the path first."""
    found = []
    for branch in sorted(graph.endpoints, key=lambda name: name.partition("-")[0] != "fip"):
        try:
            tasks, matrix = accuracy_matrix(graph, branch)
            points = graph.lineage(branch)
            nodes = learned_at(points)
        except (InputError, TypeError):
            # A node may come from anybody, and describe its tasks in any way.
            continue
        is_measured = any(value is not None for row in matrix for value in row)
        if len(tasks) >= FEWEST_TASKS and len(matrix) == len(nodes) == len(tasks) and is_measured:
            found.append(Stream(branch, tasks, matrix, nodes, points))
    return found


def _cells(stream: Stream) -> dict[str, Any]:
    """The heat map of one branch."""
    texts, hover = [], []
    for row, (values, node) in enumerate(zip(stream.matrix, stream.nodes, strict=True)):
        moved = functional_distance_by_task(node)
        told = []
        for task, value in zip(stream.tasks, values, strict=True):
            lines = [f"<b>{shown(task)}</b> after {shown(stream.tasks[row])}: {percent(value)}"]
            if moved.get(task) is not None:
                lines.append(f"functional distance on its anchors: {distance_text(node, moved[task])}")
            told.append("<br>".join([*lines, describe(node, node.step)]))
        texts.append(["" if value is None else f"{100 * value:.0f}" for value in values])
        hover.append(told)
    names = [shown(task, LABEL_LENGTH) for task in stream.tasks]
    return {
        "z": stream.matrix,
        "x": names,
        "y": names,
        "text": texts,
        "hovertext": hover,
        "customdata": [[node.id] * len(stream.tasks) for node in stream.nodes],
        "texttemplate": "%{text}" if len(stream.tasks) <= MOST_NUMBERED else "",
    }


def _heat_map(found: list[Stream], cells: Callable[[Stream], dict[str, Any]], **look: Any) -> go.Figure:
    """The accuracies that `cells` gives of a stream, the first one's, with a menu of the others."""
    bar = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "thickness": 9, "len": 0.9}
    look = {"colorscale": SCALE, "zmin": 0, "zmax": 1, **look, "colorbar": {**bar, "tickformat": "~%", "tickangle": 0}}
    options = [
        {"label": stream.branch, "updates": [[{key: [values] for key, values in cells(stream).items()}, [0]]]}
        for stream in found
    ]
    figure = go.Figure(go.Heatmap(**cells(found[0]), **look))
    meta = {"controls": [{"label": "Branch", "options": options}] if len(options) > 1 else []}
    styled(figure, min(MOST_HEIGHT, CELL_HEIGHT * max(len(stream.tasks) for stream in found)), meta=meta)
    figure.update_yaxes(autorange="reversed", showgrid=False, ticks="", type="category")
    figure.update_xaxes(showgrid=False, ticks="", type="category")
    return figure


def matrices(graph: ModelGraph) -> go.Figure | None:
    """The accuracies on all tasks after each task, with a menu of branches; `None` without a stream of tasks."""
    found = found_streams(graph) if len(graph) else []
    if not found:
        return None
    figure = _heat_map(found, _cells, xgap=2, ygap=2, hoverinfo="text")
    size = max(len(stream.tasks) for stream in found)
    longest = max(len(name) for stream in found for name in stream.tasks)
    figure.update_xaxes(title_text="accuracy on", side="top", tickangle=-90 if size * longest > 60 else 0)
    figure.update_yaxes(title_text="after")
    return figure


def scores(graph: ModelGraph) -> go.Figure | None:
    """
    The accuracies on all tasks at every recorded point (the paper's Fig. 2E), with a menu of branches; `None` where
    the ends of the tasks are all that was recorded.
    """
    found = found_streams(graph) if len(graph) else []
    if not any(len(stream.points) > len(stream.nodes) for stream in found):
        return None
    steps = steps_from_root(graph)

    def cells(stream: Stream) -> dict[str, Any]:
        return {
            "z": [[number(node.metrics.get(f"{task}/accuracy")) for node in stream.points] for task in stream.tasks],
            "x": [f"{steps[node.id]:,}" for node in stream.points],
            "y": [shown(task, LABEL_LENGTH) for task in stream.tasks],
            "customdata": [[node.id for node in stream.points] for _ in stream.tasks],
        }

    hover = "<b>%{y}</b> after %{x} steps: %{z:.1%}<extra></extra>"
    figure = _heat_map(found, cells, ygap=2, hovertemplate=hover)
    figure.update_xaxes(title_text="optimizer steps from the root", tickangle=0)
    return figure


def streams(graph: ModelGraph) -> Section | None:
    """The accuracy matrices of the branches, and a table of what each says."""
    figure = matrices(graph)
    if figure is None:
        return None
    drawn, found = branches(graph), found_streams(graph)
    summaries = {stream.branch: stream_summary(graph, stream.branch) for stream in found}
    measured = {name for summary in summaries.values() for name in summary}
    shares = {name: title for name, title in SHARES.items() if name in measured}
    costs = {name: title for name, title in COSTS.items() if name in measured}
    before = "forward_transfer" in measured
    rows, ids = [], []
    for stream in found:
        node, summary = stream.nodes[-1], summaries[stream.branch]
        moved = summary.get("functional_distance")
        rows.append(
            [
                Cell(stream.branch, color=drawn[stream.branch].color),
                Cell(str(node.protocol.get("scenario") or "–")),
                *(Cell(percent(summary.get(name)), summary.get(name), numeric=True) for name in shares),
                Cell(distance_text(node, moved), moved, numeric=True),
                *(Cell(plain(summary.get(name)), summary.get(name), numeric=True) for name in costs),
            ]
        )
        ids.append(node.id)
    columns = ["branch", "scenario", *shares.values(), "functional distance", *costs.values()]
    text = "The accuracy on every task after each task learned: what turns dark down a column was forgotten."
    notes = [
        "Backward transfer: the mean over the earlier tasks of the last accuracy less that just after the task was "
        "learned (Lopez-Paz and Ranzato, 2017). Forgetting: of the best accuracy on the way less the last (Chaudhry "
        "et al., 2018). Functional distance: the mean over the earlier tasks of that on their anchors.",
        *(["Forward transfer: the mean accuracy on a task just before it is learned, less chance."] if before else []),
        "Task-incremental: the task of an input is known at test time; class- and domain-incremental: it is not. "
        "Figures of different scenarios do not compare.",
    ]
    return Section("streams", "Streams of tasks", text, figure, Table(columns, rows, ids, sortable=True), notes)


def along_the_path(graph: ModelGraph) -> Section | None:
    """The accuracies on every task at every recorded point."""
    figure = scores(graph)
    if figure is None:
        return None
    text = "The accuracy on every task at every recorded point, from the left to the right."
    return Section("stream-scores", "Classification scores along the path", text, figure)


SECTIONS = [streams, along_the_path]
FIGURES = {"streams": matrices, "stream_scores": scores}
